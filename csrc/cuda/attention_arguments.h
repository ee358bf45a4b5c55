// Arguments of attention as its kernels take them.

#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../checks.h"
#include "attention_rows.h"

namespace aff_seg {

// Tokens, channels and so on as the operator's contract calls them.
template <typename T, typename A>
struct Attention {
  int tokens, heads, dim, m, near;
  int clusters;     // of an image
  int per_cluster;  // slots
  Tokens<const T> q, k, v;
  const A *pos, *pos_weight, *pos_bias, *blank_k, *blank_v;
  const int32_t* lists;
  A scale;
};

// What must outlive the kernels' arguments.
struct AttentionTensors {
  at::Tensor q, k, v, pos, clusters, pos_weight, pos_bias, blank_k, blank_v;

  AttentionTensors(
      const at::Tensor& q_, const at::Tensor& k_, const at::Tensor& v_, const at::Tensor& pos_,
      const at::Tensor& clusters_, const at::Tensor& pos_weight_, const at::Tensor& pos_bias_,
      const at::Tensor& blank_k_, const at::Tensor& blank_v_)
      : q(with_near_channels(q_)), k(with_near_channels(k_)),
        // Both coordinates are copied at once.
        v(with_near_channels(v_)), pos(aligned(pos_, 2 * pos_.element_size())),
        clusters(clusters_.contiguous()), pos_weight(pos_weight_.contiguous()),
        pos_bias(pos_bias_.contiguous()), blank_k(blank_k_.contiguous()),
        blank_v(blank_v_.contiguous()) {}

  template <typename T, typename A>
  Attention<T, A> arguments(int64_t m) const {
    const int64_t tokens = q.size(1), dim = q.size(3), size = std::min(m, tokens);
    return {
        static_cast<int>(tokens),
        static_cast<int>(q.size(2)),
        static_cast<int>(dim),
        static_cast<int>(size),
        static_cast<int>(clusters.size(2)),
        static_cast<int>((tokens + size - 1) / size),
        static_cast<int>((size + kSlotRows - 1) / kSlotRows),
        tokens_of<T>(q),
        tokens_of<T>(k),
        tokens_of<T>(v),
        pos.const_data_ptr<A>(),
        pos_weight.const_data_ptr<A>(),
        pos_bias.const_data_ptr<A>(),
        blank_k.const_data_ptr<A>(),
        blank_v.const_data_ptr<A>(),
        clusters.const_data_ptr<int32_t>(),
        A(1) / std::sqrt(static_cast<A>(dim))};
  }
};

constexpr int kMaxWarps = 4;  // of a block
// Bytes of shared memory that a block may take: of 16-bit features, four blocks find room on a
// multiprocessor with 228 KB, of others three.
template <typename T>
constexpr int kSharedBudget = (sizeof(T) == 2 ? 54 : 73) << 10;

// Blocks for some columns of every image, a warp to eight of them, at all heads.
inline dim3 attention_grid(int64_t columns, int warps, int64_t heads, int64_t batch) {
  TORCH_CHECK_VALUE(
      heads < (1 << 16) && batch < (1 << 16), "too many heads or images for one call: ", heads,
      " and ", batch);
  // Columns that do not exist are counted, too.
  check_count(columns + warps * kSlotRows, "tokens of an image");
  dim3 grid = blocks_for(columns, warps * kSlotRows);
  grid.y = static_cast<unsigned>(heads);
  grid.z = static_cast<unsigned>(batch);
  return grid;
}

}  // namespace aff_seg
