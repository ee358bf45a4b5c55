#include "cluster_readers.h"

#include "checks.h"
#include "library.h"

namespace aff_seg {

void check_cluster_readers(const at::Tensor& clusters, int64_t count) {
  check_index(clusters, clusters, "clusters");
  check_shape(clusters, "clusters", "B N R", {-1, -1, -1});
  TORCH_CHECK_VALUE(count >= 0, "count must be at least 0, got ", count);
  check_count(count, "clusters");
  check_count(clusters.size(1) * clusters.size(2), "clusters of an image");
}

void check_readers(
    const at::Tensor& start, const at::Tensor& place, const at::Tensor& clusters, int64_t count) {
  check_index(place, clusters, "place");
  check_shape(place, "place", "B*N*R", {clusters.numel()});
  TORCH_CHECK_VALUE(
      start.device() == clusters.device(), "start must be on ", clusters.device(), ", got ",
      start.device());
  TORCH_CHECK_VALUE(
      start.scalar_type() == at::kLong, "start must be int64, got ", start.scalar_type());
  check_shape(start, "start", "B*count+1", {clusters.size(0) * count + 1});
}

}  // namespace aff_seg

AFF_SEG_LIBRARY(m) { m.def("cluster_readers(Tensor clusters, int count) -> (Tensor, Tensor)"); }
