#include "point_conv.h"

#include "checks.h"
#include "library.h"
#include "relative.h"

namespace aff_seg {

void check_point_conv(
    const at::Tensor& feat, const std::optional<at::Tensor>& score, const at::Tensor& pos,
    const at::Tensor& centre, const at::Tensor& clusters, int64_t m, const at::Tensor& weight,
    const at::Tensor& bias, const at::Tensor& norm_weight, const at::Tensor& norm_bias,
    double norm_eps, int64_t sign) {
  check_features(feat, "feat");
  if (score) {
    check_widened(*score, feat, "score");
  }
  check_widened(pos, feat, "pos");
  check_index(centre, feat, "centre");
  check_index(clusters, feat, "clusters");
  check_widened(weight, feat, "weight");
  check_widened(bias, feat, "bias");
  check_widened(norm_weight, feat, "norm_weight");
  check_widened(norm_bias, feat, "norm_bias");
  check_shape(feat, "feat", "B N C", {-1, -1, -1});
  const int64_t batch = feat.size(0), tokens = feat.size(1);
  if (score) {
    check_shape(*score, "score", "B N", {batch, tokens});
  }
  check_shape(pos, "pos", "B N 2", {batch, tokens, 2});
  check_shape(centre, "centre", "B Q", {batch, -1});
  const int64_t queries = centre.size(1);
  check_shape(clusters, "clusters", "B Q R", {batch, queries, -1});
  check_shape(weight, "weight", "I 5", {-1, kRelative});
  const int64_t inner = weight.size(0);
  check_shape(bias, "bias", "I", {inner});
  check_shape(norm_weight, "norm_weight", "I", {inner});
  check_shape(norm_bias, "norm_bias", "I", {inner});
  TORCH_CHECK_VALUE(m >= 1, "m must be at least 1, got ", m);
  TORCH_CHECK_VALUE(norm_eps >= 0, "norm_eps must be at least 0, got ", norm_eps);
  TORCH_CHECK_VALUE(sign == 1 || sign == -1, "sign must be 1 or -1, got ", sign);
  TORCH_CHECK_VALUE(
      centre.numel() == 0 || feat.size(1) > 0, "feat must have tokens, got ", feat.sizes());
  check_count(queries * clusters.size(2), "clusters of an image");
}

void check_point_conv_backward(
    const at::Tensor& grad, const at::Tensor& feat, const std::optional<at::Tensor>& score,
    const at::Tensor& pos, const at::Tensor& centre, const at::Tensor& clusters, int64_t m,
    const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& norm_weight,
    const at::Tensor& norm_bias, double norm_eps, int64_t sign) {
  check_point_conv(
      feat, score, pos, centre, clusters, m, weight, bias, norm_weight, norm_bias, norm_eps,
      sign);
  check_like(grad, feat, "grad");
  check_shape(
      grad, "grad", "B Q I C", {feat.size(0), centre.size(1), weight.size(0), feat.size(2)});
}

}  // namespace aff_seg

AFF_SEG_LIBRARY(m) {
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
