// Gradients of deformable_points' values, gathered from the places that read them.

#pragma once

#include <cstdint>

#include "deformable_points.h"
#include "row_groups.h"

namespace aff_seg {

constexpr int kGroupsOfWarp = kWarp / kLanes;

// A warp takes one row of value and goes through the places that read it, in ascending order, one
// to each of its groups at a time.
template <int V, typename T, typename A>
__global__ void __launch_bounds__(kThreads, 6) backward_value(
    const DeformableInputs<T, A> in, int64_t first_unit, int64_t total, const T* grad,
    const A* share, const int64_t* start, const int32_t* place, T* grad_value) {
  const int64_t row = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= total) {
    return;
  }
  const int lane = threadIdx.x % kLanes, group = threadIdx.x % kWarp / kLanes;
  const int64_t listed_unit = row / in.tokens, unit = first_unit + listed_unit;
  const int64_t token = row - listed_unit * in.tokens;
  const int64_t begin = start[row], end = start[row + 1];
  // Places that the warp's groups load one after the other, all before they add the first.
  constexpr int kAhead = 4;
  for (int base = 0; base < in.dim; base += kLanes * V) {
    const int c = base + lane * V;
    const T* rows = grad + in.reader(unit, 0) * in.dim + c;
    A sum[V] = {};
    for (int64_t s = begin; s < end; s += kWarp) {
      const int64_t at = s + threadIdx.x % kWarp;
      int query = -1;
      A weight = 0;
      if (at < end) {
        const unsigned own = static_cast<unsigned>(place[at]);
        query = own / in.places;
        weight = share[listed_unit * in.queries * in.places + own];
      }
      for (int first = 0; first < kWarp && s + first < end; first += kAhead * kGroupsOfWarp) {
        Pack<T, V> row[kAhead];
        A own[kAhead];
#pragma unroll
        for (int n = 0; n < kAhead; ++n) {
          const int from = first + n * kGroupsOfWarp + group;
          const int reader = __shfl_sync(kAllLanes, query, from);
          own[n] = __shfl_sync(kAllLanes, weight, from);
          row[n] = load_pack_if<V>(c < in.dim && reader >= 0, row_at(rows, reader, in.row_bytes));
        }
#pragma unroll
        for (int n = 0; n < kAhead; ++n) {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            sum[v] += own[n] * static_cast<A>(row[n].value[v]);
          }
        }
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int step = kLanes; step < kWarp; step *= 2) {
        sum[v] += __shfl_xor_sync(kAllLanes, sum[v], step);
      }
    }
    if (group == 0 && c < in.dim) {
      store_row<V>(sum, grad_value + (in.rows(unit) - in.value) + token * in.heads * in.dim + c);
    }
  }
}

}  // namespace aff_seg
