// Multi-scale deformable attention on the CPU, forward and backward. All arrays are contiguous:
//   value [B, S, K, D]   locations [B, Q, K, L, P, 2] as (x, y)   weights [B, Q, K, L, P]   output [B, Q, K, D]
//
// Samples are handled in blocks: first the corners and weights of a whole block (vectors over samples), then the
// channels of one sample after the other (vectors over channels). Nothing is shared between threads: forward cuts the
// queries, backward the slices of one batch element, head and perhaps level, each summed in the order of the queries.
// So the result is the same, bit for bit, whatever the number of threads.

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
  alignas(64) int at[4][kBlock];  // token of the level at each corner; row: low, low, high, high; column: low, high, ...
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
void for_blocks(const Problem<T>& p, Block<T>& block, std::int64_t b, std::int64_t q, std::int64_t k, std::int64_t level,
                std::int64_t last_level, Visit visit) {
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
  static constexpr int W = D * int(sizeof(T)) > 64 ? 64 / int(sizeof(T)) : D;
  static constexpr int N = D / W;
  using V = typename Pack<T, W>::type;

  // sum += corners of the points [i, end)
  static void sample(const Block<T>& block, int i, int end, const T* value, std::int64_t stride, T* sum, int) {
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
  static void scatter(Block<T>& block, int i, int end, const T* gradient, const T* value, T* to, std::int64_t stride, int) {
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
  static void sample(const Block<T>& block, int i, int end, const T* value, std::int64_t stride, T* sum, int width) {
    for (; i < end; ++i) {
      const T *a = value + block.at[0][i] * stride, *b = value + block.at[1][i] * stride;
      const T *c = value + block.at[2][i] * stride, *d = value + block.at[3][i] * stride;
      const T fa = block.factor[0][i], fb = block.factor[1][i], fc = block.factor[2][i], fd = block.factor[3][i];
#pragma omp simd
      for (int n = 0; n < width; ++n) sum[n] += (fa * a[n] + fb * b[n]) + (fc * c[n] + fd * d[n]);
    }
  }

  static void scatter(Block<T>& block, int i, int end, const T* gradient, const T* value, T* to, std::int64_t stride,
                      int width) {
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

// ---- forward -------------------------------------------------------------------------------------------------------

template <typename T, int D>
void forward(const Problem<T>& p, T* output, int threads) {
  const std::int64_t runs = (p.Q + p.queries() - 1) / p.queries(), token = p.token();
  expect_large_pages(output, p.B * p.Q * token * std::int64_t(sizeof(T)));
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
  for (std::int64_t n = 0; n < p.B * runs; ++n) {
    Block<T> block;
    const std::int64_t b = n / runs, q = n % runs * p.queries();
    T* sums = output + (b * p.Q + q) * token;
    std::memset(sums, 0, sizeof(T) * token * (p.Q - q < p.queries() ? p.Q - q : p.queries()));
    for (std::int64_t k = 0; k < p.K; ++k) {
      for_blocks(p, block, b, q, k, 0, p.L, [&](std::int64_t l) {
        const T* value = p.value + ((b * p.S + p.levels[l].start) * p.K + k) * p.D;
        for (int i = 0; i < block.queries; ++i)
          Channels<T, D>::sample(
              block, i * block.points, (i + 1) * block.points, value, token, sums + i * token + k * p.D, int(p.D));
      });
    }
  }
}

// ---- backward ------------------------------------------------------------------------------------------------------

template <typename T>
struct Gradients {
  const T* output;
  T *value, *locations, *weights;
};

template <typename T>
void finish_block(const Block<T>& block, const Level level, const Gradients<T>& gradients) {
  alignas(64) T location[2 * kBlock], weight[kBlock];
  const int count = block.queries * block.points, width = level.width, height = level.height;
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    const Axis<T> x = bilinear_axis(block.location[2 * i], width);
    const Axis<T> y = bilinear_axis(block.location[2 * i + 1], height);
    const T* dot = block.dot + 4 * i;
    const SampleGradient<T> gradient =
        sample_gradient(x, y, dot[0], dot[1], dot[2], dot[3], block.weight[i], width, height);
    location[2 * i] = gradient.x;
    location[2 * i + 1] = gradient.y;
    weight[i] = gradient.weight;
  }
  for (int q = 0; q < block.queries; ++q) {
    const std::int64_t to = block.first + q * block.stride;
    std::memcpy(gradients.locations + 2 * to, location + 2 * q * block.points, 2 * block.points * sizeof(T));
    std::memcpy(gradients.weights + to, weight + q * block.points, block.points * sizeof(T));
  }
}

// The levels [level, last) of one batch element and head. With `own`, room for twice their tokens, values and gradients
// lie side by side there while they are used, and every gradient is written once; without, they stay in place.
template <typename T, int D>
void backward_slice(const Problem<T>& p, const Gradients<T>& gradients, std::int64_t b, std::int64_t k,
                    std::int64_t level, std::int64_t last, T* own) {
  const std::int64_t token = p.token(), D_ = D ? D : p.D, begin = p.levels[level].start;
  const std::int64_t tokens = p.levels[last - 1].start + p.levels[last - 1].size - begin;
  const T* value = p.value + ((b * p.S + begin) * p.K + k) * D_;
  T* gradient = gradients.value + ((b * p.S + begin) * p.K + k) * D_;
  for (std::int64_t s = 0; own && s < tokens; ++s) {
    std::memcpy(own + 2 * s * D_, value + s * token, D_ * sizeof(T));
    std::memset(own + (2 * s + 1) * D_, 0, D_ * sizeof(T));
  }
  const T* from = own ? own : value;
  T* to = own ? own + D_ : gradient;
  const std::int64_t stride = own ? 2 * D_ : token;
  Block<T> block;
  for (std::int64_t q = 0; q < p.Q; q += p.queries()) {
    for_blocks(p, block, b, q, k, level, last, [&](std::int64_t l) {
      const std::int64_t offset = (p.levels[l].start - begin) * stride;
      for (int i = 0; i < block.queries; ++i) {
        const T* output = gradients.output + (b * p.Q + q + i) * token + k * D_;
        Channels<T, D>::scatter(
            block, i * block.points, (i + 1) * block.points, output, from + offset, to + offset, stride, int(D_));
      }
      finish_block(block, p.levels[l], gradients);
    });
  }
  for (std::int64_t s = 0; own && s < tokens; ++s)
    std::memcpy(gradient + s * token, own + (2 * s + 1) * D_, D_ * sizeof(T));
}

template <typename T, int D>
bool backward(const Problem<T>& p, const Gradients<T>& gradients, int threads) {
  const std::int64_t samples = p.B * p.Q * p.K * p.L * p.P, size = sizeof(T);
  expect_large_pages(gradients.value, p.B * p.S * p.token() * size);
  expect_large_pages(gradients.locations, 2 * samples * size);
  expect_large_pages(gradients.weights, samples * size);
  // By level as well where there are too few slices for the threads; every sum keeps its order, and so its bits.
  const bool by_level = p.B * p.K < 2 * threads;
  const std::int64_t slices = p.B * p.K * (by_level ? p.L : 1);
  std::int64_t tokens = by_level ? 0 : p.S;
  for (std::int64_t l = 0; l < p.L; ++l) tokens = p.levels[l].size > tokens ? p.levels[l].size : tokens;
  if (threads > slices) threads = int(slices);
  // Side by side is worth the copies where tokens are visited more often than that.
  const bool copies = 4 * p.Q * p.L * p.P >= 4 * p.S;
  Scratch<T> own(copies ? threads * 2 * tokens * p.D : 0);
  if (!own) return false;
  if (!copies) fill_zero(gradients.value, p.B * p.S * p.token(), threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
  for (std::int64_t n = 0; n < slices; ++n) {
    const std::int64_t l = by_level ? n / (p.B * p.K) : 0, pair = n % (p.B * p.K);
    T* mine = copies ? own.data() + omp_get_thread_num() * 2 * tokens * p.D : nullptr;
    backward_slice<T, D>(p, gradients, pair / p.K, pair % p.K, l, by_level ? l + 1 : p.L, mine);
  }
  return true;
}

// ---- C interface ---------------------------------------------------------------------------------------------------

constexpr int kMostLevels = 64;

// `sizes`: height and width of each level. False for more levels than there is room for.
inline bool read_levels(const std::int64_t* sizes, std::int64_t count, Level* levels) {
  if (count > kMostLevels) return false;
  for (std::int64_t l = 0, start = 0; l < count; start += levels[l++].size)
    levels[l] = {start, sizes[2 * l] * sizes[2 * l + 1], int(sizes[2 * l]), int(sizes[2 * l + 1])};
  return true;
}

template <typename T>
int run_forward(const Problem<T>& p, T* output, int threads) {
  switch (p.D) {
    case 8: return forward<T, 8>(p, output, threads), 0;
    case 16: return forward<T, 16>(p, output, threads), 0;
    case 32: return forward<T, 32>(p, output, threads), 0;
    default: return forward<T, 0>(p, output, threads), 0;
  }
}

template <typename T>
int run_backward(const Problem<T>& p, const Gradients<T>& gradients, int threads) {
  switch (p.D) {
    case 8: return backward<T, 8>(p, gradients, threads);
    case 16: return backward<T, 16>(p, gradients, threads);
    case 32: return backward<T, 32>(p, gradients, threads);
    default: return backward<T, 0>(p, gradients, threads);
  }
}

}  // namespace
}  // namespace codetr

using namespace codetr;

// `shape`: B, S, K, D, Q, L, P. `sizes`: height and width of each level. All return 0 when done.
#define CODETR_MS_DEFORM_ATTN(T, suffix)                                                                             \
  extern "C" int codetr_ms_deform_attn_##suffix(const T* value, const T* locations, const T* weights,                \
                                                const std::int64_t* sizes, const std::int64_t* shape, T* output,     \
                                                int threads) {                                                       \
    Level levels[kMostLevels];                                                                                       \
    if (!read_levels(sizes, shape[5], levels)) return 1;                                                             \
    const Problem<T> p{value,    locations, weights,  levels,   shape[0], shape[1],                                  \
                       shape[2], shape[3],  shape[4], shape[5], shape[6]};                                           \
    return run_forward(p, output, threads);                                                                          \
  }                                                                                                                  \
  extern "C" int codetr_ms_deform_attn_backward_##suffix(                                                            \
      const T* gradient, const T* value, const T* locations, const T* weights, const std::int64_t* sizes,            \
      const std::int64_t* shape, T* value_gradient, T* location_gradient, T* weight_gradient, int threads) {         \
    Level levels[kMostLevels];                                                                                       \
    if (!read_levels(sizes, shape[5], levels)) return 1;                                                             \
    const Problem<T> p{value,    locations, weights,  levels,   shape[0], shape[1],                                  \
                       shape[2], shape[3],  shape[4], shape[5], shape[6]};                                           \
    return run_backward(p, {gradient, value_gradient, location_gradient, weight_gradient}, threads) ? 0 : 2;         \
  }

CODETR_MS_DEFORM_ATTN(float, f32)
CODETR_MS_DEFORM_ATTN(double, f64)
