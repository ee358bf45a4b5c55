#include "point_conv.h"

#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(aff_seg, m) {
  m.def(
      "point_conv(Tensor feat, Tensor? score, Tensor pos, Tensor centre, Tensor clusters, int m, "
      "Tensor weight, Tensor bias, Tensor norm_weight, Tensor norm_bias, float norm_eps, "
      "int sign) -> Tensor");
  m.def(
      "point_conv_backward(Tensor grad, Tensor feat, Tensor? score, Tensor pos, Tensor centre, "
      "Tensor clusters, int m, Tensor weight, Tensor bias, Tensor norm_weight, "
      "Tensor norm_bias, float norm_eps, int sign) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
