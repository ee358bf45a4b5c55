// Two passes over some queries at a time. The first recomputes the probabilities of each query and
// the gradients of its logits, and takes the gradients of queries and parameters; the second, by
// cluster of keys, those of keys and values. Between them stand the probabilities and the
// gradients of logits of those queries alone, in a buffer of fixed size.

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "../cluster_attention.h"
#include "cluster_tiles.h"

namespace aff_seg {
namespace {

// Queries whose heads are worked through in turn, and queries over which the gradients of
// parameters are summed before the blocks are: a multiple of the former.
constexpr int64_t kQueries = 8, kBlock = 32;
// Elements between the passes.
constexpr int64_t kBuffer = 1 << 19;

// Inputs and outputs in opmath, channels padded to whole vectors.
template <typename A>
struct Operands {
  at::Tensor k, v;
  const A *grad, *q, *blank_k, *blank_v, *pos, *pos_weight, *pos_bias, *lse;
  const int32_t *clusters, *place;
  const int64_t* start;
  A *grad_q, *grad_k, *grad_v, *grad_pos_weight, *grad_pos_bias, *grad_blank_k, *grad_blank_v;
};

// What the first pass leaves to the second for each query, (queries, heads, places) each.
template <typename A>
struct Between {
  int64_t begin, end;
  A *probability, *grad_logit;
};

// Gradients of the parameters over a block of queries.
template <typename A>
struct Partial {
  A *pos, *blank_k, *blank_v;  // (heads, kPlanes), (heads, row), (heads, row)
};

template <typename A, int T>
class Backward {
 public:
  Backward(const Tiling<A>& tiling, const Operands<A>& x)
      : t_(tiling), x_(x), scale_(A(1) / std::sqrt(A(tiling.dim))),
        packed_{
            pack_columns<A, T>(tiling, x.k), pack_columns<A, T>(tiling, x.v),
            pack_rows<A, T>(tiling, x.k)},
        columns_k_(packed_[0].template const_data_ptr<A>()),
        columns_v_(packed_[1].template const_data_ptr<A>()),
        rows_k_(packed_[2].template const_data_ptr<A>()),
        positions_(pack_positions<A, T>(tiling, x.pos)),
        per_block_(tiling.heads * (kPlanes + 2 * tiling.row)),
        next_(x.start, x.start + tiling.batch * tiling.clusters) {}

  void run() {
    const int64_t total = t_.batch * t_.tokens, width = t_.heads * t_.places;
    const int64_t blocks = (total + kBlock - 1) / kBlock;
    const int64_t at_once =
        std::clamp(kBuffer / (2 * std::max<int64_t>(1, width) * kBlock), int64_t(1), blocks);
    const Scratch<A> probability(at_once * kBlock * width), grad_logit(at_once * kBlock * width);
    const Scratch<A> partial(blocks * per_block_);
    for (int64_t first = 0; first < blocks; first += at_once) {
      const int64_t last = std::min(blocks, first + at_once);
      const Between<A> between{
          first * kBlock, std::min(total, last * kBlock), probability, grad_logit};
      by_queries(between, first, last, partial);
      by_keys(between);
    }
    sum_partials(partial, blocks);
  }

 private:
  void by_queries(const Between<A>& between, int64_t first, int64_t last, A* partials) {
    at::parallel_for(first, last, 1, [&](int64_t from, int64_t to) {
      const Scratch<int32_t> list(kQueries * t_.list);
      const Scratch<A> planes(kQueries * kPlanes * t_.places), repeated(t_.columns);
      for (int64_t block = from; block < to; ++block) {
        A* start = partials + block * per_block_;
        std::fill(start, start + per_block_, A(0));
        const Partial<A> partial{
            start, start + t_.heads * kPlanes, start + t_.heads * (kPlanes + t_.row)};
        const int64_t end = std::min(between.end, (block + 1) * kBlock);
        for (int64_t begin = block * kBlock; begin < end; begin += kQueries) {
          const int64_t count = std::min(kQueries, end - begin);
          for (int64_t i = 0; i < count; ++i) {
            const int64_t query = begin + i;
            list_tiles(
                t_, x_.clusters + query * t_.near, query / t_.tokens, list + i * t_.list);
            relative_planes<A, T>(
                t_, positions_.data(), list + i * t_.list, x_.pos[2 * query],
                x_.pos[2 * query + 1], planes + i * kPlanes * t_.places);
          }
          for (int64_t h = 0; h < t_.heads; ++h) {
            one_head(between, begin, count, h, list, planes, repeated, partial);
          }
        }
      }
    });
  }

  // One head of some queries.
  void one_head(
      const Between<A>& between, int64_t begin, int64_t count, int64_t h, const int32_t* list,
      const A* planes, A* repeated, const Partial<A>& partial) {
    const int64_t row = t_.row, places = t_.places;
    const A* blank_k = x_.blank_k + h * row;
    const A* blank_v = x_.blank_v + h * row;
    const A* columns_k = columns_k_ + h * t_.columns;
    const A* columns_v = columns_v_ + h * t_.columns;
    const A* rows_k = rows_k_ + h * T * row;
    A blank[kQueries];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = (begin + i) * t_.heads + h;
      const int64_t offset = ((begin + i - between.begin) * t_.heads + h) * places;
      const A* q = x_.q + at * row;
      repeat_channels<A, T>(t_, q, scale_, repeated);
      products<A, T>(t_, repeated, columns_k, list + i * t_.list, between.probability + offset);
      blank[i] = scale_ * dot(q, blank_k, row);
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = (begin + i) * t_.heads + h;
      const int64_t offset = ((begin + i - between.begin) * t_.heads + h) * places;
      const A* g = x_.grad + at * row;
      repeat_channels<A, T>(t_, g, A(1), repeated);
      products<A, T>(t_, repeated, columns_v, list + i * t_.list, between.grad_logit + offset);
    }
    Vec<A> sums[kRelative] = {};
    A bias = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = (begin + i) * t_.heads + h;
      const int64_t offset = ((begin + i - between.begin) * t_.heads + h) * places;
      const A* q = x_.q + at * row;
      const A* g = x_.grad + at * row;
      const A* plane = planes + i * kPlanes * places;
      A* probability = between.probability + offset;
      A* grad_logit = between.grad_logit + offset;
      add_position_terms(
          plane, places, x_.pos_weight + h * kRelative, x_.pos_bias[h], probability);
      // The gradient of a logit is p (a - mean), a being the gradient along its value and mean the
      // sum of p a. Since the p sum to 1, that of the blank one is p times the sum over the others
      // of p (own a - a), which does not cancel; the gradient of the bias, too, is minus this.
      const A own = std::exp(blank[i] - x_.lse[at]), own_along = dot(g, blank_v, row);
      Vec<A> along{}, short_of{};
      for (int64_t p = 0; p < places; p += kLanes<A>) {
        const Vec<A> value = exp_lanes(load<A>(probability + p) - x_.lse[at]);
        const Vec<A> a = load<A>(grad_logit + p);
        store<A>(probability + p, value);
        along += value * a;
        short_of += value * (own_along - a);
      }
      const A mean = lane_sum<A>(along) + own * own_along;
      const A own_slope = own * lane_sum<A>(short_of);
      bias -= own_slope;
      for (int64_t p = 0; p < places; p += kLanes<A>) {
        const Vec<A> slope = load<A>(probability + p) * (load<A>(grad_logit + p) - mean);
        store<A>(grad_logit + p, slope * scale_);
#pragma GCC unroll 8
        for (int f = 0; f < kRelative; ++f) {
          sums[f] += slope * load<A>(plane + f * places + p);
        }
      }
      A* grad_q = x_.grad_q + at * row;
      for (int64_t d = 0; d < row; d += kLanes<A>) {
        A* sum_k = partial.blank_k + h * row + d;
        A* sum_v = partial.blank_v + h * row + d;
        store<A>(grad_q + d, own_slope * scale_ * load<A>(blank_k + d));
        store<A>(sum_k, load<A>(sum_k) + own_slope * scale_ * load<A>(q + d));
        store<A>(sum_v, load<A>(sum_v) + own * load<A>(g + d));
      }
    }
    for (int f = 0; f < kRelative; ++f) {
      partial.pos[h * kPlanes + f] += lane_sum<A>(sums[f]);
    }
    partial.pos[h * kPlanes + kRelative] += bias;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t offset = ((begin + i - between.begin) * t_.heads + h) * places;
      add_weighted_sum<A, T>(
          t_, between.grad_logit + offset, rows_k, list + i * t_.list,
          x_.grad_q + ((begin + i) * t_.heads + h) * row);
    }
  }

  // Each cluster of keys gathers from the queries that attend it, in ascending order.
  void by_keys(const Between<A>& between) {
    const int64_t first = between.begin / t_.tokens * t_.clusters;
    const int64_t last = ((between.end - 1) / t_.tokens + 1) * t_.clusters;
    const int64_t row = t_.row, by_query = t_.heads * row;
    const A* q = x_.q;
    const A* g = x_.grad;
    at::parallel_for(first, last, 1, [&](int64_t from, int64_t to) {
      std::vector<int64_t> query, place;
      for (int64_t cluster = from; cluster < to; ++cluster) {
        const int64_t image = cluster / t_.clusters, c = cluster % t_.clusters;
        query.clear();
        place.clear();
        for (int64_t& s = next_[cluster]; s < x_.start[cluster + 1]; ++s) {
          const int64_t i = image * t_.tokens + x_.place[s] / t_.near;
          if (i >= between.end) {
            break;
          }
          query.push_back(i * by_query);
          place.push_back(
              (i - between.begin) * t_.heads * t_.places +
              x_.place[s] % t_.near * t_.per_cluster * T);
        }
        if (query.empty()) {
          continue;
        }
        for (int64_t u = 0; u < t_.per_cluster; ++u) {
          int64_t token;
          const int64_t present = t_.present(c * t_.per_cluster + u, &token);
          for (int64_t h = 0; h < t_.heads; ++h) {
            const int64_t at = ((image * t_.tokens + token) * t_.heads + h) * row;
            const int64_t offset = h * t_.places + u * T;
            gather(
                query, place, q + h * row, between.grad_logit + offset, present,
                x_.grad_k + at);
            gather(
                query, place, g + h * row, between.probability + offset, present,
                x_.grad_v + at);
          }
        }
      }
    });
  }

  // Tokens and vectors of a row that fit the registers as sums.
  static constexpr int kTokens = std::min(T, kVectorBytes == 64 ? 8 : 4);

  // to[token] += sum over queries of weight[place + token] * x[query], for a tile's tokens.
  void gather(
      const std::vector<int64_t>& query, const std::vector<int64_t>& place, const A* x,
      const A* weight, int64_t present, A* to) const {
    for (int64_t token = 0; token < present; token += kTokens) {
      const int64_t count = std::min<int64_t>(kTokens, present - token);
      A* start = to + token * t_.heads * t_.row;
      int64_t d = 0;
      for (; d + 2 * kLanes<A> <= t_.row; d += 2 * kLanes<A>) {
        gather_part<2>(query, place, x + d, weight + token, count, start + d);
      }
      if (d < t_.row) {
        gather_part<1>(query, place, x + d, weight + token, count, start + d);
      }
    }
  }

  template <int V>
  void gather_part(
      const std::vector<int64_t>& query, const std::vector<int64_t>& place, const A* x,
      const A* weight, int64_t count, A* to) const {
    Vec<A> sum[kTokens][V] = {};
    for (size_t s = 0; s < query.size(); ++s) {
      const A* w = weight + place[s];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const Vec<A> value = load<A>(x + query[s] + v * kLanes<A>);
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) {
          sum[t][v] += w[t] * value;
        }
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      if (t < count) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          A* start = to + t * t_.heads * t_.row + v * kLanes<A>;
          store<A>(start, load<A>(start) + sum[t][v]);
        }
      }
    }
  }

  // In double: there are many blocks.
  void sum_partials(const A* partials, int64_t blocks) {
    std::vector<double> sum(per_block_, 0.0);
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t e = 0; e < per_block_; ++e) {
        sum[e] += static_cast<double>(partials[block * per_block_ + e]);
      }
    }
    for (int64_t h = 0; h < t_.heads; ++h) {
      const double* pos = sum.data() + h * kPlanes;
      const double* blank_k = sum.data() + t_.heads * kPlanes + h * t_.row;
      const double* blank_v = blank_k + t_.heads * t_.row;
      std::copy(pos, pos + kRelative, x_.grad_pos_weight + h * kRelative);
      x_.grad_pos_bias[h] = static_cast<A>(pos[kRelative]);
      std::copy(blank_k, blank_k + t_.dim, x_.grad_blank_k + h * t_.dim);
      std::copy(blank_v, blank_v + t_.dim, x_.grad_blank_v + h * t_.dim);
    }
  }

  const Tiling<A>& t_;
  const Operands<A>& x_;
  const A scale_;
  const at::Tensor packed_[3];
  const A *const columns_k_, *const columns_v_, *const rows_k_;
  const std::vector<A> positions_;
  const int64_t per_block_;
  std::vector<int64_t> next_;  // in the list of each cluster, what no pass has read
};

// Whether start and place are what cluster_readers makes of clusters: if not, places out of any
// range might be read.
bool are_readers(
    const at::Tensor& start, const at::Tensor& place, const at::Tensor& clusters) {
  const int64_t batch = clusters.size(0), places = clusters.size(1) * clusters.size(2);
  const int64_t* first = start.const_data_ptr<int64_t>();
  const int32_t* listed = place.const_data_ptr<int32_t>();
  const int32_t* list = clusters.const_data_ptr<int32_t>();
  const int64_t all = start.numel() - 1, count = batch > 0 ? all / batch : 0;
  int64_t s = 0;
  for (int64_t cluster = 0; cluster < all; ++cluster) {
    if (first[cluster] != s || first[cluster + 1] > place.numel()) {
      return false;
    }
    const int32_t* of_image = list + cluster / count * places;
    for (int64_t last = -1; s < first[cluster + 1]; ++s) {
      if (listed[s] <= last || listed[s] >= places || of_image[listed[s]] != cluster % count) {
        return false;
      }
      last = listed[s];
    }
  }
  return s == place.numel();
}

}  // namespace

std::tuple<
    at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
cluster_attention_backward(
    const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& pos, const at::Tensor& clusters, int64_t m, const at::Tensor& pos_weight,
    const at::Tensor& pos_bias, const at::Tensor& blank_k, const at::Tensor& blank_v,
    const at::Tensor& out, const at::Tensor& lse, const at::Tensor& start,
    const at::Tensor& place) {
  check_cluster_attention_backward(
      grad, q, k, v, pos, clusters, m, pos_weight, pos_bias, blank_k, blank_v, out, lse, start,
      place);
  check_clusters(clusters, q.size(1), m);
  const auto near = clusters.contiguous();
  const auto starts = start.contiguous(), places = place.contiguous();
  TORCH_CHECK_VALUE(
      are_readers(starts, places, near), "start and place must be the readers of clusters");
  const auto type = pos.scalar_type();
  const int64_t heads = q.size(2), dim = q.size(3);
  auto grad_pos_weight = at::zeros(pos_weight.sizes(), pos.options());
  auto grad_pos_bias = at::zeros(pos_bias.sizes(), pos.options());
  auto grad_blank_k = at::zeros(blank_k.sizes(), pos.options());
  auto grad_blank_v = at::zeros(blank_v.sizes(), pos.options());
  if (q.numel() == 0) {
    auto none = [&] { return at::zeros(q.sizes(), q.options()); };
    return {none(), none(), none(), grad_pos_weight, grad_pos_bias, grad_blank_k, grad_blank_v};
  }
  at::Tensor grad_q, grad_k, grad_v;
  AT_DISPATCH_FLOATING_TYPES(type, "cluster_attention_backward", [&] {
    using A = scalar_t;
    const Tiling<A> tiling(q, clusters, m);
    const auto positions = pos.contiguous();
    const auto weight = pos_weight.contiguous(), bias = pos_bias.contiguous();
    const auto log_sum = lse.contiguous();
    const std::vector<int64_t> padded{q.size(0), q.size(1), heads, tiling.row};
    grad_q = at::empty(padded, pos.options());
    grad_k = at::zeros(padded, pos.options());
    grad_v = at::zeros(padded, pos.options());
    const auto grads = padded_rows<A>(grad.to(type)), queries = padded_rows<A>(q.to(type));
    const auto own_k = padded_rows<A>(blank_k.reshape({heads, dim}));
    const auto own_v = padded_rows<A>(blank_v.reshape({heads, dim}));
    const Operands<A> operands{
        with_contiguous_rows(k.to(type)),
        with_contiguous_rows(v.to(type)),
        grads.const_data_ptr<A>(),
        queries.const_data_ptr<A>(),
        own_k.const_data_ptr<A>(),
        own_v.const_data_ptr<A>(),
        positions.const_data_ptr<A>(),
        weight.const_data_ptr<A>(),
        bias.const_data_ptr<A>(),
        log_sum.const_data_ptr<A>(),
        near.const_data_ptr<int32_t>(),
        places.const_data_ptr<int32_t>(),
        starts.const_data_ptr<int64_t>(),
        grad_q.mutable_data_ptr<A>(),
        grad_k.mutable_data_ptr<A>(),
        grad_v.mutable_data_ptr<A>(),
        grad_pos_weight.mutable_data_ptr<A>(),
        grad_pos_bias.mutable_data_ptr<A>(),
        grad_blank_k.mutable_data_ptr<A>(),
        grad_blank_v.mutable_data_ptr<A>()};
    with_tile_size<A>(
        tiling.size, [&](auto size) { Backward<A, size>(tiling, operands).run(); });
  });
  auto finish = [&](const at::Tensor& x) {
    return without_padding(x, dim, q.scalar_type());
  };
  return {
      finish(grad_q), finish(grad_k), finish(grad_v),
      grad_pos_weight, grad_pos_bias, grad_blank_k, grad_blank_v};
}

TORCH_LIBRARY_IMPL(aff_seg, CPU, m) {
  m.impl("cluster_attention_backward", cluster_attention_backward);
}

}  // namespace aff_seg
