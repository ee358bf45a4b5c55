// Two passes that recompute the probabilities from lse. The first goes as forward does, by queries,
// for the gradients of queries, bias and blank token; the second goes by clusters of keys, through
// the queries that list them, for those of keys, values and position weights.
//
// The gradient of a logit is p (a - delta), a being the gradient along its value and delta the sum
// of p a, which is the gradient along the query's result. Where results are rounded, the first pass
// starts from such a delta and corrects what it summed in the end. Since the p sum to 1, the
// gradient of the blank token's logit is p times the sum over the others of p (own a - a), which
// does not cancel; the gradient of the bias, too, is minus this.

#include "../cluster_attention.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include "../library.h"
#include "near_clusters.h"

namespace aff_seg {
namespace {

// A power of 2 by which gradients are multiplied while they are worked with, such that products of
// half neither overflow nor vanish; 1 for other types. `extremes` are the least and the largest.
template <typename T, typename A>
__device__ __forceinline__ A gradient_scale(const T* extremes) {
  if constexpr (std::is_same_v<T, c10::Half>) {
    const A least = -static_cast<A>(extremes[0]), largest = static_cast<A>(extremes[1]);
    const A size = least > largest ? least : largest;
    const bool usable = size > 0 && size <= std::numeric_limits<A>::max();
    return usable ? std::ldexp(A(1), -5 - std::ilogb(size)) : A(1);
  } else {
    return 1;
  }
}

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
__global__ void __launch_bounds__(kMaxWarps * kWarp, sizeof(typename P::T) == 2 ? 4 : 2)
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

// Shared memory of the second pass: the terms of logits; of each warp its columns, keys and values,
// and scratch; slots of queries. A slot has queries at all heads, their gradients at all heads, and
// of its eight rows x, y, and for each head lse and delta. Absent rows have an lse of infinity.
template <typename P, int kHeads>
struct ReaderLayout {
  using T = typename P::T;
  using A = typename P::A;
  using L = typename P::L;
  static constexpr int kRows = 2 * kHeads * L::kBytes;
  static constexpr int kOfRow = kHeads == 1 ? 4 : 8;
  static constexpr int kSlot = kRows + kOfRow * kSlotRows * static_cast<int>(sizeof(A));
  static constexpr int kColumns = kHeads * static_cast<int>(sizeof(LogitTerms<P>));
  static constexpr int kScratch = 2 * kHeads * L::kBytes;
  static constexpr int kOfWarp = kScratch + P::kScratch * static_cast<int>(sizeof(A));

  int warps, capacity;

  C10_HOST_DEVICE int slots() const { return kColumns + warps * kOfWarp; }
  C10_HOST_DEVICE int bytes() const { return slots() + capacity * kSlot; }

  // A warp for each eight keys of a cluster, at most kMaxWarps.
  static ReaderLayout fitting(int per_cluster) {
    ReaderLayout layout{std::min(per_cluster, kMaxWarps), 4};
    while (layout.capacity > P::kSlots && layout.bytes() > kSharedBudget<T>) {
      layout.capacity /= 2;
    }
    while (layout.warps > 1 && layout.bytes() > kSharedBudget<T>) {
      --layout.warps;
    }
    return layout;
  }
};

template <typename P, int kHeads>
__global__ void __launch_bounds__(kMaxWarps * kWarp, sizeof(typename P::T) == 2 ? 4 : 2)
    by_keys(
        const Attention<typename P::T, typename P::A> in, int capacity,
        Tokens<const typename P::T> grad, const typename P::A* lse, const typename P::A* delta,
        const typename P::T* extremes, const int64_t* start, const int32_t* place,
        Tokens<typename P::T> grad_k, Tokens<typename P::T> grad_v, typename P::A* partial) {
  using T = typename P::T;
  using A = typename P::A;
  using L = typename P::L;
  using Layout = ReaderLayout<P, kHeads>;
  constexpr int kSlots = P::kSlots;
  const unsigned lane = threadIdx.x;
  const int g = lane / 4, t = lane % 4, warp = threadIdx.y, warps = blockDim.y;
  const int image = blockIdx.z, head = blockIdx.y * kHeads;
  const Layout layout{warps, capacity};
  char* memory = shared_memory<char>();
  auto* terms_of = reinterpret_cast<LogitTerms<P>*>(memory);
  T* columns = reinterpret_cast<T*>(memory + Layout::kColumns + warp * Layout::kOfWarp);
  A* scratch = reinterpret_cast<A*>(columns) + Layout::kScratch / sizeof(A);
  char* slots = memory + layout.slots();

  // The warp's columns: some keys of a cluster.
  const int pieces = (in.per_cluster + warps - 1) / warps;
  const int cluster = pieces == 1 ? blockIdx.x : blockIdx.x / pieces;
  const int begin = ((blockIdx.x - cluster * pieces) * warps + warp) * kSlotRows;
  const int first = cluster * in.m + begin;
  const int in_cluster = in.m - begin, in_image = in.tokens - first;
  const int present = in_cluster < in_image ? in_cluster : in_image;
  const int own = g < present ? first + g : 0;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    stage_row<L>(
        in.k.row(image, own, head + h), g < present, in.k.wide, in.dim, g, t,
        columns + h * L::kElements);
    stage_row<L>(
        in.v.row(image, own, head + h), g < present, in.v.wide, in.dim, g, t,
        columns + (kHeads + h) * L::kElements);
  }
  const int64_t first_token = int64_t(image) * in.tokens;
  A x[2], y[2], masked[kSlots][2];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const bool exists = 2 * t + j < present;
    Pack<A, 2> pos{};
    if (exists) {
      pos = reinterpret_cast<const Pack<A, 2>*>(in.pos)[first_token + first + 2 * t + j];
    }
    x[j] = pos.value[0];
    y[j] = pos.value[1];
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      masked[s][j] = exists ? A(0) : -std::numeric_limits<A>::infinity();
    }
  }
  if (warp == 0 && lane < kHeads) {
    terms_of[lane] = LogitTerms<P>(in.pos_weight, in.pos_bias, head + lane, in.scale);
  }
  const A scale = gradient_scale<T, A>(extremes);

  typename P::Sum sum_k[kHeads], sum_v[kHeads];
  A sum_pos[kHeads][kRelative] = {};
  const int64_t list = start[int64_t(image) * in.clusters + cluster];
  const int readers =
      static_cast<int>(start[int64_t(image) * in.clusters + cluster + 1] - list);
#pragma unroll 1
  for (int reader = 0; reader < readers; reader += capacity * kSlotRows) {
    if (reader != 0) {
      __syncthreads();
    }
    // Whole tiles.
    const int left =
        (readers - reader + kSlots * kSlotRows - 1) / (kSlots * kSlotRows) * kSlots;
    const int count = left < capacity ? left : capacity;
#pragma unroll 1
    for (int s = warp; s < count; s += warps) {
      const int i = reader + s * kSlotRows + g;
      const bool exists = i < readers;
      const int query = exists ? place[list + i] / in.near : 0;
      CUDA_KERNEL_ASSERT(query >= 0 && query < in.tokens);
      char* slot = slots + s * Layout::kSlot;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        T* to = reinterpret_cast<T*>(slot) + h * L::kElements;
        stage_row<L>(
            in.q.row(image, query, head + h), exists, in.q.wide, in.dim, g, t, to);
        stage_row<L>(
            grad.row(image, query, head + h), exists, grad.wide, in.dim, g, t,
            to + kHeads * L::kElements);
      }
      // Of absent rows everything else must be finite: query 0 serves.
      A* row = reinterpret_cast<A*>(slot + Layout::kRows) + Layout::kOfRow * g;
      const int64_t at = (first_token + query) * in.heads + head;
      if (t == 0) {
        copy_async<2 * sizeof(A)>(row, in.pos + 2 * (first_token + query));
      } else if (t == 1) {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          if (exists) {
            copy_async<sizeof(A)>(row + 2 + 2 * h, lse + at + h);
          } else {
            row[2 + 2 * h] = std::numeric_limits<A>::infinity();
          }
        }
      } else if (t == 2) {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          copy_async<sizeof(A)>(row + 3 + 2 * h, delta + at + h);
        }
      }
    }
    wait_for_copies();
    __syncthreads();
#pragma unroll 1
    for (int s0 = 0; s0 < count; s0 += kSlots) {
      const char* slot[kSlots];
      Direction<A> direction[kSlots][2];
      A statistics[kSlots][kHeads][2];
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        slot[s] = slots + (s0 + s) * Layout::kSlot;
        const auto row = *reinterpret_cast<const Pack<A, Layout::kOfRow>*>(
            slot[s] + Layout::kRows + Layout::kOfRow * g * sizeof(A));
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          direction[s][j] = P::direction(x[j] - row.value[0], y[j] - row.value[1]);
        }
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          statistics[s][h][0] = row.value[2 + 2 * h];
          statistics[s][h][1] = row.value[3 + 2 * h];
        }
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const LogitTerms<P> terms = terms_of[h];
        const T *rows[kSlots], *grads[kSlots];
#pragma unroll
        for (int s = 0; s < kSlots; ++s) {
          rows[s] = reinterpret_cast<const T*>(slot[s]) + h * L::kElements;
          grads[s] = rows[s] + kHeads * L::kElements;
        }
        A weight[kSlots][2], along[kSlots][2];
        P::multiply(
            lane, rows, count - s0, columns + h * L::kElements, in.dim, masked, weight);
        P::multiply(
            lane, grads, count - s0, columns + (kHeads + h) * L::kElements, in.dim, {}, along);
#pragma unroll
        for (int s = 0; s < kSlots; ++s) {
          const A begins = terms.bias - statistics[s][h][0] * P::kPerLogit;
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const Direction<A> at = direction[s][j];
            weight[s][j] = P::exponential(terms.logit(weight[s][j], at, begins));
            const A slope = weight[s][j] * (scale * along[s][j] - statistics[s][h][1]);
            const A by_r = slope * at.r;
            along[s][j] = slope;
            sum_pos[h][0] += by_r * at.cosine;
            sum_pos[h][1] += by_r * at.sine;
            sum_pos[h][2] += by_r;
            sum_pos[h][3] += slope * at.sine;
            sum_pos[h][4] += slope * at.cosine;
          }
        }
        P::add(lane, grads, count - s0, weight, scratch, sum_v[h]);
        P::add(lane, rows, count - s0, along, scratch, sum_k[h]);
      }
    }
  }

  wait_for_copies();
  const A inverse = 1 / scale;
  const int64_t block = int64_t(blockIdx.z) * gridDim.x + blockIdx.x;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
#pragma unroll
    for (int f = 0; f < kRelative; ++f) {
      const A sum = warp_sum(sum_pos[h][f]);
      if (lane == 0) {
        partial[((block * warps + warp) * in.heads + head + h) * kRelative + f] = sum * inverse;
      }
    }
    P::scale({in.scale * inverse, in.scale * inverse}, sum_k[h]);
    __syncwarp();
    P::put(lane, sum_k[h], columns + h * L::kElements);
    P::put(lane, sum_v[h], columns + (kHeads + h) * L::kElements);
    __syncwarp();
    if (g < present) {
      write_row<L>(
          columns + h * L::kElements, grad_k.wide, in.dim, g, t,
          grad_k.row(image, own, head + h));
      write_row<L>(
          columns + (kHeads + h) * L::kElements, grad_v.wide, in.dim, g, t,
          grad_v.row(image, own, head + h));
    }
  }
}

std::tuple<
    at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
cluster_attention_backward_cuda(
    const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& pos, const at::Tensor& clusters, int64_t m, const at::Tensor& pos_weight,
    const at::Tensor& pos_bias, const at::Tensor& blank_k, const at::Tensor& blank_v,
    const at::Tensor& out, const at::Tensor& lse, const at::Tensor& start,
    const at::Tensor& place) {
  check_cluster_attention_backward(
      grad, q, k, v, pos, clusters, m, pos_weight, pos_bias, blank_k, blank_v, out, lse, start,
      place);
  const DeviceGuard guard(q);
  if (q.numel() == 0) {
    const auto zeros = [](const at::Tensor& x) { return at::zeros(x.sizes(), x.options()); };
    return {
        zeros(q), zeros(k), zeros(v), zeros(pos_weight), zeros(pos_bias), zeros(blank_k),
        zeros(blank_v)};
  }
  const int64_t batch = q.size(0), tokens = q.size(1), heads = q.size(2), dim = q.size(3);
  const AttentionTensors tensors(
      q, k, v, pos, clusters, pos_weight, pos_bias, blank_k, blank_v);
  const auto grads = with_near_channels(grad), outs = with_near_channels(out);
  const auto log_sum = lse.contiguous(), starts = start.contiguous(), places = place.contiguous();
  auto grad_q = at::empty(q.sizes(), q.options()), grad_k = at::empty(q.sizes(), q.options());
  auto grad_v = at::empty(q.sizes(), q.options());
  auto delta = at::empty(lse.sizes(), lse.options());
  at::Tensor extremes, of_queries, of_keys;
  if (q.scalar_type() == at::kHalf) {
    const auto [least, largest] = at::aminmax(grads);
    extremes = at::stack({least, largest});
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, q.scalar_type(), "cluster_attention_backward_cuda", [&] {
        using A = at::opmath_type<scalar_t>;
        const auto in = tensors.arguments<scalar_t, A>(m);
        const auto from = tokens_of<scalar_t>(grads);
        const auto results = [](at::Tensor& x) {
          return Tokens<scalar_t>(x.mutable_data_ptr<scalar_t>(), x);
        };
        const scalar_t* range = extremes.defined() ? extremes.const_data_ptr<scalar_t>() : nullptr;
        with_tile<scalar_t>(in.dim, in.heads, [&](auto tile, auto at_once) {
          using P = decltype(tile);
          constexpr int kHeads = decltype(at_once)::value;
          const auto near = NearLayout<P, kHeads, 2>::fitting(in);
          const dim3 grid = attention_grid(tokens, near.warps, heads / kHeads, batch);
          of_queries = at::empty({int64_t(grid.x) * grid.z, heads, 1 + 2 * dim}, pos.options());
          launch(
              by_queries<P, kHeads>, grid, dim3(kWarp, near.warps), near.bytes(), in,
              near.capacity, from, tokens_of<scalar_t>(outs),
              log_sum.template const_data_ptr<A>(), range, results(grad_q),
              delta.template mutable_data_ptr<A>(), of_queries.template mutable_data_ptr<A>());
          const auto reader = ReaderLayout<P, kHeads>::fitting(in.per_cluster);
          dim3 by_cluster = grid;
          by_cluster.x = static_cast<unsigned>(
              in.clusters * ((in.per_cluster + reader.warps - 1) / reader.warps));
          of_keys = at::empty(
              {int64_t(by_cluster.x) * grid.z * reader.warps, heads, kRelative}, pos.options());
          launch(
              by_keys<P, kHeads>, by_cluster, dim3(kWarp, reader.warps), reader.bytes(), in,
              reader.capacity, from, log_sum.template const_data_ptr<A>(),
              delta.template const_data_ptr<A>(), range,
              starts.template const_data_ptr<int64_t>(),
              places.template const_data_ptr<int32_t>(), results(grad_k), results(grad_v),
              of_keys.template mutable_data_ptr<A>());
        });
      });
  const auto summed = [&](const at::Tensor& x, int64_t first, const at::Tensor& like) {
    const auto part = at::sum(x, 0, /*keepdim=*/false, at::kDouble);
    return part.narrow(1, first, like.numel() / heads).to(pos.scalar_type()).reshape(like.sizes());
  };
  return {
      grad_q,
      grad_k,
      grad_v,
      summed(of_keys, 0, pos_weight),
      summed(of_queries, 0, pos_bias),
      summed(of_queries, 1, blank_k),
      summed(of_queries, 1 + dim, blank_v)};
}

}  // namespace

AFF_SEG_CUDA_IMPL(m) {
  m.impl("cluster_attention_backward", cluster_attention_backward_cuda);
}

}  // namespace aff_seg
