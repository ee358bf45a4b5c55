// Checks shared by the operators: each names the argument, what it must be and what it got.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace aff_seg {

// `want` has a size for each of the letters, as in "B N 2", or -1 for any.
void check_shape(
    const at::Tensor& tensor, const char* name, const char* letters, at::IntArrayRef want);

// Float, double, half or bfloat16.
void check_features(const at::Tensor& tensor, const char* name);

// Of the dtype and on the device of `first`.
void check_like(const at::Tensor& tensor, const at::Tensor& first, const char* name);

// What else is floating beside features: on their device, of the type that they are summed in.
void check_widened(const at::Tensor& tensor, const at::Tensor& features, const char* name);

// One number, widened.
void check_number(const at::Tensor& tensor, const at::Tensor& features, const char* name);

// Indices: int32, on the device of the features.
void check_index(const at::Tensor& tensor, const at::Tensor& features, const char* name);

// Kernels count in int32 what there is of this kind.
void check_count(int64_t count, const char* what);

// For kernels on the CPU, which reads the values: they lie in low to high.
void check_range(const at::Tensor& index, int64_t low, int64_t high, const char* name);

// The same for indices of clusters of m tokens.
void check_clusters(const at::Tensor& clusters, int64_t tokens, int64_t m);

}  // namespace aff_seg
