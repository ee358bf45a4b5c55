// Gradients of point_conv's tokens, gathered from the centres that see them.

#pragma once

#include <cstdint>

#include "point_conv.h"
#include "row_groups.h"

namespace aff_seg {

// A group takes M tokens of a cluster and some channels of them, and goes through the places that
// read the cluster. The groups of the first channels gather the gradients of scores.
template <int M, int V, typename T, typename A>
__global__ void __launch_bounds__(kThreads, sizeof(A) < 8 ? 3 : 2) backward_tokens(
    const PointConvInputs<T, A> in, int parts, int blocks, const T* grad,
    const UnitWeights<A>* weight, const A* grad_score_of, const int64_t* start,
    const int32_t* place, T* grad_feat, A* grad_score) {
  const int part = blockIdx.x % parts;
  const unsigned image = blockIdx.x / parts / blocks;
  const int group = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int64_t run = int64_t(blockIdx.x / parts % blocks) * kGroups + group;
  const int runs = (in.m + M - 1) / M;  // of a cluster
  const int64_t cluster = run / runs;
  if (cluster >= in.num_clusters) {
    return;
  }
  const int member = static_cast<int>(run - cluster * runs) * M;
  const int c = (part * kLanes + lane) * V;
  const bool reads = c < in.channels;
  const int quads = (in.inner + kUnits - 1) / kUnits;
  A sum[M][V] = {};
  A of_score = 0;
  const int64_t list = int64_t(image) * in.num_clusters + cluster;
  const int64_t end = start[list + 1];
  for (int64_t s = start[list]; s < end; ++s) {
    const unsigned at = static_cast<unsigned>(place[s]);
    const unsigned centre = at / in.nearest;
    const int64_t query = int64_t(image) * in.queries + centre;
    const int64_t slot =
        query * in.members + int64_t(at - centre * in.nearest) * in.m + member;
    if (grad_score && part == 0 && lane < M && member + lane < in.m) {
      of_score += grad_score_of[slot + lane];
    }
    for (int quad = 0; quad < quads && reads; ++quad) {
      const T* rows = grad + (query * in.inner + quad * kUnits) * in.channels + c;
      UnitWeights<A> own[M];
#pragma unroll
      for (int t = 0; t < M; ++t) {
        if (member + t < in.m) {
          own[t] = weight[(slot + t) * quads + quad];
        }
      }
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        if (quad * kUnits + i < in.inner) {
          const auto pack = load_pack<V>(row_at(rows, i, in.row_bytes));
#pragma unroll
          for (int v = 0; v < V; ++v) {
            const A x = static_cast<A>(pack.value[v]);
#pragma unroll
            for (int t = 0; t < M; ++t) {
              sum[t][v] += own[t].value[i] * x;
            }
          }
        }
      }
    }
  }
  const int64_t token = cluster * in.m + member;
  const int64_t row = int64_t(image) * in.tokens + token;
#pragma unroll
  for (int t = 0; t < M; ++t) {
    if (reads && member + t < in.m && token + t < in.tokens) {
      store_row<V>(sum[t], grad_feat + (row + t) * in.channels + c);
    }
  }
  if (grad_score && part == 0 && lane < M && member + lane < in.m && token + lane < in.tokens) {
    grad_score[row + lane] = of_score;
  }
}

}  // namespace aff_seg
