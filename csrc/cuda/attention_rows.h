// Rows of tokens in shared memory, eight to a slot, as warps of attention read them: lane 4 g + t
// works on row g.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <limits>
#include <type_traits>

#include "instructions.h"
#include "rows.h"

namespace aff_seg {

constexpr int kSlotRows = 8;

// Channels are padded with zeros to whole chunks of 32. The same unit of 16 bytes of eight rows
// lies in different banks of shared memory: rows of four units exchange them, longer ones are
// followed by an empty one.
template <typename T, int kChunks>
struct SlotLayout {
  static constexpr int kChannels = 32 * kChunks;
  static constexpr int kPack = 16 / sizeof(T);  // channels of a unit
  static constexpr int kUnits = kChannels / kPack;
  static constexpr int kStride = kUnits == 4 ? 4 : kUnits + 1;
  static constexpr int kElements = kSlotRows * kStride * kPack;
  static constexpr int kBytes = kElements * sizeof(T);
  using Unit = Pack<T, kPack>;

  // The first element of unit u of row g.
  static __device__ __forceinline__ int at(int g, int u) {
    return (g * kStride + (kUnits == 4 ? u ^ g / 2 : u)) * kPack;
  }
  static __device__ __forceinline__ Unit load(const T* slot, int g, int u) {
    return *reinterpret_cast<const Unit*>(slot + at(g, u));
  }
  static __device__ __forceinline__ void store(const Unit& unit, T* slot, int g, int u) {
    *reinterpret_cast<Unit*>(slot + at(g, u)) = unit;
  }
};

// Tokens of (B, N, heads, D) in device memory, channels next to each other; strides in bytes.
template <typename T>
struct Tokens {
  T* data;
  int64_t by_image;
  int by_token, by_head;
  bool wide;  // units of 16 bytes can be read and written

  Tokens(T* data_, const at::Tensor& x)
      : data(data_), by_image(stride(x, 0)), by_token(static_cast<int>(stride(x, 1))),
        by_head(static_cast<int>(stride(x, 2))),
        wide(reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
             x.size(3) * x.element_size() % 16 == 0 && by_image % 16 == 0 && by_token % 16 == 0 &&
             by_head % 16 == 0) {}

  static int64_t stride(const at::Tensor& x, int64_t axis) {
    return x.size(axis) > 1 ? x.stride(axis) * x.element_size() : 0;
  }

  __device__ __forceinline__ T* row(int image, int token, int head) const {
    using Bytes = std::conditional_t<std::is_const_v<T>, const char, char>;
    return reinterpret_cast<T*>(
        reinterpret_cast<Bytes*>(data) + image * by_image + int64_t(head) * by_head +
        // One instruction, that of signed numbers being several.
        static_cast<uint64_t>(static_cast<unsigned>(token)) * static_cast<unsigned>(by_token));
  }
};

// To be read; with_near_channels must have been there before.
template <typename T>
Tokens<const T> tokens_of(const at::Tensor& x) {
  return {x.const_data_ptr<T>(), x};
}

// Itself, or copied so that Tokens can describe it.
inline at::Tensor with_near_channels(const at::Tensor& x) {
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  const auto describable = [](const at::Tensor& y) {
    return Tokens<char>::stride(y, 1) <= kMost && Tokens<char>::stride(y, 2) <= kMost;
  };
  const at::Tensor result = x.stride(3) == 1 && describable(x) ? x : x.contiguous();
  TORCH_CHECK_VALUE(describable(result), "too many channels: ", x.sizes());
  return result;
}

// Copies the channels of one token to row g of a slot, zeros where it does not exist. The four
// lanes of the row take every fourth unit; wait_for_copies must follow.
template <typename L, typename T>
__device__ __forceinline__ void stage_row(
    const T* from, bool exists, bool wide, int dim, int g, int t, T* slot) {
#pragma unroll
  for (int i = 0; i < L::kUnits / 4; ++i) {
    const int u = t + 4 * i, first = u * L::kPack;
    T* to = slot + L::at(g, u);
    if (wide) {
      copy_or_zero(to, from + first, exists && first < dim);
    } else {
      typename L::Unit unit;
#pragma unroll
      for (int e = 0; e < L::kPack; ++e) {
        unit.value[e] = exists && first + e < dim ? from[first + e] : T(0);
      }
      *reinterpret_cast<typename L::Unit*>(to) = unit;
    }
  }
}

// The way back of row g.
template <typename L, typename T>
__device__ __forceinline__ void write_row(
    const T* slot, bool wide, int dim, int g, int t, T* to) {
#pragma unroll
  for (int i = 0; i < L::kUnits / 4; ++i) {
    const int u = t + 4 * i;
    const typename L::Unit unit = L::load(slot, g, u);
    const int first = u * L::kPack;
    if (wide) {
      if (first < dim) {
        *reinterpret_cast<typename L::Unit*>(to + first) = unit;
      }
    } else {
#pragma unroll
      for (int e = 0; e < L::kPack; ++e) {
        if (first + e < dim) {
          to[first + e] = unit.value[e];
        }
      }
    }
  }
}

// The sum over channels of row g of a slot times a vector, padded like it, in all four lanes of
// the row.
template <typename L, typename T, typename A>
__device__ __forceinline__ A row_dot(const T* slot, const A* vector, int g, int t) {
  A sum = 0;
#pragma unroll
  for (int i = 0; i < L::kUnits / 4; ++i) {
    const int u = t + 4 * i;
    const typename L::Unit unit = L::load(slot, g, u);
    const auto other = *reinterpret_cast<const Pack<A, L::kPack>*>(vector + u * L::kPack);
#pragma unroll
    for (int e = 0; e < L::kPack; ++e) {
      sum += static_cast<A>(unit.value[e]) * other.value[e];
    }
  }
  sum += __shfl_xor_sync(kAllLanes, sum, 1);
  return sum + __shfl_xor_sync(kAllLanes, sum, 2);
}

// What the lanes of rows g hold, for columns 2 t and 2 t + 1.
template <typename A>
__device__ __forceinline__ void by_columns(A of_row, int t, A (&of_column)[2]) {
  of_column[0] = __shfl_sync(kAllLanes, of_row, 8 * t);
  of_column[1] = __shfl_sync(kAllLanes, of_row, 8 * t + 4);
}

// Sums and maxima over the rows g, for each t.
template <typename A>
__device__ __forceinline__ A sum_over_rows(A value) {
#pragma unroll
  for (int step = 4; step < kWarp; step *= 2) {
    value += __shfl_xor_sync(kAllLanes, value, step);
  }
  return value;
}
template <typename A>
__device__ __forceinline__ A max_over_rows(A value) {
#pragma unroll
  for (int step = 4; step < kWarp; step *= 2) {
    const A other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  return value;
}

}  // namespace aff_seg
