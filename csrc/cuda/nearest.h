// The queries of a search for neighbours, and the nearest points that a thread has found so far.

#pragma once

#include <cmath>

#include "../knn.h"
#include "device.h"
#include "point_grids.h"

namespace aff_seg {

template <typename T>
struct Queries {
  int64_t queries, k;  // of an image
  int64_t total;       // queries of all images
  int64_t step;        // from an image's queries to the next ones: 0 if they are shared
  const Position<T>* query;
  int32_t* index;
  T* distance;

  __device__ __forceinline__ Position<T> at(int64_t place) const {
    const int64_t image = place / queries;
    const Position<T> position = query[image * step + place % queries];
    CUDA_KERNEL_ASSERT(std::isfinite(position.x) && std::isfinite(position.y));
    return position;
  }

  __device__ __forceinline__ void write(
      int64_t place, int64_t neighbour, CandidateKey<T> key) const {
    index[place * k + neighbour] = candidate_index<T>(key);
    distance[place * k + neighbour] = candidate_distance<T>(key);
  }

  __device__ __forceinline__ CandidateKey<T> last(int64_t place) const {
    return candidate_key(distance[place * k + k - 1], index[place * k + k - 1]);
  }
};

__device__ __forceinline__ uint64_t other_lane(uint64_t value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}

__device__ __forceinline__ unsigned __int128 other_lane(unsigned __int128 value, int mask) {
  const uint64_t high = other_lane(static_cast<uint64_t>(value >> 64), mask);
  const uint64_t low = other_lane(static_cast<uint64_t>(value), mask);
  return static_cast<unsigned __int128>(high) << 64 | low;
}

// The nearest of the candidates offered so far, nearest first, in registers. Keys are kept in two
// parts: less to move than whole keys of doubles, and one comparison for both.
template <typename T, int K>
class Nearest {
 public:
  using Key = CandidateKey<T>;

  // Candidates count only below `limit`, and only `wanted` of them: other places are taken.
  __device__ __forceinline__ Nearest(int wanted, Key limit) {
#pragma unroll
    for (int i = 0; i < K; ++i) {
      set(i, i < K - wanted ? Key(0) : limit);
    }
  }

  __device__ __forceinline__ Key first() const { return key(0); }
  __device__ __forceinline__ Key limit() const { return key(K - 1); }

  // Of a key below the limit.
  __device__ __forceinline__ void insert(Key added) {
    bool after = true;
#pragma unroll
    for (int i = K - 1; i > 0; --i) {
      const bool before = added < key(i - 1);
      if (after) {
        set(i, before ? key(i - 1) : added);
      }
      after = before;
    }
    if (after) {
      set(0, added);
    }
  }

  // May be called K times: the last one then comes first.
  __device__ __forceinline__ void remove_first() {
#pragma unroll
    for (int i = 0; i < K - 1; ++i) {
      set(i, key(i + 1));
    }
  }

  // The wanted ones as neighbours from `done` on.
  __device__ __forceinline__ void write(
      const Queries<T>& q, int64_t place, int64_t done, int wanted) const {
#pragma unroll
    for (int i = 0; i < K; ++i) {
      if (i >= K - wanted) {
        q.write(place, done + i - (K - wanted), key(i));
      }
    }
  }

 private:
  __device__ __forceinline__ Key key(int i) const {
    return Key(distance_[i]) << Candidate<T>::kShift | index_[i];
  }

  __device__ __forceinline__ void set(int i, Key key) {
    distance_[i] = static_cast<Bits<T>>(key >> Candidate<T>::kShift);
    index_[i] = static_cast<uint32_t>(key);
  }

  Bits<T> distance_[K];
  uint32_t index_[K];
};

}  // namespace aff_seg
