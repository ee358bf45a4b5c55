// Which tokens read each cluster: lists of neighbours turned round. They depend on clusters alone,
// so that one pair of lists serves the backward passes of all attentions over them.
//
//   clusters    (B, N, R) int32 in [0, count)
//
// Returns start, (B count + 1) int64, and place, (B N R) int32: for cluster c of image b, the
// places p of its image, p = i R + r, with clusters[b, i, r] = c are place[start[b count + c]] to
// place[start[b count + c + 1] - 1], ascending. Sums along them have one order.

#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace aff_seg {

// Everything but the range of clusters.
void check_cluster_readers(const at::Tensor& clusters, int64_t count);

// Shapes and types of what belongs to clusters.
void check_readers(
    const at::Tensor& start, const at::Tensor& place, const at::Tensor& clusters, int64_t count);

std::tuple<at::Tensor, at::Tensor> cluster_readers(const at::Tensor& clusters, int64_t count);

}  // namespace aff_seg
