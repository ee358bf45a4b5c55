// All places, sorted by the row they read. The sort is stable and looks at no more bits than a row
// needs, which are few: sorting takes a pass over memory for every eight of them.

#include "reader_lists.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/zeros.h>

#include <limits>
#include <utility>

#if defined(AFF_SEG_EMULATED)
#include <ATen/ops/index_select.h>
#include <ATen/ops/sort.h>
#else
#include <ATen/cuda/cub.h>
#endif

#include "../checks.h"
#include "device.h"

namespace aff_seg {
namespace {

constexpr int kThreads = 256;

// The row that each place reads, counted through the batch; `nobody` where it reads none.
template <typename Row>
__global__ void rows_read(
    const int32_t* index, uint32_t count, uint32_t places, int64_t rows, Row nobody, Row* row,
    int32_t* place) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i < count) {
    const uint32_t image = i / places;
    const int32_t own = index[i];
    row[i] = own >= 0 && own < rows ? static_cast<Row>(image * rows + own) : nobody;
    place[i] = static_cast<int32_t>(i - image * places);
  }
}

// Rows ascending, and their places in the same order; those of equal rows stay in theirs.
template <typename Row>
std::pair<at::Tensor, at::Tensor> sorted(
    const at::Tensor& row, const at::Tensor& place, int64_t largest) {
#if defined(AFF_SEG_EMULATED)
  const auto [rows, order] = at::sort(row, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  return {rows, at::index_select(place, 0, order)};
#else
  const at::Tensor rows = at::empty_like(row), places = at::empty_like(place);
  at::cuda::cub::radix_sort_pairs(
      row.const_data_ptr<Row>(), rows.mutable_data_ptr<Row>(), place.const_data_ptr<int32_t>(),
      places.mutable_data_ptr<int32_t>(), row.numel(), /*descending=*/false, /*begin_bit=*/0,
      at::cuda::cub::get_num_bits(largest));
  return {rows, places};
#endif
}

template <typename Row>
ReaderLists lists_of(const at::Tensor& index, int64_t rows, const at::TensorOptions& of_row) {
  const int64_t count = index.numel(), nobody = index.size(0) * rows;
  const at::Tensor row = at::empty({count}, of_row), place = at::empty({count}, index.options());
  launch(
      rows_read<Row>, blocks_for(count, kThreads), dim3(kThreads), 0,
      index.const_data_ptr<int32_t>(), count, index.size(1), rows, nobody,
      row.mutable_data_ptr<Row>(), place.mutable_data_ptr<int32_t>());
  const auto [ascending, places] = sorted<Row>(row, place, nobody);
  return {at::searchsorted(ascending, at::arange(nobody + 1, of_row)), places};
}

}  // namespace

ReaderLists reader_lists(const at::Tensor& index, int64_t rows) {
  check_count(index.numel(), "places that read rows");
  if (index.numel() == 0) {
    return {
        at::zeros({index.size(0) * rows + 1}, index.options().dtype(at::kLong)),
        at::empty({0}, index.options())};
  }
  const at::Tensor dense = index.contiguous();
  const bool narrow = index.size(0) * rows <= std::numeric_limits<int32_t>::max();
  return narrow ? lists_of<int32_t>(dense, rows, index.options())
                : lists_of<int64_t>(dense, rows, index.options().dtype(at::kLong));
}

}  // namespace aff_seg
