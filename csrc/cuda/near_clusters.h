// How a block of queries goes through the clusters near them. A warp has eight consecutive tokens
// as its columns. The union of the clusters that the block's tokens list is found in shared memory
// and brought there slot by slot, keys and values; each warp then visits the slots that its own
// tokens list. A token may list a cluster several times.

#pragma once

#include <algorithm>

#include "attention_tiles.h"

namespace aff_seg {

// Arguments of the operator as its kernels take them.
template <typename T, typename A>
struct Attention {
  int tokens, heads, dim, m, near;
  int clusters;     // of an image
  int per_cluster;  // slots
  Tokens<const T> q, k, v;
  const A *pos, *pos_weight, *pos_bias, *blank_k, *blank_v;
  const int32_t* lists;
  A scale;
};

// What must outlive the kernels' arguments.
struct AttentionTensors {
  at::Tensor q, k, v, pos, clusters, pos_weight, pos_bias, blank_k, blank_v;

  AttentionTensors(
      const at::Tensor& q_, const at::Tensor& k_, const at::Tensor& v_, const at::Tensor& pos_,
      const at::Tensor& clusters_, const at::Tensor& pos_weight_, const at::Tensor& pos_bias_,
      const at::Tensor& blank_k_, const at::Tensor& blank_v_)
      : q(with_near_channels(q_)), k(with_near_channels(k_)),
        v(with_near_channels(v_)), pos(pos_.contiguous()), clusters(clusters_.contiguous()),
        pos_weight(pos_weight_.contiguous()), pos_bias(pos_bias_.contiguous()),
        blank_k(blank_k_.contiguous()), blank_v(blank_v_.contiguous()) {
    // Both coordinates are copied at once.
    if (reinterpret_cast<uintptr_t>(pos.const_data_ptr()) % (2 * pos.element_size()) != 0) {
      pos = pos.clone();
    }
  }

  template <typename T, typename A>
  Attention<T, A> arguments(int64_t m) const {
    const int64_t tokens = q.size(1), dim = q.size(3), size = std::min(m, tokens);
    return {
        static_cast<int>(tokens),
        static_cast<int>(q.size(2)),
        static_cast<int>(dim),
        static_cast<int>(size),
        static_cast<int>(clusters.size(2)),
        static_cast<int>((tokens + size - 1) / size),
        static_cast<int>((size + kSlotRows - 1) / kSlotRows),
        tokens_of<T>(q),
        tokens_of<T>(k),
        tokens_of<T>(v),
        pos.const_data_ptr<A>(),
        pos_weight.const_data_ptr<A>(),
        pos_bias.const_data_ptr<A>(),
        blank_k.const_data_ptr<A>(),
        blank_v.const_data_ptr<A>(),
        clusters.const_data_ptr<int32_t>(),
        A(1) / std::sqrt(static_cast<A>(dim))};
  }
};

// Entries of the lists that are gone through at once; counts of a cluster in one list fit 4 bits.
constexpr int kEntries = 12;
constexpr int kEntriesOfLane = kEntries / 4;
// Clusters, by index, among which the listed ones are found at once.
constexpr int kWindow = 2048;
constexpr int kWords = kWindow / 32;
constexpr int kMaxWarps = 4;
// Blocks of 16-bit features find room on a multiprocessor of 228 KB for four, others for three.
template <typename T>
constexpr int kSharedBudget = (sizeof(T) == 2 ? 54 : 73) << 10;
constexpr int kMaxCapacity = 64;

// Shared memory, for kHeads heads at once and kSets operands in columns: offsets in bytes. A slot
// has keys at all heads, values at all heads, and of its eight rows x, y, and 0 or, where a row does
// not exist, -inf.
template <typename P, int kHeads, int kSets>
struct NearLayout {
  using T = typename P::T;
  using A = typename P::A;
  using L = typename P::L;
  static constexpr int kRows = 2 * kHeads * L::kBytes;
  static constexpr int kSlot = kRows + 4 * kSlotRows * static_cast<int>(sizeof(A));
  // Of all warps: the terms of logits, the blank keys and values, the bits and counts of a window,
  // the range and the number of clusters.
  static constexpr int kTerms = 0;
  static constexpr int kBlanks = kHeads * static_cast<int>(sizeof(LogitTerms<P>));
  static constexpr int kBits = kBlanks + 2 * kHeads * L::kChannels * static_cast<int>(sizeof(A));
  static constexpr int kBefore = kBits + 4 * kWords;
  static constexpr int kRange = kBefore + 4 * kWords;
  static constexpr int kColumns = kRange + 4 * (2 * kMaxWarps + 4);
  // Of each warp: its columns, scratch, counts and visits.
  static constexpr int kScratch = kSets * kHeads * L::kBytes;
  static constexpr int kCounts = kScratch + P::kScratch * static_cast<int>(sizeof(A));

  int warps, capacity;  // capacity: slots in memory at once

  C10_HOST_DEVICE int counts() const { return (capacity + 3) / 4 * 16; }
  C10_HOST_DEVICE int of_warp() const { return kCounts + 2 * counts(); }
  // Of all warps: the clusters found, and the slots.
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
    const T* slot[P::kSlots];                 // keys of the first head
    A masked[P::kSlots][2];                   // 0, or -inf where column 2 t + j lists not row g
    Direction<A> direction[P::kSlots][2];     // from there to there
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
  int image, head;  // head: the first one
  int first;        // the warp's first token
  bool row_exists;  // token g of the warp
  A x[2], y[2];     // positions of the columns

  __device__ __forceinline__ NearClusters(const Attention<T, A>& in, int capacity)
      : lane(threadIdx.x), g(lane / 4), t(lane % 4), warp(threadIdx.y), in_(in),
        layout_{static_cast<int>(blockDim.y), capacity},
        memory_(shared_memory<char>()),
        own_(memory_ + Layout::kColumns + warp * layout_.of_warp()),
        slots_(memory_ + layout_.slots()) {
    image = blockIdx.z;
    head = blockIdx.y * kHeads;
    first = (blockIdx.x * layout_.warps + warp) * kSlotRows;
    row_exists = g < in.tokens - first;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      Pack<A, 2> pos{};
      if (column_exists(j)) {
        pos = reinterpret_cast<const Pack<A, 2>*>(in.pos)[token(2 * t) + j];
      }
      x[j] = pos.value[0];
      y[j] = pos.value[1];
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
    read_lists(0);
    bool valid = valid_;
    const int32_t* list = in_.lists + token(g) * in_.near;
#pragma unroll 1
    for (int r = kEntries + t; row_exists && r < in_.near; r += 4) {
      valid = valid && list[r] >= 0 && list[r] < in_.clusters;
    }
    CUDA_KERNEL_ASSERT(valid);
    find_range();
  }

  // Calls body(tile) for whatever the warp's columns list, in one order.
  template <typename F>
  __device__ __forceinline__ void visit_all(const F& body) {
    for (;;) {
#pragma unroll 1
      for (int64_t base = low_; base <= high_; base += kWindow) {
        if (base != low_) {
          __syncthreads();
          clear_bits();
          __syncthreads();
        }
        const int slots = find(static_cast<int>(base)) * in_.per_cluster;
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
          count_entries(static_cast<int>(base), start, count);
          wait_for_copies();
          __syncthreads();
          visit(start, count, body);
        }
      }
      if (entry_ + kEntries >= in_.near) {
        return;
      }
      __syncthreads();
      read_lists(entry_ + kEntries);
      find_range();
    }
  }

 private:
  struct Slot {
    int token, present;  // the first token, and how many of the eight are there
  };

  template <typename X>
  __device__ __forceinline__ X* at(int offset) const {
    return reinterpret_cast<X*>(memory_ + offset);
  }
  __device__ __forceinline__ unsigned* counts() const {
    return reinterpret_cast<unsigned*>(own_ + Layout::kCounts);
  }
  __device__ __forceinline__ unsigned* visits() const {
    return reinterpret_cast<unsigned*>(own_ + Layout::kCounts + layout_.counts());
  }

  __device__ __forceinline__ void clear_bits() const {
#pragma unroll 1
    for (int i = warp * kWarp + lane; i < kWords; i += layout_.warps * kWarp) {
      at<unsigned>(Layout::kBits)[i] = 0;
    }
  }

  // Takes kEntries entries of each list.
  __device__ __forceinline__ void read_lists(int entry) {
    entry_ = entry;
    valid_ = true;
    const int32_t* list = in_.lists + token(g) * in_.near + (entry + t);
    const int left = row_exists ? in_.near - entry - t : 0;
#pragma unroll
    for (int i = 0; i < kEntriesOfLane; ++i) {
      cluster_[i] = 4 * i < left ? list[4 * i] : -1;
    }
#pragma unroll
    for (int i = 0; i < kEntriesOfLane; ++i) {
      const bool within =
          static_cast<unsigned>(cluster_[i]) < static_cast<unsigned>(in_.clusters);
      valid_ &= within | (4 * i >= left);
    }
  }

  // The range of their clusters over the block.
  __device__ __forceinline__ void find_range() {
    int low = std::numeric_limits<int>::max(), high = -1;
#pragma unroll
    for (int i = 0; i < kEntriesOfLane; ++i) {
      low = cluster_[i] >= 0 && cluster_[i] < low ? cluster_[i] : low;
      high = cluster_[i] > high ? cluster_[i] : high;
    }
    low = __reduce_min_sync(kAllLanes, low);
    high = -__reduce_min_sync(kAllLanes, -high);
    clear_bits();
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

  // Where an entry stands in the window that begins with cluster `base`.
  __device__ __forceinline__ bool in_window(int i, int base, unsigned* place) const {
    *place = static_cast<unsigned>(cluster_[i]) - static_cast<unsigned>(base);
    return cluster_[i] >= base && *place < kWindow;
  }

  // Lists the clusters of a window that the block needs, ascending; returns how many they are.
  __device__ __forceinline__ int find(int base) const {
    unsigned* bits = at<unsigned>(Layout::kBits);
    int* before = at<int>(Layout::kBefore);
    int* total = at<int>(Layout::kRange) + 2 * kMaxWarps;
#pragma unroll
    for (int i = 0; i < kEntriesOfLane; ++i) {
      unsigned c;
      if (in_window(i, base, &c)) {
        atomicOr(bits + c / 32, 1u << (c % 32));
      }
    }
    __syncthreads();
    if (warp == 0) {
      int rank = 0;
#pragma unroll 1
      for (int w = 0; w < kWords; w += kWarp) {
        const unsigned word = bits[w + lane];
        const int own = __popc(word);
        int upto = own;
#pragma unroll
        for (unsigned step = 1; step < kWarp; step *= 2) {
          const int other = __shfl_up_sync(kAllLanes, upto, step);
          upto += lane >= step ? other : 0;
        }
        int next = rank + upto - own;
        before[w + lane] = next;
#pragma unroll 1
        for (unsigned left = word; left != 0; left &= left - 1) {
          found()[next++] = base + (w + lane) * 32 + __ffs(left) - 1;
        }
        rank += __shfl_sync(kAllLanes, upto, kWarp - 1);
      }
      if (lane == 0) {
        *total = rank;
      }
    }
    __syncthreads();
    return *total;
  }

  __device__ __forceinline__ int* found() const { return at<int>(layout_.found()); }

  // The rank, among the found clusters, of the one that a slot belongs to.
  __device__ __forceinline__ int rank_of(int index) const {
    return in_.per_cluster == 1 ? index : index / in_.per_cluster;
  }

  __device__ __forceinline__ Slot slot_at(int index) const {
    const int rank = rank_of(index);
    const int begin = (index - rank * in_.per_cluster) * kSlotRows;
    const int token = found()[rank] * in_.m + begin;
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

  // How often each of the warp's tokens lists the clusters of these slots, 4 bits for each.
  __device__ __forceinline__ void count_entries(int base, int start, int count) const {
    const unsigned* bits = at<unsigned>(Layout::kBits);
    const int* before = at<int>(Layout::kBefore);
    const int low = rank_of(start), high = rank_of(start + count - 1);
#pragma unroll 1
    for (int i = lane; i <= high - low; i += kWarp) {
      counts()[i] = 0;
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kEntriesOfLane; ++i) {
      unsigned c;
      if (in_window(i, base, &c)) {
        const int rank = before[c / 32] + __popc(bits[c / 32] & ((1u << (c % 32)) - 1));
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
          const char* slot = slots_ + (word & 0xffff);
          tile.slot[s] = reinterpret_cast<const T*>(slot);
          const auto row =
              *reinterpret_cast<const Pack<A, 4>*>(slot + Layout::kRows + 4 * g * sizeof(A));
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            tile.masked[s][j] =
                listed >> j & 1 ? row.value[2] : -std::numeric_limits<A>::infinity();
            tile.direction[s][j] = P::direction(row.value[0] - x[j], row.value[1] - y[j]);
          }
        }
        body(tile);
      }
      __syncwarp();
    }
  }

  // The slots whose clusters some column lists, and takes one from each of their counts; *again
  // says whether any is left. An entry has the slot's offset and the columns. Empty ones make up
  // whole tiles.
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
      const bool wanted = columns != 0;
      const unsigned all = __ballot_sync(kAllLanes, wanted);
      if (wanted) {
        const unsigned offset = s * Layout::kSlot;
        visits()[length + __popc(all & ((1u << lane) - 1))] =
            offset | columns << 16;
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
  int entry_, cluster_[kEntriesOfLane], low_, high_;
  bool valid_;
};

// Blocks for some columns of every image, a warp to eight of them, at all heads.
inline dim3 attention_grid(int64_t columns, int warps, int64_t heads, int64_t batch) {
  TORCH_CHECK_VALUE(
      heads < (1 << 16) && batch < (1 << 16), "too many heads or images for one call: ", heads,
      " and ", batch);
  dim3 grid = blocks_for(columns, warps * kSlotRows);
  grid.y = static_cast<unsigned>(heads);
  grid.z = static_cast<unsigned>(batch);
  return grid;
}

}  // namespace aff_seg
