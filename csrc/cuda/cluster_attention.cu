// A warp works on eight consecutive queries, a block on those of some warps, at one or two heads.
// Every block
//   1. copies its queries to shared memory,
//   2. finds the union of the clusters that they list, and copies keys, values and positions of
//      those there, as many at a time as there is room for: see near_clusters.h,
//   3. lets each warp go through the eight-token slots that its own queries list, a tile of some
//      slots at a time: logits by the matrix units (float and double: by plain arithmetic), the
//      position terms in registers, and the softmax as it comes,
//   4. divides by the denominators, and writes results by way of the queries' place.
// Neighbouring queries share most of their clusters, so that keys and values are read once for
// four warps, and mostly by one multiprocessor.

#include "../cluster_attention.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "../library.h"
#include "near_clusters.h"

namespace aff_seg {
namespace {

// Logits exceed the one that exponentials are taken relative to by at most this: e^5.5 is little
// enough for half, and `top` seldom has to rise.
template <typename P>
constexpr typename P::A kMostExcess = 5.5 * P::kPerLogit;

// The softmax of a warp's columns at one head, as far as it has come, exponentials being taken
// relative to `top`. Of a column, `total` is what the rows g add up to.
template <typename P>
struct Softmax {
  using A = typename P::A;
  typename P::Sum sum;
  A top[2], total[2];

  // Makes the largest of these logits, less top, the new top.
  __device__ __forceinline__ void raise(A (&logit)[P::kSlots][2]) {
    A factor[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      A excess = 0;
#pragma unroll
      for (int s = 0; s < P::kSlots; ++s) {
        excess = logit[s][j] > excess ? logit[s][j] : excess;
      }
      excess = max_over_rows(excess);
#pragma unroll
      for (int s = 0; s < P::kSlots; ++s) {
        logit[s][j] -= excess;
      }
      factor[j] = P::exponential(-excess);
      top[j] += excess;
      total[j] *= factor[j];
    }
    P::scale(factor, sum);
  }
};

// Blocks on a multiprocessor at once, as far as registers allow without spilling.
template <typename P>
constexpr int kBlocks = sizeof(typename P::T) == 2 ? (P::L::kChannels <= 64 ? 4 : 3)
                                                  : (P::L::kChannels <= 32 ? 3 : 2);

template <typename P, int kHeads>
__global__ void __launch_bounds__(kMaxWarps * kWarp, kBlocks<P>)
    forward(
        const Attention<typename P::T, typename P::A> in, int capacity,
        Tokens<typename P::T> out, typename P::A* lse) {
  using T = typename P::T;
  using A = typename P::A;
  using L = typename P::L;
  using Near = NearClusters<P, kHeads, 1>;
  constexpr int kSlots = P::kSlots;
  Near near(in, capacity);
  near.stage_columns(0, in.q);
  near.open();

  // The blank token comes first.
  Softmax<P> softmax[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const A product = row_dot<L>(near.columns(0, h), near.blank(0, h), near.g, near.t);
    by_columns(product * near.terms(h).scale, near.t, softmax[h].top);
    softmax[h].total[0] = softmax[h].total[1] = near.g == 0 ? 1 : 0;
    P::add_vector(near.lane, {1, 1}, near.blank(1, h), softmax[h].sum);
  }

  near.visit_all([&](const typename Near::Tile& tile) {
    A weight[kHeads][kSlots][2];
    const T* rows[kSlots];
    bool exceeds = false;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      tile.operand(0, h, rows);
      P::multiply(
          tile.lane, rows, tile.count, near.columns(0, h), in.dim, tile.masked, weight[h]);
      const LogitTerms<P> terms = near.terms(h);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const A start = terms.bias - softmax[h].top[j];
#pragma unroll
        for (int s = 0; s < kSlots; ++s) {
          weight[h][s][j] = terms.logit(weight[h][s][j], tile.direction[s][j], start);
          exceeds |= weight[h][s][j] > kMostExcess<P>;
        }
      }
    }
    if (__any_sync(kAllLanes, exceeds)) {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        softmax[h].raise(weight[h]);
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int s = 0; s < kSlots; ++s) {
          weight[h][s][j] = P::exponential(weight[h][s][j]);
          softmax[h].total[j] += weight[h][s][j];
        }
      }
      tile.operand(1, h, rows);
      P::add(tile.lane, rows, tile.count, weight[h], near.scratch(), softmax[h].sum);
    }
  });

#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    A inverse[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const A denominator = sum_over_rows(softmax[h].total[j]);
      inverse[j] = 1 / denominator;
      if (near.g == 0 && near.column_exists(j)) {
        lse[near.token(2 * near.t + j) * in.heads + near.head + h] =
            softmax[h].top[j] / P::kPerLogit + std::log(denominator);
      }
    }
    P::scale(inverse, softmax[h].sum);
    __syncwarp();
    P::put(near.lane, softmax[h].sum, near.columns(0, h));
    __syncwarp();
    if (near.row_exists) {
      write_row<L>(
          near.columns(0, h), out.wide, in.dim, near.g, near.t,
          out.row(near.image, near.first + near.g, near.head + h));
    }
  }
}

std::tuple<at::Tensor, at::Tensor> cluster_attention_cuda(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& pos,
    const at::Tensor& clusters, int64_t m, const at::Tensor& pos_weight,
    const at::Tensor& pos_bias, const at::Tensor& blank_k, const at::Tensor& blank_v,
    const std::optional<at::Tensor>& start, const std::optional<at::Tensor>& place) {
  check_cluster_attention(
      q, k, v, pos, clusters, m, pos_weight, pos_bias, blank_k, blank_v, start, place);
  const DeviceGuard guard(q);
  auto out = at::empty(q.sizes(), q.options());
  const auto by_head = q.sizes().slice(0, 3);
  if (q.numel() == 0) {
    return {out, at::zeros(by_head, pos.options())};
  }
  auto lse = at::empty(by_head, pos.options());
  const AttentionTensors tensors(
      q, k, v, pos, clusters, pos_weight, pos_bias, blank_k, blank_v);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, q.scalar_type(), "cluster_attention_cuda", [&] {
        using A = at::opmath_type<scalar_t>;
        const auto in = tensors.arguments<scalar_t, A>(m);
        with_tile<scalar_t>(in.dim, in.heads, [&](auto tile, auto at_once) {
          using P = decltype(tile);
          constexpr int kHeads = decltype(at_once)::value;
          const auto layout = NearLayout<P, kHeads, 1>::fitting(in);
          launch(
              forward<P, kHeads>,
              attention_grid(in.tokens, layout.warps, in.heads / kHeads, q.size(0)),
              dim3(kWarp, layout.warps), layout.bytes(), in, layout.capacity,
              Tokens<scalar_t>(out.mutable_data_ptr<scalar_t>(), out), lse.mutable_data_ptr<A>());
        });
      });
  return {out, lse};
}

}  // namespace

AFF_SEG_CUDA_IMPL(m) { m.impl("cluster_attention", cluster_attention_cuda); }

}  // namespace aff_seg
