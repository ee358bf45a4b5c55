#include "checks.h"

#include <ATen/OpMathType.h>
#include <ATen/ops/aminmax.h>

#include <limits>
#include <sstream>
#include <string>

namespace aff_seg {
namespace {

void check_device(const at::Tensor& tensor, const at::Tensor& first, const char* name) {
  TORCH_CHECK_VALUE(
      tensor.device() == first.device(), name, " must be on ", first.device(), ", got ",
      tensor.device());
}

// "(2, N, 3)" of "B N 3" and {2, -1, 3}.
std::string described(const char* letters, at::IntArrayRef want) {
  std::istringstream in(letters);
  std::ostringstream out;
  std::string letter;
  const char* before = "(";
  for (const int64_t size : want) {
    in >> letter;
    out << before << (size < 0 ? letter : std::to_string(size));
    before = ", ";
  }
  out << ')';
  return out.str();
}

}  // namespace

void check_shape(
    const at::Tensor& tensor, const char* name, const char* letters, at::IntArrayRef want) {
  bool fits = tensor.dim() == static_cast<int64_t>(want.size());
  for (size_t i = 0; fits && i < want.size(); ++i) {
    fits = want[i] < 0 || tensor.size(static_cast<int64_t>(i)) == want[i];
  }
  TORCH_CHECK_VALUE(
      fits, name, " must have shape ", described(letters, want), ", got ", tensor.sizes());
}

void check_features(const at::Tensor& tensor, const char* name) {
  const auto type = tensor.scalar_type();
  TORCH_CHECK_VALUE(
      type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16,
      name, " must be float32, float64, float16 or bfloat16, got ", type);
}

void check_like(const at::Tensor& tensor, const at::Tensor& first, const char* name) {
  check_device(tensor, first, name);
  TORCH_CHECK_VALUE(
      tensor.scalar_type() == first.scalar_type(), name, " must be ", first.scalar_type(),
      ", got ", tensor.scalar_type());
}

void check_widened(const at::Tensor& tensor, const at::Tensor& features, const char* name) {
  check_device(tensor, features, name);
  const auto want = at::toOpMathType(features.scalar_type());
  TORCH_CHECK_VALUE(
      tensor.scalar_type() == want, name, " must be ", want, " beside features of ",
      features.scalar_type(), ", got ", tensor.scalar_type());
}

void check_number(const at::Tensor& tensor, const at::Tensor& features, const char* name) {
  check_widened(tensor, features, name);
  TORCH_CHECK_VALUE(tensor.numel() == 1, name, " must be one number, got ", tensor.sizes());
}

void check_index(const at::Tensor& tensor, const at::Tensor& features, const char* name) {
  check_device(tensor, features, name);
  TORCH_CHECK_VALUE(
      tensor.scalar_type() == at::kInt, name, " must be int32, got ", tensor.scalar_type());
}

void check_count(int64_t count, const char* what) {
  TORCH_CHECK_VALUE(
      count <= std::numeric_limits<int32_t>::max(), what, " must be fewer than 2^31, got ", count);
}

void check_range(const at::Tensor& index, int64_t low, int64_t high, const char* name) {
  if (index.numel() == 0) {
    return;
  }
  const auto [smallest, largest] = at::aminmax(index);
  const int64_t first = smallest.item<int64_t>(), last = largest.item<int64_t>();
  TORCH_CHECK_INDEX(
      first >= low && last <= high, name, " must lie in ", low, " to ", high, ", got ", first,
      " to ", last);
}

void check_clusters(const at::Tensor& clusters, int64_t tokens, int64_t m) {
  check_range(clusters, 0, tokens > 0 ? (tokens - 1) / m : -1, "clusters");
}

}  // namespace aff_seg
