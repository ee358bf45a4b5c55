// Relative features of a neighbour, the input of every position term.

#pragma once

#include <c10/macros/Macros.h>

#include <cmath>

namespace aff_seg {

constexpr int kRelative = 5;

template <typename A>
struct Relative {
  A dx, dy, r, sine, cosine;
};

// Features (dx, dy, r, dy / r, dx / r) of an offset, in the order in which weights multiply them;
// all zeros where r = 0. No branch, so that loops over it vectorise (with -fno-math-errno).
template <typename A>
C10_HOST_DEVICE inline Relative<A> relative_features(A dx, A dy) {
#if defined(__CUDA_ARCH__)
  // An inverse root is one instruction, a root or a quotient many.
  const A square = dx * dx + dy * dy;
  const A inverse = square > 0 ? rsqrt(square) : A(0);
  const A r = square * inverse;
#else
  const A r = std::sqrt(dx * dx + dy * dy);
  const A inverse = r > 0 ? 1 / r : A(0);
#endif
  return {dx, dy, r, dy * inverse, dx * inverse};
}

}  // namespace aff_seg
