// Sums of neighbours' features, weighted by a small network on their relative position.
//
//   out[b, q, i] = sum_j w_ji feat[b, j],
//   w_j = GELU(LayerNorm(weight relative(sign (pos[b, j] - pos[b, centre[b, q]])) + bias)) score_j
//
// over the neighbourhood (clusters, m) of q: member t of cluster c is token c * m + t, absent
// when that is N or more. relative() is in relative.h; GELU is the exact one.
//
//   feat      (B, N, C) float, double, half or bfloat16; sums are taken in float (double for
//             double), the type that all other floating tensors come in
//   score     (B, N), or none for 1
//   pos       (B, N, 2), (x, y)
//   centre    (B, Q) int32 in [0, N)
//   clusters  (B, Q, R) int32 in [0, ceil(N / m))
//   weight    (I, 5); bias, norm_weight, norm_bias (I)
//   sign      1 for neighbour minus centre, -1 for centre minus neighbour
//   out       (B, Q, I, C)
//
// The gradient reaches feat, score and the four parameters; the network is computed again for
// it. Nothing of size Q x neighbours x C is stored, and nothing of size Q x neighbours in the
// forward pass. Sums are taken in an order that does not depend on the threads.

#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace aff_seg {

// Everything but the range of indices, here and in the following.
void check_point_conv(
    const at::Tensor& feat, const std::optional<at::Tensor>& score, const at::Tensor& pos,
    const at::Tensor& centre, const at::Tensor& clusters, int64_t m, const at::Tensor& weight,
    const at::Tensor& bias, const at::Tensor& norm_weight, const at::Tensor& norm_bias,
    double norm_eps, int64_t sign);

void check_point_conv_backward(
    const at::Tensor& grad, const at::Tensor& feat, const std::optional<at::Tensor>& score,
    const at::Tensor& pos, const at::Tensor& centre, const at::Tensor& clusters, int64_t m,
    const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& norm_weight,
    const at::Tensor& norm_bias, double norm_eps, int64_t sign);

at::Tensor point_conv(
    const at::Tensor& feat, const std::optional<at::Tensor>& score, const at::Tensor& pos,
    const at::Tensor& centre, const at::Tensor& clusters, int64_t m, const at::Tensor& weight,
    const at::Tensor& bias, const at::Tensor& norm_weight, const at::Tensor& norm_bias,
    double norm_eps, int64_t sign);

// Gradients of feat, score (empty where there is none), weight, bias, norm_weight, norm_bias.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
point_conv_backward(
    const at::Tensor& grad, const at::Tensor& feat, const std::optional<at::Tensor>& score,
    const at::Tensor& pos, const at::Tensor& centre, const at::Tensor& clusters, int64_t m,
    const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& norm_weight,
    const at::Tensor& norm_bias, double norm_eps, int64_t sign);

}  // namespace aff_seg
