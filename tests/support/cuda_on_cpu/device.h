// Just enough of CUDA to run the kernels of csrc/*.cu on a CPU: every thread of a block is a thread, blocks come one
// after the other. Slow, and says nothing about speed, but the arithmetic and the indexing are the GPU's own.
#pragma once

#include <barrier>
#include <cmath>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#define __CUDACC__
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline

struct Dim {
  int x, y;
};

inline thread_local Dim threadIdx;
inline Dim blockIdx, blockDim;
inline std::mutex atomic;
inline std::barrier<>* block_barrier;
inline double exchanged[1024];

inline void __syncthreads() { block_barrier->arrive_and_wait(); }

// Blocks are as wide as a warp wherever lanes are exchanged, and all of a block's threads come here.
template <typename T>
T __shfl_xor_sync(unsigned, T x, int distance) {
  exchanged[threadIdx.x] = x;
  __syncthreads();
  const T other = T(exchanged[threadIdx.x ^ distance]);
  __syncthreads();
  return other;
}

template <typename T>
void atomicAdd(T* to, T what) {
  const std::lock_guard<std::mutex> guard(atomic);
  *to += what;
}

inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

template <typename Kernel>
void run(int blocks_x, int blocks_y, int threads, Kernel kernel) {
  std::barrier<> barrier(threads);
  block_barrier = &barrier;
  blockDim = {threads, 1};
  std::vector<std::thread> block;
  for (int n = 0; n < threads; ++n) {
    block.emplace_back([&, n] {
      threadIdx = {n, 0};
      for (int i = 0; i < blocks_x * blocks_y; ++i) {
        barrier.arrive_and_wait();
        if (n == 0) blockIdx = {i % blocks_x, i / blocks_x};
        barrier.arrive_and_wait();
        kernel();
      }
    });
  }
  for (std::thread& thread : block) thread.join();
}
