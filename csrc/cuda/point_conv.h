// What the kernels of point_conv share: its arguments, and the network at one place.

#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <optional>

#include "../checks.h"
#include "../point_network.h"
#include "../relative.h"
#include "device.h"
#include "rows.h"

namespace aff_seg {

// Weights of this many of the network's units at a time.
constexpr int kUnits = 4;

template <typename A>
struct alignas(16) UnitWeights {
  A value[kUnits] = {};
};

// The tensors of a call, as kernels read them.
struct PointConvTensors {
  PointConvTensors(
      const at::Tensor& feat_, const std::optional<at::Tensor>& score_, const at::Tensor& pos_,
      const at::Tensor& centre_, const at::Tensor& clusters_, const at::Tensor& weight_,
      const at::Tensor& bias_, const at::Tensor& norm_weight_, const at::Tensor& norm_bias_)
      : feat(feat_.contiguous()),
        score(score_ ? score_->contiguous() : at::Tensor()),
        pos(aligned(pos_, 2 * pos_.element_size())),
        centre(centre_.contiguous()),
        clusters(clusters_.contiguous()),
        weight(weight_.contiguous()),
        bias(bias_.contiguous()),
        norm_weight(norm_weight_.contiguous()),
        norm_bias(norm_bias_.contiguous()) {}

  at::Tensor feat, score, pos, centre, clusters, weight, bias, norm_weight, norm_bias;
};

template <typename T, typename A>
struct PointConvInputs {
  PointConvInputs(const PointConvTensors& tensors, int64_t m_, double norm_eps, int64_t sign_)
      : feat(tensors.feat.const_data_ptr<T>()),
        score(tensors.score.defined() ? tensors.score.const_data_ptr<A>() : nullptr),
        pos(tensors.pos.const_data_ptr<A>()),
        weight(tensors.weight.const_data_ptr<A>()),
        bias(tensors.bias.const_data_ptr<A>()),
        norm_weight(tensors.norm_weight.const_data_ptr<A>()),
        norm_bias(tensors.norm_bias.const_data_ptr<A>()),
        eps(static_cast<A>(norm_eps)),
        sign(static_cast<A>(sign_)),
        centre(tensors.centre.const_data_ptr<int32_t>()),
        clusters(tensors.clusters.const_data_ptr<int32_t>()) {
    const int64_t count = tensors.feat.size(1), size = std::min(m_, count);
    check_count(count, "tokens of an image");
    check_count(tensors.clusters.size(2) * size, "tokens of a neighbourhood");
    check_count(tensors.feat.size(2) * int64_t(sizeof(T)), "bytes of a token");
    check_count(tensors.weight.size(0), "units");
    tokens = static_cast<int>(count);
    channels = static_cast<int>(tensors.feat.size(2));
    row_bytes = static_cast<uint32_t>(channels * sizeof(T));
    queries = static_cast<int>(tensors.centre.size(1));
    nearest = static_cast<int>(tensors.clusters.size(2));
    m = static_cast<int>(size);
    members = nearest * m;
    num_clusters = static_cast<int>((count + size - 1) / size);
    inner = static_cast<int>(tensors.weight.size(0));
  }

  __device__ NetworkUnit<A> unit(int i) const {
    const A* w = weight + i * int64_t(kRelative);
    return {{w[0], w[1], w[2], w[3], w[4]}, bias[i], norm_weight[i], norm_bias[i]};
  }

  int tokens, channels, queries;
  uint32_t row_bytes;  // of a token
  int nearest, m, num_clusters;  // clusters of a neighbourhood, tokens of one, clusters
  int members;                   // slots of a neighbourhood, nearest * m
  int inner;
  const T* feat;
  const A *score, *pos, *weight, *bias, *norm_weight, *norm_bias;
  A eps, sign;
  const int32_t *centre, *clusters;
};

// The network's units: `I` of them in shared memory, where all threads call load() and a barrier
// follows; for I = 0 any number, read where they are.
template <int I, typename A>
struct Units {
  template <typename T>
  __device__ void load(const PointConvInputs<T, A>& in) {
    if (threadIdx.x < I) {
      unit[threadIdx.x] = in.unit(threadIdx.x);
    }
  }

  template <typename T>
  __device__ __forceinline__ NetworkUnit<A> at(const PointConvInputs<T, A>&, int i) const {
    return unit[i];
  }

  NetworkUnit<A> unit[I];
};

template <typename A>
struct Units<0, A> {
  template <typename T>
  __device__ void load(const PointConvInputs<T, A>&) {}

  template <typename T>
  __device__ __forceinline__ NetworkUnit<A> at(const PointConvInputs<T, A>& in, int i) const {
    return in.unit(i);
  }
};

// One place of a neighbourhood.
template <typename A>
struct Place {
  int token = -1;  // none where absent
  A factor = 0;    // score, 0 where absent
  Relative<A> offset{};
  // Over the units, after the linear layer.
  A mean = 0, scale = 0;

  // What LayerNorm makes of a unit, before gain and shift.
  __device__ __forceinline__ A normed(const NetworkUnit<A>& unit) const {
    return (unit.linear(offset) - mean) * scale;
  }
};

// Slot `member` of query `query`, counted through the batch, of image `image`.
template <int I, typename T, typename A>
__device__ __forceinline__ Place<A> place_of(
    const PointConvInputs<T, A>& in, const Units<I, A>& units, unsigned image, int64_t query,
    unsigned member) {
  Place<A> place;
  const unsigned n = member / in.m;
  const int cluster = in.clusters[query * in.nearest + n];
  const int centre = in.centre[query];
  CUDA_KERNEL_ASSERT(cluster >= 0 && cluster < in.num_clusters);
  CUDA_KERNEL_ASSERT(centre >= 0 && centre < in.tokens);
  const int64_t token = int64_t(cluster) * in.m + (member - n * in.m);
  if (token >= in.tokens) {
    return place;
  }
  place.token = static_cast<int>(token);
  const int64_t first = int64_t(image) * in.tokens;
  place.factor = in.score ? in.score[first + token] : A(1);
  const auto own = load_pack<2>(in.pos + 2 * (first + centre));
  const auto other = load_pack<2>(in.pos + 2 * (first + token));
  place.offset = relative_features(
      in.sign * (other.value[0] - own.value[0]), in.sign * (other.value[1] - own.value[1]));
  const int inner = I > 0 ? I : in.inner;
  const A share = A(1) / static_cast<A>(inner);
  A variance = 0;
#pragma unroll
  for (int i = 0; i < inner; ++i) {
    place.mean += share * units.at(in, i).linear(place.offset);
  }
#pragma unroll
  for (int i = 0; i < inner; ++i) {
    const A centred = units.at(in, i).linear(place.offset) - place.mean;
    variance += share * (centred * centred);
  }
  place.scale = norm_scale(variance, in.eps);
  return place;
}

}  // namespace aff_seg
