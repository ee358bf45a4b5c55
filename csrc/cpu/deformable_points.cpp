#include "../deformable_points.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "../checks.h"
#include "../shepard_interpolate.h"
#include "elementary.h"
#include "parallel.h"
#include "rows.h"
#include "widen.h"

namespace aff_seg {
namespace {

constexpr int64_t kBlock = 16;

// The tensors of a call, indices in range; once prepared, contiguous and widened.
struct Arguments {
  Arguments(
      const at::Tensor& value_, const at::Tensor& pos_, const at::Tensor& table_,
      const at::Tensor& location_, const at::Tensor& weight_, const at::Tensor& power_)
      : value(value_), pos(pos_), table(table_), location(location_), weight(weight_),
        power(power_) {
    check_range(table, -1, value.size(1) - 1, "table");
  }

  void prepare() {
    value = widened(value);
    for (at::Tensor* tensor : {&pos, &table, &location, &weight}) {
      *tensor = tensor->contiguous();
    }
  }

  at::Tensor value, pos, table, location, weight, power;
};

template <typename A>
struct Inputs {
  explicit Inputs(const Arguments& args)
      : batch(args.value.size(0)),
        tokens(args.value.size(1)),
        heads(args.value.size(2)),
        dim(args.value.size(3)),
        levels(args.table.size(1)),
        height(args.table.size(2)),
        width(args.table.size(3)),
        near(args.table.size(4)),
        queries(args.location.size(1)),
        points(args.location.size(4)),
        value(args.value.const_data_ptr<A>()),
        pos(args.pos.const_data_ptr<A>()),
        location(args.location.const_data_ptr<A>()),
        weight(args.weight.const_data_ptr<A>()),
        table(args.table.const_data_ptr<int32_t>()),
        power(*args.power.const_data_ptr<A>()) {}

  const int64_t batch, tokens, heads, dim, levels, height, width, near, queries, points;
  const A *value, *pos, *location, *weight;
  const int32_t* table;
  const A power;
};

// What one head of one query reads. Samples are levels times points; a place is one listed token
// of a sample, place k * samples + s, so that loops over samples vectorise.
template <typename A>
struct Reading {
  explicit Reading(const Inputs<A>& inputs)
      : in(inputs), samples(in.levels * in.points), places(samples * in.near),
        nowhere(in.dim, A(0)), list(samples), next_list(samples), row(places), token(places),
        present(places), dx(places), dy(places), distance(places), powered(places),
        nearness(places), mean_share(places), share(places), total(samples) {}

  // Reader (image * Q + query) * heads + head; the values of its head are rows `stride` apart, from
  // that of the image's first token. `next` is the reader of the following call, or -1: where it
  // will read the table is found now, so that the table's entries are at hand by then.
  void run(int64_t reader, int64_t next, const A* value, int64_t stride) {
    if (reader != expected) {
      expect(reader);
    }
    std::swap(list, next_list);
    if (next >= 0) {
      expect(next);
    }
    find(reader, value, stride);
    raise(distance.data(), places, in.power, powered.data());
    std::fill(total.begin(), total.end(), A(0));
    for (int64_t k = 0; k < in.near; ++k) {
      const int64_t first = k * samples;
#pragma omp simd
      for (int64_t s = 0; s < samples; ++s) {
        nearness[first + s] = shepard_weight(powered[first + s]);
        mean_share[first + s] = nearness[first + s] * present[first + s];
        total[s] += mean_share[first + s];
      }
    }
    const A* weight = in.weight + reader * samples;
    for (int64_t k = 0; k < in.near; ++k) {
      const int64_t first = k * samples;
#pragma omp simd
      for (int64_t s = 0; s < samples; ++s) {
        mean_share[first + s] /= total[s];
        share[first + s] = mean_share[first + s] * weight[s];
      }
    }
  }

  const Inputs<A>& in;
  const int64_t samples, places;
  const std::vector<A> nowhere;  // zeros, the row of absent tokens
  int64_t expected = -1;         // the reader that next_list is for
  std::vector<const int32_t*> list, next_list;  // the table's entries for each sample
  std::vector<const A*> row;     // values
  std::vector<int32_t> token;    // -1 where absent
  std::vector<A> present;        // 1, or 0 where absent
  std::vector<A> dx, dy;         // location minus token
  std::vector<A> distance;       // squared
  std::vector<A> powered;        // distance^power
  std::vector<A> nearness;       // inverse distance
  std::vector<A> mean_share;     // share in the mean of its sample
  std::vector<A> share;          // the same times the attention weight
  std::vector<A> total;          // of a sample's nearness

 private:
  int64_t image_of(int64_t reader) const { return reader / (in.queries * in.heads); }

  void expect(int64_t reader) {
    expected = reader;
    const A* location = in.location + reader * samples * 2;
    const int32_t* table =
        in.table + image_of(reader) * in.levels * in.height * in.width * in.near;
    for (int64_t level = 0, s = 0; level < in.levels; ++level) {
      for (int64_t point = 0; point < in.points; ++point, ++s) {
        const int64_t x = nearest_pixel(location[2 * s], in.width);
        const int64_t y = nearest_pixel(location[2 * s + 1], in.height);
        next_list[s] = table + ((level * in.height + y) * in.width + x) * in.near;
        __builtin_prefetch(next_list[s]);
      }
    }
  }

  void find(int64_t reader, const A* value, int64_t stride) {
    const A* location = in.location + reader * samples * 2;
    const A* pos = in.pos + 2 * image_of(reader) * in.tokens;
    for (int64_t k = 0, p = 0; k < in.near; ++k) {
      for (int64_t s = 0; s < samples; ++s, ++p) {
        token[p] = list[s][k];
        row[p] = token[p] >= 0 ? value + token[p] * stride : nowhere.data();
        __builtin_prefetch(row[p]);
      }
    }
    for (int64_t k = 0, p = 0; k < in.near; ++k) {
      for (int64_t s = 0; s < samples; ++s, ++p) {
        const int64_t read = std::max(token[p], 0);
        dx[p] = location[2 * s] - pos[2 * read];
        dy[p] = location[2 * s + 1] - pos[2 * read + 1];
        distance[p] = dx[p] * dx[p] + dy[p] * dy[p];
        present[p] = token[p] >= 0 ? A(1) : A(0);
      }
    }
  }
};

template <typename A>
void forward(const Inputs<A>& in, A* out) {
  for_blocks(in.batch * in.queries, kBlock, [&](int64_t, int64_t begin, int64_t end) {
    Reading<A> reading(in);
    for (int64_t reader = begin * in.heads; reader < end * in.heads; ++reader) {
      const int64_t image = reader / (in.queries * in.heads), head = reader % in.heads;
      reading.run(
          reader, reader + 1 < end * in.heads ? reader + 1 : -1,
          in.value + (image * in.tokens * in.heads + head) * in.dim, in.heads * in.dim);
      sum_rows(
          reading.row.data(), reading.places, reading.share.data(), reading.places, 1, in.dim,
          out + reader * in.dim, in.dim);
    }
  });
}

// From the gradients `along` of a reading's shares in the means: those of its location and
// weight. Returns that of the exponent.
template <typename A>
double backward_shares(
    const Reading<A>& reading, const A* weight, const A* along, A* grad_location,
    A* grad_weight) {
  const Inputs<A>& in = reading.in;
  const int64_t samples = reading.samples;
  std::fill_n(grad_weight, samples, A(0));
  for (int64_t p = 0; p < reading.places; p += samples) {
    for (int64_t s = 0; s < samples; ++s) {
      grad_weight[s] += reading.mean_share[p + s] * along[p + s];
    }
  }
  std::vector<A> grad_x(samples, A(0)), grad_y(samples, A(0));
  std::vector<A> log(reading.places), distance(reading.places);
  take_logs(reading.distance.data(), reading.places, log.data());
  positive_or_one(reading.distance.data(), reading.places, distance.data());
  A grad_power = 0;
  for (int64_t first = 0; first < reading.places; first += samples) {
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t s = 0; s < samples; ++s) {
      const int64_t p = first + s;
      // d log(nearness) / d log(distance^power), 0 at distance 0.
      const A slope = -reading.powered[p] * reading.nearness[p];
      const A grad_log =
          slope * weight[s] * reading.mean_share[p] * (along[p] - grad_weight[s]);
      sum += grad_log * log[p];
      const A grad_distance = grad_log * in.power / distance[p];
      grad_x[s] += 2 * grad_distance * reading.dx[p];
      grad_y[s] += 2 * grad_distance * reading.dy[p];
    }
    grad_power += sum;
  }
  for (int64_t s = 0; s < samples; ++s) {
    grad_location[2 * s] = grad_x[s];
    grad_location[2 * s + 1] = grad_y[s];
  }
  return grad_power;
}

// Head by head of each image: the queries of a head add to rows of value that no other head
// touches, in order. The head's values and their gradients are laid out densely meanwhile: rows
// at wide even strides share few lines of a cache. Returns the gradient of the exponent.
template <typename A>
A backward(
    const Inputs<A>& in, const A* grad, A* grad_value, A* grad_location, A* grad_weight) {
  std::vector<double> partial(in.batch * in.heads, 0);
  for_blocks(in.batch * in.heads, 1, [&](int64_t block, int64_t, int64_t) {
    const int64_t image = block / in.heads, head = block % in.heads;
    const int64_t first = (image * in.tokens * in.heads + head) * in.dim;
    std::vector<A> value(in.tokens * in.dim), sum(in.tokens * in.dim, A(0));
    for (int64_t token = 0; token < in.tokens; ++token) {
      std::copy_n(
          in.value + first + token * in.heads * in.dim, in.dim, value.data() + token * in.dim);
    }
    Reading<A> reading(in);
    std::vector<A> along(reading.places);
    for (int64_t query = 0; query < in.queries; ++query) {
      const int64_t reader = (image * in.queries + query) * in.heads + head;
      reading.run(
          reader, query + 1 < in.queries ? reader + in.heads : -1, value.data(), in.dim);
      const A* g = grad + reader * in.dim;
      dot_rows(
          g, in.dim, 1, reading.row.data(), reading.places, in.dim, along.data(),
          reading.places);
      partial[block] += backward_shares(
          reading, in.weight + reader * reading.samples, along.data(),
          grad_location + reader * reading.samples * 2, grad_weight + reader * reading.samples);
      for (int64_t p = 0; p < reading.places; ++p) {
        if (reading.token[p] >= 0) {
          const A share = reading.share[p];
          A* to = sum.data() + reading.token[p] * in.dim;
#pragma omp simd
          for (int64_t c = 0; c < in.dim; ++c) {
            to[c] += share * g[c];
          }
        }
      }
    }
    for (int64_t token = 0; token < in.tokens; ++token) {
      std::copy_n(
          sum.data() + token * in.dim, in.dim, grad_value + first + token * in.heads * in.dim);
    }
  });
  double grad_power = 0;
  for (const double part : partial) {
    grad_power += part;
  }
  return static_cast<A>(grad_power);
}

}  // namespace

at::Tensor deformable_points(
    const at::Tensor& value, const at::Tensor& pos, const at::Tensor& table,
    const at::Tensor& location, const at::Tensor& weight, const at::Tensor& power) {
  check_deformable_points(value, pos, table, location, weight, power);
  Arguments args(value, pos, table, location, weight, power);
  const std::array<int64_t, 4> sizes{
      value.size(0), location.size(1), value.size(2), value.size(3)};
  if (location.numel() == 0 || value.numel() == 0) {
    return at::zeros(sizes, value.options());
  }
  auto out = at::empty(sizes, pos.options());
  args.prepare();
  AT_DISPATCH_FLOATING_TYPES(pos.scalar_type(), "deformable_points", [&] {
    forward(Inputs<scalar_t>(args), out.mutable_data_ptr<scalar_t>());
  });
  return out.to(value.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> deformable_points_backward(
    const at::Tensor& grad, const at::Tensor& value, const at::Tensor& pos,
    const at::Tensor& table, const at::Tensor& location, const at::Tensor& weight,
    const at::Tensor& power) {
  check_deformable_points_backward(grad, value, pos, table, location, weight, power);
  Arguments args(value, pos, table, location, weight, power);
  auto grad_value = at::zeros(value.sizes(), pos.options());
  auto grad_location = at::zeros(location.sizes(), pos.options());
  auto grad_weight = at::zeros(weight.sizes(), pos.options());
  auto grad_power = at::zeros_like(power, at::MemoryFormat::Contiguous);
  if (location.numel() != 0 && value.numel() != 0) {
    args.prepare();
    const at::Tensor g = widened(grad);
    AT_DISPATCH_FLOATING_TYPES(pos.scalar_type(), "deformable_points_backward", [&] {
      *grad_power.mutable_data_ptr<scalar_t>() = backward(
          Inputs<scalar_t>(args), g.const_data_ptr<scalar_t>(),
          grad_value.mutable_data_ptr<scalar_t>(), grad_location.mutable_data_ptr<scalar_t>(),
          grad_weight.mutable_data_ptr<scalar_t>());
    });
  }
  return {grad_value.to(value.scalar_type()), grad_location, grad_weight, grad_power};
}

TORCH_LIBRARY_IMPL(aff_seg, CPU, m) {
  m.impl("deformable_points", deformable_points);
  m.impl("deformable_points_backward", deformable_points_backward);
}

}  // namespace aff_seg
