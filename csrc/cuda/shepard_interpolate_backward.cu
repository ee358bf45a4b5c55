#include "shepard_interpolate.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "../library.h"
#include "reader_lists.h"

namespace aff_seg {
namespace {

// The shares of all places, and each block's part of the gradient of the exponent.
template <int V, typename T, typename A>
__global__ void backward_power(
    const ShepardInputs<T, A> in, const T* grad, A* share, double* partial) {
  __shared__ double of_warp[kWarps];
  const ShepardQueries<T, A> q(in);
  const int lane = threadIdx.x;
  ShepardPlace<A> place{};
  const A total = q.total_weight(place);
  // Sums over the places of share * along, share * slope, share * slope * along, where along is
  // the gradient along the place's features and slope d log(weight) / d power.
  // They cancel, hence the doubles.
  double mean = 0, slope_sum = 0, both = 0;
  for (int64_t begin = 0; begin < in.near; begin += in.lanes) {
    if (in.near > in.lanes) {
      place = q.place(begin);
    }
    A along = 0;
    for (int i = 0; i < q.count; ++i) {
      for (int k = 0; k < q.places(begin); ++k) {
        const int from = i * in.lanes + k;
        const T* row = in.feat + __shfl_sync(kAllLanes, place.row, from);
        A part = 0;
        for (int64_t c = lane * V; c < in.channels; c += kWarp * V) {
          part += dot_part<V, A>(grad + (q.first + i) * in.channels + c, row + c);
        }
        part = warp_sum(part);
        along = lane == from ? part : along;
      }
    }
    if (q.has(begin)) {
      const A own = place.weight / total;
      const A slope = -place.powered * place.weight * log_distance(place.distance);
      const double by_slope = static_cast<double>(own) * slope;
      mean += static_cast<double>(own) * along;
      slope_sum += by_slope;
      both += by_slope * along;
      share[q.own * in.near + begin + q.slot] = own;
    }
  }
  mean = q.sum(mean);
  slope_sum = q.sum(slope_sum);
  both = q.sum(both);
  const double sum = warp_sum(q.slot == 0 && q.has(0) ? both - mean * slope_sum : 0.0);
  if (lane == 0) {
    of_warp[threadIdx.y] = sum;
  }
  __syncthreads();
  if (lane == 0 && threadIdx.y == 0) {
    double all = 0;
    for (const double value : of_warp) {
      all += value;
    }
    partial[blockIdx.x] = all;
  }
}

// Each token gathers from its readers, in ascending order.
template <int V, typename T, typename A>
__global__ void backward_feat(
    const T* grad, const A* share, const int64_t* start, const int32_t* place, int64_t tokens,
    int64_t all_tokens, int64_t queries, int near, int64_t channels, T* grad_feat) {
  const int64_t token = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (token >= all_tokens) {
    return;
  }
  const int64_t first_query = token / tokens * queries;
  const int64_t first = start[token], last = start[token + 1];
  for (int64_t channel = 0; channel < channels; channel += kWarp * V) {
    const int64_t c = channel + threadIdx.x * V;
    A sum[V] = {};
    for (int64_t begin = first; begin < last; begin += kWarp) {
      const int count = static_cast<int>(last - begin < kWarp ? last - begin : kWarp);
      int64_t row = 0;
      A weight = 0;
      if (static_cast<int>(threadIdx.x) < count) {
        const int32_t own = place[begin + threadIdx.x];
        row = (first_query + own / near) * channels;
        weight = share[first_query * near + own];
      }
      add_rows<V>(grad, row, weight, 0, count, c, channels, sum);
    }
    if (c < channels) {
      store_row<V>(sum, grad_feat + token * channels + c);
    }
  }
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
  at::Tensor partial;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, feat.scalar_type(), "shepard_interpolate_backward_cuda", [&] {
        using A = at::opmath_type<scalar_t>;
        const ShepardInputs<scalar_t, A> in(f, p, q, i, power);
        const int64_t all_tokens = f.size(0) * in.tokens;
        const dim3 blocks = in.blocks();
        partial = at::empty({int64_t(blocks.x)}, pos.options().dtype(at::kDouble));
        with_pack<scalar_t>(in.channels, {g, f, grad_feat}, [&](auto pack) {
          constexpr int V = decltype(pack)::value;
          launch(
              backward_power<V, scalar_t, A>, blocks, dim3(kWarp, kWarps), 0, in,
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

AFF_SEG_CUDA_IMPL(m) { m.impl("shepard_interpolate_backward", shepard_interpolate_backward_cuda); }

}  // namespace aff_seg
