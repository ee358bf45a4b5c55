// Inverted neighbour lists on the tensors' device: who reads each row.

#pragma once

#include <ATen/core/Tensor.h>

namespace aff_seg {

// For row r of image b: the places p with index[b, p] == r are
// place[start[b * rows + r]] ... place[start[b * rows + r + 1] - 1], ascending.
struct ReaderLists {
  at::Tensor start;  // (B * rows + 1) int64
  at::Tensor place;  // (B * places) int32, places counted in their image
};

// index is (B, places) int32, fewer than 2^31 in all; entries outside 0 .. rows - 1 are nobody's.
// Sums along the lists have one order, whatever the device does first.
ReaderLists reader_lists(const at::Tensor& index, int64_t rows);

}  // namespace aff_seg
