// Search of k nearest points. A uniform grid of about N cells answers every query whose
// neighbours lie near it in cells. Queries that would cost more than a fixed number of points and
// cells, as skewed data may cause, are answered by a k-d tree, built only then.

#include "../grid_search.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "parallel.h"

namespace aff_seg {
namespace {

constexpr int64_t kBlock = 256;
// Up to this many neighbours are kept sorted, more in a heap.
constexpr int64_t kSorted = 32;
// Points in a leaf of the tree, about.
constexpr int64_t kLeaf = 8;

template <typename T>
struct Point {
  T x, y;
  int32_t index;
};

// The k nearest of the points offered so far.
template <typename T>
class Nearest {
 public:
  using Key = CandidateKey<T>;

  explicit Nearest(int64_t k) : keys_(k) {}

  void clear() { std::fill(keys_.begin(), keys_.end(), kNoCandidate<T>); }

  // A candidate counts only if below this.
  Key limit() const { return keys_.size() <= kSorted ? keys_.back() : keys_.front(); }

  void offer(const Point<T>* points, int64_t count, T x, T y) {
    Key worst = limit();
    for (int64_t i = 0; i < count; ++i) {
      const Key key = candidate_at(x - points[i].x, y - points[i].y, points[i].index);
      if (key < worst) {
        insert(key);
        worst = limit();
      }
    }
  }

  void write(int32_t* index, T* distance) {
    if (keys_.size() > kSorted) {
      std::sort(keys_.begin(), keys_.end());
    }
    for (const Key key : keys_) {
      *index++ = candidate_index<T>(key);
      *distance++ = candidate_distance<T>(key);
    }
  }

 private:
  void insert(Key key) {
    if (keys_.size() <= kSorted) {
      size_t place = keys_.size() - 1;
      for (; place > 0 && key < keys_[place - 1]; --place) {
        keys_[place] = keys_[place - 1];
      }
      keys_[place] = key;
    } else {
      std::pop_heap(keys_.begin(), keys_.end());
      keys_.back() = key;
      std::push_heap(keys_.begin(), keys_.end());
    }
  }

  std::vector<Key> keys_;
};

// Points sorted by cell, and by index inside a cell.
template <typename T>
class PointGrid {
 public:
  // For searches of k neighbours.
  PointGrid(const T* points, int64_t count, int64_t k) {
    T low[2] = {points[0], points[1]}, high[2] = {points[0], points[1]};
    for (int64_t i = 0; i < count; ++i) {
      for (int axis = 0; axis < 2; ++axis) {
        low[axis] = std::min(low[axis], points[2 * i + axis]);
        high[axis] = std::max(high[axis], points[2 * i + axis]);
      }
    }
    grid_.cover(low[0], high[0], low[1], high[1], grid_cells(count, k));
    const int64_t columns = grid_.x.cells, rows = grid_.y.cells;
    bound_.assign(columns, low[0]);
    bound_.insert(bound_.end(), rows, low[1]);
    bound_.insert(bound_.end(), columns, high[0]);
    bound_.insert(bound_.end(), rows, high[1]);
    grid_.bound = bound_.data();
    T *before = bound_.data(), *after = before + columns + rows;

    std::vector<int32_t> cell(count);
    start_.assign(columns * rows + 1, 0);
    for (int64_t i = 0; i < count; ++i) {
      const int32_t column = grid_.x.cell(points[2 * i]), row = grid_.y.cell(points[2 * i + 1]);
      before[column] = std::max(before[column], points[2 * i]);
      before[columns + row] = std::max(before[columns + row], points[2 * i + 1]);
      after[column] = std::min(after[column], points[2 * i]);
      after[columns + row] = std::min(after[columns + row], points[2 * i + 1]);
      cell[i] = row * grid_.x.cells + column;
      ++start_[cell[i] + 1];
    }
    for (const int64_t first : {int64_t(0), columns}) {
      const int64_t last = first == 0 ? columns - 1 : columns + rows - 1;
      for (int64_t c = first; c < last; ++c) {
        before[c + 1] = std::max(before[c + 1], before[c]);
      }
      for (int64_t c = last; c > first; --c) {
        after[c - 1] = std::min(after[c - 1], after[c]);
      }
    }
    for (size_t c = 1; c < start_.size(); ++c) {
      start_[c] += start_[c - 1];
    }
    std::vector<int32_t> next(start_.begin(), start_.end() - 1);
    points_.resize(count);
    for (int64_t i = 0; i < count; ++i) {
      points_[next[cell[i]]++] = {points[2 * i], points[2 * i + 1], static_cast<int32_t>(i)};
    }
  }

  // False: given up, because the points and cells to visit exceed the budget.
  bool search(T x, T y, int64_t budget, Nearest<T>& nearest) const {
    const auto visit = [&](int32_t first, int32_t last, int32_t from, int32_t to) {
      const int32_t* start = start_.data() + first * grid_.x.cells;
      for (int32_t row = first; row <= last && budget >= 0; ++row, start += grid_.x.cells) {
        const int64_t begin = start[from], count = start[to + 1] - begin;
        budget -= count + 1;
        if (budget >= 0) {
          nearest.offer(points_.data() + begin, count, x, y);
        }
      }
    };
    Rectangle<T> visited(grid_, x, y);
    visited.begin(visit);
    while (budget >= 0) {
      if (!visited.grow(nearest.limit(), visit)) {
        return true;
      }
    }
    return false;
  }

 private:
  Grid<T> grid_;
  std::vector<T> bound_;
  std::vector<int32_t> start_;
  std::vector<Point<T>> points_;
};

// A balanced k-d tree, all leaves at one depth: node i has the children 2 i and 2 i + 1. A node
// knows its lowest index too, so that points at equal distance are passed over by the thousand.
template <typename T>
class Tree {
 public:
  using Key = CandidateKey<T>;

  Tree(const T* points, int64_t count) : points_(count) {
    for (int64_t i = 0; i < count; ++i) {
      points_[i] = {points[2 * i], points[2 * i + 1], static_cast<int32_t>(i)};
    }
    while (count >> depth_ > kLeaf) {
      ++depth_;
    }
    nodes_.resize(size_t(2) << depth_);
    build(1, 0, 0);
  }

  void search(T x, T y, Nearest<T>& nearest) const {
    const int64_t leaves = int64_t(1) << depth_;
    std::array<Waiting, 32> waiting;
    int size = 0;
    waiting[size++] = look(1, x, y);
    while (size > 0) {
      const auto [key, node] = waiting[--size];
      if (key >= nearest.limit()) {
        continue;
      }
      if (node >= leaves) {
        const int64_t begin = first(node - leaves, depth_);
        const int64_t end = first(node - leaves + 1, depth_);
        nearest.offer(points_.data() + begin, end - begin, x, y);
        continue;
      }
      // The nearer child is taken first.
      Waiting near = look(2 * node, x, y), far = look(2 * node + 1, x, y);
      if (far.key < near.key) {
        std::swap(near, far);
      }
      waiting[size++] = far;
      waiting[size++] = near;
    }
  }

 private:
  struct Node {
    T low_x, high_x, low_y, high_y;
    int32_t lowest;
  };

  // First point of the node numbered `place` at a depth.
  int64_t first(int64_t place, int depth) const {
    return place * static_cast<int64_t>(points_.size()) >> depth;
  }

  // A node to be visited; no point inside has a smaller key.
  struct Waiting {
    Key key;
    int64_t node;
  };

  Waiting look(int64_t i, T x, T y) const {
    const Node& node = nodes_[i];
    const T gap_x = gap(x, node.low_x, node.high_x), gap_y = gap(y, node.low_y, node.high_y);
    return {candidate_at(gap_x, gap_y, node.lowest), i};
  }

  void build(int64_t i, int64_t place, int depth) {
    const auto at = [&](int64_t offset) { return points_.begin() + offset; };
    const auto begin = at(first(place, depth)), end = at(first(place + 1, depth));
    Node& node = nodes_[i];
    node = {begin->x, begin->x, begin->y, begin->y, begin->index};
    for (auto point = begin; point != end; ++point) {
      node.low_x = std::min(node.low_x, point->x);
      node.high_x = std::max(node.high_x, point->x);
      node.low_y = std::min(node.low_y, point->y);
      node.high_y = std::max(node.high_y, point->y);
      node.lowest = std::min(node.lowest, point->index);
    }
    if (depth == depth_) {
      return;
    }
    const auto middle = at(first(2 * place + 1, depth + 1));
    // Equal coordinates are split by index.
    if (node.high_x - node.low_x >= node.high_y - node.low_y) {
      std::nth_element(begin, middle, end, [](const Point<T>& a, const Point<T>& b) {
        return a.x != b.x ? a.x < b.x : a.index < b.index;
      });
    } else {
      std::nth_element(begin, middle, end, [](const Point<T>& a, const Point<T>& b) {
        return a.y != b.y ? a.y < b.y : a.index < b.index;
      });
    }
    build(2 * i, 2 * place, depth + 1);
    build(2 * i + 1, 2 * place + 1, depth + 1);
  }

  int depth_ = 0;
  std::vector<Point<T>> points_;
  std::vector<Node> nodes_;
};

template <typename T>
void search(
    const at::Tensor& query, const at::Tensor& database, int64_t k, at::Tensor& index,
    at::Tensor& distance) {
  const int64_t batch = query.size(0), queries = query.size(1), count = database.size(1);
  const T* q = query.const_data_ptr<T>();
  const T* d = database.const_data_ptr<T>();
  int32_t* idx = index.mutable_data_ptr<int32_t>();
  T* dist = distance.mutable_data_ptr<T>();
  // Evenly spread points are searched at a fifth of this.
  const int64_t budget = 64 + 16 * k;

  std::vector<std::optional<PointGrid<T>>> grids(batch);
  for_blocks(batch, 1, [&](int64_t image, int64_t, int64_t) {
    grids[image].emplace(d + 2 * image * count, count, k);
  });
  const int64_t blocks = (queries + kBlock - 1) / kBlock;
  std::vector<std::vector<int64_t>> given_up(batch * blocks);
  for_blocks(batch * blocks, 1, [&](int64_t block, int64_t, int64_t) {
    const int64_t image = block / blocks;
    const int64_t begin = image * queries + block % blocks * kBlock;
    const int64_t end = std::min(begin + kBlock, (image + 1) * queries);
    Nearest<T> nearest(k);
    for (int64_t i = begin; i < end; ++i) {
      nearest.clear();
      if (grids[image]->search(q[2 * i], q[2 * i + 1], budget, nearest)) {
        nearest.write(idx + i * k, dist + i * k);
      } else {
        given_up[block].push_back(i);
      }
    }
  });

  std::vector<int64_t> rest;
  for (const auto& list : given_up) {
    rest.insert(rest.end(), list.begin(), list.end());
  }
  std::vector<std::optional<Tree<T>>> trees(batch);
  for_blocks(batch, 1, [&](int64_t image, int64_t, int64_t) {
    const auto some = std::lower_bound(rest.begin(), rest.end(), image * queries);
    if (some != rest.end() && *some < (image + 1) * queries) {
      trees[image].emplace(d + 2 * image * count, count);
    }
  });
  for_blocks(static_cast<int64_t>(rest.size()), kBlock, [&](int64_t, int64_t begin, int64_t end) {
    Nearest<T> nearest(k);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t i = rest[r];
      nearest.clear();
      trees[i / queries]->search(q[2 * i], q[2 * i + 1], nearest);
      nearest.write(idx + i * k, dist + i * k);
    }
  });
}

template <typename T>
void check_finite(const at::Tensor& tensor, const char* name) {
  const T* value = tensor.const_data_ptr<T>();
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    TORCH_CHECK_VALUE(std::isfinite(value[i]), name, " must be finite, got ", value[i]);
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> knn(
    const at::Tensor& query, const at::Tensor& database, int64_t k) {
  check_knn(query, database, k);
  const int64_t batch = query.size(0), queries = query.size(1);
  // Positions shared by the whole batch are searched once.
  if (batch > 1 && query.stride(0) == 0 && database.stride(0) == 0) {
    const auto [index, distance] = knn(query.narrow(0, 0, 1), database.narrow(0, 0, 1), k);
    return {
        index.expand({batch, -1, -1}).contiguous(), distance.expand({batch, -1, -1}).contiguous()};
  }
  auto index = at::empty({batch, queries, k}, query.options().dtype(at::kInt));
  auto distance = at::empty({batch, queries, k}, query.options());
  if (index.numel() == 0) {
    return {index, distance};
  }
  const at::Tensor q = query.contiguous(), d = database.contiguous();
  AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "knn", [&] {
    check_finite<scalar_t>(q, "query");
    check_finite<scalar_t>(d, "database");
    search<scalar_t>(q, d, k, index, distance);
  });
  return {index, distance};
}

TORCH_LIBRARY_IMPL(aff_seg, CPU, m) {
  m.impl("knn", knn);
}

}  // namespace aff_seg
