// What the kernels of deformable_points share: its arguments, and where a sample reads.

#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <limits>

#include "../checks.h"
#include "../deformable_points.h"
#include "../shepard_interpolate.h"
#include "device.h"
#include "rows.h"

namespace aff_seg {

// Entries of the table that a thread reads at a time.
constexpr int kEntries = 4;

// The tensors of a call, as kernels read them.
struct DeformableTensors {
  DeformableTensors(
      const at::Tensor& value_, const at::Tensor& pos_, const at::Tensor& table_,
      const at::Tensor& location_, const at::Tensor& weight_, const at::Tensor& power_)
      : value(value_.contiguous()),
        pos(aligned(pos_, 2 * pos_.element_size())),
        table(aligned(table_, kEntries * sizeof(int32_t))),
        location(aligned(location_, 2 * location_.element_size())),
        weight(weight_.contiguous()),
        power(power_) {}

  at::Tensor value, pos, table, location, weight, power;
};

// A unit is one head of one image. A reader is one head of one query; its samples are levels times
// points, and its places are the tokens that the table lists for each of them.
template <typename T, typename A>
struct DeformableInputs {
  explicit DeformableInputs(const DeformableTensors& tensors)
      : height(tensors.table.size(2)),
        width(tensors.table.size(3)),
        value(tensors.value.const_data_ptr<T>()),
        pos(tensors.pos.const_data_ptr<A>()),
        location(tensors.location.const_data_ptr<A>()),
        weight(tensors.weight.const_data_ptr<A>()),
        power(tensors.power.const_data_ptr<A>()),
        table(tensors.table.const_data_ptr<int32_t>()) {
    const at::Tensor &v = tensors.value, &l = tensors.location;
    const int64_t count = l.size(3) * l.size(4);
    check_count(v.size(1), "tokens of an image");
    check_count(v.size(2) * v.size(3) * int64_t(sizeof(T)), "bytes of a token");
    check_count(l.size(1) * count * tensors.table.size(4), "places that a head reads");
    batch = static_cast<int>(v.size(0));
    tokens = static_cast<int>(v.size(1));
    heads = static_cast<int>(v.size(2));
    dim = static_cast<int>(v.size(3));
    row_bytes = static_cast<uint32_t>(heads * dim * sizeof(T));
    queries = static_cast<int>(l.size(1));
    levels = static_cast<int>(l.size(3));
    points = static_cast<int>(l.size(4));
    near = static_cast<int>(tensors.table.size(4));
    samples = static_cast<int>(count);
    places = samples * near;
  }

  // Of (B, Q, heads).
  __device__ __forceinline__ int64_t reader(int64_t unit, int query) const {
    return (unit / heads * queries + query) * heads + unit % heads;
  }

  // The row of the unit's head for the image's first token.
  __device__ __forceinline__ const T* rows(int64_t unit) const {
    return value + (unit / heads * tokens * heads + unit % heads) * dim;
  }

  int batch, tokens, heads, dim, queries, levels, points, near;
  int samples, places;  // of a reader
  uint32_t row_bytes;   // of a token, all heads
  int64_t height, width;
  const T* value;
  const A *pos, *location, *weight, *power;
  const int32_t* table;
};

// A token as a sample sees it, which lies at (dx, dy) from it.
template <typename A>
struct ListedToken {
  A dx, dy, distance;  // squared
};

// One sample: where it lies, and the tokens listed for its pixel.
template <typename T, typename A>
struct Sample {
  __device__ __forceinline__ Sample(
      const DeformableInputs<T, A>& in, int64_t unit, int query, int sample)
      : index(in.reader(unit, query) * in.samples + sample) {
    const int64_t image = unit / in.heads;
    const auto location = load_pack<2>(in.location + 2 * index);
    x = location.value[0];
    y = location.value[1];
    const int64_t pixel =
        ((image * in.levels + sample / in.points) * in.height + nearest_pixel(y, in.height)) *
            in.width +
        nearest_pixel(x, in.width);
    list = in.table + pixel * in.near;
    pos = in.pos + 2 * image * in.tokens;
  }

  // kEntries of the list from k on, -1 beyond its end.
  __device__ __forceinline__ Pack<int32_t, kEntries> entries(
      const DeformableInputs<T, A>& in, int k) const {
    Pack<int32_t, kEntries> pack;
    if (in.near % kEntries == 0) {
      pack = load_pack<kEntries>(list + k);
    } else {
#pragma unroll
      for (int e = 0; e < kEntries; ++e) {
        pack.value[e] = k + e < in.near ? list[k + e] : -1;
      }
    }
#pragma unroll
    for (int e = 0; e < kEntries; ++e) {
      CUDA_KERNEL_ASSERT(pack.value[e] >= -1 && pack.value[e] < in.tokens);
    }
    return pack;
  }

  __device__ __forceinline__ ListedToken<A> candidate(int token) const {
    const auto other = load_pack<2>(pos + 2 * int64_t(token));
    const A dx = x - other.value[0], dy = y - other.value[1];
    return {dx, dy, dx * dx + dy * dy};
  }

  int64_t index;  // of (B, Q, heads, L, P)
  A x, y;
  const int32_t* list;
  const A* pos;
};

}  // namespace aff_seg
