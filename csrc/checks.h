// Checks shared by the operators: each names the argument and the value it found.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace aff_seg {

inline void check_float(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(
      tensor.is_floating_point(), name, " must be floating point, got ", tensor.scalar_type());
}

inline void check_index(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(
      tensor.scalar_type() == at::kInt, name, " must be int32, got ", tensor.scalar_type());
}

// All tensors of an operator must live on one device and, where floating, have one dtype.
inline void check_like(const at::Tensor& tensor, const at::Tensor& first, const char* name) {
  TORCH_CHECK_VALUE(
      tensor.device() == first.device(), name, " must be on ", first.device(), ", got ",
      tensor.device());
  TORCH_CHECK_VALUE(
      tensor.scalar_type() == first.scalar_type(), name, " must be ", first.scalar_type(),
      ", got ", tensor.scalar_type());
}

// Indices are checked once, before any kernel reads with them.
void check_range(const at::Tensor& index, int64_t low, int64_t high, const char* name);

}  // namespace aff_seg
