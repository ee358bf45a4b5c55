// Running sums and maxima over the threads of a block.

#pragma once

#include "device.h"

namespace aff_seg {

struct Sum {
  template <typename V>
  __device__ __forceinline__ V operator()(V a, V b) const {
    return a + b;
  }
};

struct Largest {
  template <typename V>
  __device__ __forceinline__ V operator()(V a, V b) const {
    return a < b ? b : a;
  }
};

template <typename V, typename Op>
__device__ __forceinline__ V warp_scan(V value, const Op& op) {
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const V before = __shfl_up_sync(kAllLanes, value, step);
    if (static_cast<int>(threadIdx.x) % kWarp >= step) {
      value = op(before, value);
    }
  }
  return value;
}

// Combines the values of the threads up to this one, and those of all; 0 changes nothing.
template <typename V, typename Op>
__device__ __forceinline__ V block_scan(V value, V& total, const Op& op) {
  __shared__ V of_warp[kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  value = warp_scan(value, op);
  // What the last call put there has been read.
  __syncthreads();
  if (lane == kWarp - 1) {
    of_warp[warp] = value;
  }
  __syncthreads();
  const bool exists = lane < static_cast<int>(blockDim.x) / kWarp;
  const V warps = warp_scan(exists ? of_warp[lane] : V(0), op);
  total = __shfl_sync(kAllLanes, warps, kWarp - 1);
  const V before = __shfl_sync(kAllLanes, warps, warp > 0 ? warp - 1 : 0);
  return warp > 0 ? op(before, value) : value;
}

}  // namespace aff_seg
