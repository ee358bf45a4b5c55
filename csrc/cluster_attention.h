// Multi-head attention of every token over its nearest clusters and one blank token.
//
//   logit[i, j] = (q_i . k_j) / sqrt(D) + pos_weight relative(pos_j - pos_i) + pos_bias
//   logit[i, blank] = (q_i . blank_k) / sqrt(D)
//   out_i = sum_j p_ij v_j + p_i,blank blank_v,  p_i = softmax of logit_i over the j and blank
//
//   q, k, v     (B, N, heads, D) float, double, half or bfloat16; sums are taken in float (double
//               for double), called the opmath dtype
//   pos         (B, N, 2), (x, y); relative() is in relative.h
//   clusters    (B, N, R) int32 in [0, ceil(N / m)); one listed twice counts twice
//   m           tokens per cluster: cluster c is the tokens c m .. c m + m - 1 below N
//   pos_weight  (heads, 5), pos_bias (heads), blank_k and blank_v (heads D); these and pos are of
//               the opmath dtype
//
// Returns out, (B, N, heads, D) of the dtype of q, and lse, the logarithm of the softmax's
// denominator, (B, N, heads) of the opmath dtype, from which backward recomputes p. The gradient
// reaches everything but pos. Nothing of size N x neighbours is stored. Sums are taken in an order
// that does not depend on the threads, nor out_i on the other images.
//
// start and place are the readers of clusters, see cluster_readers.h. Forward leaves them, if
// given, to backward alone, for which they are made otherwise.

#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace aff_seg {

// Everything but the values of clusters, start and place, here and in the following.
void check_cluster_attention(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& pos,
    const at::Tensor& clusters, int64_t m, const at::Tensor& pos_weight,
    const at::Tensor& pos_bias, const at::Tensor& blank_k, const at::Tensor& blank_v,
    const std::optional<at::Tensor>& start, const std::optional<at::Tensor>& place);

void check_cluster_attention_backward(
    const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& pos, const at::Tensor& clusters, int64_t m, const at::Tensor& pos_weight,
    const at::Tensor& pos_bias, const at::Tensor& blank_k, const at::Tensor& blank_v,
    const at::Tensor& out, const at::Tensor& lse, const at::Tensor& start,
    const at::Tensor& place);

std::tuple<at::Tensor, at::Tensor> cluster_attention(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& pos,
    const at::Tensor& clusters, int64_t m, const at::Tensor& pos_weight,
    const at::Tensor& pos_bias, const at::Tensor& blank_k, const at::Tensor& blank_v,
    const std::optional<at::Tensor>& start, const std::optional<at::Tensor>& place);

// Gradients of q, k, v, pos_weight, pos_bias, blank_k and blank_v. A kernel that holds all
// probabilities of a query at once has no need of out.
std::tuple<
    at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
cluster_attention_backward(
    const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& pos, const at::Tensor& clusters, int64_t m, const at::Tensor& pos_weight,
    const at::Tensor& pos_bias, const at::Tensor& blank_k, const at::Tensor& blank_v,
    const at::Tensor& out, const at::Tensor& lse, const at::Tensor& start,
    const at::Tensor& place);

}  // namespace aff_seg
