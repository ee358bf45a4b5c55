// The exponential of all lanes of a vector at once.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "vector.h"

namespace aff_seg {

// exp(x) to a relative error below 2e-7: 2^n (1 + r + r^2 P(r)) with x = n log 2 + r. Results
// below the smallest normal number are 0, those above exp(88.3) infinite; nan stays nan.
inline Vec<float> exp_lanes(Vec<float> x) {
  using Bits = Vec<uint32_t>;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Vec<float> shifted = x * 1.44269504f + kRound;
  const Vec<float> n = shifted - kRound;
  const Vec<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec<float> p = r * 1.38145402e-3f + 8.36874526e-3f;
  p = p * r + 4.16683908e-2f;
  p = p * r + 1.66665204e-1f;
  p = p * r + 4.99999934e-1f;
  p = p * (r * r) + r + 1.0f;
  Bits bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits << 23) + 0x3f800000u;
  Vec<float> power;
  std::memcpy(&power, &bits, sizeof(power));
  p *= power;
  p = x < -87.3f ? Vec<float>{} : p;
  return x > 88.3f ? Vec<float>{} + INFINITY : p;
}

inline Vec<double> exp_lanes(Vec<double> x) {
  for (int l = 0; l < kLanes<double>; ++l) {
    x[l] = std::exp(x[l]);
  }
  return x;
}

}  // namespace aff_seg
