// Tokens of clusters as the CPU kernels of attention read them.
//
// A cluster is cut into tiles of T tokens; absent tokens of a tile (a short last cluster, or m no
// multiple of T) are rows of zeros. A query has one list of tiles, those of its clusters one after
// the other, hence one list of places, T to a tile, padded to whole vectors. Keys and values are
// copied once per call, by image, tile and head:
//   columns  [channel][token], so that one vector holds T tokens at kLanes / T channels;
//   rows     [token][channel], channels padded with zeros to whole vectors.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "../relative.h"
#include "parallel.h"
#include "vector_exp.h"

namespace aff_seg {

template <typename A>
constexpr int64_t whole_vectors(int64_t count) {
  return (count + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
}

// T for clusters of m: 1, half a vector or a whole one, with the fewest tokens absent.
template <typename A>
int64_t tile_size(int64_t m) {
  constexpr int64_t whole = kLanes<A>, half = whole / 2;
  if (m == 1) {
    return 1;
  }
  return (m + half - 1) / half * half < (m + whole - 1) / whole * whole ? half : whole;
}

template <typename A>
struct Tiling {
  int64_t batch, tokens, heads, dim;
  int64_t m, near;            // tokens per cluster, clusters per query
  int64_t size;               // T
  int64_t clusters;           // per image
  int64_t per_cluster;        // tiles of a cluster
  int64_t tiles;              // of an image
  int64_t list;               // tiles of a query
  int64_t places;             // of a query, whole vectors
  int64_t row, columns;       // elements of a row, of a tile's columns

  Tiling(const at::Tensor& q, const at::Tensor& near_clusters, int64_t cluster_size)
      : batch(q.size(0)), tokens(q.size(1)), heads(q.size(2)), dim(q.size(3)),
        m(std::min(cluster_size, tokens)), near(near_clusters.size(2)),
        size(tile_size<A>(m)), clusters((tokens + m - 1) / m), per_cluster((m + size - 1) / size),
        tiles(clusters * per_cluster), list(near * per_cluster),
        places(whole_vectors<A>(list * size)), row(whole_vectors<A>(dim)),
        columns(whole_vectors<A>(dim * size)) {}

  // Tokens of a tile that exist, the first of them given.
  int64_t present(int64_t tile, int64_t* first) const {
    const int64_t cluster = tile / per_cluster, start = tile % per_cluster * size;
    *first = cluster * m + start;
    return std::clamp<int64_t>(std::min(m - start, tokens - *first), 0, size);
  }
};

// Calls body(T) with the size of tiles as a constant.
template <typename A, typename F>
void with_tile_size(int64_t size, const F& body) {
  constexpr int whole = kLanes<A>, half = whole / 2;
  if (size == whole) {
    body(std::integral_constant<int, whole>());
  } else if (size == half) {
    body(std::integral_constant<int, half>());
  } else {
    body(std::integral_constant<int, 1>());
  }
}

// x (B, N, heads, D), any strides with contiguous D, to columns.
template <typename A, int T>
at::Tensor pack_columns(const Tiling<A>& tiling, const at::Tensor& x) {
  at::Tensor packed = at::empty(
      {tiling.batch * tiling.tiles * tiling.heads * tiling.columns}, x.options());
  A* to = packed.mutable_data_ptr<A>();
  const A* from = x.const_data_ptr<A>();
  const int64_t by_image = x.stride(0), by_token = x.stride(1), by_head = x.stride(2);
  const int64_t heads = tiling.heads, dim = tiling.dim;
  for_blocks(tiling.batch * tiling.tiles, 16, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      int64_t first;
      const int64_t present = tiling.present(tile % tiling.tiles, &first);
      const A* tokens = from + tile / tiling.tiles * by_image + first * by_token;
      for (int64_t h = 0; h < heads; ++h) {
        A* block = to + (tile * heads + h) * tiling.columns;
        const A* head = tokens + h * by_head;
        if (present == T) {
          for (int64_t d = 0; d < dim; ++d) {
            for (int t = 0; t < T; ++t) {
              block[d * T + t] = head[t * by_token + d];
            }
          }
          std::fill(block + dim * T, block + tiling.columns, A(0));
        } else {
          std::fill(block, block + tiling.columns, A(0));
          for (int64_t t = 0; t < present; ++t) {
            for (int64_t d = 0; d < dim; ++d) {
              block[d * T + t] = head[t * by_token + d];
            }
          }
        }
      }
    }
  });
  return packed;
}

template <typename A, int T>
at::Tensor pack_rows(const Tiling<A>& tiling, const at::Tensor& x) {
  at::Tensor packed = at::empty(
      {tiling.batch * tiling.tiles * tiling.heads * T * tiling.row}, x.options());
  A* to = packed.mutable_data_ptr<A>();
  const A* from = x.const_data_ptr<A>();
  const int64_t by_image = x.stride(0), by_token = x.stride(1), by_head = x.stride(2);
  const int64_t heads = tiling.heads, dim = tiling.dim, row = tiling.row;
  for_blocks(tiling.batch * tiling.tiles, 16, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      int64_t first;
      const int64_t present = tiling.present(tile % tiling.tiles, &first);
      const A* tokens = from + tile / tiling.tiles * by_image + first * by_token;
      for (int64_t h = 0; h < heads; ++h) {
        A* block = to + (tile * heads + h) * T * row;
        for (int64_t t = 0; t < present; ++t) {
          const A* source = tokens + t * by_token + h * by_head;
          std::copy(source, source + dim, block + t * row);
          std::fill(block + t * row + dim, block + (t + 1) * row, A(0));
        }
        std::fill(block + present * row, block + T * row, A(0));
      }
    }
  });
  return packed;
}

// Positions by tile: x of its T tokens, y of them, and what joins their logits: 0, or -inf where
// absent.
template <typename A, int T>
std::vector<A> pack_positions(const Tiling<A>& tiling, const A* pos) {
  std::vector<A> packed(tiling.batch * tiling.tiles * 3 * T);
  for (int64_t tile = 0; tile < tiling.batch * tiling.tiles; ++tile) {
    int64_t first;
    const int64_t present = tiling.present(tile % tiling.tiles, &first);
    const A* tokens = pos + 2 * (tile / tiling.tiles * tiling.tokens + first);
    A* block = packed.data() + tile * 3 * T;
    for (int t = 0; t < T; ++t) {
      block[t] = t < present ? tokens[2 * t] : A(0);
      block[T + t] = t < present ? tokens[2 * t + 1] : A(0);
      block[2 * T + t] = t < present ? A(0) : -std::numeric_limits<A>::infinity();
    }
  }
  return packed;
}

// Rows of the last axis padded to whole vectors, in one piece.
template <typename A>
at::Tensor padded_rows(const at::Tensor& x) {
  const int64_t extra = whole_vectors<A>(x.size(-1)) - x.size(-1);
  return (extra ? at::constant_pad_nd(x, {0, extra}) : x).contiguous();
}

// What padded_rows added taken off, in the dtype of the features.
inline at::Tensor without_padding(const at::Tensor& x, int64_t dim, at::ScalarType type) {
  return (x.size(-1) == dim ? x : x.narrow(-1, 0, dim)).to(type).contiguous();
}

inline at::Tensor with_contiguous_rows(const at::Tensor& x) {
  return x.stride(-1) == 1 ? x : x.contiguous();
}

// The tiles of one query, counted over the batch.
template <typename A>
inline void list_tiles(
    const Tiling<A>& tiling, const int32_t* clusters, int64_t image, int32_t* list) {
  for (int64_t r = 0; r < tiling.near; ++r) {
    const int64_t first = image * tiling.tiles + clusters[r] * tiling.per_cluster;
    for (int64_t u = 0; u < tiling.per_cluster; ++u) {
      *list++ = static_cast<int32_t>(first + u);
    }
  }
}

// Relative features of a query's places, as planes of `places` each: the five features, then what
// joins the logits.
constexpr int kPlanes = kRelative + 1;

template <typename A, int T>
inline void relative_planes(
    const Tiling<A>& tiling, const A* positions, const int32_t* list, A x, A y, A* planes) {
  const int64_t places = tiling.places;
  A* px = planes;
  A* py = px + places;
  A* absent = planes + kRelative * places;
  for (int64_t s = 0; s < tiling.list; ++s) {
    const A* tile = positions + int64_t(list[s]) * 3 * T;
    for (int t = 0; t < T; ++t) {
      px[s * T + t] = tile[t];
      py[s * T + t] = tile[T + t];
      absent[s * T + t] = tile[2 * T + t];
    }
  }
  for (int64_t p = tiling.list * T; p < places; ++p) {
    px[p] = py[p] = 0;
    absent[p] = -std::numeric_limits<A>::infinity();
  }
  A* r = py + places;
  A* sine = r + places;
  A* cosine = sine + places;
#pragma omp simd
  for (int64_t p = 0; p < places; ++p) {
    const Relative<A> f = relative_features(px[p] - x, py[p] - y);
    px[p] = f.dx;
    py[p] = f.dy;
    r[p] = f.r;
    sine[p] = f.sine;
    cosine[p] = f.cosine;
  }
}

// Each channel of a row T times over, as the columns of a tile are laid out.
template <typename A, int T>
inline void repeat_channels(const Tiling<A>& tiling, const A* row, A scale, A* repeated) {
  for (int64_t d = 0; d < tiling.dim; ++d) {
    const A value = row[d] * scale;
    for (int t = 0; t < T; ++t) {
      repeated[d * T + t] = value;
    }
  }
  std::fill(repeated + tiling.dim * T, repeated + tiling.columns, A(0));
}

template <typename A, int T, int G>
inline void products_of(
    const A* repeated, const A* columns, const int32_t* list, int64_t by_tile, int64_t length,
    A* out) {
  const A* tile[G];
  Vec<A> sum[G];
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
    tile[g] = columns + list[g] * by_tile;
    sum[g] = Vec<A>{};
  }
  for (int64_t e = 0; e < length; e += kLanes<A>) {
    const Vec<A> x = load<A>(repeated + e);
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      sum[g] += x * load<A>(tile[g] + e);
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
    A part[kLanes<A>];
    store<A>(part, sum[g]);
    for (int width = kLanes<A> / 2; width >= T; width /= 2) {
      for (int l = 0; l < width; ++l) {
        part[l] += part[l + width];
      }
    }
    std::memcpy(out + g * T, part, T * sizeof(A));
  }
}

// out[place] = sum_d row[d] * x[place, d] at one head, whose columns start at `columns`.
template <typename A, int T>
inline void products(
    const Tiling<A>& tiling, const A* repeated, const A* columns, const int32_t* list, A* out) {
  const int64_t by_tile = tiling.heads * tiling.columns;
  int64_t s = 0;
  for (; s + 6 <= tiling.list; s += 6) {
    products_of<A, T, 6>(repeated, columns, list + s, by_tile, tiling.columns, out + s * T);
  }
  for (; s + 2 <= tiling.list; s += 2) {
    products_of<A, T, 2>(repeated, columns, list + s, by_tile, tiling.columns, out + s * T);
  }
  if (s < tiling.list) {
    products_of<A, T, 1>(repeated, columns, list + s, by_tile, tiling.columns, out + s * T);
  }
  std::fill(out + tiling.list * T, out + tiling.places, A(0));
}

template <typename A, int T, int V>
inline void weighted_sum_of(
    const A* weight, const A* rows, const int32_t* list, int64_t count, int64_t by_tile,
    int64_t row, A* sum) {
  constexpr int U = T < 4 ? T : 4;
  Vec<A> part[U][V] = {};
  for (int64_t s = 0; s < count; ++s) {
    const A* tile = rows + list[s] * by_tile;
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        part[t % U][v] += weight[s * T + t] * load<A>(tile + t * row + v * kLanes<A>);
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    Vec<A> total = part[0][v];
#pragma GCC unroll 4
    for (int u = 1; u < U; ++u) {
      total += part[u][v];
    }
    store<A>(sum + v * kLanes<A>, load<A>(sum + v * kLanes<A>) + total);
  }
}

// sum += sum over places of weight[place] * row of place, at one head, whose rows start at `rows`.
template <typename A, int T>
inline void add_weighted_sum(
    const Tiling<A>& tiling, const A* weight, const A* rows, const int32_t* list, A* sum) {
  const int64_t by_tile = tiling.heads * T * tiling.row;
  int64_t d = 0;
  for (; d + 2 * kLanes<A> <= tiling.row; d += 2 * kLanes<A>) {
    weighted_sum_of<A, T, 2>(weight, rows + d, list, tiling.list, by_tile, tiling.row, sum + d);
  }
  if (d < tiling.row) {
    weighted_sum_of<A, T, 1>(weight, rows + d, list, tiling.list, by_tile, tiling.row, sum + d);
  }
}

// Adds the position terms of one head to the products of a query's places.
template <typename A>
inline void add_position_terms(
    const A* planes, int64_t places, const A* weight, A bias, A* logit) {
  for (int64_t p = 0; p < places; p += kLanes<A>) {
    Vec<A> term = load<A>(planes + kRelative * places + p) + bias;
#pragma GCC unroll 8
    for (int f = 0; f < kRelative; ++f) {
      term += weight[f] * load<A>(planes + f * places + p);
    }
    store<A>(logit + p, load<A>(logit + p) + term);
  }
}

template <typename A>
inline A dot(const A* x, const A* y, int64_t length) {
  Vec<A> sum{};
  for (int64_t d = 0; d < length; d += kLanes<A>) {
    sum += load<A>(x + d) * load<A>(y + d);
  }
  return lane_sum<A>(sum);
}

}  // namespace aff_seg
