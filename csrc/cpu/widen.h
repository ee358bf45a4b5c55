// Half and bfloat16 features: widened before the kernels, which know float and double only.

#pragma once

#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace aff_seg {

// Contiguous, in the type that sums are taken in.
inline at::Tensor widened(const at::Tensor& tensor) {
  return tensor.to(at::toOpMathType(tensor.scalar_type())).contiguous();
}

// Floating inputs beside the features come in the type that sums are taken in.
inline void check_widened(const at::Tensor& tensor, const at::Tensor& feat, const char* name) {
  const auto wanted = at::toOpMathType(feat.scalar_type());
  TORCH_CHECK_VALUE(
      tensor.scalar_type() == wanted, name, " must be ", wanted, " beside features of ",
      feat.scalar_type(), ", got ", tensor.scalar_type());
}

}  // namespace aff_seg
