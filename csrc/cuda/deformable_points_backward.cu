// First a block takes some queries of one head, as in the forward pass: groups of lanes multiply
// the gradient's row with the rows that a query reads, and each thread takes a sample's shares back
// to its location, weight and part of the exponent. It leaves the list of all places, the token
// and the share of each. Then every token gathers from the places that read it:
// deformable_points_gather.h.
//
// That list is sorted by token. Adding up in memory instead would need a fixed-point format, for
// sums that do not depend on their order: its scale, from the largest gradient and weight, would be
// lost on a single inf, would be too coarse for doubles, and eight bytes for every channel of every
// place are several times what sorting moves. Lists by pixel of the table would be shorter, but
// hundreds of pixels list a token of a coarse level, each with a sample or two.

#include "../deformable_points.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../library.h"
#include "deformable_points.h"
#include "deformable_points_gather.h"
#include "reader_lists.h"
#include "row_groups.h"

namespace aff_seg {
namespace {

// Places that a block notes at a time: all 48 of 16 queries.
constexpr int kRoom = 768;
// Places that are sorted at a time, some 30 bytes each meanwhile, in whole heads.
constexpr int64_t kSorted = 1 << 23;

template <typename A>
struct alignas(16) Note {
  A share;  // in the mean of its sample
  A slope;  // d log(weight before normalisation) / d log(distance^power)
  A along;  // the sample's weight at first; then the gradient's product with the token's row
  int token;  // -1 where absent
};

// Notes the places of a sample from `first` to first + count - 1.
template <typename T, typename A>
__device__ __forceinline__ void note_sample(
    const DeformableInputs<T, A>& in, const Sample<T, A>& sample, int first, int count,
    Note<A>* note) {
  const A power = *in.power, weight = in.weight[sample.index];
  A total = 0;
  for (int k = 0; k < in.near; k += kEntries) {
    const auto token = sample.entries(in, k);
#pragma unroll
    for (int e = 0; e < kEntries; ++e) {
      Note<A> own{0, 0, weight, token.value[e]};
      if (own.token >= 0) {
        const A powered = raised(sample.candidate(own.token).distance, power);
        own.share = shepard_weight(powered);
        own.slope = -powered * own.share;
        total += own.share;
      }
      const int n = k + e - first;
      if (n >= 0 && n < count) {
        note[n] = own;
      }
    }
  }
  for (int n = 0; n < count; ++n) {
    note[n].share /= total;
  }
}

// The units from `first_unit` on, `units` of them: gradients of locations and weights, and each
// block's part of that of the exponent, (B * heads, blocks). Tokens and shares of all places are
// (units, Q, places).
template <int V, typename T, typename A>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 4 : 3) backward_samples(
    const DeformableInputs<T, A> in, int tile, int stride, int blocks, int64_t first_unit,
    int units, const T* grad, A* grad_location, A* grad_weight, double* partial, int32_t* token,
    A* share) {
  __shared__ double of_warp[kThreads / kWarp];
  auto* note = shared_memory<Note<A>>();
  const int listed_unit = blockIdx.x % units, block = blockIdx.x / units;
  const int64_t unit = first_unit + listed_unit;
  const int group = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const T* rows = in.rows(unit);
  const A power = *in.power;
  // Of a tile: whole samples, or a part of one.
  const int most = tile >= in.near ? tile / in.near : 1;
  const int part = std::min(tile, in.near);
  // Where a sample comes in parts, its mean is to be known before its slopes.
  const int sweeps = part < in.near ? 2 : 1;
  double grad_power = 0;

  for (int first_sample = 0; first_sample < in.samples; first_sample += most) {
    const int samples = std::min(most, in.samples - first_sample);
    // Of the thread's sample; kept over the parts of one, when no thread has two.
    A along = 0, grad_x = 0, grad_y = 0;
    for (int sweep = 0; sweep < sweeps; ++sweep) {
      for (int first = 0; first < in.near; first += part) {
        const int count = std::min(part, in.near - first);
        for (int e = threadIdx.x; e < kGroups * samples; e += kThreads) {
          const int g = e / samples, s = e - g * samples, query = block * kGroups + g;
          Note<A>* own = note + g * stride + s * part;
          if (query < in.queries) {
            const Sample<T, A> sample(in, unit, query, first_sample + s);
            note_sample(in, sample, first, count, own);
          } else {
            for (int n = 0; n < count; ++n) {
              own[n].token = -1;
            }
          }
        }
        __syncthreads();

        {
          Note<A>* own = note + group * stride;
          const int listed = samples * count, query = block * kGroups + group;
          const T* of_grad = grad + in.reader(unit, query) * in.dim;
          const int64_t list = (int64_t(listed_unit) * in.queries + query) * in.places +
              first_sample * in.near + first;
          for (int j = 0; j < listed; j += kLanes) {
            int from[kLanes];
            A dot[kLanes] = {};
#pragma unroll
            for (int n = 0; n < kLanes; ++n) {
              from[n] = j + n < listed ? own[j + n].token : -1;
            }
            if (query < in.queries) {
              for (int c = lane * V; c < in.dim; c += kLanes * V) {
                const auto x = load_pack<V>(of_grad + c);
                Pack<T, V> row[kLanes];
#pragma unroll
                for (int n = 0; n < kLanes; ++n) {
                  row[n] = load_pack_if<V>(from[n] >= 0, row_at(rows + c, from[n], in.row_bytes));
                }
#pragma unroll
                for (int n = 0; n < kLanes; ++n) {
#pragma unroll
                  for (int v = 0; v < V; ++v) {
                    dot[n] += static_cast<A>(x.value[v]) * static_cast<A>(row[n].value[v]);
                  }
                }
              }
            }
            scatter_sums<kLanes>(dot, lane);
            if (j + lane < listed) {
              Note<A>& mine = own[j + lane];
              if (query < in.queries) {
                token[list + j + lane] = mine.token;
                share[list + j + lane] = mine.share * mine.along;
              }
              mine.along = dot[0];
            }
          }
        }
        __syncthreads();

        for (int e = threadIdx.x; e < kGroups * samples; e += kThreads) {
          const int g = e / samples, s = e - g * samples, query = block * kGroups + g;
          if (query >= in.queries) {
            continue;
          }
          const Note<A>* own = note + g * stride + s * part;
          const Sample<T, A> sample(in, unit, query, first_sample + s);
          const A weight = in.weight[sample.index];
          if (sweeps == 1) {
            along = grad_x = grad_y = 0;
          }
          if (sweep == 0) {
            for (int n = 0; n < count; ++n) {
              along += own[n].share * own[n].along;
            }
          }
          if (sweep < sweeps - 1) {
            continue;
          }
          A of_power = 0;
          for (int n = 0; n < count; ++n) {
            const Note<A> place = own[n];
            if (place.token >= 0) {
              const ListedToken<A> other = sample.candidate(place.token);
              // 0 at distance 0.
              const A grad_log = place.slope * weight * place.share * (place.along - along);
              of_power += grad_log * log_distance(other.distance);
              const A grad_distance =
                  grad_log * power / (other.distance > 0 ? other.distance : A(1));
              grad_x += 2 * grad_distance * other.dx;
              grad_y += 2 * grad_distance * other.dy;
            }
          }
          grad_power += of_power;
          if (first + count == in.near) {
            grad_location[2 * sample.index] = grad_x;
            grad_location[2 * sample.index + 1] = grad_y;
            grad_weight[sample.index] = along;
          }
        }
        __syncthreads();
      }
    }
  }

  grad_power = warp_sum(grad_power);
  if (threadIdx.x % kWarp == 0) {
    of_warp[threadIdx.x / kWarp] = grad_power;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    double sum = 0;
    for (const double of_one : of_warp) {
      sum += of_one;
    }
    partial[unit * blocks + block] = sum;
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> deformable_points_backward_cuda(
    const at::Tensor& grad, const at::Tensor& value, const at::Tensor& pos,
    const at::Tensor& table, const at::Tensor& location, const at::Tensor& weight,
    const at::Tensor& power) {
  check_deformable_points_backward(grad, value, pos, table, location, weight, power);
  const DeviceGuard guard(value);
  const bool nothing = location.numel() == 0 || value.numel() == 0 || table.numel() == 0;
  const auto like = [&](const at::Tensor& tensor) {
    return nothing ? at::zeros(tensor.sizes(), tensor.options())
                   : at::empty(tensor.sizes(), tensor.options());
  };
  auto grad_value = like(value), grad_location = like(location), grad_weight = like(weight);
  auto grad_power = like(power);
  if (nothing) {
    return {grad_value, grad_location, grad_weight, grad_power};
  }
  const DeformableTensors tensors(value, pos, table, location, weight, power);
  const at::Tensor g = grad.contiguous();
  at::Tensor partial;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, value.scalar_type(), "deformable_points_backward_cuda", [&] {
        using A = at::opmath_type<scalar_t>;
        const DeformableInputs<scalar_t, A> in(tensors);
        const int64_t units = int64_t(in.batch) * in.heads;
        const int64_t unit_places = int64_t(in.queries) * in.places;
        const int64_t at_once = std::min(units, std::max<int64_t>(1, kSorted / unit_places));
        const Tiling tiling = tiling_for(1, kGroups, in.places, 1, kRoom);
        const int blocks = (in.queries + kGroups - 1) / kGroups;
        partial = at::empty({units, blocks}, pos.options().dtype(at::kDouble));
        auto token = at::empty({at_once, unit_places}, table.options());
        auto share = at::empty({at_once, unit_places}, pos.options());
        with_pack<scalar_t>(in.dim, {g, tensors.value, grad_value}, [&](auto pack) {
          constexpr int V = decltype(pack)::value;
          for (int64_t first = 0; first < units; first += at_once) {
            const int64_t now = std::min(at_once, units - first);
            launch(
                backward_samples<V, scalar_t, A>, blocks_for(now * blocks, 1), dim3(kThreads),
                kGroups * tiling.stride * sizeof(Note<A>), in, tiling.tile, tiling.stride, blocks,
                first, static_cast<int>(now), g.template const_data_ptr<scalar_t>(),
                grad_location.template mutable_data_ptr<A>(),
                grad_weight.template mutable_data_ptr<A>(),
                partial.template mutable_data_ptr<double>(),
                token.template mutable_data_ptr<int32_t>(),
                share.template mutable_data_ptr<A>());
            const auto lists = reader_lists(token.narrow(0, 0, now), in.tokens);
            const int64_t total = now * in.tokens;
            launch(
                backward_value<V, scalar_t, A>, blocks_for(total, kThreads / kWarp),
                dim3(kThreads), 0, in, first, total, g.template const_data_ptr<scalar_t>(),
                share.template const_data_ptr<A>(),
                lists.start.template const_data_ptr<int64_t>(),
                lists.place.template const_data_ptr<int32_t>(),
                grad_value.template mutable_data_ptr<scalar_t>());
          }
        });
      });
  grad_power.copy_(at::sum(partial).reshape(power.sizes()));
  return {grad_value, grad_location, grad_weight, grad_power};
}

}  // namespace

AFF_SEG_CUDA_IMPL(m) { m.impl("deformable_points_backward", deformable_points_backward_cuda); }

}  // namespace aff_seg
