#include "device.h"
// after the above
#include "cuda.h"
using namespace codetr;
#include "ms_deform_attn.cu"

static Levels levels_of(const long long* sizes) {
  Levels levels{};
  for (Index l = 0, start = 0; l < LEVELS; start += sizes[2 * l] * sizes[2 * l + 1], ++l)
    levels.height[l] = int(sizes[2 * l]), levels.width[l] = int(sizes[2 * l + 1]), levels.start[l] = start;
  return levels;
}

// Threads beyond `count` return at once; a whole number of blocks keeps all of a block's threads at the exchanges.
extern "C" int lanes() { return kLanes; }

extern "C" void forward(const VALUE* value, const SUM* locations, const SUM* weights, const long long* sizes,
                        SUM* output, long long tokens, long long queries, long long count) {
  const Levels levels = levels_of(sizes);
  const int threads = 32;
  run(int((count * kLanes + threads - 1) / threads), 1, threads,
      [&] { ms_deform_attn(value, locations, weights, output, levels, tokens, queries, count); });
}

extern "C" void backward(const SUM* gradient, const VALUE* value, const SUM* locations, const SUM* weights,
                         const long long* sizes, SUM* value_gradient, SUM* location_gradient, SUM* weight_gradient,
                         long long tokens, long long queries, long long count) {
  const Levels levels = levels_of(sizes);
  const int threads = 32;
  run(int((count * kLanes + threads - 1) / threads), 1, threads, [&] {
    ms_deform_attn_backward(gradient, value, locations, weights, value_gradient, location_gradient, weight_gradient,
                            levels, tokens, queries, count);
  });
}
