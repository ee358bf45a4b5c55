#include "deformable_points.h"

#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(aff_seg, m) {
  m.def(
      "deformable_points(Tensor value, Tensor pos, Tensor table, Tensor location, "
      "Tensor weight, Tensor power) -> Tensor");
  m.def(
      "deformable_points_backward(Tensor grad, Tensor value, Tensor pos, Tensor table, "
      "Tensor location, Tensor weight, Tensor power) -> (Tensor, Tensor, Tensor, Tensor)");
}
