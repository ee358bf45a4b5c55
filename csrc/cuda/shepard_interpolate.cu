// A warp works on one query, or in the gradient of features on one token.

#include "../shepard_interpolate.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "../library.h"
#include "device.h"
#include "reader_lists.h"
#include "rows.h"

namespace aff_seg {
namespace {

// Warps of a block.
constexpr int kWarps = 8;

template <typename T, typename A>
struct Inputs {
  Inputs(
      const at::Tensor& feat_, const at::Tensor& pos_, const at::Tensor& query_,
      const at::Tensor& index_, const at::Tensor& power_)
      : tokens(feat_.size(1)),
        channels(feat_.size(2)),
        queries(index_.size(1)),
        near(index_.size(2)),
        total(index_.size(0) * queries),
        feat(feat_.const_data_ptr<T>()),
        pos(pos_.const_data_ptr<A>()),
        query(query_.const_data_ptr<A>()),
        power(power_.const_data_ptr<A>()),
        index(index_.const_data_ptr<int32_t>()) {}

  int64_t tokens, channels, queries, near;
  int64_t total;  // queries of all images
  const T* feat;
  const A *pos, *query, *power;
  const int32_t* index;
};

// One of the tokens that a query reads.
template <typename A>
struct Place {
  int64_t token;  // counted over the batch
  A distance, powered, weight;
};

template <typename T, typename A>
__device__ __forceinline__ Place<A> place_of(const Inputs<T, A>& in, int64_t query, int64_t k) {
  const int32_t index = in.index[query * in.near + k];
  CUDA_KERNEL_ASSERT(index >= 0 && index < in.tokens);
  Place<A> place;
  place.token = query / in.queries * in.tokens + index;
  const A dx = in.pos[2 * place.token] - in.query[2 * query];
  const A dy = in.pos[2 * place.token + 1] - in.query[2 * query + 1];
  place.distance = dx * dx + dy * dy;
  place.powered = raised(place.distance, *in.power);
  place.weight = shepard_weight(place.powered);
  return place;
}

template <typename T, typename A>
__device__ __forceinline__ A total_weight(const Inputs<T, A>& in, int64_t query) {
  A total = 0;
  for (int64_t k = threadIdx.x; k < in.near; k += kWarp) {
    total += place_of(in, query, k).weight;
  }
  return warp_sum(total);
}

template <int V, typename T, typename A>
__global__ void forward(const Inputs<T, A> in, T* out) {
  const int64_t query = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (query >= in.total) {
    return;
  }
  const int lane = threadIdx.x;
  const A total = total_weight(in, query);
  for (int64_t first = 0; first < in.channels; first += kWarp * V) {
    const int64_t c = first + lane * V;
    A sum[V] = {};
    for (int64_t begin = 0; begin < in.near; begin += kWarp) {
      Place<A> mine{};
      if (begin + lane < in.near) {
        mine = place_of(in, query, begin + lane);
      }
      const A share = mine.weight / total;
      const int count = static_cast<int>(in.near - begin < kWarp ? in.near - begin : kWarp);
      for (int k = 0; k < count; ++k) {
        const int64_t token = __shfl_sync(kAllLanes, mine.token, k);
        const A weight = __shfl_sync(kAllLanes, share, k);
        if (c < in.channels) {
          add_row<V>(in.feat + token * in.channels + c, weight, sum);
        }
      }
    }
    if (c < in.channels) {
      store_row<V>(sum, out + query * in.channels + c);
    }
  }
}

// The shares of all places, and each block's part of the gradient of the exponent.
template <int V, typename T, typename A>
__global__ void backward_power(const Inputs<T, A> in, const T* grad, A* share, double* partial) {
  __shared__ double of_warp[kWarps];
  const int lane = threadIdx.x;
  const int64_t query = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  double slope_total = 0;
  if (query < in.total) {
    const A total = total_weight(in, query);
    // Sums over the places of share * along, share * slope, share * slope * along, where along is
    // the gradient along the place's features and slope d log(weight) / d power.
    // They cancel, hence the doubles.
    double mean = 0, slope_sum = 0, both = 0;
    for (int64_t k = 0; k < in.near; ++k) {
      const Place<A> place = place_of(in, query, k);
      const A own = place.weight / total;
      A along = 0;
      for (int64_t c = lane * V; c < in.channels; c += kWarp * V) {
        along += dot_part<V, A>(
            grad + query * in.channels + c, in.feat + place.token * in.channels + c);
      }
      along = warp_sum(along);
      const A log = place.distance > 0 ? std::log(place.distance) : A(0);
      const A slope = -place.powered * place.weight * log;
      const double by_slope = static_cast<double>(own) * slope;
      mean += static_cast<double>(own) * along;
      slope_sum += by_slope;
      both += by_slope * along;
      if (lane == 0) {
        share[query * in.near + k] = own;
      }
    }
    slope_total = both - mean * slope_sum;
  }
  if (lane == 0) {
    of_warp[threadIdx.y] = slope_total;
  }
  __syncthreads();
  if (lane == 0 && threadIdx.y == 0) {
    double sum = 0;
    for (int w = 0; w < kWarps; ++w) {
      sum += of_warp[w];
    }
    partial[blockIdx.x] = sum;
  }
}

// Each token gathers from its readers, in ascending order.
template <int V, typename T, typename A>
__global__ void backward_feat(
    const T* grad, const A* share, const int64_t* start, const int32_t* place, int64_t tokens,
    int64_t all_tokens, int64_t queries, int64_t near, int64_t channels, T* grad_feat) {
  const int64_t token = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (token >= all_tokens) {
    return;
  }
  const int64_t image = token / tokens;
  for (int64_t c = threadIdx.x * V; c < channels; c += kWarp * V) {
    A sum[V] = {};
    for (int64_t s = start[token]; s < start[token + 1]; ++s) {
      const int64_t query = image * queries + place[s] / near;
      const A weight = share[image * queries * near + place[s]];
      add_row<V>(grad + query * channels + c, weight, sum);
    }
    store_row<V>(sum, grad_feat + token * channels + c);
  }
}

at::Tensor shepard_interpolate_cuda(
    const at::Tensor& feat, const at::Tensor& pos, const at::Tensor& query,
    const at::Tensor& index, const at::Tensor& power) {
  check_shepard_interpolate(feat, pos, query, index, power);
  const DeviceGuard guard(feat);
  auto out = at::empty({feat.size(0), index.size(1), feat.size(2)}, feat.options());
  if (out.numel() == 0) {
    return out;
  }
  const auto f = feat.contiguous(), p = pos.contiguous(), q = query.contiguous();
  const auto i = index.contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, feat.scalar_type(), "shepard_interpolate_cuda", [&] {
        using A = at::opmath_type<scalar_t>;
        const Inputs<scalar_t, A> in(f, p, q, i, power);
        with_pack<scalar_t>(in.channels, {f, out}, [&](auto pack) {
          launch(
              forward<decltype(pack)::value, scalar_t, A>, blocks_for(in.total, kWarps),
              dim3(kWarp, kWarps), 0, in, out.mutable_data_ptr<scalar_t>());
        });
      });
  return out;
}

std::tuple<at::Tensor, at::Tensor> shepard_interpolate_backward_cuda(
    const at::Tensor& grad, const at::Tensor& feat, const at::Tensor& pos,
    const at::Tensor& query, const at::Tensor& index, const at::Tensor& power) {
  check_shepard_interpolate_backward(grad, feat, pos, query, index, power);
  const DeviceGuard guard(feat);
  if (grad.numel() == 0 || index.numel() == 0) {
    return {
        at::zeros(feat.sizes(), feat.options()),
        at::zeros_like(power, at::MemoryFormat::Contiguous)};
  }
  const auto g = grad.contiguous(), f = feat.contiguous(), p = pos.contiguous();
  const auto q = query.contiguous(), i = index.contiguous();
  const auto lists = reader_lists(i.flatten(1), feat.size(1));
  auto grad_feat = at::empty(feat.sizes(), feat.options());
  auto share = at::empty(index.sizes(), pos.options());
  const dim3 by_query = blocks_for(index.size(0) * index.size(1), kWarps);
  auto partial = at::empty({static_cast<int64_t>(by_query.x)}, pos.options().dtype(at::kDouble));
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, feat.scalar_type(), "shepard_interpolate_backward_cuda", [&] {
        using A = at::opmath_type<scalar_t>;
        const Inputs<scalar_t, A> in(f, p, q, i, power);
        const int64_t all_tokens = f.size(0) * in.tokens;
        with_pack<scalar_t>(in.channels, {g, f, grad_feat}, [&](auto pack) {
          constexpr int V = decltype(pack)::value;
          launch(
              backward_power<V, scalar_t, A>, by_query, dim3(kWarp, kWarps), 0, in,
              g.template const_data_ptr<scalar_t>(), share.template mutable_data_ptr<A>(),
              partial.template mutable_data_ptr<double>());
          launch(
              backward_feat<V, scalar_t, A>, blocks_for(all_tokens, kWarps), dim3(kWarp, kWarps),
              0, g.template const_data_ptr<scalar_t>(), share.template const_data_ptr<A>(),
              lists.start.template const_data_ptr<int64_t>(),
              lists.place.template const_data_ptr<int32_t>(), in.tokens, all_tokens, in.queries,
              in.near, in.channels, grad_feat.template mutable_data_ptr<scalar_t>());
        });
      });
  return {grad_feat, at::sum(partial).to(power.scalar_type()).reshape(power.sizes())};
}

}  // namespace

AFF_SEG_CUDA_IMPL(m) {
  m.impl("shepard_interpolate", shepard_interpolate_cuda);
  m.impl("shepard_interpolate_backward", shepard_interpolate_backward_cuda);
}

}  // namespace aff_seg
