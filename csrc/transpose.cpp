// The transpose of a matrix, which oneDNN wants before the product that gives a weight's gradient.

#include "parallel.h"

namespace codetr {
namespace {

constexpr std::int64_t kSide = 16;  // of a tile: its rows are cache lines of float32, on both sides

// in [rows, columns] to out [columns, rows].
template <typename T>
void transpose(const T* in, std::int64_t rows, std::int64_t columns, T* out, int threads) {
  expect_large_pages(out, rows * columns * std::int64_t(sizeof(T)));
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t c = 0; c < columns; c += kSide) {
    const std::int64_t width = columns - c < kSide ? columns - c : kSide;
    T tile[kSide][kSide];
    for (std::int64_t r = 0; r < rows; r += kSide) {
      const std::int64_t height = rows - r < kSide ? rows - r : kSide;
      for (std::int64_t i = 0; i < height; ++i)
        for (std::int64_t j = 0; j < width; ++j) tile[i][j] = in[(r + i) * columns + c + j];
      for (std::int64_t j = 0; j < width; ++j)
        for (std::int64_t i = 0; i < height; ++i) out[(c + j) * rows + r + i] = tile[i][j];
    }
  }
}

}  // namespace
}  // namespace codetr

#define CODETR_TRANSPOSE(T, suffix)                                                                                   \
  extern "C" int codetr_transpose_##suffix(const T* in, const std::int64_t* shape, T* out, int threads) {             \
    codetr::transpose(in, shape[0], shape[1], out, threads);                                                          \
    return 0;                                                                                                         \
  }

CODETR_TRANSPOSE(float, f32)
CODETR_TRANSPOSE(double, f64)
