// What the two passes of attention's backward share.

#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "attention_tiles.h"

namespace aff_seg {

// Blocks on a multiprocessor at once, as far as registers allow without spilling.
template <typename P>
constexpr int kGradientBlocks =
    sizeof(typename P::T) == 2 && P::L::kChannels <= 64 ? (P::L::kChannels <= 32 ? 4 : 3) : 2;

// A power of 2 by which gradients are multiplied while they are worked with, such that products of
// half neither overflow nor vanish; 1 for other types. `extremes` are the least and the largest.
template <typename T, typename A>
__device__ __forceinline__ A gradient_scale(const T* extremes) {
  if constexpr (std::is_same_v<T, c10::Half>) {
    const A least = -static_cast<A>(extremes[0]), largest = static_cast<A>(extremes[1]);
    const A size = least > largest ? least : largest;
    const bool usable = size > 0 && size <= std::numeric_limits<A>::max();
    return usable ? std::ldexp(A(1), -5 - std::ilogb(size)) : A(1);
  } else {
    return 1;
  }
}

}  // namespace aff_seg
