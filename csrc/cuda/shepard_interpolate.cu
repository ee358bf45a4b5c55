#include "shepard_interpolate.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>

#include "../library.h"

namespace aff_seg {
namespace {

template <int V, typename T, typename A>
__global__ void forward(const ShepardInputs<T, A> in, T* out) {
  const ShepardQueries<T, A> q(in);
  ShepardPlace<A> place{};
  const A total = q.total_weight(place);
  A share = place.weight / total;
  for (int i = 0; i < q.count; ++i) {
    for (int64_t channel = 0; channel < in.channels; channel += kWarp * V) {
      const int64_t c = channel + threadIdx.x * V;
      A sum[V] = {};
      for (int64_t begin = 0; begin < in.near; begin += in.lanes) {
        if (in.near > in.lanes) {
          place = q.place(begin);
          share = place.weight / total;
        }
        add_rows<V>(
            in.feat, place.row, share, i * in.lanes, q.places(begin), c, in.channels, sum);
      }
      if (c < in.channels) {
        store_row<V>(sum, out + (q.first + i) * in.channels + c);
      }
    }
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
        const ShepardInputs<scalar_t, A> in(f, p, q, i, power);
        with_pack<scalar_t>(in.channels, {f, out}, [&](auto pack) {
          launch(
              forward<decltype(pack)::value, scalar_t, A>, in.blocks(),
              dim3(kWarp, kWarps), 0, in, out.mutable_data_ptr<scalar_t>());
        });
      });
  return out;
}

}  // namespace

AFF_SEG_CUDA_IMPL(m) { m.impl("shepard_interpolate", shepard_interpolate_cuda); }

}  // namespace aff_seg
