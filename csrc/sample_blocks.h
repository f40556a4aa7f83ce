// Samples in blocks, for ms_deform_attn.cpp: first the corners and weights of a whole block (vectors over samples),
// then the channels of one sample after the other (vectors over channels).
#pragma once

#include "geometry.h"
#include "parallel.h"

namespace codetr {
namespace {

constexpr int kBlock = 64;  // samples in a block: enough to fill vectors, and the tables stay in the first cache

struct Level {
  std::int64_t start, size;  // tokens
  int height, width;
};

template <typename T>
struct Problem {
  const T *value, *locations, *weights;
  const Level* levels;
  std::int64_t B, S, K, D, Q, L, P;

  int points() const { return P < kBlock ? int(P) : kBlock; }       // of a query in one block
  int queries() const { return P < kBlock ? int(kBlock / P) : 1; }  // in one block
  std::int64_t token() const { return K * D; }
  std::int64_t sample(std::int64_t b, std::int64_t q, std::int64_t k, std::int64_t l) const {
    return (((b * Q + q) * K + k) * L + l) * P;
  }
};

// Some points of a run of queries, at one head and level.
template <typename T>
struct Block {
  std::int64_t first, stride;  // sample number of the first query's first point; from one query to the next
  int queries, points;
  alignas(64) T location[2 * kBlock];
  alignas(64) T weight[kBlock];
  alignas(
      64) int at[4][kBlock];  // token of the level at each corner; row: low, low, high, high; column: low, high, ...
  alignas(64) T factor[4][kBlock];
  alignas(64) T dot[4 * kBlock];  // backward: gradient times value at each corner
};

template <int N, typename T>
void copy(T* to, const T* from) {
  std::memcpy(to, from, N * sizeof(T));
}

template <typename T>
void gather(const Problem<T>& p, Block<T>& block) {
  const T *location = p.locations + 2 * block.first, *weight = p.weights + block.first;
  T *to_location = block.location, *to_weight = block.weight;
  const int points = block.points;
  for (int q = 0; q < block.queries; ++q) {
    if (points == 4) {
      copy<8>(to_location, location), copy<4>(to_weight, weight);
    } else {
      for (int j = 0; j < points; ++j) copy<2>(to_location + 2 * j, location + 2 * j), to_weight[j] = weight[j];
    }
    location += 2 * block.stride, weight += block.stride;
    to_location += 2 * points, to_weight += points;
  }
}

template <typename T>
void find_corners(Block<T>& block, const Level level) {
  const int count = block.queries * block.points, width = level.width, height = level.height;
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    const Axis<T> x = bilinear_axis(block.location[2 * i], width);
    const Axis<T> y = bilinear_axis(block.location[2 * i + 1], height);
    const int low_row = y.low * width, high_row = y.high * width;
    block.at[0][i] = low_row + x.low;
    block.at[1][i] = low_row + x.high;
    block.at[2][i] = high_row + x.low;
    block.at[3][i] = high_row + x.high;
    const T low = y.low_weight * block.weight[i], high = y.high_weight * block.weight[i];
    block.factor[0][i] = low * x.low_weight;
    block.factor[1][i] = low * x.high_weight;
    block.factor[2][i] = high * x.low_weight;
    block.factor[3][i] = high * x.high_weight;
  }
}

// Calls `visit(block, level number)` for every block of the queries [q, q + queries) at one head and some levels.
template <typename T, typename Visit>
void for_blocks(const Problem<T>& p, Block<T>& block, std::int64_t b, std::int64_t q, std::int64_t k,
                std::int64_t level, std::int64_t last_level, Visit visit) {
  block.queries = int(p.Q - q < p.queries() ? p.Q - q : p.queries());
  block.stride = p.K * p.L * p.P;
  for (std::int64_t l = level; l < last_level; ++l) {
    for (std::int64_t j = 0; j < p.P; j += p.points()) {
      block.points = int(p.P - j < p.points() ? p.P - j : p.points());
      block.first = p.sample(b, q, k, l) + j;
      gather(p, block);
      find_corners(block, p.levels[l]);
      visit(l);
    }
  }
}

// ---- the channels of one query's points: D known, or 0 for any width -----------------------------------------------

template <typename T, int D>
struct Channels {
  static constexpr int W = D * int(sizeof(T)) > kVectorBytes ? kVectorBytes / int(sizeof(T)) : D;
  static constexpr int N = D / W;
  using V = typename Pack<T, W>::type;

  // sum += corners of the points [i, end)
  CODETR_FN static void sample(const Block<T>& block, int i, int end, const T* value, std::int64_t stride, T* sum,
                               int) {
    V even[N], odd[N];
    for (int n = 0; n < N; ++n) even[n] = load<V>(sum + n * W), odd[n] = V{};
    for (; i < end; ++i) {
      const T *a = value + block.at[0][i] * stride, *b = value + block.at[1][i] * stride;
      const T *c = value + block.at[2][i] * stride, *d = value + block.at[3][i] * stride;
      for (int n = 0; n < N; ++n) {
        even[n] += block.factor[0][i] * load<V>(a + n * W);
        odd[n] += block.factor[1][i] * load<V>(b + n * W);
        even[n] += block.factor[2][i] * load<V>(c + n * W);
        odd[n] += block.factor[3][i] * load<V>(d + n * W);
      }
    }
    for (int n = 0; n < N; ++n) store(sum + n * W, V(even[n] + odd[n]));
  }

  // The reverse: products for the gradients of locations and weights, and the gradient of the value.
  CODETR_FN static void scatter(Block<T>& block, int i, int end, const T* gradient, const T* value, T* to,
                                std::int64_t stride, int) {
    V g[N];
    for (int n = 0; n < N; ++n) g[n] = load<V>(gradient + n * W);
    for (; i < end; ++i) {
      V dot[4];
      for (int corner = 0; corner < 4; ++corner) {
        const std::int64_t at = block.at[corner][i] * stride;
        dot[corner] = g[0] * load<V>(value + at);
        for (int n = 1; n < N; ++n) dot[corner] += g[n] * load<V>(value + at + n * W);
        for (int n = 0; n < N; ++n)
          store(to + at + n * W, V(load<V>(to + at + n * W) + block.factor[corner][i] * g[n]));
      }
      sum_lanes<T, W>(dot, block.dot + 4 * i);
    }
  }
};

template <typename T>
struct Channels<T, 0> {
  CODETR_FN static void sample(const Block<T>& block, int i, int end, const T* value, std::int64_t stride, T* sum,
                               int width) {
    for (; i < end; ++i) {
      const T *a = value + block.at[0][i] * stride, *b = value + block.at[1][i] * stride;
      const T *c = value + block.at[2][i] * stride, *d = value + block.at[3][i] * stride;
      const T fa = block.factor[0][i], fb = block.factor[1][i], fc = block.factor[2][i], fd = block.factor[3][i];
#pragma omp simd
      for (int n = 0; n < width; ++n) sum[n] += (fa * a[n] + fb * b[n]) + (fc * c[n] + fd * d[n]);
    }
  }

  CODETR_FN static void scatter(Block<T>& block, int i, int end, const T* gradient, const T* value, T* to,
                                std::int64_t stride, int width) {
    for (; i < end; ++i) {
      for (int corner = 0; corner < 4; ++corner) {
        const T* from = value + block.at[corner][i] * stride;
        T* into = to + block.at[corner][i] * stride;
        const T factor = block.factor[corner][i];
        T dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int n = 0; n < width; ++n) dot += gradient[n] * from[n], into[n] += factor * gradient[n];
        block.dot[4 * i + corner] = dot;
      }
    }
  }
};

}  // namespace
}  // namespace codetr
