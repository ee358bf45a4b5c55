#include "knn.h"

#include "checks.h"
#include "library.h"

namespace aff_seg {

void check_knn(const at::Tensor& query, const at::Tensor& database, int64_t k) {
  TORCH_CHECK_VALUE(
      query.scalar_type() == at::kFloat || query.scalar_type() == at::kDouble,
      "query must be float32 or float64, got ", query.scalar_type());
  check_like(database, query, "database");
  check_shape(query, "query", "B Q 2", {-1, -1, 2});
  check_shape(database, "database", "B N 2", {query.size(0), -1, 2});
  const int64_t count = database.size(1);
  check_count(count, "points of database");
  TORCH_CHECK_VALUE(1 <= k && k <= count, "k must be 1 to ", count, ", got ", k);
}

}  // namespace aff_seg

AFF_SEG_LIBRARY(m) {
  m.def("knn(Tensor query, Tensor database, int k) -> (Tensor, Tensor)");
}
