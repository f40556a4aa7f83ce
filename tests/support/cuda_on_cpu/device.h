// Just enough of CUDA to run the kernels of csrc/*.cu on a CPU: every thread of a block is a thread, and some blocks run
// at the same time, in an order of their own. Slow, and says nothing about speed, but the arithmetic and the indexing
// are the GPU's own, and the sanitizers of the compiler see what threads do to each other.
#pragma once

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#define __CUDACC__
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __grid_constant__

struct Dim {
  int x, y;
};

// All threads of a block meet here; made of what a sanitizer knows.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const long turn = turn_;
    if (++arrived_ == threads_) {
      arrived_ = 0, ++turn_;
      all_here_.notify_all();
    } else {
      all_here_.wait(lock, [&] { return turn_ != turn; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_here_;
  const int threads_;
  int arrived_ = 0;
  long turn_ = 0;
};

// What the threads of one block share.
struct Block {
  Barrier barrier;
  double exchanged[2][1024];

  explicit Block(int threads) : barrier(threads) {}
};

inline thread_local Dim threadIdx, blockIdx;
inline thread_local Block* own_block;
inline thread_local int exchanges;
inline Dim blockDim;

inline void __syncthreads() { own_block->barrier.wait(); }

// Blocks are as wide as a warp wherever lanes are exchanged, and all of a block's threads come here. Two places in turn:
// who is here again has seen all others leave the exchange before the last.
template <typename T>
T __shfl_xor_sync(unsigned, T x, int distance) {
  double* place = own_block->exchanged[exchanges++ % 2];
  place[threadIdx.x] = x;
  own_block->barrier.wait();
  return T(place[threadIdx.x ^ distance]);
}

// Orders nothing else, as on a GPU: a lock would hide races from a sanitizer.
template <typename T>
void atomicAdd(T* to, T what) {
  T seen, sum;
  __atomic_load(to, &seen, __ATOMIC_RELAXED);
  do sum = seen + what;
  while (!__atomic_compare_exchange(to, &seen, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}

inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline unsigned block_order = 0;  // 0: as they are numbered

extern "C" void shuffle_blocks(unsigned seed) { block_order = seed; }

// Not more than one block where a kernel has shared memory: it is one for all.
template <typename Kernel>
void run(int blocks_x, int blocks_y, int threads, Kernel kernel) {
  const int blocks = blocks_x * blocks_y, at_once = std::min(blocks, 4);
  std::vector<int> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  if (block_order) std::shuffle(order.begin(), order.end(), std::mt19937(block_order));
  blockDim = {threads, 1};
  std::vector<std::unique_ptr<Block>> running;
  std::vector<std::thread> started;
  for (int place = 0; place < at_once; ++place) {
    running.push_back(std::make_unique<Block>(threads));
    Block* block = running.back().get();
    for (int n = 0; n < threads; ++n) {
      started.emplace_back([&, place, block, n] {
        threadIdx = {n, 0};
        own_block = block;
        exchanges = 0;
        for (int i = place; i < blocks; i += at_once) {
          blockIdx = {order[i] % blocks_x, order[i] / blocks_x};
          kernel();
          own_block->barrier.wait();
        }
      });
    }
  }
  for (std::thread& thread : started) thread.join();
}
