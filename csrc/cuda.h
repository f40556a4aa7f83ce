// What the CUDA files share: types without the toolkit's headers, vector loads, sums over lanes, atomic additions.
// The compiler is told VALUE (float, double, Bfloat16 or Float16) and SUM (float, or double for double values).
#pragma once

#include "geometry.h"

namespace codetr {

using Index = long long;

struct Bfloat16 {
  unsigned short bits;
};

struct Float16 {
  unsigned short bits;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(Bfloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

#ifdef __CUDA_ARCH__
__device__ __forceinline__ float widen(Float16 x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}
#endif

// N values that are read at once, and therefore lie at a multiple of their size.
template <typename T, int N>
struct alignas(N * sizeof(T)) Vector {
  T at[N];
};

template <typename T, int N>
__device__ __forceinline__ Vector<T, N> read(const T* from) {
  return *reinterpret_cast<const Vector<T, N>*>(from);
}

template <int N>
__device__ __forceinline__ void add(double* to, const double (&what)[N]) {
  for (int i = 0; i < N; ++i) atomicAdd(to + i, what[i]);
}

template <int N>
__device__ __forceinline__ void add(float* to, const float (&what)[N]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (N % 4 == 0) {
    for (int i = 0; i < N; i += 4)
      asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to + i)),
                   "f"(what[i]), "f"(what[i + 1]), "f"(what[i + 2]), "f"(what[i + 3])
                   : "memory");
    return;
  }
#endif
  for (int i = 0; i < N; ++i) atomicAdd(to + i, what[i]);
}

// The sum over LANES neighbouring lanes, LANES a power of two; all of them get it.
template <int LANES, typename T>
__device__ __forceinline__ T sum_lanes(T x, unsigned members) {
  for (int distance = LANES / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(members, x, distance);
  return x;
}

}  // namespace codetr
