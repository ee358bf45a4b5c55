// What the kernels of shepard_interpolate share. A warp works on a few consecutive queries. The
// places where they read tokens are shared out among its lanes, which weigh them once; then all
// lanes go through the rows together, some channels each.

#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "../shepard_interpolate.h"
#include "device.h"
#include "rows.h"

namespace aff_seg {

// Warps of a block.
constexpr int kWarps = 8;

template <typename T, typename A>
struct ShepardInputs {
  ShepardInputs(
      const at::Tensor& feat_, const at::Tensor& pos_, const at::Tensor& query_,
      const at::Tensor& index_, const at::Tensor& power_)
      : tokens(feat_.size(1)),
        channels(feat_.size(2)),
        queries(index_.size(1)),
        near(index_.size(2)),
        total(index_.size(0) * queries),
        lanes(static_cast<int>(std::clamp<int64_t>(near, 1, kWarp))),
        at_once(kWarp / lanes),
        feat(feat_.const_data_ptr<T>()),
        pos(pos_.const_data_ptr<A>()),
        query(query_.const_data_ptr<A>()),
        power(power_.const_data_ptr<A>()),
        index(index_.const_data_ptr<int32_t>()) {}

  dim3 blocks() const { return blocks_for(total, int64_t(at_once) * kWarps); }

  int64_t tokens, channels, queries, near;
  int64_t total;  // queries of all images
  int lanes;      // of a query
  int at_once;    // queries of a warp
  const T* feat;
  const A *pos, *query, *power;
  const int32_t* index;
};

// Where a query reads: one of its `near` tokens.
template <typename A>
struct ShepardPlace {
  int64_t row;  // where the token's features are
  A distance, powered, weight;
};

// The queries of a warp, as one of its lanes sees them.
template <typename T, typename A>
struct ShepardQueries {
  __device__ __forceinline__ explicit ShepardQueries(const ShepardInputs<T, A>& in_)
      : in(in_),
        first((int64_t(blockIdx.x) * kWarps + threadIdx.y) * in.at_once),
        own(first + threadIdx.x / in.lanes),
        slot(threadIdx.x % in.lanes) {
    const int64_t left = in.total - first;
    count = static_cast<int>(left < 0 ? 0 : left < in.at_once ? left : in.at_once);
  }

  // Whether the lane has a place, `begin` places on.
  __device__ __forceinline__ bool has(int64_t begin) const {
    return own < first + count && begin + slot < in.near;
  }

  __device__ __forceinline__ ShepardPlace<A> place(int64_t begin) const {
    ShepardPlace<A> place{};
    if (has(begin)) {
      const int32_t index = in.index[own * in.near + begin + slot];
      CUDA_KERNEL_ASSERT(index >= 0 && index < in.tokens);
      const int64_t token = own / in.queries * in.tokens + index;
      place.row = token * in.channels;
      const A dx = in.pos[2 * token] - in.query[2 * own];
      const A dy = in.pos[2 * token + 1] - in.query[2 * own + 1];
      place.distance = dx * dx + dy * dy;
      place.powered = raised(place.distance, *in.power);
      place.weight = shepard_weight(place.powered);
    }
    return place;
  }

  // Places of a query from `begin` on that its lanes have.
  __device__ __forceinline__ int places(int64_t begin) const {
    return static_cast<int>(in.near - begin < in.lanes ? in.near - begin : in.lanes);
  }

  // The sum over the lanes of the lane's query, in a fixed order.
  template <typename S>
  __device__ __forceinline__ S sum(S value) const {
    S total = 0;
    for (int lane = 0; lane < in.lanes; ++lane) {
      total += __shfl_sync(kAllLanes, value, static_cast<int>(threadIdx.x) - slot + lane);
    }
    return total;
  }

  // The weights of the lane's query, added up; sets the lane's last place.
  __device__ __forceinline__ A total_weight(ShepardPlace<A>& last) const {
    A weight = 0;
    for (int64_t begin = 0; begin < in.near; begin += in.lanes) {
      last = place(begin);
      weight += last.weight;
    }
    return sum(weight);
  }

  const ShepardInputs<T, A>& in;
  const int64_t first, own;
  const int slot;
  int count;
};

// Adds `count` weighted rows to the lane's channels, from c on; lanes from `from` on know where
// each row is. A few are read at a time, before the first is waited for.
template <int V, typename T, typename A>
__device__ __forceinline__ void add_rows(
    const T* rows, int64_t row, A weight, int from, int count, int64_t c, int64_t channels,
    A* sum) {
  constexpr int kRows = 4;
  for (int begin = 0; begin < count; begin += kRows) {
    Pack<T, V> pack[kRows];
    A share[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const bool exists = begin + r < count;
      const int lane = exists ? from + begin + r : from;
      const int64_t other = __shfl_sync(kAllLanes, row, lane);
      const A of_row = __shfl_sync(kAllLanes, weight, lane);
      share[r] = exists ? of_row : A(0);
      pack[r] = load_pack_if<V>(exists && c < channels, rows + other + c);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        sum[v] += share[r] * static_cast<A>(pack[r].value[v]);
      }
    }
  }
}

}  // namespace aff_seg
