// The small network of point_conv at one place, a place being one member slot of a neighbourhood.
// Plain arithmetic without branches, so that loops over places vectorise.

#pragma once

#include <c10/macros/Macros.h>

#include <cmath>
#include <cstdint>

#include "bits.h"
#include "relative.h"

namespace aff_seg {

// exp(-x) for x >= 0, to 2e-7, held at exp(-87). Bits of such x compare as x does, without the
// branch that a comparison of floats may become.
C10_HOST_DEVICE inline float exp_of_minus(float x) {
  const uint32_t bits = same_bits<uint32_t>(x), limit = same_bits<uint32_t>(87.0f);
  x = -same_bits<float>(bits < limit ? bits : limit);
  // Adding 1.5 * 2^23 and subtracting it again rounds to a whole number, which the low bits of
  // the sum hold.
  const float shifted = x * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // log 2 in two parts
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * same_bits<float>((same_bits<uint32_t>(shifted) << 23) + 0x3f800000);
}

// Standard normal distribution: the probability below x, and the density at x.
template <typename A>
struct Normal {
  A below, density;
};

C10_HOST_DEVICE inline Normal<double> normal(double x) {
  return {0.5 * (1 + std::erf(x * 0.70710678118654752)),
          0.39894228040143268 * std::exp(-0.5 * x * x)};
}

// Absolute error 1e-7. The tail beyond |x| is exp(-x^2 / 2) / 2 times a polynomial in
// u = 1 / (1 + c |x|), fitted for the smallest largest error of the product (4e-9 before
// rounding).
C10_HOST_DEVICE inline Normal<float> normal(float x) {
  const float e = exp_of_minus(0.5f * x * x);
  const float u = 1.0f / (1.0f + 0.27608606f * std::fabs(x));
  float p = -0.22657497f;
  p = p * u + 0.8793638f;
  p = p * u - 0.62423026f;
  p = p * u + 0.6418404f;
  p = p * u + 0.09441232f;
  p = p * u + 0.2351887f;
  const float tail = 0.5f * e * (p * u);
  return {0.5f + std::copysign(0.5f - tail, x), 0.39894228f * e};
}

// GELU and its derivative.
template <typename A>
struct Gelu {
  A value, slope;
};

template <typename A>
C10_HOST_DEVICE inline Gelu<A> gelu(A y) {
  const Normal<A> at = normal(y);
  return {y * at.below, at.below + y * at.density};
}

// What one of the network's units learns; aligned for wide reads.
template <typename A>
struct alignas(16) NetworkUnit {
  A weight[kRelative], bias;  // of the linear layer
  A gain, shift;              // of LayerNorm

  C10_HOST_DEVICE A linear(const Relative<A>& x) const {
    return weight[0] * x.dx + weight[1] * x.dy + weight[2] * x.r + weight[3] * x.sine +
        weight[4] * x.cosine + bias;
  }

  C10_HOST_DEVICE A activated(A normed) const { return gain * normed + shift; }
};

// LayerNorm's factor, from the variance over the units.
template <typename A>
C10_HOST_DEVICE inline A norm_scale(A variance, A eps) {
  return A(1) / std::sqrt(variance + eps);
}

// The gradient before LayerNorm from that of its normed values, whose mean over the units is
// `mean`, and `mean_along` that of its products with them.
template <typename A>
C10_HOST_DEVICE inline A before_norm(A grad, A mean, A normed, A mean_along, A scale) {
  return (grad - mean - normed * mean_along) * scale;
}

}  // namespace aff_seg
