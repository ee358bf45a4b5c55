// Elementary functions as plain arithmetic on floats, so that loops over them vectorise; for
// doubles, which serve checks alone, the library's. nan stays nan, but for a density at nan.

#pragma once

#include <c10/util/bit_cast.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace aff_seg {

// 1.5 * 2^52: adding it to a small number and subtracting it again rounds that to a whole one,
// which the low bits of the sum hold.
constexpr double kRoundDouble = 6755399441055744.0;

// log(x) for a positive normal x, to 1e-10: 2 atanh((m - 1) / (m + 1)) for the mantissa m in
// [sqrt(1/2), sqrt(2)).
inline double wide_log(double x) {
  const uint64_t bits = c10::bit_cast<uint64_t>(x);
  const uint64_t biased = (bits - 0x3fe6a09e667f3bcd + (uint64_t(1023) << 52)) >> 52;
  const double m = c10::bit_cast<double>(bits - ((biased - 1023) << 52));
  // biased + 2^52 as a double, from its bits.
  const double exponent = c10::bit_cast<double>(biased | 0x4330000000000000) - 4503599627371519.0;
  const double t = (m - 1) / (m + 1), z = t * t;
  double p = 2.0 / 13;
  p = p * z + 2.0 / 11;
  p = p * z + 2.0 / 9;
  p = p * z + 2.0 / 7;
  p = p * z + 2.0 / 5;
  p = p * z + 2.0 / 3;
  p = p * z + 2.0;
  return p * t + exponent * 0.69314718055994531;
}

// exp(x) to 1e-11, held between about 1e-308 and 1e308: the exponent is held rather than x, which
// would take branches.
inline double wide_exp(double x) {
  const double shifted = x * 1.4426950408889634 + kRoundDouble;
  const double n = shifted - kRoundDouble;
  const double r = x - n * 0.69314718055994531;
  double p = 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1;
  p = p * r + 1;
  const uint64_t k = c10::bit_cast<uint64_t>(shifted) - c10::bit_cast<uint64_t>(kRoundDouble);
  const int64_t held = std::clamp<int64_t>(static_cast<int64_t>(k), -1022, 1023);
  return p * c10::bit_cast<double>((held + 1023) << 52);
}

inline double log_of_positive(double x) {
  return std::log(std::min(x, std::numeric_limits<double>::max()));
}

inline float log_of_positive(float x) {
  return static_cast<float>(wide_log(static_cast<double>(x)));
}

inline double power_of_positive(double base, double exponent) { return std::pow(base, exponent); }

// To 1e-7: exponent * log(base) is held in double, where its error stays small however large it
// is.
inline float power_of_positive(float base, float exponent) {
  return static_cast<float>(wide_exp(exponent * wide_log(static_cast<double>(base))));
}

// base, or 1 where it is not positive. Functions of it are loops of their own: within one, the
// compiler would turn the choice into a branch around them.
template <typename A>
void positive_or_one(const A* base, int64_t count, A* out) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    out[i] = base[i] > 0 ? base[i] : A(1);
  }
}

// Powers of `count` squared distances, held at the largest finite number; 0 stays 0 whatever the
// exponent, and nan stays nan.
template <typename A>
void raise(const A* base, int64_t count, A exponent, A* powered) {
  if (exponent == 2) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      powered[i] = base[i] * base[i];
    }
  } else if (exponent == 3) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      powered[i] = base[i] * base[i] * base[i];
    }
  } else {
    if constexpr (std::is_same_v<A, float>) {
      // Beyond, powers of all bases but 1 are out of range, and the argument of exp is, too.
      exponent = std::clamp(exponent, -1e13f, 1e13f);
    }
    positive_or_one(base, count, powered);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      powered[i] = power_of_positive(powered[i], exponent);
    }
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      powered[i] = base[i] > 0 ? powered[i] : base[i];
    }
  }
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    powered[i] = std::min(powered[i], std::numeric_limits<A>::max());
  }
}

// Their logarithms, held likewise; 0 for 0.
template <typename A>
void take_logs(const A* base, int64_t count, A* out) {
  positive_or_one(base, count, out);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    out[i] = log_of_positive(out[i]);
  }
}

}  // namespace aff_seg
