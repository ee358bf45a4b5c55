// Groups of lanes that read rows of features together, and how a block's groups share out work.

#pragma once

#include <algorithm>
#include <cstdint>

#include "device.h"
#include "rows.h"

namespace aff_seg {

// Threads of a block, and lanes of its smallest groups: with 16 bytes each they read whole lines.
constexpr int kThreads = 128;
constexpr int kLanes = 8;
constexpr int kGroups = kThreads / kLanes;

// A block's groups work on `rounds` centres (what sums up rows) each, one after the other. The
// rows that its centres read, `tile` for each at a time, are looked up by all threads, and noted
// in shared memory.
struct Tiling {
  int lanes, groups, rounds, tile;
  int stride;   // from one centre's notes to the next: odd, so that they lie on different banks
  int centres;  // of a block
  int blocks;   // of one image, or of one of its heads
};

// For `images` times `centres` that read `members` rows of `packs` packs, with shared memory for
// some `room` notes in a block.
inline Tiling tiling_for(
    int64_t images, int64_t centres, int64_t members, int64_t packs, int64_t room) {
  Tiling t{};
  // What does not fit in one go is looked up again for every part of the channels: wider groups
  // leave fewer centres in a block, and more room for each.
  t.lanes = kLanes;
  while (t.lanes < kThreads && t.lanes < packs && members * (kThreads / t.lanes) > room) {
    t.lanes *= 2;
  }
  t.groups = kThreads / t.lanes;
  // Twice the room rather than a second go.
  const bool fits = members * t.groups <= 2 * room;
  const int64_t own = std::max<int64_t>({1, room / t.groups, fits ? members : 0});
  const int64_t tiles = std::max<int64_t>(1, (members + own - 1) / own);
  t.tile = static_cast<int>(std::max<int64_t>(1, (members + tiles - 1) / tiles));
  // Consecutive centres read much the same rows, but blocks there should be for a whole device.
  const int64_t enough = images * centres / (t.groups * 1024);
  t.rounds = static_cast<int>(
      std::max<int64_t>(1, std::min<int64_t>({4, own / t.tile, enough})));
  t.stride = t.tile | 1;
  t.centres = t.groups * t.rounds;
  t.blocks = static_cast<int>((centres + t.centres - 1) / t.centres);
  return t;
}

// Sums `N` values over each group of kLanes lanes, in a fixed order: lane l is left, in front,
// with the sums of values l * N / kLanes and on. All lanes of the warp take part.
template <int N, typename A>
__device__ __forceinline__ void scatter_sums(A* value, int lane) {
  static_assert(N % kLanes == 0);
  int kept = N / 2;
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const bool upper = lane & step;
#pragma unroll
    for (int n = 0; n < N / 2; ++n) {
      if (n < kept) {
        const A own = upper ? value[n + kept] : value[n];
        const A other = upper ? value[n] : value[n + kept];
        value[n] = own + __shfl_xor_sync(kAllLanes, other, step);
      }
    }
    kept /= 2;
  }
}

}  // namespace aff_seg
