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
#include <ATen/ops/clone.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include "../library.h"
#include "attention_by_keys.h"
#include "attention_by_queries.h"

namespace aff_seg {
namespace {

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
  // In double: there are many blocks.
  const auto sums = [](const at::Tensor& x) {
    return at::sum(x, 0, /*keepdim=*/false, at::kDouble);
  };
  const auto by_query = sums(of_queries), by_key = sums(of_keys);
  const auto part = [&](const at::Tensor& sum, int64_t first, const at::Tensor& like) {
    const auto own = sum.narrow(1, first, like.numel() / heads);
    return own.to(pos.scalar_type()).reshape(like.sizes()).clone(at::MemoryFormat::Contiguous);
  };
  return {
      grad_q,
      grad_k,
      grad_v,
      part(by_key, 0, pos_weight),
      part(by_query, 0, pos_bias),
      part(by_query, 1, blank_k),
      part(by_query, 1 + dim, blank_v)};
}

}  // namespace

AFF_SEG_CUDA_IMPL(m) {
  m.impl("cluster_attention_backward", cluster_attention_backward_cuda);
}

}  // namespace aff_seg
