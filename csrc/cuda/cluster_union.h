// The union of the clusters that the queries of a block list, in shared memory.

#pragma once

#include <cstdint>

#include "device.h"

namespace aff_seg {

// A bit for each of kWindow clusters, counted from `base`, in a word for each lane of a warp. Once
// all threads have called add() and passed a barrier, one warp's rank() numbers those found,
// ascending; after another barrier all can ask for them.
class ClusterUnion {
 public:
  static constexpr int kWindow = 32 * kWarp;
  // Of shared memory, but for what was found.
  static constexpr int kBytes = 4 * (2 * kWarp + 4);

  __device__ __forceinline__ ClusterUnion(void* memory, int* found)
      : bits_(static_cast<unsigned*>(memory)), before_(reinterpret_cast<int*>(bits_ + kWarp)),
        size_(before_ + kWarp), found_(found) {}

  // By one warp.
  __device__ __forceinline__ void clear(unsigned lane) const { bits_[lane] = 0; }

  // Whether the window holds a cluster, none being -1.
  static __device__ __forceinline__ bool in_window(int cluster, int base) {
    return cluster >= base && cluster - base < kWindow;
  }

  __device__ __forceinline__ void add(int cluster, int base) const {
    const unsigned c = cluster - base;
    atomicOr(bits_ + c / 32, 1u << (c % 32));
  }

  __device__ __forceinline__ void rank(int base, unsigned lane) const {
    const unsigned word = bits_[lane];
    int upto = __popc(word);
#pragma unroll
    for (unsigned step = 1; step < kWarp; step *= 2) {
      const int other = __shfl_up_sync(kAllLanes, upto, step);
      upto += lane >= step ? other : 0;
    }
    int next = upto - __popc(word);
    before_[lane] = next;
#pragma unroll 1
    for (unsigned left = word; left != 0; left &= left - 1) {
      found_[next++] = base + lane * 32 + __ffs(left) - 1;
    }
    if (lane == kWarp - 1) {
      *size_ = upto;
    }
  }

  __device__ __forceinline__ int size() const { return *size_; }
  __device__ __forceinline__ int cluster(int rank) const { return found_[rank]; }
  __device__ __forceinline__ int rank_of(int cluster, int base) const {
    const unsigned c = cluster - base;
    return before_[c / 32] + __popc(bits_[c / 32] & ((1u << (c % 32)) - 1));
  }

 private:
  unsigned* const bits_;
  int* const before_;  // how many are found before each word
  int *const size_, *const found_;
};

}  // namespace aff_seg
