// Weighted sums of rows and dot products with rows: the inner loops of the operators on points.

#pragma once

#include <cstdint>

#include "vector.h"

namespace aff_seg {

// Rows that will be read soon.
template <typename A>
void prefetch_rows(const A* const* row, int64_t count, int64_t channels) {
  constexpr int64_t kLine = 64 / sizeof(A);
  for (int64_t n = 0; n < count; ++n) {
    for (int64_t c = 0; c < channels; c += kLine) {
      __builtin_prefetch(row[n] + c);
    }
  }
}

// Part of sum_rows: channels first to first + Vectors * lanes, for G sums.
template <int G, int Bytes, int Vectors, typename A>
inline void sum_tile(
    const A* const* row, int64_t count, const A* weight, int64_t spacing, int64_t first, A* out,
    int64_t stride) {
  constexpr int64_t kStep = kLanes<A, Bytes>;
  Vec<A, Bytes> sum[G][Vectors] = {};
  for (int64_t n = 0; n < count; ++n) {
    for (int v = 0; v < Vectors; ++v) {
      const auto x = load<A, Bytes>(row[n] + first + v * kStep);
      for (int g = 0; g < G; ++g) {
        sum[g][v] += weight[g * spacing + n] * x;
      }
    }
  }
  for (int g = 0; g < G; ++g) {
    for (int v = 0; v < Vectors; ++v) {
      store<A, Bytes>(out + g * stride + first + v * kStep, sum[g][v]);
    }
  }
}

template <int G, typename A>
void sum_all(
    const A* const* row, int64_t count, const A* weight, int64_t spacing, int64_t channels, A* out,
    int64_t stride) {
  constexpr int kTile = G == 1 ? 4 : 2;
  constexpr int64_t kWide = kLanes<A>, kNarrow = kLanes<A, 16>;
  int64_t c = 0;
  for (; c + kTile * kWide <= channels; c += kTile * kWide) {
    sum_tile<G, kVectorBytes, kTile>(row, count, weight, spacing, c, out, stride);
  }
  for (; c + kWide <= channels; c += kWide) {
    sum_tile<G, kVectorBytes, 1>(row, count, weight, spacing, c, out, stride);
  }
  for (; c + kNarrow <= channels; c += kNarrow) {
    sum_tile<G, 16, 1>(row, count, weight, spacing, c, out, stride);
  }
  for (; c < channels; ++c) {
    for (int g = 0; g < G; ++g) {
      A sum = 0;
      for (int64_t n = 0; n < count; ++n) {
        sum += weight[g * spacing + n] * row[n][c];
      }
      out[g * stride + c] = sum;
    }
  }
}

// out[g * stride + c] = sum over n of weight[g * spacing + n] * row[n][c]: `sums` different sums
// of the same `count` rows.
template <typename A>
void sum_rows(
    const A* const* row, int64_t count, const A* weight, int64_t spacing, int64_t sums,
    int64_t channels, A* out, int64_t stride) {
  int64_t g = 0;
  for (; g + 4 <= sums; g += 4) {
    sum_all<4>(row, count, weight + g * spacing, spacing, channels, out + g * stride, stride);
  }
  for (; g < sums; ++g) {
    sum_all<1>(row, count, weight + g * spacing, spacing, channels, out + g * stride, stride);
  }
}

// Part of dot_rows: R rows, their whole vectors. Returns the channels that are done.
template <int G, int R, int Bytes, typename A>
inline int64_t dot_tile(
    const A* left, int64_t stride, const A* const* row, int64_t channels, A* out,
    int64_t spacing) {
  constexpr int64_t kStep = kLanes<A, Bytes>;
  Vec<A, Bytes> sum[R][G] = {};
  int64_t c = 0;
  for (; c + kStep <= channels; c += kStep) {
    for (int r = 0; r < R; ++r) {
      const auto x = load<A, Bytes>(row[r] + c);
      for (int g = 0; g < G; ++g) {
        sum[r][g] += x * load<A, Bytes>(left + g * stride + c);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int g = 0; g < G; ++g) {
      out[g * spacing + r] = lane_sum<A, Bytes>(sum[r][g]);
    }
  }
  return c;
}

template <int G, int Bytes, typename A>
inline void dot_all(
    const A* left, int64_t stride, const A* const* row, int64_t count, int64_t channels, A* out,
    int64_t spacing) {
  constexpr int kTile = G == 1 ? 4 : 1;
  int64_t n = 0, done = 0;
  for (; n + kTile <= count; n += kTile) {
    done = dot_tile<G, kTile, Bytes>(left, stride, row + n, channels, out + n, spacing);
  }
  for (; n < count; ++n) {
    done = dot_tile<G, 1, Bytes>(left, stride, row + n, channels, out + n, spacing);
  }
  for (; done < channels; ++done) {
    for (int g = 0; g < G; ++g) {
      for (n = 0; n < count; ++n) {
        out[g * spacing + n] += left[g * stride + done] * row[n][done];
      }
    }
  }
}

template <int G, typename A>
void dot_group(
    const A* left, int64_t stride, const A* const* row, int64_t count, int64_t channels, A* out,
    int64_t spacing) {
  if (channels % kLanes<A> == 0) {
    dot_all<G, kVectorBytes>(left, stride, row, count, channels, out, spacing);
  } else {
    dot_all<G, 16>(left, stride, row, count, channels, out, spacing);
  }
}

// out[g * spacing + n] = sum over c of left[g * stride + c] * row[n][c]: dot products of
// `vectors` vectors with `count` rows.
template <typename A>
void dot_rows(
    const A* left, int64_t stride, int64_t vectors, const A* const* row, int64_t count,
    int64_t channels, A* out, int64_t spacing) {
  int64_t g = 0;
  for (; g + 4 <= vectors; g += 4) {
    dot_group<4>(left + g * stride, stride, row, count, channels, out + g * spacing, spacing);
  }
  for (; g < vectors; ++g) {
    dot_group<1>(left + g * stride, stride, row, count, channels, out + g * spacing, spacing);
  }
}

}  // namespace aff_seg
