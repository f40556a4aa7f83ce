// Which ground truth each candidate overlaps most, and which candidates each ground truth overlaps most, without the
// table of all pairs. Compiled without fused multiply-add, so that an overlap is that of `iou_pairwise` to the last bit.

#include <algorithm>
#include <limits>
#include <vector>

#include "parallel.h"

namespace codetr {
namespace {

constexpr std::int64_t kBlock = 512;  // candidates looked at together; neighbours, so that most boxes pass them by

template <typename T>
inline T larger_of(T a, T b) {
  return a > b ? a : b;
}

template <typename T>
inline T smaller_of(T a, T b) {
  return a < b ? a : b;
}

// The candidates of a block that take part, as one array for each coordinate, and the box around all of them.
template <typename T>
struct Block {
  T x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];
  std::int64_t number[kBlock];
  std::int64_t count = 0;
  T left, top, right, bottom;

  Block(const T* boxes, const bool* valid, std::int64_t begin, std::int64_t end) {
    left = top = std::numeric_limits<T>::max(), right = bottom = std::numeric_limits<T>::lowest();
    for (std::int64_t i = begin; i < end; ++i) {
      if (!valid[i]) continue;
      const T* box = boxes + 4 * i;
      x1[count] = box[0], y1[count] = box[1], x2[count] = box[2], y2[count] = box[3];
      area[count] = (box[2] - box[0]) * (box[3] - box[1]);
      left = smaller_of(left, box[0]), top = smaller_of(top, box[1]);
      right = larger_of(right, box[2]), bottom = larger_of(bottom, box[3]);
      number[count++] = i;
    }
  }

  // False where every overlap with the box is 0.
  bool touches(const T* box) const {
    return box[0] < right && box[2] > left && box[1] < bottom && box[3] > top;
  }
};

// One ground truth against the candidates of a block; written as model/boxes.py has it.
template <typename T>
struct Row {
  T x1, y1, x2, y2, area;

  explicit Row(const T* box)
      : x1(box[0]), y1(box[1]), x2(box[2]), y2(box[3]), area((box[2] - box[0]) * (box[3] - box[1])) {}

  inline __attribute__((always_inline)) T iou(const Block<T>& block, std::int64_t i) const {
    const T width = larger_of(smaller_of(x2, block.x2[i]) - larger_of(x1, block.x1[i]), T(0));
    const T height = larger_of(smaller_of(y2, block.y2[i]) - larger_of(y1, block.y1[i]), T(0));
    const T overlap = width * height;
    return overlap / larger_of(area + block.area[i] - overlap, T(1e-6));
  }
};

struct Shape {
  std::int64_t images, gts, candidates;
  bool own_candidates;  // each image has its own
  std::int64_t blocks() const { return (candidates + kBlock - 1) / kBlock; }
};

// The largest overlap of each candidate with its owner, the first of equals; of each ground truth the largest in the
// block goes to `most`. -1 and 0 where nothing takes part.
template <typename T>
void best_of_block(const Block<T>& block, const T* gts, const bool* gt_valid, std::int64_t num_gts, T* iou,
                   std::int64_t* owner, T* most) {
  T best[kBlock];
  std::int32_t best_gt[kBlock];
  const std::int64_t count = block.count;
  std::fill(best, best + count, T(-1));
  std::fill(best_gt, best_gt + count, 0);
  bool first = true;
  for (std::int64_t g = 0; g < num_gts; ++g) {
    most[g] = T(-1);
    if (!gt_valid[g] || !count) continue;
    T largest = T(0);
    if (block.touches(gts + 4 * g)) {
      const Row<T> row(gts + 4 * g);
      const std::int32_t gt = std::int32_t(g);
#pragma omp simd reduction(max : largest)
      for (std::int64_t i = 0; i < count; ++i) {
        const T value = row.iou(block, i);
        const bool more = value > best[i];
        best[i] = more ? value : best[i];
        best_gt[i] = more ? gt : best_gt[i];
        largest = value > largest ? value : largest;
      }
    } else if (first) {  // all overlaps are 0, and the first of these counts
      std::fill(best, best + count, T(0));
      std::fill(best_gt, best_gt + count, std::int32_t(g));
    }
    first = false;
    most[g] = largest;
  }
  for (std::int64_t i = 0; i < count; ++i) iou[block.number[i]] = best[i], owner[block.number[i]] = best_gt[i];
}

// Each ground truth whose largest overlap is above 0 and reaches `least` claims all candidates that have it; the last
// claim stands.
template <typename T>
void claim(const T* gts, const T* boxes, const bool* valid, const Shape& shape, const T* most, T least,
           std::int64_t* claimant) {
  const std::int64_t blocks = shape.blocks();
  for (std::int64_t g = 0; g < shape.gts; ++g) {
    T best = T(-1);
    for (std::int64_t b = 0; b < blocks; ++b) best = larger_of(best, most[b * shape.gts + g]);
    if (!(best > T(0) && best >= least)) continue;
    const Row<T> row(gts + 4 * g);
    for (std::int64_t b = 0; b < blocks; ++b) {
      if (most[b * shape.gts + g] != best) continue;
      const Block<T> block(boxes, valid, b * kBlock, std::min((b + 1) * kBlock, shape.candidates));
      for (std::int64_t i = 0; i < block.count; ++i)
        if (row.iou(block, i) == best) claimant[block.number[i]] = g;
    }
  }
}

template <typename T>
void best_overlaps(const T* gts, const bool* gt_valid, const T* candidates, const bool* valid, const Shape& shape,
                   T least, T* iou, std::int64_t* owner, std::int64_t* claimant, int threads) {
  const std::int64_t blocks = shape.blocks();
  std::vector<T> most(shape.images * blocks * shape.gts);
  const auto boxes_of = [&](std::int64_t image) {
    return candidates + (shape.own_candidates ? 4 * image * shape.candidates : 0);
  };
#pragma omp parallel for schedule(dynamic, 16) num_threads(threads) if (threads > 1)
  for (std::int64_t part = 0; part < shape.images * blocks; ++part) {
    const std::int64_t image = part / blocks, begin = part % blocks * kBlock, row = image * shape.candidates;
    const std::int64_t end = std::min(begin + kBlock, shape.candidates);
    std::fill(iou + row + begin, iou + row + end, T(-1));
    std::fill(owner + row + begin, owner + row + end, std::int64_t(0));
    const Block<T> block(boxes_of(image), valid + row, begin, end);
    best_of_block(block, gts + 4 * image * shape.gts, gt_valid + image * shape.gts, shape.gts, iou + row, owner + row,
                  most.data() + part * shape.gts);
  }
  if (!claimant) return;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
  for (std::int64_t image = 0; image < shape.images; ++image) {
    const std::int64_t row = image * shape.candidates;
    std::fill(claimant + row, claimant + row + shape.candidates, std::int64_t(-1));
    claim(gts + 4 * image * shape.gts, boxes_of(image), valid + row, shape, most.data() + image * blocks * shape.gts,
          least, claimant + row);
  }
}

}  // namespace
}  // namespace codetr

// -1 where there is no memory. `shape`: images, ground truths, candidates, and 1 where each image has candidates of its
// own. `claimant` may be null.
#define CODETR_BEST_OVERLAPS(T, suffix)                                                                               \
  extern "C" int codetr_best_overlaps_##suffix(                                                                       \
      const T* gts, const bool* gt_valid, const T* candidates, const bool* valid, const std::int64_t* shape,          \
      double least, T* iou, std::int64_t* owner, std::int64_t* claimant, int threads) try {                           \
    const codetr::Shape sizes{shape[0], shape[1], shape[2], shape[3] != 0};                                           \
    codetr::best_overlaps(gts, gt_valid, candidates, valid, sizes, T(least), iou, owner, claimant, threads);          \
    return 0;                                                                                                         \
  } catch (...) {                                                                                                     \
    return -1;                                                                                                        \
  }

CODETR_BEST_OVERLAPS(float, f32)
CODETR_BEST_OVERLAPS(double, f64)
