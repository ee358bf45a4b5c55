// First by centre: a group of lanes takes one, and eight of its places, slots for neighbours, at a
// time. Together they multiply the gradient's rows with the places' rows; then each lane takes one
// place back through the network, for the gradients of score and parameters. Then by cluster, whose
// tokens gather from the centres that see it: point_conv_gather.h.
//
// The weights of all places pass from the first kernel to the second through memory: about as many
// bytes as the gradient has in AFF's merging, and a thirtieth of them in its pixel decoder. To
// compute them again would take about the time that this takes.

#include "../point_conv.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include "../library.h"
#include "point_conv.h"
#include "point_conv_gather.h"
#include "reader_lists.h"
#include "row_groups.h"

namespace aff_seg {
namespace {

// What a unit learns: five weights, bias, gain, shift. A lane of a group sums up one of them.
constexpr int kLearned = kRelative + 3;
static_assert(kLearned == kLanes);

// dot[j * kUnits + i] = the sum over the lane's channels of row `begin` + i of the gradient times
// the row of tokens[j], for up to kUnits units.
template <int V, typename T, typename A>
__device__ __forceinline__ void dot_places(
    const PointConvInputs<T, A>& in, const T* grad, int units, const T* rows, const int* token,
    int lane, A* dot) {
#pragma unroll
  for (int n = 0; n < kLanes * kUnits; ++n) {
    dot[n] = 0;
  }
  for (int c = lane * V; c < in.channels; c += kLanes * V) {
    A of_grad[kUnits][V];
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const auto pack = load_pack_if<V>(i < units, row_at(grad + c, i, in.row_bytes));
#pragma unroll
      for (int v = 0; v < V; ++v) {
        of_grad[i][v] = static_cast<A>(pack.value[v]);
      }
    }
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      if (token[j] >= 0) {
        const auto pack = load_pack<V>(row_at(rows + c, token[j], in.row_bytes));
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A x = static_cast<A>(pack.value[v]);
#pragma unroll
          for (int i = 0; i < kUnits; ++i) {
            dot[j * kUnits + i] += of_grad[i][v] * x;
          }
        }
      }
    }
  }
}

// For all places: their weights, (B * Q, members, units in kUnits), and the gradients of their
// scores, (B * Q, members). For I = 0 any number of units, whose gradients pass through `slopes`,
// (B * Q, members, inner); then every group has a part of the parameters' gradients, (inner,
// kLearned), else every block has.
template <int I, int V, typename T, typename A>
__global__ void __launch_bounds__(kThreads, sizeof(A) < 8 ? 3 : 2) backward_centres(
    const PointConvInputs<T, A> in, int blocks, const T* grad, A* slopes, UnitWeights<A>* weight,
    A* grad_score, double* partial) {
  __shared__ Units<I, A> units;
  __shared__ A of_group[kGroups][I > 0 ? I * kLearned : 1];
  const unsigned image = blockIdx.x / blocks;
  const int group = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int centre = blockIdx.x % blocks * kGroups + group;
  const bool real = centre < in.queries;
  const int64_t query = int64_t(image) * in.queries + centre;
  static_assert(I == 0 || I == kUnits);
  const int inner = I > 0 ? I : in.inner, quads = (inner + kUnits - 1) / kUnits;
  const T* rows = in.feat + int64_t(image) * in.tokens * in.channels;
  units.load(in);
  __syncthreads();

  A total[I > 0 ? I : 1] = {};
  for (int first = 0; first < in.members; first += kLanes) {
    const int member = first + lane;
    const bool listed = real && member < in.members;
    const int64_t at = query * in.members + member;
    Place<A> place;
    if (listed) {
      place = place_of(in, units, image, query, member);
    }
    int token[kLanes];
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      token[j] = __shfl_sync(kAllLanes, place.token, threadIdx.x % kWarp - lane + j);
    }

    A own[I > 0 ? I : 1];
    A* slope = I > 0 ? own : slopes + (listed ? at * inner : 0);
    for (int begin = 0; begin < inner; begin += kUnits) {
      A dot[kLanes * kUnits];
      dot_places<V>(
          in, grad + (query * inner + begin) * in.channels, real ? inner - begin : 0, rows, token,
          lane, dot);
      scatter_sums<kLanes * kUnits>(dot, lane);
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        if (I > 0 || (listed && begin + i < inner)) {
          slope[begin + i] = dot[i];
        }
      }
    }

    // From here on, `slope` is the gradient before GELU.
    const A share = A(1) / static_cast<A>(inner);
    A mean = 0, mean_along = 0, of_score = 0;
    UnitWeights<A> result;
#pragma unroll
    for (int i = 0; i < inner; ++i) {
      if (I > 0 || listed) {
        const NetworkUnit<A> unit = units.at(in, i);
        const A normed = place.normed(unit);
        const Gelu<A> activated = gelu(unit.activated(normed));
        of_score += slope[i] * activated.value;
        slope[i] *= place.factor * activated.slope;
        const A grad_normed = slope[i] * unit.gain;
        mean += share * grad_normed;
        mean_along += share * (grad_normed * normed);
        const A of_place = place.token >= 0 ? activated.value * place.factor : A(0);
        if (I > 0) {
          result.value[i % kUnits] = of_place;
        } else {
          weight[at * quads + i / kUnits].value[i % kUnits] = of_place;
        }
      }
    }
    if (I > 0 && listed) {
      weight[at] = result;
    }
    if (grad_score && listed) {
      grad_score[at] = of_score;
    }
#pragma unroll
    for (int i = 0; i < inner; ++i) {
      A learned[kLearned] = {};
      if (I > 0 || listed) {
        const NetworkUnit<A> unit = units.at(in, i);
        const A normed = place.normed(unit);
        const A grad_linear =
            before_norm(slope[i] * unit.gain, mean, normed, mean_along, place.scale);
        learned[0] = grad_linear * place.offset.dx;
        learned[1] = grad_linear * place.offset.dy;
        learned[2] = grad_linear * place.offset.r;
        learned[3] = grad_linear * place.offset.sine;
        learned[4] = grad_linear * place.offset.cosine;
        learned[5] = grad_linear;
        learned[6] = slope[i] * normed;
        learned[7] = slope[i];
      }
      scatter_sums<kLearned>(learned, lane);
      if (I > 0) {
        total[i] += learned[0];
      } else if (real) {
        partial[((int64_t(blockIdx.x) * kGroups + group) * inner + i) * kLearned + lane] +=
            learned[0];
      }
    }
  }

  if (I > 0) {
#pragma unroll
    for (int i = 0; i < I; ++i) {
      of_group[group][i * kLearned + lane] = total[i];
    }
    __syncthreads();
    for (int n = threadIdx.x; n < I * kLearned; n += kThreads) {
      double sum = 0;
      for (int g = 0; g < kGroups; ++g) {
        sum += of_group[g][n];
      }
      partial[int64_t(blockIdx.x) * I * kLearned + n] = sum;
    }
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
point_conv_backward_cuda(
    const at::Tensor& grad, const at::Tensor& feat, const std::optional<at::Tensor>& score,
    const at::Tensor& pos, const at::Tensor& centre, const at::Tensor& clusters, int64_t m,
    const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& norm_weight,
    const at::Tensor& norm_bias, double norm_eps, int64_t sign) {
  check_point_conv_backward(
      grad, feat, score, pos, centre, clusters, m, weight, bias, norm_weight, norm_bias,
      norm_eps, sign);
  const DeviceGuard guard(feat);
  const bool nothing = grad.numel() == 0 || clusters.numel() == 0;
  const auto like = [&](const at::Tensor& tensor) {
    return nothing ? at::zeros(tensor.sizes(), tensor.options())
                   : at::empty(tensor.sizes(), tensor.options());
  };
  auto grad_feat = like(feat);
  auto grad_score = score ? like(*score) : at::empty({0}, pos.options());
  auto grad_weight = like(weight), grad_bias = like(bias);
  auto grad_norm_weight = like(norm_weight), grad_norm_bias = like(norm_bias);
  if (nothing) {
    return {grad_feat, grad_score, grad_weight, grad_bias, grad_norm_weight, grad_norm_bias};
  }
  const PointConvTensors tensors(
      feat, score, pos, centre, clusters, weight, bias, norm_weight, norm_bias);
  const at::Tensor g = grad.contiguous();
  at::Tensor partial;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, feat.scalar_type(), "point_conv_backward_cuda", [&] {
        using A = at::opmath_type<scalar_t>;
        const PointConvInputs<scalar_t, A> in(tensors, m, norm_eps, sign);
        const auto lists = reader_lists(tensors.clusters.flatten(1), in.num_clusters);
        const int64_t batch = feat.size(0), places = batch * in.queries * in.members;
        const int64_t quads = (in.inner + kUnits - 1) / kUnits;
        const bool usual = in.inner == kUnits;
        const auto place_weight = at::empty({places, quads, kUnits}, pos.options());
        const auto place_score = at::empty({score ? places : 0}, pos.options());
        const auto slopes = at::empty({usual ? 0 : places, in.inner}, pos.options());
        A* of_place = score ? place_score.mutable_data_ptr<A>() : nullptr;
        auto* weights = reinterpret_cast<UnitWeights<A>*>(place_weight.mutable_data_ptr<A>());

        const int blocks = (in.queries + kGroups - 1) / kGroups;
        const dim3 grid = blocks_for(batch * blocks, 1);
        const auto of_partial = pos.options().dtype(at::kDouble);
        partial = usual ? at::empty({batch * blocks, in.inner, kLearned}, of_partial)
                        : at::zeros({batch * blocks * kGroups, in.inner, kLearned}, of_partial);
        with_pack<scalar_t>(in.channels, {g, tensors.feat, grad_feat}, [&](auto pack) {
          constexpr int V = decltype(pack)::value;
          launch(
              usual ? backward_centres<kUnits, V, scalar_t, A>
                    : backward_centres<0, V, scalar_t, A>,
              grid, dim3(kThreads), 0, in, blocks, g.template const_data_ptr<scalar_t>(),
              slopes.template mutable_data_ptr<A>(), weights, of_place,
              partial.template mutable_data_ptr<double>());
          const int parts = (in.channels + kLanes * V - 1) / (kLanes * V);
          const auto gather = [&](auto tokens_at_once) {
            constexpr int M = decltype(tokens_at_once)::value;
            const int64_t runs = int64_t(in.num_clusters) * ((in.m + M - 1) / M);
            const int64_t run_blocks = (runs + kGroups - 1) / kGroups;
            launch(
                backward_tokens<M, V, scalar_t, A>, blocks_for(batch * run_blocks * parts, 1),
                dim3(kThreads), 0, in, parts, static_cast<int>(run_blocks),
                g.template const_data_ptr<scalar_t>(), weights, of_place,
                lists.start.template const_data_ptr<int64_t>(),
                lists.place.template const_data_ptr<int32_t>(),
                grad_feat.template mutable_data_ptr<scalar_t>(),
                score ? grad_score.template mutable_data_ptr<A>() : nullptr);
          };
          if (in.m == 1) {
            gather(std::integral_constant<int, 1>());
          } else {
            gather(std::integral_constant<int, 8>());
          }
        });
      });
  const at::Tensor sums = at::sum(partial, 0);
  grad_weight.copy_(sums.narrow(1, 0, kRelative));
  grad_bias.copy_(sums.select(1, kRelative));
  grad_norm_weight.copy_(sums.select(1, kRelative + 1));
  grad_norm_bias.copy_(sums.select(1, kRelative + 2));
  return {grad_feat, grad_score, grad_weight, grad_bias, grad_norm_weight, grad_norm_bias};
}

}  // namespace

AFF_SEG_CUDA_IMPL(m) { m.impl("point_conv_backward", point_conv_backward_cuda); }

}  // namespace aff_seg
