#include "deformable_points.h"

#include "checks.h"
#include "library.h"

namespace aff_seg {

void check_deformable_points(
    const at::Tensor& value, const at::Tensor& pos, const at::Tensor& table,
    const at::Tensor& location, const at::Tensor& weight, const at::Tensor& power) {
  check_features(value, "value");
  check_widened(pos, value, "pos");
  check_index(table, value, "table");
  check_widened(location, value, "location");
  check_widened(weight, value, "weight");
  check_number(power, value, "power");
  check_shape(value, "value", "B N heads D", {-1, -1, -1, -1});
  const int64_t batch = value.size(0), tokens = value.size(1), heads = value.size(2);
  check_shape(pos, "pos", "B N 2", {batch, tokens, 2});
  check_shape(table, "table", "B L H W K", {batch, -1, -1, -1, -1});
  const int64_t levels = table.size(1);
  check_shape(
      location, "location", "B Q heads L P 2", {batch, -1, heads, levels, -1, 2});
  check_shape(weight, "weight", "B Q heads L P", location.sizes().slice(0, 5));
  TORCH_CHECK_VALUE(
      location.numel() == 0 || table.size(2) * table.size(3) > 0,
      "table must cover a canvas, got ", table.sizes());
  TORCH_CHECK_VALUE(
      location.numel() == 0 || tokens > 0, "value must have tokens, got ", value.sizes());
}

void check_deformable_points_backward(
    const at::Tensor& grad, const at::Tensor& value, const at::Tensor& pos,
    const at::Tensor& table, const at::Tensor& location, const at::Tensor& weight,
    const at::Tensor& power) {
  check_deformable_points(value, pos, table, location, weight, power);
  check_like(grad, value, "grad");
  check_shape(
      grad, "grad", "B Q heads D",
      {value.size(0), location.size(1), value.size(2), value.size(3)});
}

}  // namespace aff_seg

AFF_SEG_LIBRARY(m) {
  m.def(
      "deformable_points(Tensor value, Tensor pos, Tensor table, Tensor location, "
      "Tensor weight, Tensor power) -> Tensor");
  m.def(
      "deformable_points_backward(Tensor grad, Tensor value, Tensor pos, Tensor table, "
      "Tensor location, Tensor weight, Tensor power) -> (Tensor, Tensor, Tensor, Tensor)");
}
