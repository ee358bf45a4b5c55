// Work that is cut the same way for any number of threads.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace aff_seg {

// Calls body(block, begin, end) for consecutive blocks of `size` of 0 .. total - 1, in parallel.
// What is summed per block, and then over the blocks in order, comes out the same with any number
// of threads.
template <typename F>
void for_blocks(int64_t total, int64_t size, const F& body) {
  const int64_t blocks = (total + size - 1) / size;
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      body(block, block * size, std::min(total, (block + 1) * size));
    }
  });
}

}  // namespace aff_seg
