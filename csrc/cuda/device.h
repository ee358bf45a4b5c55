// What the kernels use of CUDA. With AFF_SEG_EMULATED the tests compile the same sources for a
// CPU: tests/emulation/emulated_cuda.h stands in for CUDA, and the operators are registered under
// another name, for tensors on the CPU.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#if defined(AFF_SEG_EMULATED)

#include "emulated_cuda.h"

namespace aff_seg {

struct DeviceGuard {
  explicit DeviceGuard(const at::Tensor&) {}
};

using emulated::launch;

}  // namespace aff_seg

#else

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime.h>

namespace aff_seg {

// Makes the tensor's device the current one.
struct DeviceGuard {
  explicit DeviceGuard(const at::Tensor& tensor) : guard_(tensor.device()) {}

 private:
  c10::cuda::CUDAGuard guard_;
};

// Runs a kernel on the current stream with `shared` bytes of dynamic shared memory.
template <typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... arguments) {
  // More than 48 KiB, with what a kernel has besides, must be asked for.
  if (shared > (40 << 10)) {
    C10_CUDA_CHECK(cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
        static_cast<int>(shared)));
  }
  kernel<<<grid, block, shared, c10::cuda::getCurrentCUDAStream()>>>(
      static_cast<P>(arguments)...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace aff_seg

#endif

namespace aff_seg {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffff;

// Dynamic shared memory, aligned for any type.
template <typename T>
__device__ __forceinline__ T* shared_memory() {
#if defined(AFF_SEG_EMULATED)
  return reinterpret_cast<T*>(emulated::block()->shared.data());
#else
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
#endif
}

// Sums over the lanes of a warp, in a fixed order; every lane gets the result.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, step);
  }
  return value;
}

// Blocks of `size` threads for `count` pieces of work; more than a grid takes is refused.
inline dim3 blocks_for(int64_t count, int64_t size) {
  const int64_t blocks = (count + size - 1) / size;
  TORCH_CHECK_VALUE(blocks < (int64_t(1) << 31), "too much work for one call: ", count);
  return dim3(static_cast<unsigned>(blocks));
}

}  // namespace aff_seg
