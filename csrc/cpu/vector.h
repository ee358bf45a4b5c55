// Vectors of the compiler's own kind (GCC and Clang map them to whatever the machine has), because
// its vectoriser does not keep several sums in registers.

#pragma once

#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

namespace aff_seg {

// The width of the instruction set.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename A, int Bytes>
struct VectorOf {
  typedef A type __attribute__((vector_size(Bytes)));
};
template <typename A, int Bytes = kVectorBytes>
using Vec = typename VectorOf<A, Bytes>::type;

template <typename A, int Bytes = kVectorBytes>
constexpr int kLanes = Bytes / sizeof(A);

template <typename A, int Bytes = kVectorBytes>
inline Vec<A, Bytes> load(const A* from) {
  Vec<A, Bytes> v;
  std::memcpy(&v, from, Bytes);
  return v;
}

template <typename A, int Bytes = kVectorBytes>
inline void store(A* to, Vec<A, Bytes> v) {
  std::memcpy(to, &v, Bytes);
}

template <typename A, int Bytes, int... lane>
inline Vec<A, Bytes / 2> sum_of_halves(Vec<A, Bytes> v, std::integer_sequence<int, lane...>) {
  const Vec<A, Bytes / 2> low = {v[lane]...}, high = {v[lane + kLanes<A, Bytes> / 2]...};
  return low + high;
}

// Sum of the lanes, in a fixed order.
template <typename A, int Bytes = kVectorBytes>
inline A lane_sum(Vec<A, Bytes> v) {
  if constexpr (Bytes > 16) {
    const auto half = std::make_integer_sequence<int, kLanes<A, Bytes> / 2>();
    return lane_sum<A, Bytes / 2>(sum_of_halves<A, Bytes>(v, half));
  } else {
    A sum = v[0];
    for (int l = 1; l < kLanes<A, Bytes>; ++l) {
      sum += v[l];
    }
    return sum;
  }
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

}  // namespace aff_seg
