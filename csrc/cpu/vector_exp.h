// Vectors of the width of the instruction set, and the exponential of all their lanes at once.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>

namespace aff_seg {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
using Vec = typename VectorOf<A>::type;

template <typename A>
constexpr int kLanes = kVectorBytes / sizeof(A);

template <typename A>
inline Vec<A> load(const A* from) {
  Vec<A> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <typename A>
inline void store(A* to, Vec<A> v) {
  std::memcpy(to, &v, sizeof(v));
}

// Room for `count` elements, aligned to vectors, not initialised.
template <typename A>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : start_(static_cast<A*>(::operator new(count * sizeof(A), kAlign))) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    ::operator delete(start_, kAlign);
  }
  operator A*() const {
    return start_;
  }

 private:
  static constexpr std::align_val_t kAlign{kVectorBytes};
  A* start_;
};

// Sum of the lanes, in a fixed order.
template <typename A>
inline A lane_sum(Vec<A> v) {
  A x[kLanes<A>];
  store<A>(x, v);
#pragma GCC unroll 4
  for (int half = kLanes<A> / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) {
      x[l] += x[l + half];
    }
  }
  return x[0];
}

template <typename A>
inline A lane_max(Vec<A> v) {
  A x[kLanes<A>];
  store<A>(x, v);
#pragma GCC unroll 4
  for (int half = kLanes<A> / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) {
      x[l] = x[l] > x[l + half] ? x[l] : x[l + half];
    }
  }
  return x[0];
}

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
