// Non-maximum suppression on the CPU, hard and soft. Boxes [N, 4] as (x1, y1, x2, y2); boxes of different labels never
// touch each other. Compiled without fused multiply-add, so that a decision at the threshold is that of the reference.

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "geometry.h"
#include "parallel.h"

namespace codetr {
namespace {

constexpr std::int64_t kPairsWorthThreads = 1 << 21;  // some tenths of a millisecond

// Boxes as one array for each coordinate, which is what vectors want.
template <typename T>
struct Boxes {
  std::vector<T> x1, y1, x2, y2, area;

  explicit Boxes(std::int64_t count) : x1(count), y1(count), x2(count), y2(count), area(count) {}

  void set(std::int64_t i, const T* box) {
    x1[i] = box[0], y1[i] = box[1], x2[i] = box[2], y2[i] = box[3];
    area[i] = box_area(box[0], box[1], box[2], box[3]);
  }
  Box<T> operator[](std::int64_t i) const { return {x1[i], y1[i], x2[i], y2[i], area[i]}; }
};

// Numbers of the boxes, label by label; `begin` tells where each label's begin, and has the total at its end.
struct ByLabel {
  std::vector<std::int64_t> numbers, begin;

  ByLabel(const std::int64_t* labels, std::int64_t count) : numbers(count) {
    std::iota(numbers.begin(), numbers.end(), 0);
    std::stable_sort(numbers.begin(), numbers.end(), [&](auto a, auto b) { return labels[a] < labels[b]; });
    for (std::int64_t i = 0; i < count; ++i)
      if (i == 0 || labels[numbers[i]] != labels[numbers[i - 1]]) begin.push_back(i);
    begin.push_back(count);
  }
};

// Greedy suppression among the boxes [begin, end), which come by descending score.
template <typename T>
void suppress(const Boxes<T>& boxes, std::int64_t begin, std::int64_t end, T threshold, std::int32_t* dropped) {
  const T *x1 = boxes.x1.data(), *y1 = boxes.y1.data(), *x2 = boxes.x2.data(), *y2 = boxes.y2.data();
  const T* area = boxes.area.data();
  for (std::int64_t i = begin; i < end; ++i) {
    if (dropped[i]) continue;
    const Box<T> best = boxes[i];
#pragma omp simd
    for (std::int64_t j = i + 1; j < end; ++j)
      dropped[j] |= box_iou(best, Box<T>{x1[j], y1[j], x2[j], y2[j], area[j]}) > threshold ? 1 : 0;
  }
}

// `keep[n]`: whether box n stays. The boxes come by descending score.
template <typename T>
void nms(const T* boxes_xyxy, const std::int64_t* labels, std::int64_t count, T threshold, bool* keep, int threads) {
  const ByLabel groups(labels, count);
  Boxes<T> boxes(count);
  std::vector<std::int32_t> dropped(count, 0);
  for (std::int64_t i = 0; i < count; ++i) boxes.set(i, boxes_xyxy + 4 * groups.numbers[i]);
  const auto number_of_groups = std::int64_t(groups.begin.size()) - 1;
  std::int64_t pairs = 0;  // at most
  for (std::int64_t g = 0; g < number_of_groups; ++g) {
    const std::int64_t size = groups.begin[g + 1] - groups.begin[g];
    pairs += size * size / 2;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1 && pairs > kPairsWorthThreads)
  for (std::int64_t g = 0; g < number_of_groups; ++g)
    suppress(boxes, groups.begin[g], groups.begin[g + 1], threshold, dropped.data());
  for (std::int64_t i = 0; i < count; ++i) keep[groups.numbers[i]] = !dropped[i];
}

// The best box of what is left is taken, the others that overlap it lose score, and so on until nothing is left above
// `min_score`, which the first box need not reach (official). Writes numbers and final scores in the order of selection; returns how many.
template <typename T>
std::int64_t soft_nms(const T* boxes_xyxy, const T* scores, const std::int64_t* labels, std::int64_t count, T threshold,
                      T min_score, std::int64_t* taken, T* taken_scores) {
  Boxes<T> boxes(count);
  std::vector<T> left(scores, scores + count);
  for (std::int64_t i = 0; i < count; ++i) boxes.set(i, boxes_xyxy + 4 * i);
  for (std::int64_t n = 0; n < count; ++n) {
    const auto best = std::max_element(left.begin(), left.end()) - left.begin();
    if (n && !(left[best] >= min_score)) return n;
    taken[n] = best, taken_scores[n] = left[best];
    const Box<T> box = boxes[best];
    const std::int64_t label = labels[best];
    left[best] = T(-1);
    for (std::int64_t i = 0; i < count; ++i) {
      const T iou = box_iou(box, boxes[i]);
      left[i] = iou >= threshold && labels[i] == label && left[i] >= min_score ? left[i] * (T(1) - iou) : left[i];
    }
  }
  return count;
}

}  // namespace
}  // namespace codetr

// -1 where there is no memory; otherwise 0, and the number of boxes taken for soft suppression.
#define CODETR_NMS(T, suffix)                                                                                          \
  extern "C" int codetr_nms_##suffix(const T* boxes, const std::int64_t* labels, std::int64_t count, double threshold, \
                                     bool* keep, int threads) try {                                                    \
    return codetr::nms(boxes, labels, count, T(threshold), keep, threads), 0;                                          \
  } catch (...) {                                                                                                      \
    return -1;                                                                                                         \
  }                                                                                                                    \
  extern "C" std::int64_t codetr_soft_nms_##suffix(const T* boxes, const T* scores, const std::int64_t* labels,        \
                                                   std::int64_t count, double threshold, double min_score,             \
                                                   std::int64_t* taken, T* taken_scores) try {                         \
    return codetr::soft_nms(boxes, scores, labels, count, T(threshold), T(min_score), taken, taken_scores);            \
  } catch (...) {                                                                                                      \
    return -1;                                                                                                         \
  }

CODETR_NMS(float, f32)
CODETR_NMS(double, f64)
