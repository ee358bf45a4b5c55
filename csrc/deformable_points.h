// Multi-scale deformable attention whose values lie on scattered tokens.
//
//   out[b, q, h] = sum over levels l and points p of weight[b, q, h, l, p] v, where
//   v = sum_k n_k value[b, t_k, h] / sum_k n_k,
//   n_k = 1 / (|location[b, q, h, l, p] - pos[b, t_k]|^(2 power) + 1e-11),
//
// over the tokens t that table[b, l, y, x] lists for the canvas pixel (x, y) nearest to the
// location: rounded half to even, then clamped to the canvas (a nan goes to 0). Distances are
// those of the location as it is.
//
//   value     (B, N, heads, D) float, double, half or bfloat16, all levels one after the other;
//             sums are taken in float (double for double), the type that all other floating
//             tensors come in
//   pos       (B, N, 2), (x, y) in canvas pixels
//   table     (B, L, H, W, K) int32 in [-1, N), -1 for absent; a pixel lists at least one token
//   location  (B, Q, heads, L, P, 2), (x, y) in canvas pixels
//   weight    (B, Q, heads, L, P)
//   power     (1)
//   out       (B, Q, heads, D)
//
// The gradient reaches value, location, weight and power; through a distance of 0 it is 0.
// Nothing of size Q x L x P x K x D is stored. Sums are taken in an order that does not depend
// on the threads.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/macros/Macros.h>

#include <cmath>
#include <tuple>

namespace aff_seg {

// The row or column of the canvas, `size` of them, nearest to a coordinate.
template <typename T>
C10_HOST_DEVICE inline int64_t nearest_pixel(T coordinate, int64_t size) {
  const T rounded = std::nearbyint(coordinate);
  // Comparisons with nan are false. A size may be more than T counts exactly.
  if (!(rounded > 0)) {
    return 0;
  }
  const int64_t last = size - 1;
  const int64_t pixel = rounded < static_cast<T>(last) ? static_cast<int64_t>(rounded) : last;
  return pixel < last ? pixel : last;
}

// Everything but the range of table, here and in the following.
void check_deformable_points(
    const at::Tensor& value, const at::Tensor& pos, const at::Tensor& table,
    const at::Tensor& location, const at::Tensor& weight, const at::Tensor& power);

void check_deformable_points_backward(
    const at::Tensor& grad, const at::Tensor& value, const at::Tensor& pos,
    const at::Tensor& table, const at::Tensor& location, const at::Tensor& weight,
    const at::Tensor& power);

at::Tensor deformable_points(
    const at::Tensor& value, const at::Tensor& pos, const at::Tensor& table,
    const at::Tensor& location, const at::Tensor& weight, const at::Tensor& power);

// Gradients of value, location, weight, power.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> deformable_points_backward(
    const at::Tensor& grad, const at::Tensor& value, const at::Tensor& pos,
    const at::Tensor& table, const at::Tensor& location, const at::Tensor& weight,
    const at::Tensor& power);

}  // namespace aff_seg
