// Rows of features as the lanes of a warp read them: each lane takes `V` channels at a time.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/clone.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace aff_seg {

template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T value[V];
};

template <int V, typename T>
__device__ __forceinline__ Pack<T, V> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, V>*>(from);
}

// The V channels from `row`, or zeros, unread. Sixteen bytes pass as words: of narrower zeros each
// would take an instruction.
template <int V, typename T>
__device__ __forceinline__ Pack<T, V> load_pack_if(bool read, const T* row) {
  if constexpr (sizeof(Pack<T, V>) == 16) {
    Pack<uint32_t, 4> words{};
    if (read) {
      words = *reinterpret_cast<const Pack<uint32_t, 4>*>(row);
    }
    Pack<T, V> pack;
    std::memcpy(&pack, &words, sizeof(pack));
    return pack;
  } else {
    return read ? load_pack<V>(row) : Pack<T, V>{};
  }
}

// Row number `row` of rows that are so many bytes apart; for a negative one, nowhere. Multiplied as
// 32-bit numbers it takes one instruction, but the compiler widens the factors first.
template <typename T>
__device__ __forceinline__ const T* row_at(const T* rows, int row, uint32_t bytes) {
#if defined(__CUDA_ARCH__)
  uint64_t offset;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(offset) : "r"(row), "r"(bytes));
#else
  const uint64_t offset = static_cast<uint64_t>(static_cast<uint32_t>(row)) * bytes;
#endif
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(rows) + offset);
}

// The sum over V channels of the products of two rows.
template <int V, typename A, typename T>
__device__ __forceinline__ A dot_part(const T* x, const T* y) {
  const Pack<T, V> a = *reinterpret_cast<const Pack<T, V>*>(x);
  const Pack<T, V> b = *reinterpret_cast<const Pack<T, V>*>(y);
  A sum = 0;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    sum += static_cast<A>(a.value[v]) * static_cast<A>(b.value[v]);
  }
  return sum;
}

template <int V, typename T, typename A>
__device__ __forceinline__ void store_row(const A* sum, T* row) {
  Pack<T, V> pack;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    pack.value[v] = static_cast<T>(sum[v]);
  }
  *reinterpret_cast<Pack<T, V>*>(row) = pack;
}

// The tensor, contiguous, where packs of so many bytes can be read.
inline at::Tensor aligned(const at::Tensor& tensor, size_t bytes) {
  const at::Tensor dense = tensor.contiguous();
  const bool fits = reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % bytes == 0;
  return fits ? dense : dense.clone();
}

// Calls body(V) with the channels a lane takes at a time as a constant: 16 bytes where rows of
// these tensors begin at multiples of that, else one channel.
template <typename T, typename F>
void with_pack(int64_t channels, std::initializer_list<at::Tensor> tensors, const F& body) {
  constexpr int kPack = 16 / sizeof(T);
  bool aligned = channels % kPack == 0;
  for (const at::Tensor& tensor : tensors) {
    aligned = aligned && reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  }
  if (aligned) {
    body(std::integral_constant<int, kPack>());
  } else {
    body(std::integral_constant<int, 1>());
  }
}

}  // namespace aff_seg
