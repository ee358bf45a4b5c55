// The k nearest points of each query, exactly.
//
//   query    (B, Q, 2), (x, y), float or double, finite
//   database (B, N, 2) of the dtype of query
//   k        1 to N
//
// Returns index (B, Q, k) int32 into the database, nearest first, ties to the lower index, and
// squared distance (B, Q, k) of the dtype of query, in the square of the positions' unit.
//
// The distance is fl(fl(dx * dx) + fl(dy * dy)), dx and dy rounded too: that is what is compared,
// so results do not depend on how the search goes. Each of these roundings is monotonic; hence the
// same formula applied to the gaps between a query and a box is at most that of any point inside,
// rounding included, and no search needs a margin.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/macros/Macros.h>

#include <cstdint>
#include <tuple>

#include "bits.h"

namespace aff_seg {

#if defined(__CUDA_ARCH__)
__device__ inline float rounded_product(float x, float y) { return __fmul_rn(x, y); }
__device__ inline double rounded_product(double x, double y) { return __dmul_rn(x, y); }
#else
// The product, rounded: it is out of the compiler's sight, which would otherwise merge it with the
// sum that follows into one instruction with one rounding.
template <typename T>
inline T rounded_product(T x, T y) {
#if defined(__x86_64__)
  T product = x * y;
  asm("" : "+x"(product));
#elif defined(__aarch64__)
  T product = x * y;
  asm("" : "+w"(product));
#else
  volatile T product = x * y;
#endif
  return product;
}
#endif

template <typename T>
C10_HOST_DEVICE inline T squared_distance(T dx, T dy) {
  return rounded_product(dx, dx) + rounded_product(dy, dy);
}

// A candidate as one integer: the bits of its distance, which order as non-negative floats do,
// then its index. The smaller integer is the nearer candidate, or the lower index.
template <typename T>
struct Candidate;

template <>
struct Candidate<float> {
  using Key = uint64_t;
  static constexpr int kShift = 32;
  using Bits = uint32_t;
};

template <>
struct Candidate<double> {
  using Key = unsigned __int128;
  static constexpr int kShift = 64;
  using Bits = uint64_t;
};

template <typename T>
using CandidateKey = typename Candidate<T>::Key;

template <typename T>
C10_HOST_DEVICE inline CandidateKey<T> candidate_key(T distance, int32_t index) {
  using C = Candidate<T>;
  const auto bits = same_bits<typename C::Bits>(distance);
  return static_cast<CandidateKey<T>>(bits) << C::kShift | static_cast<uint32_t>(index);
}

// Of a point at this offset.
template <typename T>
C10_HOST_DEVICE inline CandidateKey<T> candidate_at(T dx, T dy, int32_t index) {
  return candidate_key(squared_distance(dx, dy), index);
}

// No candidate: more than any key.
template <typename T>
constexpr CandidateKey<T> kNoCandidate = ~CandidateKey<T>(0);

template <typename T>
C10_HOST_DEVICE inline int32_t candidate_index(CandidateKey<T> key) {
  return static_cast<int32_t>(static_cast<uint32_t>(key));
}

template <typename T>
C10_HOST_DEVICE inline T candidate_distance(CandidateKey<T> key) {
  using C = Candidate<T>;
  return same_bits<T>(static_cast<typename C::Bits>(key >> C::kShift));
}

// Everything but that positions are finite.
void check_knn(const at::Tensor& query, const at::Tensor& database, int64_t k);

std::tuple<at::Tensor, at::Tensor> knn(
    const at::Tensor& query, const at::Tensor& database, int64_t k);

}  // namespace aff_seg
