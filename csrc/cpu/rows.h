// Weighted sums of rows and dot products with rows: the inner loops of the operators on points.
//
// They are written on vectors of the compiler's own kind (GCC and Clang map them to whatever the
// machine has), because its vectoriser does not keep several sums in registers.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

namespace aff_seg {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename A, int Bytes>
struct Vector {
  typedef A Type __attribute__((vector_size(Bytes)));
  static constexpr int64_t kLanes = Bytes / sizeof(A);

  // References, not values: the registers of an argument would depend on the instruction set.
  static void load(Type& vector, const A* from) { std::memcpy(&vector, from, Bytes); }
  static void store(const Type& vector, A* to) { std::memcpy(to, &vector, Bytes); }

  // Sum of the lanes, by halves.
  static A total(const Type& vector) {
    if constexpr (Bytes == 16) {
      A sum = vector[0];
      for (int lane = 1; lane < kLanes; ++lane) {
        sum += vector[lane];
      }
      return sum;
    } else {
      return halves(vector, std::make_integer_sequence<int, kLanes / 2>());
    }
  }

 private:
  template <int... lane>
  static A halves(const Type& vector, std::integer_sequence<int, lane...>) {
    using Half = Vector<A, Bytes / 2>;
    const typename Half::Type low = {vector[lane]...}, high = {vector[lane + kLanes / 2]...};
    const typename Half::Type sum = low + high;
    return Half::total(sum);
  }
};

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
  using V = Vector<A, Bytes>;
  typename V::Type sum[G][Vectors] = {};
  for (int64_t n = 0; n < count; ++n) {
    for (int v = 0; v < Vectors; ++v) {
      typename V::Type x;
      V::load(x, row[n] + first + v * V::kLanes);
      for (int g = 0; g < G; ++g) {
        sum[g][v] += weight[g * spacing + n] * x;
      }
    }
  }
  for (int g = 0; g < G; ++g) {
    for (int v = 0; v < Vectors; ++v) {
      V::store(sum[g][v], out + g * stride + first + v * V::kLanes);
    }
  }
}

template <int G, typename A>
void sum_all(
    const A* const* row, int64_t count, const A* weight, int64_t spacing, int64_t channels, A* out,
    int64_t stride) {
  constexpr int kTile = G == 1 ? 4 : 2;
  constexpr int64_t kWide = Vector<A, kVectorBytes>::kLanes, kNarrow = Vector<A, 16>::kLanes;
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
  using V = Vector<A, Bytes>;
  typename V::Type sum[R][G] = {};
  int64_t c = 0;
  for (; c + V::kLanes <= channels; c += V::kLanes) {
    for (int r = 0; r < R; ++r) {
      typename V::Type x, y;
      V::load(x, row[r] + c);
      for (int g = 0; g < G; ++g) {
        V::load(y, left + g * stride + c);
        sum[r][g] += x * y;
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int g = 0; g < G; ++g) {
      out[g * spacing + r] = V::total(sum[r][g]);
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
  if (channels % Vector<A, kVectorBytes>::kLanes == 0) {
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
