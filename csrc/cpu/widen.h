// Half and bfloat16 features: widened before the kernels, which know float and double only.

#pragma once

#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>

namespace aff_seg {

// Contiguous, in the type that sums are taken in.
inline at::Tensor widened(const at::Tensor& tensor) {
  return tensor.to(at::toOpMathType(tensor.scalar_type())).contiguous();
}

}  // namespace aff_seg
