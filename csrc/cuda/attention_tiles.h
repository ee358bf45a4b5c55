// Products of tiles. A warp holds eight tokens, its columns, and goes through others, the rows, a
// few slots at a time. Lane 4 g + t works on row g of each slot and on columns 2 t and 2 t + 1. In
// forward the columns are queries and the rows are keys.

#pragma once

#include <ATen/OpMathType.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "../relative.h"
#include "attention_rows.h"
#include "instructions.h"

namespace aff_seg {

// A neighbour's direction and distance, all of its relative features but dx = r cosine and
// dy = r sine.
template <typename A>
struct Direction {
  A r, sine, cosine;
};

// Products of tiles in the arithmetic of the features, float or double.
template <typename T_, int kChunks>
struct PlainTile {
  using T = T_;
  using A = T_;
  using L = SlotLayout<T, kChunks>;
  // Of a tile, as registers allow.
  static constexpr int kSlots = sizeof(T) == 4 ? 4 : kChunks <= 2 ? 2 : 1;
  static constexpr int kWeights = kSlots * kSlotRows + L::kPack;
  static constexpr int kScratch = 8 * kWeights;  // elements of a warp
  static constexpr A kPerLogit = 1;              // unit of logits
  static constexpr bool kRounds = false;         // whether T is less precise than A

  // (columns, channels): units g, g + 8, ... of columns 2 t and 2 t + 1.
  struct Sum {
    A value[2][L::kUnits / 8][L::kPack] = {};
  };

  static __device__ __forceinline__ A exponential(A x) { return std::exp(x); }

  static __device__ __forceinline__ Direction<A> direction(A dx, A dy) {
    const Relative<A> f = relative_features(dx, dy);
    return {f.r, f.sine, f.cosine};
  }

  // product[s][j] = start[s][j] + row g of slot s times column 2 t + j, for `count` slots of the
  // tile.
  static __device__ __forceinline__ void multiply(
      unsigned lane, const T* const (&slot)[kSlots], int count, const T* columns, int dim,
      const A (&start)[kSlots][2], A (&product)[kSlots][2]) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      product[s][0] = start[s][0];
      product[s][1] = start[s][1];
    }
    if (count <= kSlots / 2) {
      multiply<kSlots / 2>(lane, slot, columns, dim, product);
    } else {
      multiply<kSlots>(lane, slot, columns, dim, product);
    }
  }

  // sum[column][channel] += sum over rows of weight[row][column] * row[channel]
  static __device__ __forceinline__ void add(
      unsigned lane, const T* const (&slot)[kSlots], int count, const A (&weight)[kSlots][2],
      A* scratch, Sum& sum) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      scratch[2 * t * kWeights + s * kSlotRows + g] = weight[s][0];
      scratch[(2 * t + 1) * kWeights + s * kSlotRows + g] = weight[s][1];
    }
    __syncwarp();
    const A* own = scratch + 2 * t * kWeights;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (s < count) {
        add_slot(slot[s], own + s * kSlotRows, g, sum);
      }
    }
    __syncwarp();
  }

  static __device__ __forceinline__ void scale(const A (&factor)[2], Sum& sum) {
#pragma unroll
    for (int i = 0; i < L::kUnits / 8; ++i) {
#pragma unroll
      for (int e = 0; e < L::kPack; ++e) {
        sum.value[0][i][e] *= factor[0];
        sum.value[1][i][e] *= factor[1];
      }
    }
  }

  // sum[column][channel] += weight[column] * other[column][channel]
  static __device__ __forceinline__ void add_sum(
      const A (&weight)[2], const Sum& other, Sum& sum) {
#pragma unroll
    for (int i = 0; i < L::kUnits / 8; ++i) {
#pragma unroll
      for (int e = 0; e < L::kPack; ++e) {
        sum.value[0][i][e] += weight[0] * other.value[0][i][e];
        sum.value[1][i][e] += weight[1] * other.value[1][i][e];
      }
    }
  }

  // sum[column][channel] += weight[column] * vector[channel], padded like the rows
  static __device__ __forceinline__ void add_vector(
      unsigned lane, const A (&weight)[2], const A* vector, Sum& sum) {
    const int g = lane / 4;
#pragma unroll
    for (int i = 0; i < L::kUnits / 8; ++i) {
#pragma unroll
      for (int e = 0; e < L::kPack; ++e) {
        const A x = vector[(8 * i + g) * L::kPack + e];
        sum.value[0][i][e] += weight[0] * x;
        sum.value[1][i][e] += weight[1] * x;
      }
    }
  }

  // Leaves the sums in a slot, a row for each column.
  static __device__ __forceinline__ void put(unsigned lane, const Sum& sum, T* slot) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int i = 0; i < L::kUnits / 8; ++i) {
        typename L::Unit unit;
#pragma unroll
        for (int e = 0; e < L::kPack; ++e) {
          unit.value[e] = sum.value[j][i][e];
        }
        L::store(unit, slot, 2 * t + j, 8 * i + g);
      }
    }
  }

 private:
  template <int kCount>
  static __device__ __forceinline__ void multiply(
      unsigned lane, const T* const (&slot)[kSlots], const T* columns, int dim,
      A (&product)[kSlots][2]) {
    const int g = lane / 4, t = lane % 4;
    const int units = (dim + L::kPack - 1) / L::kPack;
#pragma unroll 4
    for (int u = 0; u < units; ++u) {
      const typename L::Unit first = L::load(columns, 2 * t, u);
      const typename L::Unit second = L::load(columns, 2 * t + 1, u);
#pragma unroll
      for (int s = 0; s < kCount; ++s) {
        const typename L::Unit row = L::load(slot[s], g, u);
#pragma unroll
        for (int e = 0; e < L::kPack; ++e) {
          product[s][0] += row.value[e] * first.value[e];
          product[s][1] += row.value[e] * second.value[e];
        }
      }
    }
  }

  static __device__ __forceinline__ void add_slot(
      const T* slot, const A* weight, int g, Sum& sum) {
    // Of long rows few at a time, which saves registers.
    constexpr int kUnroll = L::kUnits < 64 ? kSlotRows / L::kPack : 1;
#pragma unroll kUnroll
    for (int r = 0; r < kSlotRows; r += L::kPack) {
      const auto first = *reinterpret_cast<const typename L::Unit*>(weight + r);
      const auto second = *reinterpret_cast<const typename L::Unit*>(weight + kWeights + r);
#pragma unroll
      for (int k = 0; k < L::kPack; ++k) {
#pragma unroll
        for (int i = 0; i < L::kUnits / 8; ++i) {
          const typename L::Unit row = L::load(slot, r + k, 8 * i + g);
#pragma unroll
          for (int e = 0; e < L::kPack; ++e) {
            sum.value[0][i][e] += first.value[k] * row.value[e];
            sum.value[1][i][e] += second.value[k] * row.value[e];
          }
        }
      }
    }
  }
};

// Products of half or bfloat16 by the matrix units, summed in float. Weights are rounded to T.
template <typename T_, int kChunks>
struct MatrixTile {
  using T = T_;
  using A = float;
  using L = SlotLayout<T, kChunks>;
  static constexpr int kSlots = 2;
  static constexpr int kScratch = 0;
  // Exponentials are to the base 2.
  static constexpr A kPerLogit = 1.4426950408889634f;
  static constexpr A kLeast = std::numeric_limits<A>::min();
  static constexpr bool kRounds = true;

  // As multiply_add leaves them: 16 channels by 8 columns each.
  struct Sum {
    A value[2 * kChunks][4] = {};
  };

  static __device__ __forceinline__ A exponential(A x) { return fast_exp2(x); }

  static __device__ __forceinline__ Direction<A> direction(A dx, A dy) {
    // Where r is 0, the features come out as 0 or next to it.
    const A square = dx * dx + (dy * dy + kLeast);
    const A inverse = fast_rsqrt(square);
    return {square * inverse, dy * inverse, dx * inverse};
  }

  static __device__ __forceinline__ void multiply(
      unsigned lane, const T* const (&slot)[2], int, const T* columns, int, const A (&start)[2][2],
      A (&product)[2][2]) {
    const int row = lane % 8, matrix = lane / 8;
    const T* rows = matrix % 2 == 0 ? slot[0] : slot[1];
    A sum[4] = {start[0][0], start[0][1], start[1][0], start[1][1]};
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      uint32_t b[4];
      load_matrices(b, columns + L::at(row, 4 * c + matrix));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t a[4];
        load_matrices(a, rows + L::at(row, 4 * c + 2 * half + matrix / 2));
        multiply_add<T>(sum, a, b[2 * half], b[2 * half + 1], sum);
      }
    }
    product[0][0] = sum[0];
    product[0][1] = sum[1];
    product[1][0] = sum[2];
    product[1][1] = sum[3];
  }

  static __device__ __forceinline__ void add(
      unsigned lane, const T* const (&slot)[2], int, const A (&weight)[2][2], A*, Sum& sum) {
    const int row = lane % 8, matrix = lane / 8;
    const T* rows = matrix < 2 ? slot[0] : slot[1];
    const uint32_t b0 = transposed(packed<T>(weight[0][0], weight[0][1]));
    const uint32_t b1 = transposed(packed<T>(weight[1][0], weight[1][1]));
#pragma unroll
    for (int i = 0; i < 2 * kChunks; ++i) {
      uint32_t a[4];
      load_transposed(a, rows + L::at(row, 2 * i + matrix % 2));
      multiply_add<T>(sum.value[i], a, b0, b1, sum.value[i]);
    }
  }

  static __device__ __forceinline__ void scale(const A (&factor)[2], Sum& sum) {
#pragma unroll
    for (int i = 0; i < 2 * kChunks; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sum.value[i][e] *= factor[e % 2];
      }
    }
  }

  static __device__ __forceinline__ void add_sum(
      const A (&weight)[2], const Sum& other, Sum& sum) {
#pragma unroll
    for (int i = 0; i < 2 * kChunks; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sum.value[i][e] += weight[e % 2] * other.value[i][e];
      }
    }
  }

  static __device__ __forceinline__ void add_vector(
      unsigned lane, const A (&weight)[2], const A* vector, Sum& sum) {
#pragma unroll
    for (int i = 0; i < 2 * kChunks; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const A x = vector[16 * i + 8 * half + lane / 4];
        sum.value[i][2 * half] += weight[0] * x;
        sum.value[i][2 * half + 1] += weight[1] * x;
      }
    }
  }

  static __device__ __forceinline__ void put(unsigned lane, const Sum& sum, T* slot) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < 2 * kChunks; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        *reinterpret_cast<uint32_t*>(slot + L::at(g, 2 * i + half) + 2 * t) =
            transposed(packed<T>(sum.value[i][2 * half], sum.value[i][2 * half + 1]));
      }
    }
  }
};

// The position term and the scale of one head, in the tile's unit of logits.
template <typename P>
struct alignas(16) LogitTerms {
  using A = typename P::A;
  A weight[kRelative], bias, scale;

  __device__ __forceinline__ LogitTerms(
      const A* pos_weight, const A* pos_bias, int head, A scale_)
      : bias(pos_bias[head] * P::kPerLogit), scale(scale_ * P::kPerLogit) {
#pragma unroll
    for (int f = 0; f < kRelative; ++f) {
      weight[f] = pos_weight[head * kRelative + f] * P::kPerLogit;
    }
  }

  // Without the bias, instead of which there is `start`.
  __device__ __forceinline__ A logit(A product, const Direction<A>& at, A start) const {
    const A x = product * scale + start;
    const A slope = weight[0] * at.cosine + (weight[1] * at.sine + weight[2]);
    return weight[4] * at.cosine + (weight[3] * at.sine + (slope * at.r + x));
  }
};

// Calls body(tile, heads at once) for features of type T, as constants.
template <typename T, typename F>
void with_tile(int64_t dim, int64_t heads, const F& body) {
  using One = std::integral_constant<int, 1>;
  TORCH_CHECK_VALUE(
      dim <= 128, "cluster_attention takes at most 128 channels per head on a GPU, got ", dim);
  if constexpr (sizeof(T) == 2) {
    if (dim > 64) {
      body(MatrixTile<T, 4>(), One());
    } else if (dim > 32) {
      body(MatrixTile<T, 2>(), One());
    } else if (heads % 2 != 0) {
      body(MatrixTile<T, 1>(), One());
    } else {
      body(MatrixTile<T, 1>(), std::integral_constant<int, 2>());
    }
  } else {
    if (dim > 64) {
      body(PlainTile<T, 4>(), One());
    } else if (dim > 32) {
      body(PlainTile<T, 2>(), One());
    } else {
      body(PlainTile<T, 1>(), One());
    }
  }
}

}  // namespace aff_seg
