#include "cluster_attention.h"

#include "checks.h"
#include "cluster_readers.h"
#include "library.h"
#include "relative.h"

namespace aff_seg {

void check_cluster_attention(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& pos,
    const at::Tensor& clusters, int64_t m, const at::Tensor& pos_weight,
    const at::Tensor& pos_bias, const at::Tensor& blank_k, const at::Tensor& blank_v,
    const std::optional<at::Tensor>& start, const std::optional<at::Tensor>& place) {
  check_features(q, "q");
  check_like(k, q, "k");
  check_like(v, q, "v");
  check_widened(pos, q, "pos");
  check_index(clusters, q, "clusters");
  check_widened(pos_weight, q, "pos_weight");
  check_widened(pos_bias, q, "pos_bias");
  check_widened(blank_k, q, "blank_k");
  check_widened(blank_v, q, "blank_v");
  check_shape(q, "q", "B N heads D", {-1, -1, -1, -1});
  const int64_t batch = q.size(0), tokens = q.size(1), heads = q.size(2), dim = q.size(3);
  check_shape(k, "k", "B N heads D", q.sizes());
  check_shape(v, "v", "B N heads D", q.sizes());
  check_shape(pos, "pos", "B N 2", {batch, tokens, 2});
  check_shape(clusters, "clusters", "B N R", {batch, tokens, -1});
  check_shape(pos_weight, "pos_weight", "heads 5", {heads, kRelative});
  check_shape(pos_bias, "pos_bias", "heads", {heads});
  check_shape(blank_k, "blank_k", "heads*D", {heads * dim});
  check_shape(blank_v, "blank_v", "heads*D", {heads * dim});
  TORCH_CHECK_VALUE(m >= 1, "m must be at least 1, got ", m);
  check_count(batch * tokens, "tokens of a batch");
  check_count(tokens * clusters.size(2), "clusters of an image");
  TORCH_CHECK_VALUE(
      start.has_value() == place.has_value(), "start and place must come together or not at all");
  if (start.has_value()) {
    check_readers(*start, *place, clusters, tokens > 0 ? (tokens - 1) / m + 1 : 0);
  }
}

void check_cluster_attention_backward(
    const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& pos, const at::Tensor& clusters, int64_t m, const at::Tensor& pos_weight,
    const at::Tensor& pos_bias, const at::Tensor& blank_k, const at::Tensor& blank_v,
    const at::Tensor& out, const at::Tensor& lse, const at::Tensor& start,
    const at::Tensor& place) {
  check_cluster_attention(
      q, k, v, pos, clusters, m, pos_weight, pos_bias, blank_k, blank_v, start, place);
  check_like(grad, q, "grad");
  check_like(out, q, "out");
  check_widened(lse, q, "lse");
  check_shape(grad, "grad", "B N heads D", q.sizes());
  check_shape(out, "out", "B N heads D", q.sizes());
  check_shape(lse, "lse", "B N heads", q.sizes().slice(0, 3));
}

}  // namespace aff_seg

AFF_SEG_LIBRARY(m) {
  m.def(
      "cluster_attention(Tensor q, Tensor k, Tensor v, Tensor pos, Tensor clusters, int m, "
      "Tensor pos_weight, Tensor pos_bias, Tensor blank_k, Tensor blank_v, "
      "Tensor? start, Tensor? place) -> (Tensor, Tensor)");
  m.def(
      "cluster_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor pos, "
      "Tensor clusters, int m, Tensor pos_weight, Tensor pos_bias, Tensor blank_k, "
      "Tensor blank_v, Tensor out, Tensor lse, Tensor start, Tensor place) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
