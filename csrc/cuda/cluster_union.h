// The union of the clusters that the queries of a block list, in shared memory.

#pragma once

#include <cstdint>

#include "device.h"

namespace aff_seg {

// A bit for each of kWindow clusters, counted from `base`. Once all threads have called add() and
// passed a barrier, one warp's rank() numbers those found, ascending; after another barrier all
// can ask for them.
class ClusterUnion {
 public:
  static constexpr int kWindow = 2048;
  static constexpr int kWords = kWindow / 32;
  // Of shared memory, before what was found.
  static constexpr int kBytes = 4 * (2 * kWords + 4);

  __device__ __forceinline__ ClusterUnion(void* memory, int* found)
      : bits_(static_cast<unsigned*>(memory)), before_(reinterpret_cast<int*>(bits_ + kWords)),
        size_(before_ + kWords), found_(found) {}

  __device__ __forceinline__ void clear(int thread, int threads) const {
#pragma unroll 1
    for (int i = thread; i < kWords; i += threads) {
      bits_[i] = 0;
    }
  }

  // Whether the window holds a cluster, none being -1.
  static __device__ __forceinline__ bool in_window(int cluster, int base) {
    return cluster >= base && cluster - base < kWindow;
  }

  __device__ __forceinline__ void add(int cluster, int base) const {
    const unsigned c = cluster - base;
    atomicOr(bits_ + c / 32, 1u << (c % 32));
  }

  __device__ __forceinline__ void rank(int base, unsigned lane) const {
    int size = 0;
#pragma unroll 1
    for (int w = 0; w < kWords; w += kWarp) {
      const unsigned word = bits_[w + lane];
      const int own = __popc(word);
      int upto = own;
#pragma unroll
      for (unsigned step = 1; step < kWarp; step *= 2) {
        const int other = __shfl_up_sync(kAllLanes, upto, step);
        upto += lane >= step ? other : 0;
      }
      int next = size + upto - own;
      before_[w + lane] = next;
#pragma unroll 1
      for (unsigned left = word; left != 0; left &= left - 1) {
        found_[next++] = base + (w + lane) * 32 + __ffs(left) - 1;
      }
      size += __shfl_sync(kAllLanes, upto, kWarp - 1);
    }
    if (lane == 0) {
      *size_ = size;
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
