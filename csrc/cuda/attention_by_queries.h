// The first pass of attention's backward: by queries, as forward goes. For the gradients of
// queries, bias and blank token, and delta, which the second pass needs.

#pragma once

#include <type_traits>

#include "attention_gradients.h"
#include "near_clusters.h"

namespace aff_seg {

// The sum over channels of row g of a slot times a row in device memory.
template <typename L, typename A, typename T>
__device__ __forceinline__ A row_dot_far(
    const T* slot, const T* far, bool exists, bool wide, int dim, int g, int t) {
  A sum = 0;
#pragma unroll
  for (int i = 0; i < L::kUnits / 4; ++i) {
    const int u = t + 4 * i, first = u * L::kPack;
    const typename L::Unit unit = L::load(slot, g, u);
    typename L::Unit other{};
    if (exists && first < dim) {
      if (wide) {
        other = *reinterpret_cast<const typename L::Unit*>(far + first);
      } else {
#pragma unroll
        for (int e = 0; e < L::kPack; ++e) {
          other.value[e] = first + e < dim ? far[first + e] : T(0);
        }
      }
    }
#pragma unroll
    for (int e = 0; e < L::kPack; ++e) {
      sum += static_cast<A>(unit.value[e]) * static_cast<A>(other.value[e]);
    }
  }
  sum += __shfl_xor_sync(kAllLanes, sum, 1);
  return sum + __shfl_xor_sync(kAllLanes, sum, 2);
}

// What the first pass has of a warp's columns at one head.
template <typename P>
struct Slopes {
  using A = typename P::A;
  typename P::Sum grad_q;
  std::conditional_t<P::kRounds, typename P::Sum, int> mean_key;
  A lse[2], delta[2];
  A own[2], own_along[2];  // of the blank token: its probability, the gradient along its value
  A short_of[2] = {};      // its sum
};

template <typename P, int kHeads>
__global__ void __launch_bounds__(kMaxWarps * kWarp, kGradientBlocks<P>)
    by_queries(
        const Attention<typename P::T, typename P::A> in, int capacity,
        Tokens<const typename P::T> grad, Tokens<const typename P::T> out,
        const typename P::A* lse, const typename P::T* extremes, Tokens<typename P::T> grad_q,
        typename P::A* delta, typename P::A* partial) {
  using T = typename P::T;
  using A = typename P::A;
  using L = typename P::L;
  using Near = NearClusters<P, kHeads, 2>;
  constexpr int kSlots = P::kSlots;
  Near near(in, capacity);
  near.stage_columns(0, in.q);
  near.stage_columns(1, grad);
  near.open();
  const A scale = gradient_scale<T, A>(extremes);

  Slopes<P> slopes[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const int64_t at = near.token(near.g) * in.heads + near.head + h;
    const A blank = row_dot<L>(near.columns(0, h), near.blank(0, h), near.g, near.t);
    const A along = row_dot<L>(near.columns(1, h), near.blank(1, h), near.g, near.t);
    const T* far = out.row(near.image, near.row_exists ? near.first + near.g : 0, near.head + h);
    const A mean = scale *
        row_dot_far<L, A>(
            near.columns(1, h), far, near.row_exists, out.wide, in.dim, near.g, near.t);
    const A log_sum = near.row_exists ? lse[at] * P::kPerLogit : A(0);
    const A own = P::exponential(blank * near.terms(h).scale - log_sum);
    by_columns(log_sum, near.t, slopes[h].lse);
    by_columns(mean, near.t, slopes[h].delta);
    by_columns(near.row_exists ? own : A(0), near.t, slopes[h].own);
    by_columns(scale * along, near.t, slopes[h].own_along);
  }

  near.visit_all([&](const typename Near::Tile& tile) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      Slopes<P>& own = slopes[h];
      const LogitTerms<P> terms = near.terms(h);
      const T *keys[kSlots], *values[kSlots];
      tile.operand(0, h, keys);
      tile.operand(1, h, values);
      A weight[kSlots][2], along[kSlots][2];
      P::multiply(
          tile.lane, keys, tile.count, near.columns(0, h), in.dim, tile.masked, weight);
      P::multiply(tile.lane, values, tile.count, near.columns(1, h), in.dim, {}, along);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const A start = terms.bias - own.lse[j];
#pragma unroll
        for (int s = 0; s < kSlots; ++s) {
          const A probability =
              P::exponential(terms.logit(weight[s][j], tile.direction[s][j], start));
          const A a = scale * along[s][j];
          own.short_of[j] += probability * (own.own_along[j] - a);
          weight[s][j] = probability * (a - own.delta[j]);
          along[s][j] = probability;
        }
      }
      P::add(tile.lane, keys, tile.count, weight, near.scratch(), own.grad_q);
      if constexpr (P::kRounds) {
        P::add(tile.lane, keys, tile.count, along, near.scratch(), own.mean_key);
      }
    }
  });

  // The parameters' gradients: of each warp in the memory of the slots, then of the block.
  const int of_head = 1 + 2 * in.dim;
  A* of_warp = near.slots_memory() + near.warp * kHeads * of_head;
  const A inverse = 1 / scale;
  __syncthreads();
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    Slopes<P>& own = slopes[h];
    A slope[2], bias = 0;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const A sum = sum_over_rows(own.short_of[j]);
      slope[j] = own.own[j] * sum;
      bias -= near.g == 0 ? slope[j] : A(0);
      if constexpr (P::kRounds) {
        const A exact = own.own_along[j] - sum;
        own.short_of[j] = own.delta[j] - exact;
        own.delta[j] = exact;
      }
      if (near.g == 0 && near.column_exists(j)) {
        delta[near.token(2 * near.t + j) * in.heads + near.head + h] = own.delta[j];
      }
    }
    if constexpr (P::kRounds) {
      P::add_sum(own.short_of, own.mean_key, own.grad_q);
    }
    P::add_vector(near.lane, slope, near.blank(0, h), own.grad_q);
    bias = warp_sum(bias);
    if (near.lane == 0) {
      of_warp[h * of_head] = bias * inverse;
    }
    A of_key[8], of_value[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      of_key[c] = __shfl_sync(kAllLanes, slope[c % 2], c / 2);
      of_value[c] = __shfl_sync(kAllLanes, own.own[c % 2], c / 2);
    }
#pragma unroll 1
    for (int channel = near.lane; channel < in.dim; channel += kWarp) {
      A key = 0, value = 0;
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const int at = L::at(c, channel / L::kPack) + channel % L::kPack;
        key += of_key[c] * static_cast<A>(near.columns(0, h)[at]);
        value += of_value[c] * static_cast<A>(near.columns(1, h)[at]);
      }
      of_warp[h * of_head + 1 + channel] = key * (in.scale * inverse);
      of_warp[h * of_head + 1 + in.dim + channel] = value;
    }
    P::scale({in.scale * inverse, in.scale * inverse}, own.grad_q);
    __syncwarp();
    P::put(near.lane, own.grad_q, near.columns(0, h));
    __syncwarp();
    if (near.row_exists) {
      write_row<L>(
          near.columns(0, h), grad_q.wide, in.dim, near.g, near.t,
          grad_q.row(near.image, near.first + near.g, near.head + h));
    }
  }
  __syncthreads();
  const int64_t block = int64_t(blockIdx.z) * gridDim.x + blockIdx.x;
  A* to = partial + (block * in.heads + near.head) * of_head;
#pragma unroll 1
  for (int i = near.warp * kWarp + near.lane; i < kHeads * of_head; i += blockDim.y * kWarp) {
    A sum = 0;
    for (unsigned w = 0; w < blockDim.y; ++w) {
      sum += near.slots_memory()[w * kHeads * of_head + i];
    }
    to[i] = sum;
  }
}

}  // namespace aff_seg
