// Multi-scale deformable attention on the CPU, forward and backward. All arrays are contiguous:
//   value [B, S, K, D]   locations [B, Q, K, L, P, 2] as (x, y)   weights [B, Q, K, L, P]   output [B, Q, K, D]
//
// The values of one head lie far apart; where they are visited often, a thread first copies them side by side, into
// cache. Nothing is shared between threads: forward cuts heads and queries, backward the slices of one batch element,
// head and perhaps level, each summed in the order of the queries. So the result is the same, bit for bit, whatever the
// number of threads.

#include "sample_blocks.h"

namespace codetr {
namespace {

// ---- forward -------------------------------------------------------------------------------------------------------

// Whether tokens are visited so often that a copy of one head's values, side by side, is worth its making.
template <typename T>
bool visited_often(const Problem<T>& p) {
  return p.Q * p.L * p.P >= p.S;
}

// The queries from `q` on that make a block, at one head; `level` gives the values of a level, `stride` apart.
template <typename T, int D, typename Values>
CODETR_FN void forward_block(const Problem<T>& p, Block<T>& block, std::int64_t b, std::int64_t q, std::int64_t k,
                             Values level, std::int64_t stride, T* output) {
  const std::int64_t token = p.token(), width = D ? D : p.D;
  T* sums = output + (b * p.Q + q) * token + k * width;
  for (std::int64_t i = 0; i < p.queries() && q + i < p.Q; ++i) std::memset(sums + i * token, 0, width * sizeof(T));
  for_blocks(p, block, b, q, k, 0, p.L, [&](std::int64_t l) {
    for (int i = 0; i < block.queries; ++i)
      Channels<T, D>::sample(block, i * block.points, (i + 1) * block.points, level(l), stride, sums + i * token,
                             int(width));
  });
}

template <typename T, int D>
bool forward(const Problem<T>& p, T* output, int threads) {
  const std::int64_t run = p.queries(), runs = (p.Q + run - 1) / run, token = p.token(), width = D ? D : p.D;
  expect_large_pages(output, p.B * p.Q * token * std::int64_t(sizeof(T)));
  if (!visited_often(p)) {
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
    for (std::int64_t n = 0; n < p.B * runs; ++n) {
      Block<T> block;
      const std::int64_t b = n / runs;
      for (std::int64_t k = 0; k < p.K; ++k) {
        const auto level = [&](std::int64_t l) { return p.value + ((b * p.S + p.levels[l].start) * p.K + k) * width; };
        forward_block<T, D>(p, block, b, n % runs * run, k, level, token, output);
      }
    }
    return true;
  }
  // One batch element and head at a time; with many threads, a part of its queries.
  const std::int64_t pairs = p.B * p.K, parts = pairs < 2 * threads ? (2 * threads + pairs - 1) / pairs : 1;
  const std::int64_t runs_of_part = (runs + parts - 1) / parts;
  Scratch<T> own(threads * p.S * width);
  if (!own) return false;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
  for (std::int64_t n = 0; n < pairs * parts; ++n) {
    Block<T> block;
    const std::int64_t b = n / parts / p.K, k = n / parts % p.K, first = n % parts * runs_of_part * run;
    T* mine = own.data() + omp_get_thread_num() * p.S * width;
    const T* value = p.value + (b * p.S * p.K + k) * width;
    for (std::int64_t s = 0; s < p.S; ++s) std::memcpy(mine + s * width, value + s * token, width * sizeof(T));
    const auto level = [&](std::int64_t l) { return mine + p.levels[l].start * width; };
    for (std::int64_t q = first; q < first + runs_of_part * run && q < p.Q; q += run)
      forward_block<T, D>(p, block, b, q, k, level, width, output);
  }
  return true;
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

// Some levels of one batch element and head.
struct Slice {
  std::int64_t b, k, level, last_level;
};

// Values from `from`, their gradients added to `to`; both begin with the slice's first level.
template <typename T, int D>
CODETR_FN void backward_queries(const Problem<T>& p, const Gradients<T>& gradients, const Slice slice, const T* from,
                                T* to, std::int64_t stride) {
  Block<T> block;
  const std::int64_t width = D ? D : p.D;
  for (std::int64_t q = 0; q < p.Q; q += p.queries()) {
    for_blocks(p, block, slice.b, q, slice.k, slice.level, slice.last_level, [&](std::int64_t l) {
      const std::int64_t offset = (p.levels[l].start - p.levels[slice.level].start) * stride;
      for (int i = 0; i < block.queries; ++i) {
        const T* output = gradients.output + (slice.b * p.Q + q + i) * p.token() + slice.k * width;
        Channels<T, D>::scatter(block, i * block.points, (i + 1) * block.points, output, from + offset, to + offset,
                                stride, int(width));
      }
      finish_block(block, p.levels[l], gradients);
    });
  }
}

// With `own`, room for twice the slice's tokens, values and gradients lie side by side there while they are used, and
// every gradient is written once; without, they stay in place.
template <typename T, int D>
void backward_slice(const Problem<T>& p, const Gradients<T>& gradients, const Slice slice, T* own) {
  const std::int64_t token = p.token(), width = D ? D : p.D;
  const Level first = p.levels[slice.level], last = p.levels[slice.last_level - 1];
  const std::int64_t tokens = last.start + last.size - first.start;
  const std::int64_t begin = ((slice.b * p.S + first.start) * p.K + slice.k) * width;
  const T* value = p.value + begin;
  T* gradient = gradients.value + begin;
  if (!own) return backward_queries<T, D>(p, gradients, slice, value, gradient, token);
  for (std::int64_t s = 0; s < tokens; ++s) {
    std::memcpy(own + 2 * s * width, value + s * token, width * sizeof(T));
    std::memset(own + (2 * s + 1) * width, 0, width * sizeof(T));
  }
  backward_queries<T, D>(p, gradients, slice, own, own + width, 2 * width);
  for (std::int64_t s = 0; s < tokens; ++s)
    std::memcpy(gradient + s * token, own + (2 * s + 1) * width, width * sizeof(T));
}

template <typename T, int D>
bool backward(const Problem<T>& p, const Gradients<T>& gradients, int threads) {
  const std::int64_t samples = p.B * p.Q * p.K * p.L * p.P, size = sizeof(T), pairs = p.B * p.K;
  expect_large_pages(gradients.value, p.B * p.S * p.token() * size);
  expect_large_pages(gradients.locations, 2 * samples * size);
  expect_large_pages(gradients.weights, samples * size);
  // By level as well where there are too few slices for the threads; every sum keeps its order, and so its bits.
  const bool by_level = pairs < 2 * threads;
  const std::int64_t slices = pairs * (by_level ? p.L : 1);
  std::int64_t tokens = by_level ? 0 : p.S;
  for (std::int64_t l = 0; l < p.L; ++l) tokens = p.levels[l].size > tokens ? p.levels[l].size : tokens;
  if (threads > slices) threads = slices > 0 ? int(slices) : 1;
  const bool copies = visited_often(p);
  Scratch<T> own(copies ? threads * 2 * tokens * p.D : 0);
  if (!own) return false;
  if (!copies) fill_zero(gradients.value, p.B * p.S * p.token(), threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
  for (std::int64_t n = 0; n < slices; ++n) {
    const std::int64_t pair = n % pairs, level = by_level ? n / pairs : 0;
    T* mine = copies ? own.data() + omp_get_thread_num() * 2 * tokens * p.D : nullptr;
    backward_slice<T, D>(p, gradients, {pair / p.K, pair % p.K, level, by_level ? level + 1 : p.L}, mine);
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
bool run_forward(const Problem<T>& p, T* output, int threads) {
  switch (p.D) {
    case 8:
      return forward<T, 8>(p, output, threads);
    case 16:
      return forward<T, 16>(p, output, threads);
    case 32:
      return forward<T, 32>(p, output, threads);
    default:
      return forward<T, 0>(p, output, threads);
  }
}

template <typename T>
bool run_backward(const Problem<T>& p, const Gradients<T>& gradients, int threads) {
  switch (p.D) {
    case 8:
      return backward<T, 8>(p, gradients, threads);
    case 16:
      return backward<T, 16>(p, gradients, threads);
    case 32:
      return backward<T, 32>(p, gradients, threads);
    default:
      return backward<T, 0>(p, gradients, threads);
  }
}

}  // namespace
}  // namespace codetr

using namespace codetr;

// `shape`: B, S, K, D, Q, L, P. `sizes`: height and width of each level. All return 0 when done.
#define CODETR_MS_DEFORM_ATTN(T, suffix)                                                                         \
  extern "C" int codetr_ms_deform_attn_##suffix(const T* value, const T* locations, const T* weights,            \
                                                const std::int64_t* sizes, const std::int64_t* shape, T* output, \
                                                int threads) {                                                   \
    Level levels[kMostLevels];                                                                                   \
    if (!read_levels(sizes, shape[5], levels)) return 1;                                                         \
    const Problem<T> p{value,    locations, weights,  levels,   shape[0], shape[1],                              \
                       shape[2], shape[3],  shape[4], shape[5], shape[6]};                                       \
    return run_forward(p, output, threads) ? 0 : 2;                                                              \
  }                                                                                                              \
  extern "C" int codetr_ms_deform_attn_backward_##suffix(                                                        \
      const T* gradient, const T* value, const T* locations, const T* weights, const std::int64_t* sizes,        \
      const std::int64_t* shape, T* value_gradient, T* location_gradient, T* weight_gradient, int threads) {     \
    Level levels[kMostLevels];                                                                                   \
    if (!read_levels(sizes, shape[5], levels)) return 1;                                                         \
    const Problem<T> p{value,    locations, weights,  levels,   shape[0], shape[1],                              \
                       shape[2], shape[3],  shape[4], shape[5], shape[6]};                                       \
    return run_backward(p, {gradient, value_gradient, location_gradient, weight_gradient}, threads) ? 0 : 2;     \
  }

CODETR_MS_DEFORM_ATTN(float, f32)
CODETR_MS_DEFORM_ATTN(double, f64)
