// Inverse-distance interpolation of scattered tokens at query positions.
//
//   out[b, q] = sum_k w_k feat[b, index[b, q, k]] / sum_k w_k,
//   w_k = 1 / (|query[b, q] - pos[b, index[b, q, k]]|^(2 power) + 1e-11)
//
//   feat   (B, N, C) float, double, half or bfloat16; sums are taken in float (double for double)
//   pos    (B, N, 2) and query (B, Q, 2), (x, y), float or double
//   index  (B, Q, K) int32 in [0, N)
//   power  (1) of the dtype of pos
//
// The gradient reaches feat and power; at distance 0 the one of power is 0. Nothing of size
// Q x K x C is stored. Sums are taken in an order that does not depend on the threads.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/macros/Macros.h>

#include <cmath>
#include <limits>
#include <tuple>

namespace aff_seg {

// Weight before normalisation, from a squared distance raised to the power (finite). Its
// logarithm falls by powered * weight, which is 0 to 1, per rise of log(powered).
template <typename T>
C10_HOST_DEVICE inline T shepard_weight(T powered) {
  return 1 / (powered + T(1e-11));
}

// Everything but the range of index, here and in the following.
void check_shepard_interpolate(
    const at::Tensor& feat, const at::Tensor& pos, const at::Tensor& query,
    const at::Tensor& index, const at::Tensor& power);

void check_shepard_interpolate_backward(
    const at::Tensor& grad, const at::Tensor& feat, const at::Tensor& pos,
    const at::Tensor& query, const at::Tensor& index, const at::Tensor& power);

// A squared distance raised to the power, held at the largest finite number; 0 stays 0 whatever
// the exponent, and nan stays nan.
template <typename T>
C10_HOST_DEVICE inline T raised(T distance, T power) {
  if (!(distance > 0)) {
    return distance;
  }
  const T result = power == 2   ? distance * distance
                   : power == 3 ? distance * distance * distance
                                : std::pow(distance, power);
  const T largest = std::numeric_limits<T>::max();
  return result > largest ? largest : result;
}

// The logarithm of a squared distance, held likewise; 0 for 0 and nan.
template <typename T>
C10_HOST_DEVICE inline T log_distance(T distance) {
  const T largest = std::numeric_limits<T>::max();
  return distance > 0 ? std::log(distance > largest ? largest : distance) : T(0);
}

at::Tensor shepard_interpolate(
    const at::Tensor& feat, const at::Tensor& pos, const at::Tensor& query,
    const at::Tensor& index, const at::Tensor& power);

std::tuple<at::Tensor, at::Tensor> shepard_interpolate_backward(
    const at::Tensor& grad, const at::Tensor& feat, const at::Tensor& pos,
    const at::Tensor& query, const at::Tensor& index, const at::Tensor& power);

}  // namespace aff_seg
