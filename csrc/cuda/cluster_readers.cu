#include "../cluster_readers.h"

#include "../library.h"
#include "device.h"
#include "reader_lists.h"

namespace aff_seg {
namespace {

// Clusters out of range are nobody's: the operators that read them assert that there are none.
std::tuple<at::Tensor, at::Tensor> cluster_readers_cuda(
    const at::Tensor& clusters, int64_t count) {
  check_cluster_readers(clusters, count);
  const DeviceGuard guard(clusters);
  const ReaderLists lists = reader_lists(clusters.flatten(1), count);
  return {lists.start, lists.place.to(at::kInt)};
}

}  // namespace

AFF_SEG_CUDA_IMPL(m) { m.impl("cluster_readers", cluster_readers_cuda); }

}  // namespace aff_seg
