// Inverted neighbour lists: which places read each row.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace aff_seg {

// For rows 0 .. rows - 1: place[start[r] .. start[r + 1]) are the places p with index[p] == r,
// ascending. Gradients gathered along them are summed in one fixed order, without atomics.
struct InverseLists {
  std::vector<int64_t> start;
  std::vector<int32_t> place;
};

// Negative entries of index are nobody's. Places are fewer than 2^31: see check_count.
inline InverseLists invert(const int32_t* index, int64_t places, int64_t rows) {
  InverseLists lists{std::vector<int64_t>(rows + 1, 0), {}};
  for (int64_t p = 0; p < places; ++p) {
    if (index[p] >= 0) {
      ++lists.start[index[p] + 1];
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    lists.start[r + 1] += lists.start[r];
  }
  lists.place.resize(lists.start[rows]);
  std::vector<int64_t> next(lists.start.begin(), lists.start.end() - 1);
  for (int64_t p = 0; p < places; ++p) {
    if (index[p] >= 0) {
      lists.place[next[index[p]]++] = static_cast<int32_t>(p);
    }
  }
  return lists;
}

}  // namespace aff_seg
