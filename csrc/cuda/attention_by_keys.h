// The second pass of attention's backward: by clusters of keys. A warp has eight keys of a cluster
// as its columns, a block the keys of one cluster, as far as its warps go, at one or two heads. It
// takes the queries that list the cluster, some slots of them at a time, to shared memory,
// recomputes the probabilities, and sums the gradients of keys, values and position weights.

#pragma once

#include <algorithm>

#include "attention_arguments.h"
#include "attention_gradients.h"

namespace aff_seg {

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

// Copies a query that reads the cluster, if there is such a one, to row g of a slot.
template <typename P, int kHeads>
__device__ __forceinline__ void stage_reader(
    const Attention<typename P::T, typename P::A>& in, const Tokens<const typename P::T>& grad,
    const typename P::A* lse, const typename P::A* delta, int image, int head, int query,
    unsigned lane, char* slot) {
  using T = typename P::T;
  using A = typename P::A;
  using L = typename P::L;
  using Layout = ReaderLayout<P, kHeads>;
  const int g = lane / 4, t = lane % 4;
  const bool exists = static_cast<unsigned>(query) < static_cast<unsigned>(in.tokens);
  // Of absent rows everything but lse must be finite: query 0 serves.
  query = exists ? query : 0;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    T* to = reinterpret_cast<T*>(slot) + h * L::kElements;
    stage_row<L>(in.q.row(image, query, head + h), exists, in.q.wide, in.dim, g, t, to);
    stage_row<L>(
        grad.row(image, query, head + h), exists, grad.wide, in.dim, g, t,
        to + kHeads * L::kElements);
  }
  A* row = reinterpret_cast<A*>(slot + Layout::kRows) + Layout::kOfRow * g;
  const int64_t token = int64_t(image) * in.tokens + query, at = token * in.heads + head;
  if (t == 0) {
    copy_async<2 * sizeof(A)>(row, in.pos + 2 * token);
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

template <typename P, int kHeads>
__global__ void __launch_bounds__(kMaxWarps * kWarp, kGradientBlocks<P>)
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
  CUDA_KERNEL_ASSERT(
      list >= 0 && readers >= 0 &&
      list + readers <= int64_t(gridDim.z) * in.tokens * in.near);
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
      const int query = i < readers ? place[list + i] / in.near : -1;
      stage_reader<P, kHeads>(
          in, grad, lse, delta, image, head, query, lane, slots + s * Layout::kSlot);
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

}  // namespace aff_seg
