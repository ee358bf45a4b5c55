#include "../cluster_readers.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "../checks.h"
#include "../inverse.h"

namespace aff_seg {

std::tuple<at::Tensor, at::Tensor> cluster_readers(const at::Tensor& clusters, int64_t count) {
  check_cluster_readers(clusters, count);
  check_range(clusters, 0, count - 1, "clusters");
  const int64_t batch = clusters.size(0), places = clusters.size(1) * clusters.size(2);
  auto start = at::empty({batch * count + 1}, clusters.options().dtype(at::kLong));
  auto place = at::empty({batch * places}, clusters.options());
  const auto lists = clusters.contiguous();
  int64_t* first = start.mutable_data_ptr<int64_t>();
  int32_t* to = place.mutable_data_ptr<int32_t>();
  first[0] = 0;
  for (int64_t image = 0; image < batch; ++image) {
    const InverseLists of_image =
        invert(lists.const_data_ptr<int32_t>() + image * places, places, count);
    for (int64_t c = 1; c <= count; ++c) {
      first[image * count + c] = image * places + of_image.start[c];
    }
    std::copy(of_image.place.begin(), of_image.place.end(), to + image * places);
  }
  return {start, place};
}

TORCH_LIBRARY_IMPL(aff_seg, CPU, m) { m.impl("cluster_readers", cluster_readers); }

}  // namespace aff_seg
