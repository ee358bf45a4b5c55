#include "../point_conv.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../checks.h"
#include "../inverse.h"
#include "../point_network.h"
#include "../relative.h"
#include "parallel.h"
#include "rows.h"
#include "widen.h"

namespace aff_seg {
namespace {

// The network runs on blocks of about this many places, a place being one member slot of a
// neighbourhood; all its arrays then stay in the first-level cache.
constexpr int64_t kBlockPlaces = 256;

// The tensors of a call, indices in range; once prepared, contiguous and widened.
struct Arguments {
  Arguments(
      const at::Tensor& feat_, const std::optional<at::Tensor>& score_, const at::Tensor& pos_,
      const at::Tensor& centre_, const at::Tensor& clusters_, int64_t m_,
      const at::Tensor& weight_, const at::Tensor& bias_, const at::Tensor& norm_weight_,
      const at::Tensor& norm_bias_, double norm_eps_, int64_t sign_)
      : feat(feat_), score(score_.value_or(at::Tensor())), pos(pos_), centre(centre_),
        clusters(clusters_), weight(weight_), bias(bias_), norm_weight(norm_weight_),
        norm_bias(norm_bias_), m(m_), sign(sign_), norm_eps(norm_eps_) {
    check_range(centre, 0, feat.size(1) - 1, "centre");
    check_clusters(clusters, feat.size(1), m);
  }

  void prepare() {
    feat = widened(feat);
    for (at::Tensor* tensor :
         {&score, &pos, &centre, &clusters, &weight, &bias, &norm_weight, &norm_bias}) {
      if (tensor->defined()) {
        *tensor = tensor->contiguous();
      }
    }
  }

  at::Tensor feat, score, pos, centre, clusters, weight, bias, norm_weight, norm_bias;
  int64_t m, sign;
  double norm_eps;
};

template <typename A>
struct Inputs {
  explicit Inputs(const Arguments& args)
      : batch(args.feat.size(0)),
        tokens(args.feat.size(1)),
        channels(args.feat.size(2)),
        queries(args.centre.size(1)),
        nearest(args.clusters.size(2)),
        m(std::min(args.m, tokens)),
        num_clusters((tokens + m - 1) / m),
        members(nearest * m),
        inner(args.weight.size(0)),
        block(std::max<int64_t>(1, kBlockPlaces / std::max<int64_t>(1, members))),
        feat(args.feat.const_data_ptr<A>()),
        score(args.score.defined() ? args.score.const_data_ptr<A>() : nullptr),
        pos(args.pos.const_data_ptr<A>()),
        weight(args.weight.const_data_ptr<A>()),
        bias(args.bias.const_data_ptr<A>()),
        norm_weight(args.norm_weight.const_data_ptr<A>()),
        norm_bias(args.norm_bias.const_data_ptr<A>()),
        eps(static_cast<A>(args.norm_eps)),
        sign(static_cast<A>(args.sign)),
        centre(args.centre.const_data_ptr<int32_t>()),
        clusters(args.clusters.const_data_ptr<int32_t>()) {}

  NetworkUnit<A> unit(int64_t i) const {
    const A* w = weight + i * kRelative;
    return {{w[0], w[1], w[2], w[3], w[4]}, bias[i], norm_weight[i], norm_bias[i]};
  }

  const int64_t batch, tokens, channels, queries;
  const int64_t nearest, m, num_clusters;  // clusters of a neighbourhood, tokens of one, clusters
  const int64_t members;                   // slots of a neighbourhood, nearest * m
  const int64_t inner;
  const int64_t block;  // queries in a block
  const A *feat, *score, *pos, *weight, *bias, *norm_weight, *norm_bias;
  const A eps, sign;
  const int32_t *centre, *clusters;
};

// The network on the places of some consecutive queries: arrays over places, those with several
// components component after component.
template <typename A>
class Network {
 public:
  explicit Network(const Inputs<A>& inputs)
      : in(inputs), capacity(in.block * in.members), nowhere(in.channels, A(0)), row(capacity),
        factor(capacity), relative(kRelative * capacity), scale(capacity),
        normed(in.inner * capacity), weight(in.inner * capacity) {}

  // Queries begin to end - 1, counted through the batch.
  void run(int64_t begin, int64_t end) {
    find(begin, end);
    const int64_t count = (end - begin) * in.members;
    const A *dx = relative.data(), *dy = dx + capacity, *r = dy + capacity;
    const A *sine = r + capacity, *cosine = sine + capacity;
    for (int64_t i = 0; i < in.inner; ++i) {
      const NetworkUnit<A> unit = in.unit(i);
      A* h = normed.data() + i * capacity;
#pragma omp simd
      for (int64_t p = 0; p < count; ++p) {
        h[p] = unit.linear({dx[p], dy[p], r[p], sine[p], cosine[p]});
      }
    }
    normalise(count);
    for (int64_t i = 0; i < in.inner; ++i) {
      const NetworkUnit<A> unit = in.unit(i);
      const A *x = normed.data() + i * capacity, *f = factor.data();
      A* w = weight.data() + i * capacity;
#pragma omp simd
      for (int64_t p = 0; p < count; ++p) {
        w[p] = gelu(unit.activated(x[p])).value * f[p];
      }
    }
  }

  const Inputs<A>& in;
  const int64_t capacity;          // places there is room for
  const std::vector<A> nowhere;    // zeros, the row of absent members
  std::vector<const A*> row;       // features
  std::vector<A> factor;           // score, 0 where absent
  std::vector<A> relative;         // relative features
  std::vector<A> scale;            // 1 / standard deviation over the components
  std::vector<A> normed;           // components after normalisation, before gain and shift
  std::vector<A> weight;           // result, times factor

 private:
  void find(int64_t begin, int64_t end) {
    A *dx = relative.data(), *dy = dx + capacity;
    int64_t p = 0;
    for (int64_t q = begin; q < end; ++q) {
      const int64_t first = q / in.queries * in.tokens;
      const A* home = in.pos + 2 * (first + in.centre[q]);
      for (int64_t n = 0; n < in.nearest; ++n) {
        const int64_t member = in.clusters[q * in.nearest + n] * in.m;
        for (int64_t t = 0; t < in.m; ++t, ++p) {
          const bool present = member + t < in.tokens;
          const int64_t token = first + (present ? member + t : in.centre[q]);
          dx[p] = in.sign * (in.pos[2 * token] - home[0]);
          dy[p] = in.sign * (in.pos[2 * token + 1] - home[1]);
          row[p] = present ? in.feat + token * in.channels : nowhere.data();
          factor[p] = !present ? A(0) : in.score ? in.score[token] : A(1);
        }
      }
    }
    A *r = dy + capacity, *sine = r + capacity, *cosine = sine + capacity;
#pragma omp simd
    for (int64_t i = 0; i < p; ++i) {
      const Relative<A> features = relative_features(dx[i], dy[i]);
      r[i] = features.r;
      sine[i] = features.sine;
      cosine[i] = features.cosine;
    }
  }

  void normalise(int64_t count) {
    const A share = A(1) / static_cast<A>(in.inner);
    A* s = scale.data();
    std::vector<A> mean(count, A(0));
    A* mu = mean.data();
    for (int64_t i = 0; i < in.inner; ++i) {
      const A* x = normed.data() + i * capacity;
#pragma omp simd
      for (int64_t p = 0; p < count; ++p) {
        mu[p] += share * x[p];
      }
    }
    std::fill_n(s, count, A(0));
    for (int64_t i = 0; i < in.inner; ++i) {
      A* x = normed.data() + i * capacity;
#pragma omp simd
      for (int64_t p = 0; p < count; ++p) {
        x[p] -= mu[p];
        s[p] += share * (x[p] * x[p]);
      }
    }
    const A eps = in.eps;
#pragma omp simd
    for (int64_t p = 0; p < count; ++p) {
      s[p] = norm_scale(s[p], eps);
    }
    for (int64_t i = 0; i < in.inner; ++i) {
      A* x = normed.data() + i * capacity;
#pragma omp simd
      for (int64_t p = 0; p < count; ++p) {
        x[p] *= s[p];
      }
    }
  }
};

template <typename A>
void forward(const Inputs<A>& in, A* out) {
  for_blocks(in.batch * in.queries, in.block, [&](int64_t, int64_t begin, int64_t end) {
    Network<A> network(in);
    network.run(begin, end);
    for (int64_t q = begin; q < end; ++q) {
      const int64_t p = (q - begin) * in.members;
      if (q + 1 < end) {
        prefetch_rows(network.row.data() + p + in.members, in.members, in.channels);
      }
      sum_rows(
          network.row.data() + p, in.members, network.weight.data() + p, network.capacity,
          in.inner, in.channels, out + q * in.inner * in.channels, in.channels);
    }
  });
}

// Gradients of the parameters, one after the other: weight, bias, norm_weight, norm_bias.
template <typename A>
class ParameterSums {
 public:
  explicit ParameterSums(const Inputs<A>& in)
      : inner(in.inner), sum((kRelative + 3) * inner, 0) {}

  double* weight(int64_t i) { return sum.data() + i * kRelative; }
  double& bias(int64_t i) { return sum[kRelative * inner + i]; }
  double& norm_weight(int64_t i) { return sum[(kRelative + 1) * inner + i]; }
  double& norm_bias(int64_t i) { return sum[(kRelative + 2) * inner + i]; }

  void add(const ParameterSums& other) {
    for (size_t i = 0; i < sum.size(); ++i) {
      sum[i] += other.sum[i];
    }
  }

  const int64_t inner;
  std::vector<double> sum;
};

// Back through the network of a block, from the gradients `slope` of its weights (which are
// overwritten). Fills the gradients of the places' scores.
template <typename A>
void backward_network(
    const Network<A>& network, int64_t count, A* slope, A* grad_factor, ParameterSums<A>& sums) {
  const Inputs<A>& in = network.in;
  const int64_t capacity = network.capacity;
  const A share = A(1) / static_cast<A>(in.inner);
  const A *f = network.factor.data(), *s = network.scale.data();
  std::vector<A> mean(count, A(0)), mean_along(count, A(0));
  A *mu = mean.data(), *along = mean_along.data();
  std::fill_n(grad_factor, count, A(0));
  for (int64_t i = 0; i < in.inner; ++i) {
    const NetworkUnit<A> unit = in.unit(i);
    const A* x = network.normed.data() + i * capacity;
    A* g = slope + i * capacity;
    A sum_gain = 0, sum_shift = 0;
#pragma omp simd reduction(+ : sum_gain, sum_shift)
    for (int64_t p = 0; p < count; ++p) {
      const Gelu<A> at = gelu(unit.activated(x[p]));
      grad_factor[p] += g[p] * at.value;
      const A grad_y = g[p] * f[p] * at.slope;
      sum_shift += grad_y;
      sum_gain += grad_y * x[p];
      g[p] = grad_y * unit.gain;
      mu[p] += share * g[p];
      along[p] += share * (g[p] * x[p]);
    }
    sums.norm_weight(i) += sum_gain;
    sums.norm_bias(i) += sum_shift;
  }
  const A *dx = network.relative.data(), *dy = dx + capacity, *r = dy + capacity;
  const A *sine = r + capacity, *cosine = sine + capacity;
  for (int64_t i = 0; i < in.inner; ++i) {
    const A *x = network.normed.data() + i * capacity, *g = slope + i * capacity;
    A sum = 0, sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0, sum4 = 0;
#pragma omp simd reduction(+ : sum, sum0, sum1, sum2, sum3, sum4)
    for (int64_t p = 0; p < count; ++p) {
      const A grad_h = before_norm(g[p], mu[p], x[p], along[p], s[p]);
      sum += grad_h;
      sum0 += grad_h * dx[p];
      sum1 += grad_h * dy[p];
      sum2 += grad_h * r[p];
      sum3 += grad_h * sine[p];
      sum4 += grad_h * cosine[p];
    }
    sums.bias(i) += sum;
    double* weight = sums.weight(i);
    weight[0] += sum0;
    weight[1] += sum1;
    weight[2] += sum2;
    weight[3] += sum3;
    weight[4] += sum4;
  }
}

// One image: gradients of the parameters, added to `sums`; for the second step, the weights of
// all places, (Q, I, members), and the gradients of their scores, (Q, members).
template <typename A>
void backward_queries(
    const Inputs<A>& in, int64_t image, const A* grad, A* weight, A* grad_factor,
    ParameterSums<A>& sums) {
  const int64_t size = in.inner * in.channels;
  std::vector<ParameterSums<A>> partial(
      (in.queries + in.block - 1) / in.block, ParameterSums<A>(in));
  for_blocks(in.queries, in.block, [&](int64_t block, int64_t begin, int64_t end) {
    Network<A> network(in);
    network.run(image * in.queries + begin, image * in.queries + end);
    std::vector<A> slope(in.inner * network.capacity);
    for (int64_t q = begin; q < end; ++q) {
      const int64_t p = (q - begin) * in.members;
      if (q + 1 < end) {
        prefetch_rows(network.row.data() + p + in.members, in.members, in.channels);
      }
      dot_rows(
          grad + (image * in.queries + q) * size, in.channels, in.inner, network.row.data() + p,
          in.members, in.channels, slope.data() + p, network.capacity);
      for (int64_t i = 0; i < in.inner; ++i) {
        std::copy_n(
            network.weight.data() + i * network.capacity + p, in.members,
            weight + (q * in.inner + i) * in.members);
      }
    }
    backward_network(
        network, (end - begin) * in.members, slope.data(), grad_factor + begin * in.members,
        partial[block]);
  });
  for (const ParameterSums<A>& part : partial) {
    sums.add(part);
  }
}

// One image: gradients of its tokens, summed along the lists of the queries that see a cluster.
template <typename A>
void backward_tokens(
    const Inputs<A>& in, int64_t image, const A* grad, const A* weight, const A* grad_factor,
    A* grad_feat, A* grad_score) {
  const InverseLists lists = invert(
      in.clusters + image * in.queries * in.nearest, in.queries * in.nearest, in.num_clusters);
  const int64_t block = std::max<int64_t>(1, 64 / in.m);
  for_blocks(in.num_clusters, block, [&](int64_t, int64_t begin, int64_t end) {
    std::vector<const A*> row;
    std::vector<A> list_weight;
    for (int64_t cluster = begin; cluster < end; ++cluster) {
      const int64_t first = cluster * in.m, present = std::min(in.m, in.tokens - first);
      const int64_t start = lists.start[cluster], seen = lists.start[cluster + 1] - start;
      const int64_t length = seen * in.inner;
      row.resize(length);
      list_weight.resize(present * length);
      for (int64_t s = 0; s < seen; ++s) {
        const int64_t place = lists.place[start + s];
        const int64_t query = place / in.nearest, slot = place % in.nearest * in.m;
        for (int64_t i = 0; i < in.inner; ++i) {
          const A* from = weight + (query * in.inner + i) * in.members + slot;
          row[s * in.inner + i] =
              grad + ((image * in.queries + query) * in.inner + i) * in.channels;
          for (int64_t t = 0; t < present; ++t) {
            list_weight[t * length + s * in.inner + i] = from[t];
          }
        }
        if (grad_score) {
          for (int64_t t = 0; t < present; ++t) {
            grad_score[image * in.tokens + first + t] +=
                grad_factor[query * in.members + slot + t];
          }
        }
      }
      sum_rows(
          row.data(), length, list_weight.data(), length, present, in.channels,
          grad_feat + (image * in.tokens + first) * in.channels, in.channels);
    }
  });
}

}  // namespace

at::Tensor point_conv(
    const at::Tensor& feat, const std::optional<at::Tensor>& score, const at::Tensor& pos,
    const at::Tensor& centre, const at::Tensor& clusters, int64_t m, const at::Tensor& weight,
    const at::Tensor& bias, const at::Tensor& norm_weight, const at::Tensor& norm_bias,
    double norm_eps, int64_t sign) {
  check_point_conv(
      feat, score, pos, centre, clusters, m, weight, bias, norm_weight, norm_bias, norm_eps,
      sign);
  Arguments args(
      feat, score, pos, centre, clusters, m, weight, bias, norm_weight, norm_bias, norm_eps,
      sign);
  auto out = at::empty(
      {feat.size(0), centre.size(1), weight.size(0), feat.size(2)}, pos.options());
  if (out.numel() == 0) {
    return out.to(feat.scalar_type());
  }
  args.prepare();
  AT_DISPATCH_FLOATING_TYPES(pos.scalar_type(), "point_conv", [&] {
    forward(Inputs<scalar_t>(args), out.mutable_data_ptr<scalar_t>());
  });
  return out.to(feat.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
point_conv_backward(
    const at::Tensor& grad, const at::Tensor& feat, const std::optional<at::Tensor>& score,
    const at::Tensor& pos, const at::Tensor& centre, const at::Tensor& clusters, int64_t m,
    const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& norm_weight,
    const at::Tensor& norm_bias, double norm_eps, int64_t sign) {
  check_point_conv_backward(
      grad, feat, score, pos, centre, clusters, m, weight, bias, norm_weight, norm_bias,
      norm_eps, sign);
  Arguments args(
      feat, score, pos, centre, clusters, m, weight, bias, norm_weight, norm_bias, norm_eps,
      sign);
  auto grad_feat = at::zeros(feat.sizes(), pos.options());
  auto grad_score = score ? at::zeros(score->sizes(), pos.options())
                          : at::empty({0}, pos.options());
  std::vector<at::Tensor> learned;
  for (const at::Tensor& parameter : {weight, bias, norm_weight, norm_bias}) {
    learned.push_back(at::zeros_like(parameter, at::MemoryFormat::Contiguous));
  }
  if (grad.numel() != 0) {
    args.prepare();
    const at::Tensor g = widened(grad);
    AT_DISPATCH_FLOATING_TYPES(pos.scalar_type(), "point_conv_backward", [&] {
      const Inputs<scalar_t> in(args);
      const scalar_t* data = g.const_data_ptr<scalar_t>();
      const int64_t places = in.queries * in.members;
      std::vector<scalar_t> place_weight(places * in.inner), grad_factor(places);
      ParameterSums<scalar_t> sums(in);
      for (int64_t image = 0; image < in.batch; ++image) {
        backward_queries(in, image, data, place_weight.data(), grad_factor.data(), sums);
        backward_tokens(
            in, image, data, place_weight.data(), grad_factor.data(),
            grad_feat.mutable_data_ptr<scalar_t>(),
            score ? grad_score.mutable_data_ptr<scalar_t>() : nullptr);
      }
      const double* from = sums.sum.data();
      for (const at::Tensor& parameter : learned) {
        std::copy_n(from, parameter.numel(), parameter.mutable_data_ptr<scalar_t>());
        from += parameter.numel();
      }
    });
  }
  return {grad_feat.to(feat.scalar_type()), grad_score, learned[0], learned[1], learned[2],
          learned[3]};
}

TORCH_LIBRARY_IMPL(aff_seg, CPU, m) {
  m.impl("point_conv", point_conv);
  m.impl("point_conv_backward", point_conv_backward);
}

}  // namespace aff_seg
