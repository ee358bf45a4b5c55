// Instructions for which CUDA's C++ has no functions. Lane 4 g + t of a warp is called (g, t), as
// in the layouts of PTX; tests/emulation/emulated_cuda.h has a twin of each.

#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "device.h"

#if !defined(AFF_SEG_EMULATED)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace aff_seg {

// The same number, of which the compiler does not know where it comes from: what is computed from
// it within a loop stays there, instead of taking registers all along.
__device__ __forceinline__ int opaque(int x) {
#if !defined(AFF_SEG_EMULATED)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

#if defined(AFF_SEG_EMULATED)

using emulated::copy_async;
using emulated::copy_or_zero;
using emulated::fast_exp2;
using emulated::fast_rsqrt;
using emulated::load_matrices;
using emulated::load_transposed;
using emulated::multiply_add;
using emulated::packed;
using emulated::transposed;
using emulated::wait_for_copies;

#else

// Copies 4, 8 or 16 bytes, aligned to that, to shared memory; done after wait_for_copies.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(from), "n"(kBytes)
               : "memory");
}

// The same of 16 bytes, or zeros without reading.
__device__ __forceinline__ void copy_or_zero(void* to, const void* from, bool copy) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
               "r"(copy ? 16 : 0)
               : "memory");
}

// Waits for the copies of this thread alone.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// 2 ^ x with a relative error of 2^-22; 0 where that is below 2^-126.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / sqrt(x) likewise, for x of at least 2^-126.
__device__ __forceinline__ float fast_rsqrt(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Four 8x8 matrices of 16-bit numbers. Lane 8 i + r gives the address of row r of matrix i, in
// shared memory; lane (g, t) gets the elements 2 t and 2 t + 1 of row g of each.
__device__ __forceinline__ void load_matrices(uint32_t (&value)[4], const void* row) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(value[0]), "=r"(value[1]), "=r"(value[2]), "=r"(value[3])
               : "r"(address));
}

// The same of the transposed matrices.
__device__ __forceinline__ void load_transposed(uint32_t (&value)[4], const void* row) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(value[0]), "=r"(value[1]), "=r"(value[2]), "=r"(value[3])
               : "r"(address));
}

// The transpose of an 8x8 matrix held as load_matrices leaves one.
__device__ __forceinline__ uint32_t transposed(uint32_t value) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(value));
  return result;
}

// result (16 x 8) = a (16 x 16) times b (16 x 8) plus c (16 x 8), T being half or bfloat16. Lane
// (g, t) holds
//   a          rows g, g + 8, g, g + 8 at columns 2 t, 2 t + 1, the last two plus 8
//   b          rows 2 t, 2 t + 1, the second pair plus 8, at column g
//   c, result  rows g, g, g + 8, g + 8 at columns 2 t, 2 t + 1, 2 t, 2 t + 1
template <typename T>
__device__ __forceinline__ void multiply_add(
    float (&result)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4]) {
  if constexpr (std::is_same_v<T, c10::Half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(result[0]), "=f"(result[1]), "=f"(result[2]), "=f"(result[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(result[0]), "=f"(result[1]), "=f"(result[2]), "=f"(result[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
  }
}

// Two numbers rounded to T, the first in the low half.
template <typename T>
__device__ __forceinline__ uint32_t packed(float low, float high) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, c10::Half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  }
  return bits;
}

#endif

}  // namespace aff_seg
