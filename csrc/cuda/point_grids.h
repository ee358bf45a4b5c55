// Uniform grids over the points of a batch, laid out on the device with no value read back: the
// number of cells is bounded by that of points, and what follows from the points' extent stays in
// the device's memory.

#pragma once

#include "../grid_search.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "block_scan.h"
#include "device.h"

namespace aff_seg {

// Threads of a block, and of one that adds up cells at most.
constexpr int kGridThreads = 128;
constexpr int64_t kScanThreads = 1024;

template <typename T>
using Bits = typename Candidate<T>::Bits;

template <typename T>
struct alignas(2 * sizeof(T)) Position {
  T x, y;
};

template <typename T>
struct alignas(16) Point {
  T x, y;
  int32_t index;
};

// The grids of a batch of points. Cells and bounds are counted from the image's first.
template <typename T>
struct Grids {
  int64_t images, count;  // points of an image
  int64_t cells;          // at most, in an image
  const Position<T>* database;
  // Zeros at first.
  Bits<T>* extent;   // (images, 4), see measure_points()
  Bits<T>* reach;    // (images, 2 * (cells + 1)): what bound is made of
  int32_t* members;  // (images, cells)
  unsigned long long* given_up;  // for the search
  // Not set at first.
  Grid<T>* grid;     // (images)
  T* bound;          // (images, 2 * (cells + 1)): of the grids
  int32_t* start;    // (images, cells + 1)
  int32_t* cell;     // (images, count): of each point
  int32_t* rank;     // (images, count): its place in the cell, in no particular order
  Point<T>* points;  // (images, count), sorted by cell
};

// Bits that order as the numbers do; 0 is below all finite ones, before and after inversion.
template <typename T>
__device__ __forceinline__ Bits<T> ordered(T x) {
  constexpr Bits<T> kSign = Bits<T>(1) << (8 * sizeof(T) - 1);
  const auto bits = same_bits<Bits<T>>(x);
  return bits & kSign ? ~bits : bits | kSign;
}

template <typename T>
__device__ __forceinline__ T from_ordered(Bits<T> bits) {
  constexpr Bits<T> kSign = Bits<T>(1) << (8 * sizeof(T) - 1);
  return same_bits<T>(bits & kSign ? bits ^ kSign : ~bits);
}

__device__ __forceinline__ void raise(uint32_t* at, uint32_t value) { atomicMax(at, value); }

__device__ __forceinline__ void raise(uint64_t* at, uint64_t value) {
  atomicMax(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
}

// The extent of an image's points, as the largest ordered bits of x, y and the largest inverted
// ones. Blocks of an image: `blocks`.
template <typename T>
__global__ void __launch_bounds__(kGridThreads) measure_points(const Grids<T> g, int64_t blocks) {
  const int64_t image = blockIdx.x / blocks;
  Bits<T> most[4] = {};
  for (int64_t i = blockIdx.x % blocks * kGridThreads + threadIdx.x; i < g.count;
       i += blocks * kGridThreads) {
    const Position<T> p = g.database[image * g.count + i];
    CUDA_KERNEL_ASSERT(std::isfinite(p.x) && std::isfinite(p.y));
    const Bits<T> x = ordered(p.x), y = ordered(p.y);
    const Bits<T> own[4] = {x, y, static_cast<Bits<T>>(~x), static_cast<Bits<T>>(~y)};
#pragma unroll
    for (int side = 0; side < 4; ++side) {
      most[side] = Largest()(most[side], own[side]);
    }
  }
#pragma unroll
  for (int side = 0; side < 4; ++side) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      most[side] = Largest()(most[side], __shfl_xor_sync(kAllLanes, most[side], step));
    }
    if (threadIdx.x % kWarp == 0) {
      raise(g.extent + 4 * image + side, most[side]);
    }
  }
}

// Lays out the grid, and counts the points of each cell.
template <typename T>
__global__ void __launch_bounds__(kGridThreads) count_members(const Grids<T> g, int64_t blocks) {
  __shared__ Grid<T> grid;
  const int64_t image = blockIdx.x / blocks;
  if (threadIdx.x == 0) {
    const Bits<T>* extent = g.extent + 4 * image;
    grid.cover(
        from_ordered<T>(~extent[2]), from_ordered<T>(extent[0]), from_ordered<T>(~extent[3]),
        from_ordered<T>(extent[1]), g.cells);
    grid.bound = g.bound + 2 * (g.cells + 1) * image;
    if (blockIdx.x % blocks == 0) {
      g.grid[image] = grid;
    }
  }
  __syncthreads();
  const int64_t i = blockIdx.x % blocks * kGridThreads + threadIdx.x;
  if (i >= g.count) {
    return;
  }
  const Position<T> p = g.database[image * g.count + i];
  const int32_t column = grid.x.cell(p.x), row = grid.y.cell(p.y);
  const Bits<T> x = ordered(p.x), y = ordered(p.y);
  Bits<T>* before = g.reach + 2 * (g.cells + 1) * image;
  Bits<T>* after = before + grid.x.cells + grid.y.cells;
  raise(before + column, x);
  raise(before + grid.x.cells + row, y);
  raise(after + column, static_cast<Bits<T>>(~x));
  raise(after + grid.x.cells + row, static_cast<Bits<T>>(~y));
  const int32_t cell = row * grid.x.cells + column;
  g.cell[image * g.count + i] = cell;
  g.rank[image * g.count + i] = atomicAdd(g.members + image * g.cells + cell, 1);
}

// Where the points of each cell start. `parts` blocks of an image each do `size` of its cells;
// they add up what comes before for themselves. One block more for each row of bounds.
template <typename T>
__global__ void __launch_bounds__(kScanThreads) find_starts(
    const Grids<T> g, int64_t parts, int64_t size) {
  const int64_t threads = blockDim.x;
  const int64_t image = blockIdx.x / (parts + 4);
  const int64_t part = blockIdx.x % (parts + 4);
  const int64_t columns = g.grid[image].x.cells, rows = g.grid[image].y.cells;
  if (part < parts) {
    const int32_t* members = g.members + image * g.cells;
    int32_t* start = g.start + image * (g.cells + 1);
    const int64_t cells = columns * rows, first = part * size;
    const int64_t last = first + size < cells ? first + size : cells;
    int32_t own_before = 0, before;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < first && i < cells; i += threads) {
      own_before += members[i];
    }
    block_scan(own_before, before, Sum());
    for (int64_t tile = first; tile < last; tile += threads) {
      const int64_t i = tile + threadIdx.x;
      const int32_t own = i < last ? members[i] : 0;
      int32_t total;
      const int32_t end = before + block_scan(own, total, Sum());
      if (i < last) {
        start[i] = end - own;
      }
      before += total;
    }
    if (part == 0 && threadIdx.x == 0) {
      start[cells] = static_cast<int32_t>(g.count);
    }
    return;
  }
  const bool is_after = part - parts >= 2, is_row = (part - parts) % 2 == 1;
  const int64_t length = is_row ? rows : columns;
  const int64_t first = 2 * (g.cells + 1) * image + (is_after ? columns + rows : 0) +
      (is_row ? columns : 0);
  Bits<T> most = 0;
  for (int64_t tile = 0; tile < length; tile += threads) {
    const int64_t i = tile + threadIdx.x;
    // Backwards for what comes after.
    const int64_t at = first + (is_after ? length - 1 - i : i);
    Bits<T> total;
    const Bits<T> own = block_scan(i < length ? g.reach[at] : 0, total, Largest());
    const Bits<T> value = Largest()(most, own);
    if (i < length) {
      g.bound[at] = from_ordered<T>(is_after ? static_cast<Bits<T>>(~value) : value);
    }
    most = Largest()(most, total);
  }
}

template <typename T>
__global__ void __launch_bounds__(kGridThreads) sort_points(const Grids<T> g, int64_t blocks) {
  const int64_t image = blockIdx.x / blocks;
  const int64_t i = blockIdx.x % blocks * kGridThreads + threadIdx.x;
  if (i >= g.count) {
    return;
  }
  const int64_t from = image * g.count + i;
  const Position<T> p = g.database[from];
  const int32_t to = g.start[image * (g.cells + 1) + g.cell[from]] + g.rank[from];
  g.points[image * g.count + to] = {p.x, p.y, static_cast<int32_t>(i)};
}

// Grids, and the memory that they lie in.
template <typename T>
class PointGrids {
 public:
  // For searches of k neighbours in (images, count, 2) points, contiguous and aligned in pairs.
  PointGrids(const at::Tensor& points, int64_t k) {
    Grids<T>& g = view_;
    g.images = points.size(0);
    g.count = points.size(1);
    g.cells = grid_cells(g.count, k);
    g.database = reinterpret_cast<const Position<T>*>(points.const_data_ptr<T>());
    allocate(points.options());

    // Blocks of an image.
    const int64_t blocks = (g.count + kGridThreads - 1) / kGridThreads;
    const int64_t measuring = std::min<int64_t>(blocks, 128);
    launch(
        measure_points<T>, blocks_for(g.images * measuring, 1), dim3(kGridThreads), 0, g,
        measuring);
    launch(
        count_members<T>, blocks_for(g.images * blocks, 1), dim3(kGridThreads), 0, g, blocks);
    const int64_t threads = std::min(kScanThreads, (g.cells + kWarp - 1) / kWarp * kWarp);
    // At most 64 blocks, because each adds up what comes before.
    const int64_t size = (g.cells + 64 * threads - 1) / (64 * threads) * threads;
    const int64_t parts = (g.cells + size - 1) / size;
    launch(
        find_starts<T>, blocks_for(g.images * (parts + 4), 1), dim3(threads), 0, g, parts, size);
    launch(sort_points<T>, blocks_for(g.images * blocks, 1), dim3(kGridThreads), 0, g, blocks);
  }

  const Grids<T>& view() const { return view_; }

 private:
  void allocate(const at::TensorOptions& options) {
    Grids<T>& g = view_;
    const auto bytes = options.dtype(at::kByte);
    const int64_t bounds = 2 * (g.cells + 1), number = sizeof(T), count = sizeof(int32_t);
    zeros_ = at::zeros({8 + g.images * ((4 + bounds) * number + g.cells * count)}, bytes);
    g.given_up = reinterpret_cast<unsigned long long*>(zeros_.mutable_data_ptr<uint8_t>());
    g.extent = reinterpret_cast<Bits<T>*>(g.given_up + 1);
    g.reach = g.extent + g.images * 4;
    g.members = reinterpret_cast<int32_t*>(g.reach + g.images * bounds);

    grid_ = at::empty({g.images * static_cast<int64_t>(sizeof(Grid<T>))}, bytes);
    g.grid = reinterpret_cast<Grid<T>*>(grid_.mutable_data_ptr<uint8_t>());
    bound_ = at::empty({g.images * bounds}, options);
    g.bound = bound_.mutable_data_ptr<T>();
    places_ = at::empty({g.images * (g.cells + 1 + 2 * g.count)}, options.dtype(at::kInt));
    g.start = places_.mutable_data_ptr<int32_t>();
    g.cell = g.start + g.images * (g.cells + 1);
    g.rank = g.cell + g.images * g.count;
    sorted_ = at::empty({g.images * g.count * static_cast<int64_t>(sizeof(Point<T>))}, bytes);
    g.points = reinterpret_cast<Point<T>*>(sorted_.mutable_data_ptr<uint8_t>());
  }

  Grids<T> view_{};
  at::Tensor zeros_, grid_, bound_, places_, sorted_;
};

}  // namespace aff_seg
