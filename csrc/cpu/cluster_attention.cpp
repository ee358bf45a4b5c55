#include "../cluster_attention.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "cluster_tiles.h"

namespace aff_seg {
namespace {

// Queries whose heads are worked through in turn, so that keys and values stay in cache.
constexpr int64_t kQueries = 8;

// Logits of one query to probabilities, in place; returns that of the blank token.
template <typename A>
A softmax(A* logit, int64_t places, A blank, A* log_sum) {
  Vec<A> largest = Vec<A>{} + blank;
  for (int64_t p = 0; p < places; p += kLanes<A>) {
    const Vec<A> x = load<A>(logit + p);
    largest = x > largest ? x : largest;
  }
  const A top = lane_max<A>(largest);
  Vec<A> sum{};
  for (int64_t p = 0; p < places; p += kLanes<A>) {
    const Vec<A> e = exp_lanes(load<A>(logit + p) - top);
    store<A>(logit + p, e);
    sum += e;
  }
  const A own = std::exp(blank - top), denominator = lane_sum<A>(sum) + own;
  *log_sum = top + std::log(denominator);
  const A inverse = 1 / denominator;
  for (int64_t p = 0; p < places; p += kLanes<A>) {
    store<A>(logit + p, load<A>(logit + p) * inverse);
  }
  return own * inverse;
}

template <typename A, int T>
void forward(
    const Tiling<A>& tiling, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const A* pos, const int32_t* clusters, const A* pos_weight, const A* pos_bias,
    const at::Tensor& blank_k, const at::Tensor& blank_v, at::Tensor& out, at::Tensor& lse) {
  const int64_t heads = tiling.heads, row = tiling.row, places = tiling.places;
  const at::Tensor packed_k = pack_columns<A, T>(tiling, k), packed_v = pack_rows<A, T>(tiling, v);
  const std::vector<A> positions = pack_positions<A, T>(tiling, pos);
  const A* keys = packed_k.const_data_ptr<A>();
  const A* values = packed_v.const_data_ptr<A>();
  const A* queries = q.const_data_ptr<A>();
  const A* bk = blank_k.const_data_ptr<A>();
  const A* bv = blank_v.const_data_ptr<A>();
  A* o = out.mutable_data_ptr<A>();
  A* log_sum = lse.mutable_data_ptr<A>();
  const A scale = A(1) / std::sqrt(A(tiling.dim));
  const int64_t total = tiling.batch * tiling.tokens;

  at::parallel_for(0, (total + kQueries - 1) / kQueries, 1, [&](int64_t first, int64_t last) {
    const Scratch<int32_t> list(kQueries * tiling.list);
    const Scratch<A> planes(kQueries * kPlanes * places), logits(kQueries * places);
    const Scratch<A> repeated(tiling.columns);
    A blank[kQueries];
    for (int64_t begin = first * kQueries; begin < std::min(total, last * kQueries);
         begin += kQueries) {
      const int64_t count = std::min(kQueries, total - begin);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t query = begin + i;
        list_tiles(
            tiling, clusters + query * tiling.near, query / tiling.tokens, list + i * tiling.list);
        relative_planes<A, T>(
            tiling, positions.data(), list + i * tiling.list, pos[2 * query],
            pos[2 * query + 1], planes + i * kPlanes * places);
      }
      for (int64_t h = 0; h < heads; ++h) {
        const A* head_keys = keys + h * tiling.columns;
        const A* head_values = values + h * T * row;
        for (int64_t i = 0; i < count; ++i) {
          const A* x = queries + ((begin + i) * heads + h) * row;
          A* logit = logits + i * places;
          repeat_channels<A, T>(tiling, x, scale, repeated);
          products<A, T>(tiling, repeated, head_keys, list + i * tiling.list, logit);
          add_position_terms(
              planes + i * kPlanes * places, places, pos_weight + h * kRelative,
              pos_bias[h], logit);
          blank[i] = scale * dot(x, bk + h * row, row);
        }
        for (int64_t i = 0; i < count; ++i) {
          const int64_t at = (begin + i) * heads + h;
          const A own = softmax(logits + i * places, places, blank[i], log_sum + at);
          for (int64_t d = 0; d < row; d += kLanes<A>) {
            store<A>(o + at * row + d, own * load<A>(bv + h * row + d));
          }
        }
        for (int64_t i = 0; i < count; ++i) {
          add_weighted_sum<A, T>(
              tiling, logits + i * places, head_values, list + i * tiling.list,
              o + ((begin + i) * heads + h) * row);
        }
      }
    }
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> cluster_attention(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& pos,
    const at::Tensor& clusters, int64_t m, const at::Tensor& pos_weight,
    const at::Tensor& pos_bias, const at::Tensor& blank_k, const at::Tensor& blank_v,
    const std::optional<at::Tensor>& start, const std::optional<at::Tensor>& place) {
  check_cluster_attention(
      q, k, v, pos, clusters, m, pos_weight, pos_bias, blank_k, blank_v, start, place);
  check_clusters(clusters, q.size(1), m);
  const int64_t heads = q.size(2), dim = q.size(3);
  if (q.numel() == 0) {
    return {
        at::empty(q.sizes(), q.options()), at::zeros({q.size(0), q.size(1), heads}, pos.options())};
  }
  at::Tensor out;
  auto lse = at::empty({q.size(0), q.size(1), heads}, pos.options());
  AT_DISPATCH_FLOATING_TYPES(pos.scalar_type(), "cluster_attention", [&] {
    const Tiling<scalar_t> tiling(q, clusters, m);
    out = at::empty({q.size(0), q.size(1), heads, tiling.row}, pos.options());
    with_tile_size<scalar_t>(tiling.size, [&](auto size) {
      const auto positions = pos.contiguous(), near = clusters.contiguous();
      const auto weight = pos_weight.contiguous(), bias = pos_bias.contiguous();
      forward<scalar_t, size>(
          tiling, padded_rows<scalar_t>(q.to(pos.scalar_type())),
          with_contiguous_rows(k.to(pos.scalar_type())),
          with_contiguous_rows(v.to(pos.scalar_type())), positions.const_data_ptr<scalar_t>(),
          near.const_data_ptr<int32_t>(), weight.const_data_ptr<scalar_t>(),
          bias.const_data_ptr<scalar_t>(), padded_rows<scalar_t>(blank_k.reshape({heads, dim})),
          padded_rows<scalar_t>(blank_v.reshape({heads, dim})), out, lse);
    });
  });
  return {without_padding(out, dim, q.scalar_type()), lse};
}

TORCH_LIBRARY_IMPL(aff_seg, CPU, m) {
  m.impl("cluster_attention", cluster_attention);
}

}  // namespace aff_seg
