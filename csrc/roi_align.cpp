// RoIAlign on the CPU, forward and backward: feature [B, H, W, C] (channels last), regions [N, 5] (batch index, x1, y1,
// x2, y2 in pixels), output [N, C, bins, bins].
//
// The mean over a bin's samples is a weighted sum over the rows and columns it touches, with one factor for the row and
// one for the column: as many terms as cells, however many samples lie in a cell. Forward cuts the regions among the
// threads, backward the channels, so that one thread sums each cell in the order of the regions: the result is the
// same, bit for bit, whatever the number of threads.

#include "geometry.h"
#include "parallel.h"

namespace codetr {
namespace {

constexpr int kChannels = 64;  // handled together

// For each bin of one axis: the cells [first, last) it touches and the weight of each.
template <typename T>
struct Cells {
  std::int64_t size;
  std::int64_t *first, *last;
  T* weights;  // [bins, size], of which only [first, last) is filled

  // Numbers of T that `place` needs.
  static std::int64_t room(std::int64_t bins, std::int64_t size) {
    return bins * size + 2 * bins * std::int64_t(sizeof(std::int64_t) / sizeof(T) + 1);
  }
  Cells(T* memory, std::int64_t bins, std::int64_t size)
      : size(size),
        first(reinterpret_cast<std::int64_t*>(memory)),
        last(first + bins),
        weights(reinterpret_cast<T*>(last + bins)) {}

  void fill(const RoiAxis<T>& roi, int bins) {
    for (int bin = 0; bin < bins; ++bin) {
      T* row = weights + bin * size;
      first[bin] = last[bin] = 0;
      for (int sample = 0; sample < roi.samples; ++sample) {
        const Axis<T> axis = roi_sample(roi, bin, sample, int(size));
        if (sample == 0) first[bin] = last[bin] = axis.low;
        for (; last[bin] <= axis.high; ++last[bin]) row[last[bin]] = T(0);
        row[axis.low] += axis.low_weight / T(roi.samples);
        row[axis.high] += axis.high_weight / T(roi.samples);
      }
    }
  }
};

template <typename T>
struct Problem {
  const T* regions;
  std::int64_t B, H, W, C, N;
  int bins;
  T scale;

  std::int64_t room() const { return (Cells<T>::room(bins, H) + Cells<T>::room(bins, W) + 7) / 8 * 8; }
  std::int64_t batch(std::int64_t n) const { return std::int64_t(regions[5 * n]); }

  void fill(std::int64_t n, Cells<T>& rows, Cells<T>& columns) const {
    const T* region = regions + 5 * n;
    columns.fill(roi_axis(region[1], region[3], scale, bins), bins);
    rows.fill(roi_axis(region[2], region[4], scale, bins), bins);
  }
};

// Calls `visit(bin, cell, weight)` for every cell of every bin.
template <typename T, typename Visit>
CODETR_FN void for_cells(const Problem<T>& p, const Cells<T>& rows, const Cells<T>& columns, int i, int j,
                         Visit visit) {
  for (std::int64_t y = rows.first[i]; y < rows.last[i]; ++y)
    for (std::int64_t x = columns.first[j]; x < columns.last[j]; ++x)
      visit((y * p.W + x) * p.C, rows.weights[i * p.H + y] * columns.weights[j * p.W + x]);
}

// `tile` [bins * bins, kChannels]: one region's outputs for some channels. Width: their number if known, or 0.
template <typename T, int Width>
void sample(const Problem<T>& p, const Cells<T>& rows, const Cells<T>& columns, const T* feature, T* tile, int width) {
  for (int i = 0; i < p.bins; ++i) {
    for (int j = 0; j < p.bins; ++j, tile += kChannels) {
      alignas(64) T sum[kChannels] = {};
      for_cells(p, rows, columns, i, j, [&](std::int64_t cell, T weight) {
#pragma omp simd
        for (int c = 0; c < (Width ? Width : width); ++c) sum[c] += weight * feature[cell + c];
      });
      std::memcpy(tile, sum, sizeof(sum));
    }
  }
}

template <typename T, int Width>
void scatter(const Problem<T>& p, const Cells<T>& rows, const Cells<T>& columns, T* gradient, const T* tile,
             int width) {
  for (int i = 0; i < p.bins; ++i)
    for (int j = 0; j < p.bins; ++j, tile += kChannels)
      for_cells(p, rows, columns, i, j, [&](std::int64_t cell, T weight) {
#pragma omp simd
        for (int c = 0; c < (Width ? Width : width); ++c) gradient[cell + c] += weight * tile[c];
      });
}

template <typename T>
bool forward(const Problem<T>& p, const T* feature, T* output, int threads) {
  const std::int64_t area = p.bins * p.bins, room = p.room() + area * kChannels;
  Scratch<T> scratch(threads * room);
  if (!scratch) return false;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
  for (std::int64_t n = 0; n < p.N; ++n) {
    T* tile = scratch.data() + omp_get_thread_num() * room;
    T* memory = tile + area * kChannels;
    Cells<T> rows(memory, p.bins, p.H), columns(memory + Cells<T>::room(p.bins, p.H), p.bins, p.W);
    p.fill(n, rows, columns);
    for (std::int64_t c = 0; c < p.C; c += kChannels) {
      const int width = int(p.C - c < kChannels ? p.C - c : kChannels);
      const T* from = feature + p.batch(n) * p.H * p.W * p.C + c;
      if (width == kChannels) {
        sample<T, kChannels>(p, rows, columns, from, tile, width);
      } else {
        sample<T, 0>(p, rows, columns, from, tile, width);
      }
      for (int d = 0; d < width; ++d)
        for (std::int64_t bin = 0; bin < area; ++bin)
          output[(n * p.C + c + d) * area + bin] = tile[bin * kChannels + d];
    }
  }
  return true;
}

template <typename T>
bool backward(const Problem<T>& p, const T* gradient, T* feature_gradient, int threads) {
  const std::int64_t area = p.bins * p.bins, room = p.room() + area * kChannels;
  const std::int64_t parts = (p.C + kChannels - 1) / kChannels, image = p.H * p.W * p.C;
  Scratch<T> scratch(threads * room);
  if (!scratch) return false;
  expect_large_pages(feature_gradient, p.B * image * std::int64_t(sizeof(T)));
  fill_zero(feature_gradient, p.B * image, threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
  for (std::int64_t part = 0; part < p.B * parts; ++part) {
    const std::int64_t b = part / parts, c = part % parts * kChannels;
    const int width = int(p.C - c < kChannels ? p.C - c : kChannels);
    T* tile = scratch.data() + omp_get_thread_num() * room;
    T* memory = tile + area * kChannels;
    Cells<T> rows(memory, p.bins, p.H), columns(memory + Cells<T>::room(p.bins, p.H), p.bins, p.W);
    for (std::int64_t n = 0; n < p.N; ++n) {
      if (p.batch(n) != b) continue;
      p.fill(n, rows, columns);
      for (int d = 0; d < width; ++d)
        for (std::int64_t bin = 0; bin < area; ++bin)
          tile[bin * kChannels + d] = gradient[(n * p.C + c + d) * area + bin];
      if (width == kChannels) {
        scatter<T, kChannels>(p, rows, columns, feature_gradient + b * image + c, tile, width);
      } else {
        scatter<T, 0>(p, rows, columns, feature_gradient + b * image + c, tile, width);
      }
    }
  }
  return true;
}

}  // namespace
}  // namespace codetr

// `shape`: B, H, W, C, N. 0 when done, 1 where there is no memory. Batch indices are for the caller to check.
#define CODETR_ROI_ALIGN(T, suffix)                                                                                 \
  extern "C" int codetr_roi_align_##suffix(const T* feature, const T* regions, const std::int64_t* shape, int bins, \
                                           double scale, T* output, int threads) {                                  \
    const codetr::Problem<T> p{regions, shape[0], shape[1], shape[2], shape[3], shape[4], bins, T(scale)};          \
    return codetr::forward(p, feature, output, threads) ? 0 : 1;                                                    \
  }                                                                                                                 \
  extern "C" int codetr_roi_align_backward_##suffix(const T* gradient, const T* regions, const std::int64_t* shape, \
                                                    int bins, double scale, T* feature_gradient, int threads) {     \
    const codetr::Problem<T> p{regions, shape[0], shape[1], shape[2], shape[3], shape[4], bins, T(scale)};          \
    return codetr::backward(p, gradient, feature_gradient, threads) ? 0 : 1;                                        \
  }

CODETR_ROI_ALIGN(float, f32)
CODETR_ROI_ALIGN(double, f64)
