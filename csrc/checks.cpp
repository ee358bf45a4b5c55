#include "checks.h"

#include <ATen/ops/aminmax.h>

namespace aff_seg {

void check_range(const at::Tensor& index, int64_t low, int64_t high, const char* name) {
  if (index.numel() == 0) {
    return;
  }
  auto [smallest, largest] = at::aminmax(index);
  const int64_t first = smallest.item<int64_t>(), last = largest.item<int64_t>();
  TORCH_CHECK_INDEX(
      first >= low && last <= high, name, " must lie in ", low, " to ", high, ", got ", first,
      " to ", last);
}

}  // namespace aff_seg
