#include "reader_lists.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>

#include <algorithm>
#include <limits>

#include "device.h"

namespace aff_seg {
namespace {

constexpr int kThreads = 256;

// The row that each place reads, counted over the batch; places that read none come last.
template <typename Row>
__global__ void number_rows(
    const int32_t* index, int64_t places, int64_t all_places, int64_t rows, int64_t all_rows,
    Row* row) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < all_places) {
    const int32_t own = index[i];
    row[i] = static_cast<Row>(own >= 0 && own < rows ? i / places * rows + own : all_rows);
  }
}

// Where each row's places start; places are counted in their image from now on.
template <typename Row>
__global__ void find_starts(
    const Row* row, int64_t places, int64_t all_places, int64_t all_rows, int64_t* start,
    int64_t* place) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < all_places) {
    place[i] %= places;
  }
  if (i <= all_rows) {
    int64_t low = 0, high = all_places;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (row[middle] < i) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    start[i] = low;
  }
}

template <typename Row>
ReaderLists lists_of(const at::Tensor& index, int64_t rows, at::ScalarType type) {
  const int64_t places = index.size(1), all_places = index.numel();
  const int64_t all_rows = index.size(0) * rows;
  const auto row = at::empty({all_places}, index.options().dtype(type));
  if (all_places > 0) {
    launch(
        number_rows<Row>, blocks_for(all_places, kThreads), dim3(kThreads), 0,
        index.const_data_ptr<int32_t>(), places, all_places, rows, all_rows,
        row.mutable_data_ptr<Row>());
  }
  const auto [sorted, place] = at::sort(row, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  const auto start = at::empty({all_rows + 1}, index.options().dtype(at::kLong));
  launch(
      find_starts<Row>, blocks_for(std::max(all_places, all_rows + 1), kThreads), dim3(kThreads),
      0, sorted.template const_data_ptr<Row>(), places, all_places, all_rows,
      start.template mutable_data_ptr<int64_t>(), place.template mutable_data_ptr<int64_t>());
  return {start, place};
}

}  // namespace

ReaderLists reader_lists(const at::Tensor& index, int64_t rows) {
  const at::Tensor dense = index.contiguous();
  // Sorting takes a time that grows with the bytes of a key.
  return index.size(0) * rows <= std::numeric_limits<int32_t>::max()
      ? lists_of<int32_t>(dense, rows, at::kInt)
      : lists_of<int64_t>(dense, rows, at::kLong);
}

}  // namespace aff_seg
