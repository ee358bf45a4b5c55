// How a block of queries goes through the clusters near them. A warp has eight consecutive tokens
// as its columns. A token may list a cluster several times.
//
//   lists of the block's tokens, kEntries of each at a time (all of them, mostly)
//     -> their union, ascending                        cluster_union.h
//       -> its slots, as many at a time as memory holds: keys, values and positions are copied,
//          meanwhile each warp counts how often its columns list the slots' clusters
//         -> the slots that a warp's columns list, P::kSlots at a time: a tile, with the pairs
//            that are not listed masked
//
// Shared memory, in this order:
//
//   of the block   terms of the logits | blank keys, values | union | range of clusters
//   of each warp   columns (q, and in backward grad) | scratch | counts | visits
//   of the block   clusters found | slots: keys, values, and x, y, mask of the eight rows

#pragma once

#include <algorithm>
#include <limits>

#include "attention_arguments.h"
#include "attention_tiles.h"
#include "cluster_union.h"

namespace aff_seg {

// Entries of the lists that are gone through at once; counts of a cluster in one list fit 4 bits.
constexpr int kEntries = 12;
constexpr int kEntriesOfLane = kEntries / 4;
constexpr int kMaxCapacity = 64;

// Shared memory for kHeads heads at once and kSets operands in columns: offsets in bytes.
template <typename P, int kHeads, int kSets>
struct NearLayout {
  using T = typename P::T;
  using A = typename P::A;
  using L = typename P::L;
  static constexpr int kOfNumber = sizeof(A);
  // In a slot: keys at all heads, values at all heads; for each row x, y, and 0 or, where it does
  // not exist, -inf.
  static constexpr int kRows = 2 * kHeads * L::kBytes;
  static constexpr int kSlot = kRows + 4 * kSlotRows * kOfNumber;
  static constexpr int kTerms = 0;
  static constexpr int kBlanks = kHeads * static_cast<int>(sizeof(LogitTerms<P>));
  static constexpr int kUnion = kBlanks + 2 * kHeads * L::kChannels * kOfNumber;
  static constexpr int kRange = kUnion + ClusterUnion::kBytes;
  static constexpr int kColumns = kRange + 4 * 2 * kMaxWarps;
  // From where a warp's memory begins.
  static constexpr int kScratch = kSets * kHeads * L::kBytes;
  static constexpr int kCounts = kScratch + P::kScratch * kOfNumber;

  int warps, capacity;  // capacity: slots in memory at once

  C10_HOST_DEVICE int counts() const { return (capacity + 3) / 4 * 16; }
  C10_HOST_DEVICE int of_warp() const { return kCounts + 2 * counts(); }
  C10_HOST_DEVICE int found() const { return kColumns + warps * of_warp(); }
  C10_HOST_DEVICE int slots() const { return found() + warps * 4 * kSlotRows * kEntries; }
  C10_HOST_DEVICE int bytes() const { return slots() + capacity * kSlot; }

  // What fits the budget, and no more than an image has.
  template <typename In>
  static NearLayout fitting(const In& in) {
    NearLayout layout{kMaxWarps, 8};
    while (layout.warps > 1 && layout.bytes() > kSharedBudget<T>) {
      layout.warps /= 2;
    }
    const int64_t all = int64_t(in.clusters) * in.per_cluster;
    layout.capacity = static_cast<int>(std::clamp<int64_t>(all, 2, kMaxCapacity));
    while (layout.capacity > 2 && layout.bytes() > kSharedBudget<T>) {
      --layout.capacity;
    }
    return layout;
  }
};

template <typename P, int kHeads, int kSets>
class NearClusters {
 public:
  using T = typename P::T;
  using A = typename P::A;
  using L = typename P::L;
  using Layout = NearLayout<P, kHeads, kSets>;

  // Slots that a warp works on at a time, as a lane sees them.
  struct Tile {
    const T* slot[P::kSlots];              // keys of the first head
    A masked[P::kSlots][2];                // 0, or -inf where column 2 t + j lists not row g
    Direction<A> direction[P::kSlots][2];  // from there to there
    int count;
    unsigned lane;

    // Keys (0) or values (1) at one of the heads.
    __device__ __forceinline__ void operand(
        int which, int head, const T* (&rows)[P::kSlots]) const {
#pragma unroll
      for (int s = 0; s < P::kSlots; ++s) {
        rows[s] = slot[s] + (which * kHeads + head) * L::kElements;
      }
    }
  };

  const unsigned lane;
  const int g, t, warp;
  const int image, head;  // head: the first one
  const int first;        // the warp's first token
  const bool row_exists;  // token g of the warp

  __device__ __forceinline__ NearClusters(const Attention<T, A>& in, int capacity)
      : lane(threadIdx.x), g(lane / 4), t(lane % 4), warp(threadIdx.y), image(blockIdx.z),
        head(blockIdx.y * kHeads), first((blockIdx.x * blockDim.y + warp) * kSlotRows),
        row_exists(g < in.tokens - first), in_(in),
        layout_{static_cast<int>(blockDim.y), capacity}, memory_(shared_memory<char>()),
        own_(memory_ + Layout::kColumns + warp * layout_.of_warp()),
        slots_(memory_ + layout_.slots()),
        union_(memory_ + Layout::kUnion, at<int>(layout_.found())) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      Pack<A, 2> pos{};
      if (column_exists(j)) {
        pos = reinterpret_cast<const Pack<A, 2>*>(in.pos)[token(2 * t) + j];
      }
      x_[j] = pos.value[0];
      y_[j] = pos.value[1];
    }
  }

  __device__ __forceinline__ bool column_exists(int j) const {
    return 2 * t + j < in_.tokens - first;
  }
  // Counted over the batch.
  __device__ __forceinline__ int64_t token(int column) const {
    return int64_t(image) * in_.tokens + first + column;
  }

  // The slot of the warp's columns at one of the heads, for one of the operands.
  __device__ __forceinline__ T* columns(int set, int h) const {
    return reinterpret_cast<T*>(own_) + (set * kHeads + h) * L::kElements;
  }
  __device__ __forceinline__ A* scratch() const {
    return reinterpret_cast<A*>(own_ + Layout::kScratch);
  }
  __device__ __forceinline__ const LogitTerms<P>& terms(int h) const {
    return at<const LogitTerms<P>>(Layout::kTerms)[h];
  }
  // The blank token's key (0) or value (1), padded.
  __device__ __forceinline__ const A* blank(int which, int h) const {
    return at<const A>(Layout::kBlanks) + (which * kHeads + h) * L::kChannels;
  }
  // All of the slots' memory, to be used after them.
  __device__ __forceinline__ A* slots_memory() const { return reinterpret_cast<A*>(slots_); }

  __device__ __forceinline__ void stage_columns(int set, const Tokens<const T>& tokens) const {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const T* from = tokens.row(image, row_exists ? first + g : 0, head + h);
      stage_row<L>(from, row_exists, tokens.wide, in_.dim, g, t, columns(set, h));
    }
  }

  // Starts; afterwards the columns, the terms and the blank token are there.
  __device__ __forceinline__ void open() {
    if (warp == 0 && lane < kHeads) {
      at<LogitTerms<P>>(Layout::kTerms)[lane] =
          LogitTerms<P>(in_.pos_weight, in_.pos_bias, head + lane, in_.scale);
    }
    A* blanks = at<A>(Layout::kBlanks);
#pragma unroll 1
    for (int i = warp * kWarp + lane; i < kHeads * L::kChannels; i += layout_.warps * kWarp) {
      const int h = i / L::kChannels, channel = i % L::kChannels;
      const bool exists = channel < in_.dim;
      const int64_t from = int64_t(head + h) * in_.dim + channel;
      blanks[i] = exists ? in_.blank_k[from] : A(0);
      blanks[kHeads * L::kChannels + i] = exists ? in_.blank_v[from] : A(0);
    }
    bool valid = true;
    const int32_t* list = in_.lists + token(g) * in_.near;
#pragma unroll 1
    for (int r = kEntries + t; row_exists && r < in_.near; r += 4) {
      valid = valid && list[r] >= 0 && list[r] < in_.clusters;
    }
    read_lists(0);
#pragma unroll
    for (int i = 0; i < kEntriesOfLane; ++i) {
      valid = valid && cluster_[i] < in_.clusters && (cluster_[i] >= 0 || !has_entry(0, i));
    }
    CUDA_KERNEL_ASSERT(valid);
    find_range();
  }

  // Calls body(tile) for whatever the warp's columns list, in one order.
  template <typename F>
  __device__ __forceinline__ void visit_all(const F& body) {
#pragma unroll 1
    for (int entry = 0;;) {
#pragma unroll 1
      for (int64_t base = low_; base <= high_; base += ClusterUnion::kWindow) {
        if (base != low_) {
          __syncthreads();
          clear_union();
          __syncthreads();
        }
        visit_window(static_cast<int>(base), body);
      }
      entry += kEntries;
      if (entry >= in_.near) {
        return;
      }
      __syncthreads();
      read_lists(entry);
      find_range();
    }
  }

 private:
  template <typename X>
  __device__ __forceinline__ X* at(int offset) const {
    return reinterpret_cast<X*>(memory_ + offset);
  }
  __device__ __forceinline__ void clear_union() const {
    if (warp == 0) {
      union_.clear(lane);
    }
  }
  __device__ __forceinline__ unsigned* counts() const {
    return reinterpret_cast<unsigned*>(own_ + Layout::kCounts);
  }
  __device__ __forceinline__ unsigned* visits() const {
    return reinterpret_cast<unsigned*>(own_ + Layout::kCounts + layout_.counts());
  }

  // Whether the lane's i-th entry, from `entry` of the list of token g on, exists.
  __device__ __forceinline__ bool has_entry(int entry, int i) const {
    return row_exists && 4 * i < in_.near - entry - t;
  }

  // Takes kEntries entries of each list, a lane every fourth of row g; absent ones are -1.
  __device__ __forceinline__ void read_lists(int entry) {
    const int32_t* list = in_.lists + token(g) * in_.near + (entry + t);
#pragma unroll
    for (int i = 0; i < kEntriesOfLane; ++i) {
      cluster_[i] = has_entry(entry, i) ? list[4 * i] : -1;
    }
  }

  // The range of their clusters over the block; the union is empty afterwards.
  __device__ __forceinline__ void find_range() {
    int low = std::numeric_limits<int>::max(), high = -1;
#pragma unroll
    for (int i = 0; i < kEntriesOfLane; ++i) {
      low = cluster_[i] >= 0 && cluster_[i] < low ? cluster_[i] : low;
      high = cluster_[i] > high ? cluster_[i] : high;
    }
    low = __reduce_min_sync(kAllLanes, low);
    high = -__reduce_min_sync(kAllLanes, -high);
    clear_union();
    int* range = at<int>(Layout::kRange);
    if (lane == 0) {
      range[2 * warp] = low;
      range[2 * warp + 1] = high;
    }
    wait_for_copies();
    __syncthreads();
    low_ = range[0];
    high_ = range[1];
#pragma unroll 1
    for (int w = 1; w < layout_.warps; ++w) {
      low_ = range[2 * w] < low_ ? range[2 * w] : low_;
      high_ = range[2 * w + 1] > high_ ? range[2 * w + 1] : high_;
    }
  }

  template <typename F>
  __device__ __forceinline__ void visit_window(int base, const F& body) const {
#pragma unroll
    for (int i = 0; i < kEntriesOfLane; ++i) {
      if (ClusterUnion::in_window(cluster_[i], base)) {
        union_.add(cluster_[i], base);
      }
    }
    __syncthreads();
    if (warp == 0) {
      union_.rank(base, lane);
    }
    __syncthreads();
    const int slots = union_.size() * in_.per_cluster;
#pragma unroll 1
    for (int start = 0; start < slots; start += layout_.capacity) {
      const int left = slots - start;
      const int count = left < layout_.capacity ? left : layout_.capacity;
      if (start != 0) {
        __syncthreads();
      }
      if (in_.k.wide && in_.v.wide) {
        stage(start, count, std::true_type());
      } else {
        stage(start, count, std::false_type());
      }
      count_entries(base, start, count);
      wait_for_copies();
      __syncthreads();
      visit(start, count, body);
    }
  }

  // The rank, among the clusters found, of the one that a slot belongs to.
  __device__ __forceinline__ int rank_of(int slot) const {
    return in_.per_cluster == 1 ? slot : slot / in_.per_cluster;
  }

  struct Slot {
    int token, present;  // the first token, and how many of the eight are there
  };
  __device__ __forceinline__ Slot slot_at(int slot) const {
    const int rank = rank_of(slot);
    const int begin = (slot - rank * in_.per_cluster) * kSlotRows;
    const int token = union_.cluster(rank) * in_.m + begin;
    const int in_cluster = in_.m - begin, in_image = in_.tokens - token;
    const int present = in_cluster < in_image ? in_cluster : in_image;
    return {token, present < kSlotRows ? present : kSlotRows};
  }

  // Has keys, values and positions of the slots from `start` on copied.
  template <typename Wide>
  __device__ __forceinline__ void stage(int start, int count, Wide) const {
    const unsigned lane = opaque(this->lane);
    const int g = lane / 4, t = lane % 4;
#pragma unroll 1
    for (int s = warp; s < count; s += layout_.warps) {
      const Slot slot = slot_at(start + s);
      const bool exists = g < slot.present;
      const int token = exists ? slot.token + g : 0;
      char* to = slots_ + s * Layout::kSlot;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        T* keys = reinterpret_cast<T*>(to) + h * L::kElements;
        T* values = keys + kHeads * L::kElements;
        const T* key = in_.k.row(image, token, head + h);
        const T* value = in_.v.row(image, token, head + h);
        stage_row<L>(key, exists, Wide::value, in_.dim, g, t, keys);
        stage_row<L>(value, exists, Wide::value, in_.dim, g, t, values);
      }
      if (t == 0) {
        // The position of token 0 is as good as any where there is none.
        A* row = reinterpret_cast<A*>(to + Layout::kRows) + 4 * g;
        copy_async<2 * sizeof(A)>(row, in_.pos + (int64_t(image) * in_.tokens + token) * 2);
        row[2] = exists ? A(0) : -std::numeric_limits<A>::infinity();
      }
    }
  }

  // How often each of the warp's tokens lists the clusters of these slots, 4 bits for each token.
  __device__ __forceinline__ void count_entries(int base, int start, int count) const {
    const int low = rank_of(start), high = rank_of(start + count - 1);
#pragma unroll 1
    for (int i = lane; i <= high - low; i += kWarp) {
      counts()[i] = 0;
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kEntriesOfLane; ++i) {
      if (ClusterUnion::in_window(cluster_[i], base)) {
        const int rank = union_.rank_of(cluster_[i], base);
        if (rank >= low && rank <= high) {
          atomicAdd(counts() + (rank - low), 1u << (4 * g));
        }
      }
    }
    __syncwarp();
  }

  // Once for each time that a cluster is listed; mostly, that is one.
  template <typename F>
  __device__ __forceinline__ void visit(int start, int count, const F& body) const {
    const unsigned lane = opaque(this->lane);
    const int g = lane / 4, t = lane % 4;
#pragma unroll 1
    for (bool again = true; again;) {
      const int length = list_slots(start, count, &again);
#pragma unroll 1
      for (int i = 0; i < length; i += P::kSlots) {
        const auto visit = *reinterpret_cast<const Pack<unsigned, P::kSlots>*>(visits() + i);
        Tile tile;
        tile.count = length - i;
        tile.lane = lane;
#pragma unroll
        for (int s = 0; s < P::kSlots; ++s) {
          const unsigned word = visit.value[s], listed = word >> (16 + 2 * t);
          const char* slot = slots_ + (word & 0xffff) * 16;
          tile.slot[s] = reinterpret_cast<const T*>(slot);
          const auto row =
              *reinterpret_cast<const Pack<A, 4>*>(slot + Layout::kRows + 4 * g * sizeof(A));
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            tile.masked[s][j] =
                listed >> j & 1 ? row.value[2] : -std::numeric_limits<A>::infinity();
            tile.direction[s][j] = P::direction(row.value[0] - x_[j], row.value[1] - y_[j]);
          }
        }
        body(tile);
      }
      __syncwarp();
    }
  }

  // Lists the slots whose clusters some column lists, and takes one from each of the counts;
  // *again says whether any is left. A visit has the slot's offset, in units of 16 bytes, and a
  // bit for each column. Empty ones make up whole tiles.
  __device__ __forceinline__ int list_slots(int start, int count, bool* again) const {
    const int low = rank_of(start), high = rank_of(start + count - 1);
    int length = 0;
#pragma unroll 1
    for (int s0 = 0; s0 < count; s0 += kWarp) {
      const int s = s0 + lane;
      unsigned columns = 0;
      if (s < count && slot_at(start + s).present > 0) {
        columns = compressed(nonzero(counts()[rank_of(start + s) - low]));
      }
      const unsigned all = __ballot_sync(kAllLanes, columns != 0);
      if (columns != 0) {
        visits()[length + __popc(all & ((1u << lane) - 1))] =
            s * (Layout::kSlot / 16) | columns << 16;
      }
      length += __popc(all);
    }
    __syncwarp();
    if (static_cast<int>(lane) < (P::kSlots - length % P::kSlots) % P::kSlots) {
      visits()[length + lane] = 0;
    }
    bool left = false;
#pragma unroll 1
    for (int i = lane; i <= high - low; i += kWarp) {
      const unsigned rest = counts()[i] - nonzero(counts()[i]);
      counts()[i] = rest;
      left = left || rest != 0;
    }
    *again = __any_sync(kAllLanes, left);
    __syncwarp();
    return length;
  }

  // Of eight counts of 4 bits, the lowest bits of those that are not 0.
  static __device__ __forceinline__ unsigned nonzero(unsigned counts) {
    const unsigned pairs = counts | counts >> 1;
    return (pairs | pairs >> 2) & 0x11111111;
  }
  // Every fourth bit, next to each other.
  static __device__ __forceinline__ unsigned compressed(unsigned bits) {
    bits = (bits | bits >> 3) & 0x03030303;
    bits = (bits | bits >> 6) & 0x000f000f;
    return (bits | bits >> 12) & 0xff;
  }

  const Attention<T, A>& in_;
  const Layout layout_;
  char *const memory_, *const own_, *const slots_;
  const ClusterUnion union_;
  A x_[2], y_[2];  // positions of the columns
  int cluster_[kEntriesOfLane], low_, high_;
};

}  // namespace aff_seg
