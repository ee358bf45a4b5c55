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
#include <c10/util/bit_cast.h>

#include <cstdint>
#include <tuple>

namespace aff_seg {

// The square, rounded: it is out of the compiler's sight, which would otherwise merge it with the
// sum that follows into one instruction with one rounding.
template <typename T>
inline T rounded_square(T x) {
#if defined(__x86_64__)
  T square = x * x;
  asm("" : "+x"(square));
#elif defined(__aarch64__)
  T square = x * x;
  asm("" : "+w"(square));
#else
  volatile T square = x * x;
#endif
  return square;
}

template <typename T>
inline T squared_distance(T dx, T dy) {
  return rounded_square(dx) + rounded_square(dy);
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
inline CandidateKey<T> candidate_key(T distance, int32_t index) {
  using C = Candidate<T>;
  const auto bits = c10::bit_cast<typename C::Bits>(distance);
  return static_cast<CandidateKey<T>>(bits) << C::kShift | static_cast<uint32_t>(index);
}

template <typename T>
inline int32_t candidate_index(CandidateKey<T> key) {
  return static_cast<int32_t>(static_cast<uint32_t>(key));
}

template <typename T>
inline T candidate_distance(CandidateKey<T> key) {
  using C = Candidate<T>;
  return c10::bit_cast<T>(static_cast<typename C::Bits>(key >> C::kShift));
}

// Everything but that positions are finite.
void check_knn(const at::Tensor& query, const at::Tensor& database, int64_t k);

std::tuple<at::Tensor, at::Tensor> knn(
    const at::Tensor& query, const at::Tensor& database, int64_t k);

}  // namespace aff_seg
