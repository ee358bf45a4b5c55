#include "shepard_interpolate.h"

#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(aff_seg, m) {
  m.def(
      "shepard_interpolate(Tensor feat, Tensor pos, Tensor query, Tensor index, Tensor power) "
      "-> Tensor");
  m.def(
      "shepard_interpolate_backward(Tensor grad, Tensor feat, Tensor pos, Tensor query, "
      "Tensor index, Tensor power) -> (Tensor, Tensor)");
}
