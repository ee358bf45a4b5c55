#include "cluster_attention.h"

#include <ATen/OpMathType.h>
#include <torch/library.h>

#include "checks.h"
#include "relative.h"

namespace aff_seg {
namespace {

void check_shape(const at::Tensor& tensor, at::IntArrayRef want, const char* name) {
  TORCH_CHECK_VALUE(
      tensor.sizes() == want, name, " must have shape ", want, ", got ", tensor.sizes());
}

}  // namespace

void check_cluster_attention(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& pos,
    const at::Tensor& clusters, int64_t m, const at::Tensor& pos_weight,
    const at::Tensor& pos_bias, const at::Tensor& blank_k, const at::Tensor& blank_v) {
  TORCH_CHECK_VALUE(q.dim() == 4, "q must have shape (B, N, heads, D), got ", q.sizes());
  TORCH_CHECK_VALUE(m >= 1, "m must be at least 1, got ", m);
  check_float(q, "q");
  check_like(k, q, "k");
  check_like(v, q, "v");
  TORCH_CHECK_VALUE(
      pos.scalar_type() == at::toOpMathType(q.scalar_type()), "pos must be ",
      at::toOpMathType(q.scalar_type()), " beside ", q.scalar_type(), " q, got ",
      pos.scalar_type());
  check_like(pos_weight, pos, "pos_weight");
  check_like(pos_bias, pos, "pos_bias");
  check_like(blank_k, pos, "blank_k");
  check_like(blank_v, pos, "blank_v");
  check_index(clusters, "clusters");
  for (const auto* tensor : {&pos, &clusters}) {
    TORCH_CHECK_VALUE(
        tensor->device() == q.device(), tensor == &pos ? "pos" : "clusters", " must be on ",
        q.device(), ", got ", tensor->device());
  }
  const int64_t batch = q.size(0), tokens = q.size(1), heads = q.size(2), dim = q.size(3);
  check_shape(k, q.sizes(), "k");
  check_shape(v, q.sizes(), "v");
  check_shape(pos, {batch, tokens, 2}, "pos");
  TORCH_CHECK_VALUE(
      clusters.dim() == 3 && clusters.size(0) == batch && clusters.size(1) == tokens,
      "clusters must have shape (B, N, R), got ", clusters.sizes());
  check_shape(pos_weight, {heads, kRelative}, "pos_weight");
  check_shape(pos_bias, {heads}, "pos_bias");
  check_shape(blank_k, {heads * dim}, "blank_k");
  check_shape(blank_v, {heads * dim}, "blank_v");
  check_range(clusters, 0, (tokens - 1) / m, "clusters");
}

}  // namespace aff_seg

TORCH_LIBRARY_FRAGMENT(aff_seg, m) {
  m.def(
      "cluster_attention(Tensor q, Tensor k, Tensor v, Tensor pos, Tensor clusters, int m, "
      "Tensor pos_weight, Tensor pos_bias, Tensor blank_k, Tensor blank_v) -> (Tensor, Tensor)");
  m.def(
      "cluster_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor pos, "
      "Tensor clusters, int m, Tensor pos_weight, Tensor pos_bias, Tensor blank_k, "
      "Tensor blank_v, Tensor out, Tensor lse) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
