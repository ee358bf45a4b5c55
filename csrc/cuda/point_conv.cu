// A block takes some centres of one image. First its threads compute the network, once for each of
// their neighbours, and note its token and weights in shared memory. Then a group of lanes takes a
// centre, each lane 16 bytes of channels, and reads the neighbours' rows: each once for four units,
// whose sums stay in registers. Centres that follow each other have much the same neighbours, so
// most rows come from a cache.

#include "../point_conv.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>

#include "../library.h"
#include "point_conv.h"
#include "row_groups.h"

namespace aff_seg {
namespace {

// Places whose weights a block notes at a time: all 48 of 16 centres.
constexpr int kRoom = 768;

// Adds to the sums of kUnits units the rows of `Count` places, all loaded first.
template <int Count, int V, typename T, typename A>
__device__ __forceinline__ void add_places(
    const T* rows, uint32_t row_bytes, const int* token, const UnitWeights<A>* weight,
    A (*sum)[V]) {
  Pack<T, V> row[Count];
#pragma unroll
  for (int j = 0; j < Count; ++j) {
    row[j] = load_pack_if<V>(token[j] >= 0, row_at(rows, token[j], row_bytes));
  }
#pragma unroll
  for (int j = 0; j < Count; ++j) {
    const UnitWeights<A> own = weight[j];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A x = static_cast<A>(row[j].value[v]);
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        sum[i][v] += own.value[i] * x;
      }
    }
  }
}

// For I = 0 any number of units, kUnits at a time, and any number of places; else all of a centre
// are noted at once.
template <int I, int V, typename T, typename A>
__global__ void __launch_bounds__(kThreads, I > 0 && sizeof(A) < 8 ? 6 : 4)
    forward(const PointConvInputs<T, A> in, const Tiling tiling, T* out) {
  __shared__ Units<I, A> units;
  auto* weight = shared_memory<UnitWeights<A>>();
  int* token = reinterpret_cast<int*>(weight + tiling.centres * tiling.stride);
  const unsigned image = blockIdx.x / tiling.blocks;
  const int first_query = blockIdx.x % tiling.blocks * tiling.centres;
  const int group = threadIdx.x / tiling.lanes, lane = threadIdx.x % tiling.lanes;
  const int inner = I > 0 ? I : in.inner;
  units.load(in);

  // Notes `count` places, from `member` on, of all centres.
  const auto look_up = [&](int begin, int member, unsigned count) {
    __syncthreads();
    for (unsigned e = threadIdx.x; e < tiling.centres * count; e += kThreads) {
      const unsigned c = e / count, j = e - c * count;
      UnitWeights<A> found;
      Place<A> place;
      if (first_query + static_cast<int>(c) < in.queries) {
        const int64_t query = int64_t(image) * in.queries + first_query + c;
        place = place_of(in, units, image, query, member + j);
      }
      if (place.token >= 0) {
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
          if (begin + i < inner) {
            const NetworkUnit<A> unit = units.at(in, begin + i);
            found.value[i] = gelu(unit.activated(place.normed(unit))).value * place.factor;
          }
        }
      }
      weight[c * tiling.stride + j] = found;
      token[c * tiling.stride + j] = place.token;
    }
    __syncthreads();
  };

  const bool at_once = I > 0 || tiling.tile >= in.members;
  for (int begin = 0; begin < inner; begin += kUnits) {
    if (at_once) {
      look_up(begin, 0, in.members);
    }
    for (int base = 0; base < in.channels; base += tiling.lanes * V) {
      const int c = base + lane * V;
      const bool reads = c < in.channels;
      const T* rows = in.feat + int64_t(image) * in.tokens * in.channels + c;
      for (int round = 0; round < tiling.rounds; ++round) {
        const int centre = round * tiling.groups + group;
        A sum[kUnits][V] = {};
        for (int member = 0; member < in.members; member += tiling.tile) {
          const int count = std::min(tiling.tile, in.members - member);
          if (!at_once) {
            look_up(begin, member, count);
          }
          if (reads) {
            const int at = centre * tiling.stride;
            int j = 0;
#pragma unroll 1
            for (; j + 4 <= count; j += 4) {
              add_places<4>(rows, in.row_bytes, token + at + j, weight + at + j, sum);
            }
            for (; j < count; ++j) {
              add_places<1>(rows, in.row_bytes, token + at + j, weight + at + j, sum);
            }
          }
        }
        if (reads && first_query + centre < in.queries) {
          const int64_t query = int64_t(image) * in.queries + first_query + centre;
#pragma unroll
          for (int i = 0; i < kUnits; ++i) {
            if (begin + i < inner) {
              store_row<V>(sum[i], out + (query * inner + begin + i) * in.channels + c);
            }
          }
        }
      }
    }
  }
}

at::Tensor point_conv_cuda(
    const at::Tensor& feat, const std::optional<at::Tensor>& score, const at::Tensor& pos,
    const at::Tensor& centre, const at::Tensor& clusters, int64_t m, const at::Tensor& weight,
    const at::Tensor& bias, const at::Tensor& norm_weight, const at::Tensor& norm_bias,
    double norm_eps, int64_t sign) {
  check_point_conv(
      feat, score, pos, centre, clusters, m, weight, bias, norm_weight, norm_bias, norm_eps,
      sign);
  const DeviceGuard guard(feat);
  auto out = at::empty(
      {feat.size(0), centre.size(1), weight.size(0), feat.size(2)}, feat.options());
  if (out.numel() == 0) {
    return out;
  }
  const PointConvTensors tensors(
      feat, score, pos, centre, clusters, weight, bias, norm_weight, norm_bias);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, feat.scalar_type(), "point_conv_cuda", [&] {
        using A = at::opmath_type<scalar_t>;
        const PointConvInputs<scalar_t, A> in(tensors, m, norm_eps, sign);
        with_pack<scalar_t>(in.channels, {tensors.feat, out}, [&](auto pack) {
          constexpr int V = decltype(pack)::value;
          const Tiling tiling = tiling_for(
              feat.size(0), in.queries, in.members, (in.channels + V - 1) / V, kRoom);
          const bool usual = in.inner == kUnits && tiling.tile >= in.members;
          launch(
              usual ? forward<kUnits, V, scalar_t, A> : forward<0, V, scalar_t, A>,
              blocks_for(feat.size(0) * tiling.blocks, 1), dim3(kThreads),
              tiling.centres * tiling.stride * (sizeof(UnitWeights<A>) + sizeof(int)), in, tiling,
              out.template mutable_data_ptr<scalar_t>());
        });
      });
  return out;
}

}  // namespace

AFF_SEG_CUDA_IMPL(m) { m.impl("point_conv", point_conv_cuda); }

}  // namespace aff_seg
