// Just enough of CUDA to run this project's kernels on a CPU, block after block: the threads of a
// block are fibers that take turns, and a barrier or an exchange within a warp is where they turn.
// It shows wrong indices, missing barriers where a later turn would overwrite, and wrong sums; it
// knows nothing of speed, and little of races.

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
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

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
  unsigned barriers = 0;  // passed so far
  unsigned exchanges = 0;
};

struct Block {
  dim3 grid, size, index;
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  unsigned current = 0;
  std::vector<char> shared;
  // What the lanes of each warp put up for an exchange, two slots taken in turn.
  std::vector<uint64_t> put[2];
  std::function<void()> body;
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

inline void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s\n", what);
  std::abort();
}

// Runs the fibers in turn until all are done.
inline void run_block(Block& b) {
  const unsigned count = b.size.x * b.size.y * b.size.z;
  constexpr size_t kStack = 256 << 10;
  b.fibers.resize(count);
  b.put[0].assign(count, 0);
  b.put[1].assign(count, 0);
  for (Fiber& fiber : b.fibers) {
    if (!fiber.stack) {
      fiber.stack.reset(new char[kStack]);
    }
    fiber.done = false;
    fiber.barriers = fiber.exchanges = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  for (bool busy = true; busy;) {
    busy = false;
    for (b.current = 0; b.current < count; ++b.current) {
      if (!b.fibers[b.current].done) {
        busy = true;
        swapcontext(&b.scheduler, &b.fibers[b.current].context);
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

// Every lane of the warp puts up a value and, once all have, reads that of `from`.
inline uint64_t exchange(uint64_t value, unsigned from) {
  Block& b = *block();
  const unsigned me = b.current, first = me / kWarp * kWarp;
  const unsigned last = std::min<unsigned>(first + kWarp, b.fibers.size());
  const unsigned round = ++b.fibers[me].exchanges;
  b.put[round % 2][me] = value;
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
  return b.put[round % 2][std::min(first + from, last - 1)];
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
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        b.index = dim3(x, y, z);
        // Not zeros: what is read before it is written shows.
        b.shared.assign(shared, char(0x7f));
        run_block(b);
      }
    }
  }
  block() = nullptr;
}

}  // namespace emulated

#define threadIdx (emulated::thread_index())
#define blockIdx (emulated::block()->index)
#define blockDim (emulated::block()->size)
#define gridDim (emulated::block()->grid)
#define warpSize 32

inline void __syncthreads() { emulated::barrier(); }
inline void __syncwarp(unsigned = 0xffffffff) { emulated::exchange(0, 0); }

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
inline int __any_sync(unsigned, int condition) {
  emulated::exchange(condition != 0, 0);
  const emulated::Block& b = *emulated::block();
  const auto& put = b.put[b.fibers[b.current].exchanges % 2];
  const unsigned first = b.current / 32 * 32;
  const unsigned last = std::min<unsigned>(first + 32, put.size());
  return std::any_of(put.begin() + first, put.begin() + last, [](uint64_t x) { return x != 0; });
}
inline int __any_sync(unsigned mask, int condition) {
  for (int step = 1; step < 32; step *= 2) {
    condition |= __shfl_xor_sync(mask, condition, step);
  }
  return condition != 0;
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
