// Multi-scale deformable attention on a GPU, forward and backward; arrays as in ms_deform_attn.cpp, sums in SUM.
// The compiler is also told HEADS, WIDTH, LEVELS and POINTS, so that every loop here has a known length.
//
// A few neighbouring lanes share one query and head, each with some consecutive channels. Backward adds the gradient of
// the value directly where it belongs, atomically: there is no buffer of samples, and the order of the additions, so
// the last bits of that gradient, are not fixed.

#include "cuda.h"

namespace codetr {

__device__ constexpr int at_most(int limit, int n) { return n < limit ? n : limit; }
__device__ constexpr int power_of_two(int n) { return n <= 1 ? 1 : 2 * power_of_two((n + 1) / 2); }
__device__ constexpr int vector_length(int n) { return WIDTH % n == 0 ? n : vector_length(n / 2); }

constexpr int kVector = vector_length(16 / sizeof(VALUE));                          // channels in a load
constexpr int kLanes = at_most(32, power_of_two((WIDTH + kVector - 1) / kVector));  // for one query and head
constexpr int kLoads = (WIDTH + kLanes * kVector - 1) / (kLanes * kVector);         // for one lane and corner
constexpr bool kEven = kLoads * kLanes * kVector == WIDTH;                          // no lane idles

using Load = Vector<VALUE, kVector>;

struct Levels {
  int height[LEVELS], width[LEVELS];
  Index start[LEVELS];
};

// The query and head a lane works for.
struct Place {
  Index number, batch;  // number: (b * Q + q) * K + k
  int head, lane;
  unsigned members;  // lanes of the same query and head

  __device__ Place(Index queries) {
    const Index thread = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    number = thread / kLanes;
    lane = int(thread % kLanes);
    head = int(number % HEADS);
    batch = number / (HEADS * queries);
    const unsigned all = kLanes == 32 ? ~0u : (1u << (kLanes % 32)) - 1;
    members = all << (threadIdx.x % 32 / kLanes * kLanes);
  }
  __device__ int channel(int load) const { return (load * kLanes + lane) * kVector; }
};

// The corners of one sample: offsets within the level's values, in the order low/low, low/high, high/low, high/high.
struct Corners {
  Axis<SUM> x, y;
  Index at[4];

  __device__ Corners(const SUM* location, int width, int height)
      : x(bilinear_axis(location[0], width)), y(bilinear_axis(location[1], height)) {
    const Index low = Index(y.low) * width, high = Index(y.high) * width;
    at[0] = (low + x.low) * (HEADS * WIDTH);
    at[1] = (low + x.high) * (HEADS * WIDTH);
    at[2] = (high + x.low) * (HEADS * WIDTH);
    at[3] = (high + x.high) * (HEADS * WIDTH);
  }
  __device__ SUM factor(int corner) const {
    return (corner < 2 ? y.low_weight : y.high_weight) * (corner % 2 ? x.high_weight : x.low_weight);
  }
};

}  // namespace codetr

using namespace codetr;

// `count`: B * Q * K. One lane group each, as many threads as that needs.
extern "C" __global__ void ms_deform_attn(const VALUE* value, const SUM* locations, const SUM* weights, SUM* output,
                                          const Levels levels, Index tokens, Index queries, Index count) {
  const Place place(queries);
  if (place.number >= count) return;
  SUM sum[kLoads][kVector] = {};
  const SUM *location = locations + place.number * (LEVELS * POINTS * 2),
            *weight = weights + place.number * (LEVELS * POINTS);
#pragma unroll
  for (int l = 0; l < LEVELS; ++l) {
    const VALUE* level = value + ((place.batch * tokens + levels.start[l]) * HEADS + place.head) * WIDTH;
#pragma unroll
    for (int p = 0; p < POINTS; ++p, location += 2, ++weight) {
      const Corners corners(location, levels.width[l], levels.height[l]);
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        const SUM factor = corners.factor(corner) * *weight;
#pragma unroll
        for (int n = 0; n < kLoads; ++n) {
          if (!kEven && place.channel(n) >= WIDTH) continue;
          const Load load = read<VALUE, kVector>(level + corners.at[corner] + place.channel(n));
#pragma unroll
          for (int i = 0; i < kVector; ++i) sum[n][i] += factor * widen(load.at[i]);
        }
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kLoads; ++n)
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      if (kEven || place.channel(n) < WIDTH) output[place.number * WIDTH + place.channel(n) + i] = sum[n][i];
}

// `value_gradient` holds zeros before. `levels` is read where it lies: its index is known only when the loop runs, and a
// parameter would be copied to the thread's own memory for that.
extern "C" __global__ void ms_deform_attn_backward(const SUM* gradient, const VALUE* value, const SUM* locations,
                                                   const SUM* weights, SUM* value_gradient, SUM* location_gradient,
                                                   SUM* weight_gradient, const __grid_constant__ Levels levels,
                                                   Index tokens, Index queries, Index count) {
  const Place place(queries);
  if (place.number >= count) return;
  SUM mine[kLoads][kVector] = {};
#pragma unroll
  for (int n = 0; n < kLoads; ++n)
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      if (kEven || place.channel(n) < WIDTH) mine[n][i] = gradient[place.number * WIDTH + place.channel(n) + i];
  Index sample = place.number * (LEVELS * POINTS);
  for (int l = 0; l < LEVELS; ++l) {
    const Index level = ((place.batch * tokens + levels.start[l]) * HEADS + place.head) * WIDTH;
    for (int p = 0; p < POINTS; ++p, ++sample) {
      const Corners corners(locations + 2 * sample, levels.width[l], levels.height[l]);
      const SUM weight = weights[sample];
      SUM dot[4] = {};
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        const SUM factor = corners.factor(corner) * weight;
#pragma unroll
        for (int n = 0; n < kLoads; ++n) {
          if (!kEven && place.channel(n) >= WIDTH) continue;
          const Index at = level + corners.at[corner] + place.channel(n);
          const Load load = read<VALUE, kVector>(value + at);
          SUM part[kVector];
#pragma unroll
          for (int i = 0; i < kVector; ++i) {
            dot[corner] += mine[n][i] * widen(load.at[i]);
            part[i] = factor * mine[n][i];
          }
          if (factor != SUM(0)) add(value_gradient + at, part);
        }
      }
      const SampleGradient<SUM> found = sample_gradient(corners.x, corners.y, dot[0], dot[1], dot[2], dot[3], weight,
                                                        levels.width[l], levels.height[l]);
      const SUM x = sum_lanes<kLanes>(found.x, place.members), y = sum_lanes<kLanes>(found.y, place.members);
      const SUM w = sum_lanes<kLanes>(found.weight, place.members);
      if (place.lane == 0) {
        location_gradient[2 * sample] = x;
        location_gradient[2 * sample + 1] = y;
        weight_gradient[sample] = w;
      }
    }
  }
}
