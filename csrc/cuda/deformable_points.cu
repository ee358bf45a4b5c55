// A block takes some queries of one head. First its threads look up what they read, a thread a
// sample: the tokens listed for its pixel and their shares, noted in shared memory. Then a group of
// lanes takes a query, each lane 16 bytes of the head's channels, and sums up the tokens' rows.
// Queries that follow each other read much the same rows, so most come from a cache.

#include "../deformable_points.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>

#include "../library.h"
#include "deformable_points.h"
#include "row_groups.h"

namespace aff_seg {
namespace {

// Places that a block notes at a time: all 48 of 32 queries.
constexpr int kRoom = 1536;

template <typename A>
struct Note {
  A share;
  int token;  // -1 where absent
};

// Adds the rows of `Count` places, all loaded first.
template <int Count, int V, typename T, typename A>
__device__ __forceinline__ void add_places(
    const T* rows, uint32_t row_bytes, const Note<A>* note, A* sum) {
  Pack<T, V> row[Count];
  A share[Count];
#pragma unroll
  for (int j = 0; j < Count; ++j) {
    const Note<A> own = note[j];
    share[j] = own.share;
    row[j] = load_pack_if<V>(own.token >= 0, row_at(rows, own.token, row_bytes));
  }
#pragma unroll
  for (int j = 0; j < Count; ++j) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      sum[v] += share[j] * static_cast<A>(row[j].value[v]);
    }
  }
}

// Notes the places of a sample from `first` to first + count - 1.
template <typename T, typename A>
__device__ __forceinline__ void note_sample(
    const DeformableInputs<T, A>& in, int64_t unit, int query, int number, int first, int count,
    Note<A>* note) {
  const Sample<T, A> sample(in, unit, query, number);
  const A power = *in.power;
  A total = 0;
  for (int k = 0; k < in.near; k += kEntries) {
    const auto token = sample.entries(in, k);
    A nearness[kEntries];
#pragma unroll
    for (int e = 0; e < kEntries; ++e) {
      nearness[e] = 0;
      if (token.value[e] >= 0) {
        nearness[e] =
            shepard_weight(raised(sample.candidate(token.value[e]).distance, power));
        total += nearness[e];
      }
    }
#pragma unroll
    for (int e = 0; e < kEntries; ++e) {
      const int n = k + e - first;
      if (n >= 0 && n < count) {
        note[n] = {nearness[e], token.value[e]};
      }
    }
  }
  const A weight = in.weight[sample.index];
  for (int n = 0; n < count; ++n) {
    note[n].share = note[n].share / total * weight;
  }
}

// All places of a query are noted at once, or as many of them at a time as the tile has.
template <bool kAtOnce, int V, typename T, typename A>
__global__ void __launch_bounds__(kThreads, kAtOnce && sizeof(A) < 8 ? 7 : 4)
    forward(const DeformableInputs<T, A> in, const Tiling tiling, T* out) {
  auto* note = shared_memory<Note<A>>();
  const int units = in.batch * in.heads;
  const int64_t unit = blockIdx.x % units;
  const int first_query = blockIdx.x / units * tiling.centres;
  const int group = threadIdx.x / tiling.lanes, lane = threadIdx.x % tiling.lanes;
  // Of a tile: whole samples, or a part of one.
  const int most = tiling.tile >= in.near ? tiling.tile / in.near : 1;
  const int part = std::min(tiling.tile, in.near);

  const auto look_up = [&](int sample, int samples, int first, int count) {
    __syncthreads();
    for (int e = threadIdx.x; e < tiling.centres * samples; e += kThreads) {
      const int c = e / samples, s = e - c * samples, query = first_query + c;
      if (query < in.queries) {
        note_sample(
            in, unit, query, sample + s, first, count, note + c * tiling.stride + s * part);
      }
    }
    __syncthreads();
  };

  if (kAtOnce) {
    look_up(0, in.samples, 0, in.near);
  }
  for (int base = 0; base < in.dim; base += tiling.lanes * V) {
    const int c = base + lane * V;
    const T* rows = in.rows(unit) + c;
    for (int round = 0; round < tiling.rounds; ++round) {
      const int centre = round * tiling.groups + group, query = first_query + centre;
      const bool writes = query < in.queries && c < in.dim;
      A sum[V] = {};
      for (int sample = 0; sample < in.samples; sample += most) {
        const int samples = std::min(most, in.samples - sample);
        for (int first = 0; first < in.near; first += part) {
          const int count = std::min(part, in.near - first);
          if (!kAtOnce) {
            look_up(sample, samples, first, count);
          }
          if (writes) {
            const Note<A>* own = note + centre * tiling.stride;
            const int listed = samples * count;
            int j = 0;
#pragma unroll 1
            for (; j + 4 <= listed; j += 4) {
              add_places<4, V>(rows, in.row_bytes, own + j, sum);
            }
            for (; j < listed; ++j) {
              add_places<1, V>(rows, in.row_bytes, own + j, sum);
            }
          }
        }
      }
      if (writes) {
        store_row<V>(sum, out + in.reader(unit, query) * in.dim + c);
      }
    }
  }
}

at::Tensor deformable_points_cuda(
    const at::Tensor& value, const at::Tensor& pos, const at::Tensor& table,
    const at::Tensor& location, const at::Tensor& weight, const at::Tensor& power) {
  check_deformable_points(value, pos, table, location, weight, power);
  const DeviceGuard guard(value);
  const std::array<int64_t, 4> sizes{
      value.size(0), location.size(1), value.size(2), value.size(3)};
  if (location.numel() == 0 || value.numel() == 0 || table.numel() == 0) {
    return at::zeros(sizes, value.options());
  }
  auto out = at::empty(sizes, value.options());
  const DeformableTensors tensors(value, pos, table, location, weight, power);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, value.scalar_type(), "deformable_points_cuda", [&] {
        using A = at::opmath_type<scalar_t>;
        const DeformableInputs<scalar_t, A> in(tensors);
        with_pack<scalar_t>(in.dim, {tensors.value, out}, [&](auto pack) {
          constexpr int V = decltype(pack)::value;
          const int64_t units = int64_t(in.batch) * in.heads;
          const Tiling tiling =
              tiling_for(units, in.queries, in.places, (in.dim + V - 1) / V, kRoom);
          launch(
              tiling.tile >= in.places ? forward<true, V, scalar_t, A>
                                       : forward<false, V, scalar_t, A>,
              blocks_for(units * tiling.blocks, 1), dim3(kThreads),
              tiling.centres * tiling.stride * sizeof(Note<A>), in, tiling,
              out.template mutable_data_ptr<scalar_t>());
        });
      });
  return out;
}

}  // namespace

AFF_SEG_CUDA_IMPL(m) { m.impl("deformable_points", deformable_points_cuda); }

}  // namespace aff_seg
