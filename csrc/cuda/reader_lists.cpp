#include "reader_lists.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <limits>

namespace aff_seg {

ReaderLists reader_lists(const at::Tensor& index, int64_t rows) {
  const int64_t batch = index.size(0), places = index.size(1);
  // Sorting takes a time that grows with the bytes of a key.
  const bool narrow = batch * rows <= std::numeric_limits<int32_t>::max();
  const auto options = index.options().dtype(narrow ? at::kInt : at::kLong);
  const at::Tensor first = at::arange(batch, options).unsqueeze(1) * rows;
  const at::Tensor listed = index.ge(0).logical_and(index.lt(rows));
  const at::Tensor row =
      at::where(listed, index + first, at::full({}, batch * rows, options)).flatten();
  const auto [sorted, order] = at::sort(row, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  return {
      at::searchsorted(sorted, at::arange(batch * rows + 1, options)),
      order.remainder(std::max<int64_t>(places, 1))};
}

}  // namespace aff_seg
