#include "../shepard_interpolate.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../checks.h"
#include "../inverse.h"
#include "elementary.h"
#include "parallel.h"
#include "rows.h"
#include "widen.h"

namespace aff_seg {
namespace {

constexpr int64_t kBlock = 64;

template <typename A>
struct Inputs {
  Inputs(
      const at::Tensor& feat, const at::Tensor& pos, const at::Tensor& query,
      const at::Tensor& index, const at::Tensor& power)
      : tokens(feat.size(1)),
        channels(feat.size(2)),
        queries(index.size(1)),
        near(index.size(2)),
        feat(feat.const_data_ptr<A>()),
        pos(pos.const_data_ptr<A>()),
        query(query.const_data_ptr<A>()),
        index(index.const_data_ptr<int32_t>()),
        power(*power.const_data_ptr<A>()) {}

  const int64_t tokens, channels, queries, near;
  const A *feat, *pos, *query;
  const int32_t* index;
  const A power;
};

// The places of consecutive queries: a place is one of the `near` tokens of a query.
template <typename A>
struct Places {
  explicit Places(int64_t count)
      : distance(count), powered(count), weight(count), share(count), row(count) {}

  void set(const Inputs<A>& in, int64_t begin, int64_t end) {
    const int64_t count = (end - begin) * in.near;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / in.queries * in.tokens;
      for (int64_t k = 0; k < in.near; ++k) {
        const int64_t token = first + in.index[i * in.near + k], p = (i - begin) * in.near + k;
        const A dx = in.pos[2 * token] - in.query[2 * i];
        const A dy = in.pos[2 * token + 1] - in.query[2 * i + 1];
        distance[p] = dx * dx + dy * dy;
        row[p] = in.feat + token * in.channels;
      }
    }
    raise(distance.data(), count, in.power, powered.data());
    for (int64_t p = 0; p < count; ++p) {
      weight[p] = shepard_weight(powered[p]);
    }
    for (int64_t first = 0; first < count; first += in.near) {
      A total = 0;
      for (int64_t k = 0; k < in.near; ++k) {
        total += weight[first + k];
      }
      for (int64_t k = 0; k < in.near; ++k) {
        share[first + k] = weight[first + k] / total;
      }
    }
  }

  std::vector<A> distance;  // squared
  std::vector<A> powered;   // distance^power
  std::vector<A> weight;    // before normalisation
  std::vector<A> share;     // after it
  std::vector<const A*> row;
};

template <typename A>
void forward(const Inputs<A>& in, int64_t batch, A* out) {
  for_blocks(batch * in.queries, kBlock, [&](int64_t, int64_t begin, int64_t end) {
    Places<A> places((end - begin) * in.near);
    places.set(in, begin, end);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t p = (i - begin) * in.near;
      if (i + 1 < end) {
        prefetch_rows(places.row.data() + p + in.near, in.near, in.channels);
      }
      sum_rows(
          places.row.data() + p, in.near, places.share.data() + p, in.near, 1, in.channels,
          out + i * in.channels, in.channels);
    }
  });
}

// Returns the gradient of the exponent; `share` receives the normalised weights.
template <typename A>
A backward_power(const Inputs<A>& in, int64_t batch, const A* grad, A* share) {
  const int64_t total = batch * in.queries;
  std::vector<double> partial((total + kBlock - 1) / kBlock, 0);
  for_blocks(total, kBlock, [&](int64_t block, int64_t begin, int64_t end) {
    Places<A> places((end - begin) * in.near);
    places.set(in, begin, end);
    std::copy_n(places.share.data(), (end - begin) * in.near, share + begin * in.near);
    std::vector<A> along(in.near), log((end - begin) * in.near);
    take_logs(places.distance.data(), log.size(), log.data());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = (i - begin) * in.near;
      if (i + 1 < end) {
        prefetch_rows(places.row.data() + first + in.near, in.near, in.channels);
      }
      dot_rows(
          grad + i * in.channels, in.channels, 1, places.row.data() + first, in.near,
          in.channels, along.data(), in.near);
      A mean = 0;
      for (int64_t k = 0; k < in.near; ++k) {
        mean += places.share[first + k] * along[k];
      }
      // d log(weight) / d power = -powered * weight * log(distance).
      for (int64_t k = 0; k < in.near; ++k) {
        const int64_t p = first + k;
        const A slope = places.powered[p] * places.weight[p] * log[p];
        partial[block] -= places.share[p] * slope * (along[k] - mean);
      }
    }
  });
  double sum = 0;
  for (const double value : partial) {
    sum += value;
  }
  return static_cast<A>(sum);
}

// Sums along the inverted lists, token by token.
template <typename A>
void backward_feat(
    const Inputs<A>& in, int64_t batch, const A* grad, const A* share, A* grad_feat) {
  const int64_t places = in.queries * in.near;
  for (int64_t image = 0; image < batch; ++image) {
    const InverseLists lists = invert(in.index + image * places, places, in.tokens);
    const A* image_grad = grad + image * in.queries * in.channels;
    const A* image_share = share + image * places;
    for_blocks(in.tokens, kBlock, [&](int64_t, int64_t begin, int64_t end) {
      std::vector<const A*> row;
      std::vector<A> weight;
      for (int64_t token = begin; token < end; ++token) {
        row.clear();
        weight.clear();
        for (int64_t s = lists.start[token]; s < lists.start[token + 1]; ++s) {
          row.push_back(image_grad + lists.place[s] / in.near * in.channels);
          weight.push_back(image_share[lists.place[s]]);
        }
        sum_rows<A>(
            row.data(), row.size(), weight.data(), row.size(), 1, in.channels,
            grad_feat + (image * in.tokens + token) * in.channels, in.channels);
      }
    });
  }
}

}  // namespace

at::Tensor shepard_interpolate(
    const at::Tensor& feat, const at::Tensor& pos, const at::Tensor& query,
    const at::Tensor& index, const at::Tensor& power) {
  check_shepard_interpolate(feat, pos, query, index, power);
  check_range(index, 0, feat.size(1) - 1, "index");
  auto out = at::empty({feat.size(0), index.size(1), feat.size(2)}, pos.options());
  if (out.numel() == 0) {
    return out.to(feat.scalar_type());
  }
  const auto f = widened(feat), p = pos.contiguous(), q = query.contiguous();
  const auto i = index.contiguous();
  AT_DISPATCH_FLOATING_TYPES(f.scalar_type(), "shepard_interpolate", [&] {
    forward<scalar_t>(
        Inputs<scalar_t>(f, p, q, i, power), f.size(0), out.mutable_data_ptr<scalar_t>());
  });
  return out.to(feat.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> shepard_interpolate_backward(
    const at::Tensor& grad, const at::Tensor& feat, const at::Tensor& pos,
    const at::Tensor& query, const at::Tensor& index, const at::Tensor& power) {
  check_shepard_interpolate_backward(grad, feat, pos, query, index, power);
  check_range(index, 0, feat.size(1) - 1, "index");
  auto grad_feat = at::zeros(feat.sizes(), pos.options());
  auto grad_power = at::zeros_like(power, at::MemoryFormat::Contiguous);
  if (grad.numel() == 0) {
    return {grad_feat.to(feat.scalar_type()), grad_power};
  }
  const auto g = widened(grad), f = widened(feat), p = pos.contiguous(), q = query.contiguous();
  const auto i = index.contiguous();
  AT_DISPATCH_FLOATING_TYPES(f.scalar_type(), "shepard_interpolate_backward", [&] {
    const Inputs<scalar_t> in(f, p, q, i, power);
    const scalar_t* data = g.const_data_ptr<scalar_t>();
    std::vector<scalar_t> share(index.numel());
    *grad_power.mutable_data_ptr<scalar_t>() =
        backward_power(in, f.size(0), data, share.data());
    backward_feat(
        in, f.size(0), data, share.data(), grad_feat.mutable_data_ptr<scalar_t>());
  });
  return {grad_feat.to(feat.scalar_type()), grad_power};
}

TORCH_LIBRARY_IMPL(aff_seg, CPU, m) {
  m.impl("shepard_interpolate", shepard_interpolate);
  m.impl("shepard_interpolate_backward", shepard_interpolate_backward);
}

}  // namespace aff_seg
