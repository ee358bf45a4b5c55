// A uniform grid over points, and the order in which a query's search visits its cells. Points lie
// sorted by cell, row after row; where they are kept and what a visit does is the caller's.

#pragma once

#include "knn.h"

#include <algorithm>
#include <cmath>

namespace aff_seg {

// Gap between a coordinate and a range; 0 inside.
template <typename T>
C10_HOST_DEVICE inline T gap(T coordinate, T low, T high) {
  const T below = low - coordinate, above = coordinate - high;
  const T outside = below > above ? below : above;
  return outside > 0 ? outside : T(0);
}

// One axis: cells of equal width from the lowest to the highest point.
template <typename T>
struct GridAxis {
  T low, high;
  double scale;
  int32_t cells;

  // Halved, because the range may exceed the largest number.
  C10_HOST_DEVICE double half_offset(T coordinate) const {
    return rounded_product(0.5, static_cast<double>(coordinate)) -
        rounded_product(0.5, static_cast<double>(low));
  }

  C10_HOST_DEVICE void set_cells(int64_t count) {
    scale = static_cast<double>(count) / half_offset(high);
    cells = static_cast<int32_t>(count);
    // No range to speak of.
    if (!std::isfinite(scale)) {
      scale = 0;
      cells = 1;
    }
  }

  // Never decreases with the coordinate; outside the range, the nearest cell.
  C10_HOST_DEVICE int32_t cell(T coordinate) const {
    const double place = half_offset(coordinate) * scale, last = cells - 1;
    return static_cast<int32_t>(place < 0 ? 0 : place > last ? last : place);
  }
};

template <typename T>
struct Grid {
  GridAxis<T> x, y;
  // For each column, then for each row, the largest coordinate in those up to it; then likewise
  // the smallest in it and those after it.
  const T* bound;

  C10_HOST_DEVICE T before_column(int32_t column) const { return bound[column]; }
  C10_HOST_DEVICE T before_row(int32_t row) const { return bound[x.cells + row]; }
  C10_HOST_DEVICE T after_column(int32_t column) const {
    return bound[x.cells + y.cells + column];
  }
  C10_HOST_DEVICE T after_row(int32_t row) const {
    return bound[2 * x.cells + y.cells + row];
  }

  // About square cells, at most `cells` of them.
  C10_HOST_DEVICE void cover(T low_x, T high_x, T low_y, T high_y, int64_t cells) {
    x.low = low_x;
    x.high = high_x;
    y.low = low_y;
    y.high = high_y;
    const double most = static_cast<double>(cells);
    const double wide = std::sqrt(most * (x.half_offset(high_x) / y.half_offset(high_y)));
    x.set_cells(wide >= 1 ? static_cast<int64_t>(wide < most ? wide : most) : 1);
    y.set_cells(cells / x.cells);
  }
};

// Cells that a grid has at most, for searches of k neighbours. How many points a cell should have
// was found by trial. Places in `bound` fit in 31 bits.
inline int64_t grid_cells(int64_t points, int64_t k) {
  const int64_t per_cell = std::max<int64_t>(k / 3, 1);
  return std::clamp<int64_t>(points / per_cell, 1, 1 << 28);
}

// The rectangle of cells that a query's search has visited. It grows on its nearest side.
template <typename T>
class Rectangle {
 public:
  C10_HOST_DEVICE Rectangle(const Grid<T>& grid, T x, T y)
      : grid_(grid),
        x_(x),
        y_(y),
        gap_x_(gap(x, grid.x.low, grid.x.high)),
        gap_y_(gap(y, grid.y.low, grid.y.high)) {
    const int32_t column = grid.x.cell(x);
    left_ = column > 0 ? column - 1 : 0;
    right_ = column < grid.x.cells - 1 ? column + 1 : column;
    top_ = bottom_ = grid.y.cell(y);
    look_left();
    look_right();
    look_up();
    look_down();
  }

  // Calls visit(first row, last row, first column, last column) for the first rectangle.
  template <typename Visit>
  C10_HOST_DEVICE void begin(const Visit& visit) const {
    visit(top_, bottom_, left_, right_);
  }

  // Does so for the row or column by which the rectangle grows. False: it need not, as nothing
  // outside is nearer than `limit`, the key of the k-th neighbour so far, or none.
  template <typename Visit>
  C10_HOST_DEVICE bool grow(CandidateKey<T> limit, const Visit& visit) {
    const Bits along = to_top_ < to_bottom_ ? to_top_ : to_bottom_;
    const Bits aside = to_left_ < to_right_ ? to_left_ : to_right_;
    const Bits nearest = along < aside ? along : aside;
    if (nearest == kNothing || CandidateKey<T>(nearest) << Candidate<T>::kShift >= limit) {
      return false;
    }
    if (along <= aside) {
      if (to_top_ <= to_bottom_) {
        --top_;
        look_up();
        visit(top_, top_, left_, right_);
      } else {
        ++bottom_;
        look_down();
        visit(bottom_, bottom_, left_, right_);
      }
    } else {
      int32_t column;
      if (to_left_ <= to_right_) {
        column = --left_;
        look_left();
      } else {
        column = ++right_;
        look_right();
      }
      visit(top_, bottom_, column, column);
    }
    return true;
  }

 private:
  using Bits = typename Candidate<T>::Bits;
  static constexpr Bits kNothing = ~Bits(0);

  C10_HOST_DEVICE static Bits bits(T dx, T dy) {
    return same_bits<Bits>(squared_distance(dx, dy));
  }

  // What lies beyond each side is at least this far.
  C10_HOST_DEVICE void look_left() {
    to_left_ = left_ > 0 ? bits(x_ - grid_.before_column(left_ - 1), gap_y_) : kNothing;
  }
  C10_HOST_DEVICE void look_right() {
    to_right_ = right_ < grid_.x.cells - 1 ? bits(grid_.after_column(right_ + 1) - x_, gap_y_)
                                           : kNothing;
  }
  C10_HOST_DEVICE void look_up() {
    to_top_ = top_ > 0 ? bits(gap_x_, y_ - grid_.before_row(top_ - 1)) : kNothing;
  }
  C10_HOST_DEVICE void look_down() {
    to_bottom_ = bottom_ < grid_.y.cells - 1 ? bits(gap_x_, grid_.after_row(bottom_ + 1) - y_)
                                             : kNothing;
  }

  const Grid<T>& grid_;
  const T x_, y_, gap_x_, gap_y_;
  int32_t left_, right_, top_, bottom_;
  // Squared distances as bits, which order as they do.
  Bits to_left_, to_right_, to_top_, to_bottom_;
};

}  // namespace aff_seg
