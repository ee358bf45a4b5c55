// Search of k nearest points. The points are sorted into a uniform grid of about one a cell
// (point_grids.h). Each thread then searches for one query: it visits a rectangle of cells about
// it, which grows on its nearest side until nothing outside can be among the k nearest
// (../grid_search.h); these stay in registers (nearest.h). Queries next to each other in memory
// should be so in space: then the threads of a warp read the same cells.
//
// A query that would cost more than a fixed number of points and cells, as skewed data may cause,
// is left to a warp that looks at all points: at worst this takes as long as looking at all pairs.
// No value is read back: the second kernel finds out for itself what is left to it.

#include <ATen/Dispatch.h>
#include <ATen/ops/clone.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "../library.h"
#include "device.h"
#include "nearest.h"
#include "point_grids.h"

namespace aff_seg {
namespace {

// Threads of a block, and warps of one that looks at all points.
constexpr int kThreads = 128;
constexpr int kWarps = 8;
// Up to this many neighbours are found in the grid; for more, all points are looked at.
constexpr int64_t kNear = 64;
// Neighbours that a lane keeps where all points are looked at.
constexpr int kLane = 8;

// A query for each thread, K neighbours at a time; kOnce: k is at most K. Queries given up are
// listed, their last neighbour being one of no less than k candidates, or none.
template <int K, bool kOnce, typename T>
__global__ void __launch_bounds__(kThreads) search_grid(
    const Grids<T> g, const Queries<T> q, int budget, int64_t* listed) {
  const int64_t place = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (place >= q.total) {
    return;
  }
  const Position<T> at = q.at(place);
  const int64_t image = g.images > 1 ? place / q.queries : 0;
  const Grid<T> grid = g.grid[image];
  const int32_t* start = g.start + image * (g.cells + 1);
  const Point<T>* points = g.points + image * g.count;
  // Candidates from this on are those not found yet.
  CandidateKey<T> least = 0;
  int64_t done = 0;
  do {
    const int wanted = static_cast<int>(q.k - done < K ? q.k - done : K);
    Nearest<T, K> nearest(wanted, kNoCandidate<T>);
    int32_t first = 0, last = 0, from = 0, to = 0;
    const auto set = [&](int32_t first_, int32_t last_, int32_t from_, int32_t to_) {
      first = first_;
      last = last_;
      from = from_;
      to = to_;
    };
    Rectangle<T> visited(grid, at.x, at.y);
    visited.begin(set);
    // The visit is here, not in `set`: threads make it together, whichever side they grow on.
    do {
      for (const int32_t* row = start + first * grid.x.cells; first <= last;
           ++first, row += grid.x.cells) {
        const int32_t end = row[to + 1];
        int32_t i = row[from];
        budget += i - end - 1;
        if (budget < 0) {
          break;
        }
#pragma unroll 1
        for (; i < end; ++i) {
          const Point<T> p = points[i];
          const CandidateKey<T> key = candidate_at(at.x - p.x, at.y - p.y, p.index);
          if (key < nearest.limit() && (kOnce || key >= least)) {
            nearest.insert(key);
          }
        }
      }
    } while (budget >= 0 && visited.grow(nearest.limit(), set));
    nearest.write(q, place, done, wanted);
    least = nearest.limit() + 1;
    done += wanted;
  } while (!kOnce && done < q.k && budget >= 0);
  if (budget < 0) {
    if (!kOnce && done < q.k) {
      q.write(place, q.k - 1, kNoCandidate<T>);
    }
    listed[atomicAdd(g.given_up, 1ull)] = place;
  }
}

// A warp for each query looks at all points, time after time until k neighbours are found. Each
// lane keeps the nearest of its points; the nearest of all lanes' are the neighbours, as long as
// no lane has run out of those that it keeps. Without a list, all queries are meant.
template <typename T>
__global__ void __launch_bounds__(kWarp * kWarps) search_all(
    const Position<T>* database, int64_t step, int64_t count, const Queries<T> q,
    const int64_t* listed, const unsigned long long* listed_count) {
  using Key = CandidateKey<T>;
  const int lane = threadIdx.x;
  const int64_t places = listed ? static_cast<int64_t>(*listed_count) : q.total;
  for (int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.y; i < places;
       i += int64_t(gridDim.x) * kWarps) {
    const int64_t place = listed ? listed[i] : i;
    const Position<T> at = q.at(place);
    const Position<T>* points = database + place / q.queries * step;
    const Key last = listed ? q.last(place) : kNoCandidate<T>;
    const Key limit = last < kNoCandidate<T> ? last + 1 : last;
    // Read by all lanes before the first one overwrites it.
    __syncwarp();
    Key least = 0;
    for (int64_t done = 0; done < q.k;) {
      Nearest<T, kLane> nearest(kLane, limit);
      constexpr int kAhead = 4;
      for (int64_t first = lane; first < count; first += kAhead * kWarp) {
        Position<T> p[kAhead];
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
          const int64_t j = first + a * kWarp;
          p[a] = points[j < count ? j : first];
        }
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
          const int64_t j = first + a * kWarp;
          const Key key = candidate_at(at.x - p[a].x, at.y - p[a].y, static_cast<int32_t>(j));
          if (j < count && key < nearest.limit() && key >= least) {
            nearest.insert(key);
          }
        }
      }
      bool used_up = false;
      for (int taken = 0; done < q.k && !used_up; ++done) {
        Key best = nearest.first();
#pragma unroll
        for (int mask = kWarp / 2; mask > 0; mask /= 2) {
          const Key other = other_lane(best, mask);
          best = other < best ? other : best;
        }
        if (lane == 0) {
          q.write(place, done, best);
        }
        if (nearest.first() == best) {
          nearest.remove_first();
          ++taken;
        }
        least = best + 1;
        used_up = __any_sync(kAllLanes, taken == kLane);
      }
    }
  }
}

// Calls body(K, kOnce) with the neighbours that a thread keeps as constants.
template <typename F>
void with_capacity(int64_t k, const F& body) {
  using std::integral_constant;
  if (k <= 4) {
    body(integral_constant<int, 4>(), std::true_type());
  } else if (k <= 6) {
    body(integral_constant<int, 6>(), std::true_type());
  } else if (k <= 9) {
    body(integral_constant<int, 9>(), std::true_type());
  } else if (k <= 12) {
    body(integral_constant<int, 12>(), std::true_type());
  } else if (k <= 16) {
    body(integral_constant<int, 16>(), std::true_type());
  } else {
    body(integral_constant<int, 16>(), std::false_type());
  }
}

template <typename T>
void search(
    const at::Tensor& query, const at::Tensor& database, const at::Tensor& index,
    const at::Tensor& distance) {
  Queries<T> q{};
  q.queries = index.size(1);
  q.k = index.size(2);
  q.total = index.size(0) * q.queries;
  q.step = query.size(0) > 1 ? q.queries : 0;
  q.query = reinterpret_cast<const Position<T>*>(query.const_data_ptr<T>());
  q.index = index.mutable_data_ptr<int32_t>();
  q.distance = distance.mutable_data_ptr<T>();
  const int64_t count = database.size(1);
  const auto look_at_all = [&](const int64_t* listed, const unsigned long long* listed_count) {
    // No more than run at once.
    const int64_t warps = std::min<int64_t>(q.total, 8192);
    launch(
        search_all<T>, blocks_for(warps, kWarps), dim3(kWarp, kWarps), 0,
        reinterpret_cast<const Position<T>*>(database.const_data_ptr<T>()),
        database.size(0) > 1 ? count : 0, count, q, listed, listed_count);
  };
  if (q.k > kNear) {
    look_at_all(nullptr, nullptr);
    return;
  }
  const PointGrids<T> grids(database, q.k);
  const at::Tensor listed = at::empty({q.total}, database.options().dtype(at::kLong));
  // Points and cells that a thread visits in about the time in which a warp looks at all points.
  const int64_t budget = 512 + 16 * q.k + count / kWarp;
  with_capacity(q.k, [&](auto capacity, auto once) {
    launch(
        search_grid<decltype(capacity)::value, decltype(once)::value, T>,
        blocks_for(q.total, kThreads), dim3(kThreads), 0, grids.view(), q, budget,
        listed.mutable_data_ptr<int64_t>());
  });
  look_at_all(listed.const_data_ptr<int64_t>(), grids.view().given_up);
}

// Contiguous pairs that can be read as one, of one image where all have the same memory.
at::Tensor distinct(const at::Tensor& positions) {
  const at::Tensor pairs =
      (positions.stride(0) == 0 ? positions.narrow(0, 0, 1) : positions).contiguous();
  const auto address = reinterpret_cast<uintptr_t>(pairs.const_data_ptr());
  return address % (2 * pairs.element_size()) == 0 ? pairs : pairs.clone();
}

std::tuple<at::Tensor, at::Tensor> knn_cuda(
    const at::Tensor& query, const at::Tensor& database, int64_t k) {
  check_knn(query, database, k);
  const DeviceGuard guard(query);
  const int64_t batch = query.size(0), queries = query.size(1);
  // Positions shared by the whole batch are searched once.
  if (batch > 1 && query.stride(0) == 0 && database.stride(0) == 0) {
    const auto [index, distance] = knn_cuda(query.narrow(0, 0, 1), database.narrow(0, 0, 1), k);
    return {
        index.expand({batch, -1, -1}).contiguous(), distance.expand({batch, -1, -1}).contiguous()};
  }
  const auto index = at::empty({batch, queries, k}, query.options().dtype(at::kInt));
  const auto distance = at::empty({batch, queries, k}, query.options());
  if (index.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES(query.scalar_type(), "knn_cuda", [&] {
      search<scalar_t>(distinct(query), distinct(database), index, distance);
    });
  }
  return {index, distance};
}

}  // namespace

AFF_SEG_CUDA_IMPL(m) {
  m.impl("knn", knn_cuda);
}

}  // namespace aff_seg
