// RoIAlign on a GPU, forward and backward, in SUM: feature [B, H, W, C] (channels last), regions [N, 5], output
// [N, bins, bins, C]. One thread for each number of the output; neighbouring threads have neighbouring channels.

#include "cuda.h"

using namespace codetr;

namespace codetr {

struct Shape {
  Index images, height, width, channels, regions;
  int bins;
  SUM scale;
};

// Whether a region is of an image of the batch. The host does not look, since it would have to wait for the GPU.
__device__ __forceinline__ bool has_image(const SUM* region, const Shape& shape) {
  return region[0] >= SUM(0) && region[0] < SUM(shape.images);
}

// Calls `visit(cell, weight)` for the cells around each sample of the thread's bin; a cell may come several times.
template <typename Visit>
__device__ __forceinline__ void for_samples(const SUM* regions, const Shape& shape, Visit visit) {
  const Index thread = Index(blockIdx.x) * blockDim.x + threadIdx.x;
  const int channel = int(thread % shape.channels);
  const Index cell_of_output = thread / shape.channels;
  const int across = int(cell_of_output % shape.bins), down = int(cell_of_output / shape.bins % shape.bins);
  const Index n = cell_of_output / (Index(shape.bins) * shape.bins);
  if (n >= shape.regions) return;
  const SUM* region = regions + 5 * n;
  if (!has_image(region, shape)) return;
  const RoiAxis<SUM> columns = roi_axis(region[1], region[3], shape.scale, shape.bins);
  const RoiAxis<SUM> rows = roi_axis(region[2], region[4], shape.scale, shape.bins);
  const Index image = Index(region[0]) * shape.height;
  for (int i = 0; i < rows.samples; ++i) {
    const Axis<SUM> y = roi_sample(rows, down, i, int(shape.height));
    for (int j = 0; j < columns.samples; ++j) {
      const Axis<SUM> x = roi_sample(columns, across, j, int(shape.width));
      const Index low = (image + y.low) * shape.width, high = (image + y.high) * shape.width;
      const SUM mean = SUM(1) / (SUM(rows.samples) * SUM(columns.samples));
      visit((low + x.low) * shape.channels + channel, y.low_weight * x.low_weight * mean);
      visit((low + x.high) * shape.channels + channel, y.low_weight * x.high_weight * mean);
      visit((high + x.low) * shape.channels + channel, y.high_weight * x.low_weight * mean);
      visit((high + x.high) * shape.channels + channel, y.high_weight * x.high_weight * mean);
    }
  }
}

}  // namespace codetr

// What is not a number where a region is of no image: that must not pass unnoticed.
extern "C" __global__ void roi_align(const SUM* feature, const SUM* regions, SUM* output, const Shape shape) {
  const Index thread = Index(blockIdx.x) * blockDim.x + threadIdx.x;
  const Index numbers = shape.channels * shape.bins * shape.bins;  // of a region
  if (thread >= shape.regions * numbers) return;
  SUM sum = has_image(regions + 5 * (thread / numbers), shape) ? SUM(0) : SUM(__uint_as_float(0x7fc00000u));
  for_samples(regions, shape, [&](Index cell, SUM weight) { sum += weight * feature[cell]; });
  output[thread] = sum;
}

// `feature_gradient` holds zeros before; additions are atomic. Nothing comes from a region of no image.
extern "C" __global__ void roi_align_backward(const SUM* gradient, const SUM* regions, SUM* feature_gradient,
                                              const Shape shape) {
  const Index thread = Index(blockIdx.x) * blockDim.x + threadIdx.x;
  if (thread >= shape.regions * shape.bins * shape.bins * shape.channels) return;
  const SUM mine = gradient[thread];
  for_samples(regions, shape, [&](Index cell, SUM weight) {
    if (weight != SUM(0)) atomicAdd(feature_gradient + cell, weight * mine);
  });
}
