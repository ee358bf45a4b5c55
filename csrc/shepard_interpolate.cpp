#include "shepard_interpolate.h"

#include "checks.h"
#include "library.h"

namespace aff_seg {

void check_shepard_interpolate(
    const at::Tensor& feat, const at::Tensor& pos, const at::Tensor& query,
    const at::Tensor& index, const at::Tensor& power) {
  check_features(feat, "feat");
  check_widened(pos, feat, "pos");
  check_widened(query, feat, "query");
  check_index(index, feat, "index");
  check_number(power, feat, "power");
  check_shape(feat, "feat", "B N C", {-1, -1, -1});
  const int64_t batch = feat.size(0), tokens = feat.size(1);
  check_shape(pos, "pos", "B N 2", {batch, tokens, 2});
  check_shape(query, "query", "B Q 2", {batch, -1, 2});
  check_shape(index, "index", "B Q K", {batch, query.size(1), -1});
  check_count(index.size(1) * index.size(2), "indices of an image");
}

void check_shepard_interpolate_backward(
    const at::Tensor& grad, const at::Tensor& feat, const at::Tensor& pos,
    const at::Tensor& query, const at::Tensor& index, const at::Tensor& power) {
  check_shepard_interpolate(feat, pos, query, index, power);
  check_like(grad, feat, "grad");
  check_shape(grad, "grad", "B Q C", {feat.size(0), query.size(1), feat.size(2)});
}

}  // namespace aff_seg

AFF_SEG_LIBRARY(m) {
  m.def(
      "shepard_interpolate(Tensor feat, Tensor pos, Tensor query, Tensor index, Tensor power) "
      "-> Tensor");
  m.def(
      "shepard_interpolate_backward(Tensor grad, Tensor feat, Tensor pos, Tensor query, "
      "Tensor index, Tensor power) -> (Tensor, Tensor)");
}
