#include "device.h"
// after the above
#include "cuda.h"
using namespace codetr;
#include "roi_align.cu"

static int blocks(const Shape& shape) {
  return int((shape.regions * shape.bins * shape.bins * shape.channels + 31) / 32);
}

extern "C" void forward(const SUM* feature, const SUM* regions, SUM* output, const Shape* shape) {
  run(blocks(*shape), 1, 32, [&] { roi_align(feature, regions, output, *shape); });
}

extern "C" void backward(const SUM* gradient, const SUM* regions, SUM* feature_gradient, const Shape* shape) {
  run(blocks(*shape), 1, 32, [&] { roi_align_backward(gradient, regions, feature_gradient, *shape); });
}
