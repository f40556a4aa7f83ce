// The maths of the operators, shared by the C++ and the CUDA side, so that what the CPU tests check is what a GPU runs.
// No headers are included: NVRTC has none. Everything is branch-free where a compiler should make vectors of it.
#pragma once

#ifdef __CUDACC__
#define CODETR_FN __host__ __device__ __forceinline__
#else
#define CODETR_FN inline __attribute__((always_inline))
#endif

namespace codetr {

// ---- bilinear sampling with zeros outside (deformable attention) ---------------------------------------------------

// What one coordinate contributes: two neighbouring indices, their weights, and the weights' derivatives. A neighbour
// outside the map has weight and slope zero, and its index is moved inside, so that reading there is always allowed.
template <typename T>
struct Axis {
  int low, high;
  T low_weight, high_weight;
  T low_slope, high_slope;
};

#ifdef __CUDACC__
CODETR_FN float round_down(float x) { return floorf(x); }
CODETR_FN double round_down(double x) { return floor(x); }
#else
CODETR_FN float round_down(float x) { return __builtin_floorf(x); }
CODETR_FN double round_down(double x) { return __builtin_floor(x); }
#endif

template <typename T>
CODETR_FN T larger(T a, T b) {
  return a > b ? a : b;  // b where a is not a number
}

template <typename T>
CODETR_FN T smaller(T a, T b) {
  return a < b ? a : b;
}

CODETR_FN int clamp(int index, int last) { return smaller(larger(index, 0), last); }

// `location` is normalised to [0, 1] over the map: `location * size - 0.5` is the index, rounded on the way just as
// grid_sample rounds. Untrained offsets are whole pixels, and which neighbours a location exactly at a pixel's centre
// has, and so its derivative, is decided by the last bit. A location that is not a number gives weights that are none
// either, instead of hiding the accident.
template <typename T>
CODETR_FN Axis<T> bilinear_axis(T location, int size) {
  const T grid = T(2) * location - T(1);
  const T pixel = (grid + T(1)) * (T(size) / T(2)) - T(0.5);
  // Two cells outside counts as little as any farther, and fits an int.
  const T low_bounded = round_down(smaller(larger(pixel, T(-2)), T(size) + T(1)));
  const T fraction = pixel - low_bounded;
  const int low = int(low_bounded);
  const int last = size - 1;
  Axis<T> axis;
  axis.low = clamp(low, last);
  axis.high = clamp(low + 1, last);
  const T low_inside = axis.low == low ? T(1) : T(0);
  const T high_inside = axis.high == low + 1 ? T(1) : T(0);
  axis.low_weight = (T(1) - fraction) * low_inside;
  axis.high_weight = fraction * high_inside;
  axis.low_slope = -low_inside;
  axis.high_slope = high_inside;
  return axis;
}

// Gradients of one sample, of which `dots` are the products of the output's gradient with the value at each corner
// (first letter: row, second: column).
template <typename T>
struct SampleGradient {
  T x, y, weight;
};

template <typename T>
CODETR_FN SampleGradient<T> sample_gradient(const Axis<T>& x, const Axis<T>& y, T low_low, T low_high, T high_low,
                                            T high_high, T weight, int width, int height) {
  const T low_row = x.low_weight * low_low + x.high_weight * low_high;
  const T high_row = x.low_weight * high_low + x.high_weight * high_high;
  const T low_row_dx = x.low_slope * low_low + x.high_slope * low_high;
  const T high_row_dx = x.low_slope * high_low + x.high_slope * high_high;
  SampleGradient<T> gradient;
  gradient.weight = y.low_weight * low_row + y.high_weight * high_row;
  gradient.x = weight * T(width) * (y.low_weight * low_row_dx + y.high_weight * high_row_dx);
  gradient.y = weight * T(height) * (y.low_slope * low_row + y.high_slope * high_row);
  return gradient;
}

// ---- RoIAlign ------------------------------------------------------------------------------------------------------

// One axis of a region: where its first bin begins, how wide a bin is (both in cells of the map), samples in a bin.
template <typename T>
struct RoiAxis {
  T start, bin;
  int samples;
};

// Cell centres lie at half cells. As many samples as a bin has cells, rounded up; none, and so zeros, for a region that
// is empty, turned around or not a number. No map is so large that a bin needs more than `kMostSamples`.
constexpr int kMostSamples = 4096;

template <typename T>
CODETR_FN RoiAxis<T> roi_axis(T low, T high, T scale, int bins) {
  RoiAxis<T> axis;
  axis.start = low * scale - T(0.5);
  const T length = (high * scale - T(0.5)) - axis.start;
  axis.bin = length / T(bins);
  const T bounded = axis.bin > T(0) ? smaller(axis.bin, T(kMostSamples)) : T(0);
  axis.samples = int(bounded);
  axis.samples += bounded > T(axis.samples) ? 1 : 0;  // rounded up
  return axis;
}

// The two cells a sample lies between. Up to one cell outside counts as the border, farther outside as zero.
template <typename T>
CODETR_FN Axis<T> roi_sample(const RoiAxis<T>& roi, int bin, int sample, int size) {
  T position = roi.start + T(bin) * roi.bin + (T(sample) + T(0.5)) * roi.bin / T(roi.samples);
  const T inside = (position >= T(-1)) & (position <= T(size)) ? T(1) : T(0);
  position = smaller(larger(position, T(0)), T(size - 1));
  Axis<T> axis;
  axis.low = int(position);
  axis.high = axis.low + 1 < size ? axis.low + 1 : axis.low;
  const T fraction = position - T(axis.low);
  axis.low_weight = (T(1) - fraction) * inside;
  axis.high_weight = fraction * inside;
  axis.low_slope = axis.high_slope = T(0);  // no gradient to the regions
  return axis;
}

// ---- non-maximum suppression ---------------------------------------------------------------------------------------

template <typename T>
struct Box {
  T x1, y1, x2, y2, area;
};

template <typename T>
CODETR_FN T box_area(T x1, T y1, T x2, T y2) {
  return larger(x2 - x1, T(0)) * larger(y2 - y1, T(0));
}

// Intersection over union; 0 where neither box has an area.
template <typename T>
CODETR_FN T box_iou(const Box<T>& a, const Box<T>& b) {
  const T width = larger(smaller(a.x2, b.x2) - larger(a.x1, b.x1), T(0));
  const T height = larger(smaller(a.y2, b.y2) - larger(a.y1, b.y1), T(0));
  const T intersection = width * height;
  return intersection / larger(a.area + b.area - intersection, T(1e-12));
}

}  // namespace codetr
