// Just enough of CUDA to run this project's kernels on a CPU, block after block: the threads of a
// block are fibers that take turns, and a barrier or an exchange within a warp is where they turn.
// It shows wrong indices, missing barriers where a later turn would overwrite, and wrong sums; it
// knows nothing of speed, and little of races. AFF_SEG_EMULATED_ORDER changes whose turn is next:
// 0 for the order of the threads, 1 for the reverse, any other for the seed of a random one, where
// warps run ahead: if a barrier is missing, some order shows it.

#pragma once

#include <c10/macros/Macros.h>
#include <c10/util/Exception.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulated {

constexpr unsigned kWarp = 32;

// A copy to shared memory that nobody has waited for yet; of zeros, if from nowhere.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  std::vector<Copy> copies;
  bool done = false;
  unsigned barriers = 0;  // passed so far
  unsigned exchanges = 0;
};

struct Put {
  uint64_t word[4];
};

struct Block {
  dim3 grid, size, index;
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  unsigned current = 0;
  std::vector<char> shared;
  // What the lanes of each warp put up for an exchange, two slots taken in turn.
  std::vector<Put> put[2];
  std::function<void()> body;
  const char* broken = nullptr;  // the assertion that did not hold
};

inline Block*& block() {
  static Block* current = nullptr;
  return current;
}

inline void turn() {
  Block& b = *block();
  swapcontext(&b.fibers[b.current].context, &b.scheduler);
}

inline void enter() {
  Block& b = *block();
  b.body();
  b.fibers[b.current].done = true;
  turn();
}

// An assertion of a kernel: where it does not hold, nothing of the block runs on.
inline void require(bool holds, const char* what) {
  if (!holds) {
    block()->broken = what;
    turn();
  }
}

inline void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s\n", what);
  std::abort();
}

// Runs the fibers in turn until all are done.
inline void run_block(Block& b, unsigned order) {
  const unsigned count = b.size.x * b.size.y * b.size.z;
  constexpr size_t kStack = 256 << 10;
  b.fibers.resize(count);
  b.put[0].assign(count, Put{});
  b.put[1].assign(count, Put{});
  for (Fiber& fiber : b.fibers) {
    if (!fiber.stack) {
      fiber.stack.reset(new char[kStack]);
    }
    fiber.done = false;
    fiber.copies.clear();
    fiber.barriers = fiber.exchanges = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  std::vector<unsigned> turns(count);
  for (unsigned t = 0; t < count; ++t) {
    turns[t] = order == 1 ? count - 1 - t : t;
  }
  std::minstd_rand random(order);
  // Now and then a warp has many turns before any other, as far as barriers let it.
  unsigned alone = 0, warp = 0;
  for (bool busy = true; busy;) {
    busy = false;
    if (order > 1) {
      std::shuffle(turns.begin(), turns.end(), random);
      alone = alone > 0 ? alone - 1 : random() % 48;
      warp = alone > 0 ? warp : random() % ((count + kWarp - 1) / kWarp);
    }
    for (const unsigned t : turns) {
      b.current = t;
      if (!b.fibers[t].done) {
        busy = true;
        if (alone == 0 || t / kWarp == warp) {
          swapcontext(&b.scheduler, &b.fibers[t].context);
          if (b.broken) {
            return;
          }
        }
      }
    }
  }
}

inline unsigned linear_thread() { return block()->current; }

inline dim3 thread_index() {
  const Block& b = *block();
  const unsigned t = b.current;
  return {t % b.size.x, t / b.size.x % b.size.y, t / (b.size.x * b.size.y)};
}

// Waits until every thread of the block has come here; those that have ended count as come.
inline void barrier() {
  Block& b = *block();
  const unsigned mine = ++b.fibers[b.current].barriers;
  const auto all_here = [&] {
    for (const Fiber& fiber : b.fibers) {
      if (!fiber.done && fiber.barriers < mine) {
        return false;
      }
    }
    return true;
  };
  do {
    turn();
  } while (!all_here());
}

// Every lane of the warp puts something up; once all have, what they did is returned, by lane.
inline const Put* put_up(const Put& mine) {
  Block& b = *block();
  const unsigned me = b.current, first = me / kWarp * kWarp;
  const unsigned last = std::min<unsigned>(first + kWarp, b.fibers.size());
  const unsigned round = ++b.fibers[me].exchanges;
  b.put[round % 2][me] = mine;
  const auto all_here = [&] {
    for (unsigned t = first; t < last; ++t) {
      if (b.fibers[t].exchanges < round) {
        if (b.fibers[t].done) {
          fail("a lane ended before an exchange of its warp");
        }
        return false;
      }
    }
    return true;
  };
  do {
    turn();
  } while (!all_here());
  return b.put[round % 2].data() + first;
}

// Every lane puts up a value and reads that of `from`.
inline uint64_t exchange(uint64_t value, unsigned from) {
  const unsigned first = block()->current / kWarp * kWarp;
  const unsigned lanes = std::min<unsigned>(kWarp, block()->fibers.size() - first);
  return put_up({{value}})[std::min(from, lanes - 1)].word[0];
}

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <int kBytes>
void copy_async(void* to, const void* from) {
  if (reinterpret_cast<uintptr_t>(to) % kBytes || reinterpret_cast<uintptr_t>(from) % kBytes) {
    fail("a copy that is not aligned");
  }
  block()->fibers[linear_thread()].copies.push_back({to, from, kBytes});
}

inline void copy_or_zero(void* to, const void* from, bool copy) {
  copy_async<16>(to, from);
  if (!copy) {
    block()->fibers[linear_thread()].copies.back().from = nullptr;
  }
}

inline void wait_for_copies() {
  std::vector<Copy>& copies = block()->fibers[linear_thread()].copies;
  for (const Copy& copy : copies) {
    if (copy.from) {
      std::memcpy(copy.to, copy.from, copy.bytes);
    } else {
      std::memset(copy.to, 0, copy.bytes);
    }
  }
  copies.clear();
}

inline float fast_exp2(float x) { return x < -126 ? 0 : std::exp2(x); }
inline float fast_rsqrt(float x) { return 1 / std::sqrt(x); }

// Rows of 8x8 matrices of 16-bit numbers, given as the lanes of a warp give them.
inline void matrices(uint32_t (&value)[4], const void* row, bool transpose) {
  if (reinterpret_cast<uintptr_t>(row) % 16) {
    fail("a row of a matrix that is not aligned");
  }
  const Put* rows = put_up({{reinterpret_cast<uintptr_t>(row)}});
  const unsigned lane = linear_thread() % kWarp, g = lane / 4, t = lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const auto at = [&](unsigned r, unsigned c) {
      return uint32_t(reinterpret_cast<const uint16_t*>(rows[8 * i + r].word[0])[c]);
    };
    value[i] = transpose ? at(2 * t, g) | at(2 * t + 1, g) << 16
                         : at(g, 2 * t) | at(g, 2 * t + 1) << 16;
  }
}
inline void load_matrices(uint32_t (&value)[4], const void* row) { matrices(value, row, false); }
inline void load_transposed(uint32_t (&value)[4], const void* row) { matrices(value, row, true); }

// A 16-bit number among the registers of a lane.
inline uint16_t half_of(uint64_t bits, unsigned half) { return uint16_t(bits >> (16 * half)); }

inline uint32_t transposed(uint32_t value) {
  const Put* all = put_up({{value}});
  const unsigned lane = linear_thread() % kWarp, g = lane / 4, t = lane % 4;
  const auto at = [&](unsigned r, unsigned c) {
    return uint32_t(half_of(all[4 * r + c / 2].word[0], c % 2));
  };
  return at(2 * t, g) | at(2 * t + 1, g) << 16;
}

template <typename T>
void multiply_add(
    float (&result)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4]) {
  const auto pair = [](uint32_t low, uint32_t high) { return low | uint64_t(high) << 32; };
  const Put* all = put_up({{pair(a[0], a[1]), pair(a[2], a[3]), pair(b0, b1)}});
  const unsigned lane = linear_thread() % kWarp, g = lane / 4, t = lane % 4;
  const auto number = [](uint16_t bits) { return float(T(bits, T::from_bits())); };
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = g + i / 2 * 8, column = 2 * t + i % 2;
    float sum = c[i];
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned k8 = k % 8, half = k % 2;
      const uint64_t of_a = all[row % 8 * 4 + k8 / 2].word[k / 8];
      const uint64_t of_b = all[column * 4 + k8 / 2].word[2];
      sum += number(half_of(of_a, 2 * (row / 8) + half)) *
          number(half_of(of_b, 2 * (k / 8) + half));
    }
    result[i] = sum;
  }
}

template <typename T>
uint32_t packed(float low, float high) {
  return T(low).x | uint32_t(T(high).x) << 16;
}

template <typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 size, size_t shared, A... arguments) {
  Block b;
  b.grid = grid;
  b.size = size;
  if (size.x * size.y * size.z > 1024) {
    fail("a block of more than 1024 threads");
  }
  // What a block gets on the architectures that give it least.
  if (shared > (99 << 10)) {
    fail("a block with more than 99 KiB of dynamic shared memory");
  }
  b.body = [&] { kernel(static_cast<P>(arguments)...); };
  block() = &b;
  const char* order = std::getenv("AFF_SEG_EMULATED_ORDER");
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        b.index = dim3(x, y, z);
        // What is read before it is written shows: as a number that is none, or a large one.
        b.shared.assign(shared, char((x + y + z) % 2 == 0 ? 0xff : 0x7f));
        run_block(b, order ? std::atoi(order) : 0);
        if (b.broken) {
          block() = nullptr;
          TORCH_CHECK_INDEX(false, "device-side assertion: ", b.broken);
        }
      }
    }
  }
  block() = nullptr;
}

}  // namespace emulated

#undef CUDA_KERNEL_ASSERT
#define CUDA_KERNEL_ASSERT(condition) emulated::require(condition, #condition)
#define threadIdx (emulated::thread_index())
#define blockIdx (emulated::block()->index)
#define blockDim (emulated::block()->size)
#define gridDim (emulated::block()->grid)
#define warpSize 32

inline void __syncthreads() { emulated::barrier(); }
inline void __syncwarp(unsigned = 0xffffffff) { emulated::exchange(0, 0); }

inline unsigned __ballot_sync(unsigned, bool flag) {
  const emulated::Put* all = emulated::put_up({{flag}});
  unsigned bits = 0;
  for (unsigned lane = 0; lane < emulated::kWarp; ++lane) {
    bits |= unsigned(all[lane].word[0]) << lane;
  }
  return bits;
}
inline int __reduce_min_sync(unsigned, int value) {
  const emulated::Put* all = emulated::put_up({{emulated::to_bits(value)}});
  for (unsigned lane = 0; lane < emulated::kWarp; ++lane) {
    value = std::min(value, emulated::from_bits<int>(all[lane].word[0]));
  }
  return value;
}
inline bool __any_sync(unsigned lanes, bool flag) { return __ballot_sync(lanes, flag) != 0; }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs(int(bits)); }

template <typename T>
T __shfl_sync(unsigned, T value, int from) {
  return emulated::from_bits<T>(emulated::exchange(emulated::to_bits(value), from & 31));
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const unsigned lane = emulated::linear_thread() % 32;
  return emulated::from_bits<T>(emulated::exchange(emulated::to_bits(value), lane ^ mask));
}
template <typename T>
T __shfl_down_sync(unsigned, T value, int delta) {
  const unsigned lane = emulated::linear_thread() % 32;
  const unsigned from = lane + delta < 32 ? lane + delta : lane;
  return emulated::from_bits<T>(emulated::exchange(emulated::to_bits(value), from));
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int delta) {
  const unsigned lane = emulated::linear_thread() % 32;
  const unsigned from = lane >= unsigned(delta) ? lane - delta : lane;
  return emulated::from_bits<T>(emulated::exchange(emulated::to_bits(value), from));
}
// Fibers take turns only where they wait, so that plain arithmetic is atomic.
template <typename T>
T atomicAdd(T* at, T value) {
  const T old = *at;
  *at = old + value;
  return old;
}
template <typename T>
T atomicMax(T* at, T value) {
  const T old = *at;
  *at = std::max(old, value);
  return old;
}
template <typename T>
T atomicMin(T* at, T value) {
  const T old = *at;
  *at = std::min(old, value);
  return old;
}

template <typename T>
T atomicOr(T* at, T value) {
  const T old = *at;
  *at = old | value;
  return old;
}

template <typename T>
T __ldg(const T* at) {
  return *at;
}
inline float __fmul_rn(float a, float b) {
  volatile float product = a * b;
  return product;
}
inline double __dmul_rn(double a, double b) {
  volatile double product = a * b;
  return product;
}
