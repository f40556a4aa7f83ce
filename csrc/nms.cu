// Non-maximum suppression on a GPU: boxes [N, 4] by descending score. First all pairs at once, as bits; then one block
// walks down the list. Compiled without fused multiply-add, so that a decision at the threshold is that of the CPU.

#include "cuda.h"

using namespace codetr;
using Bits = unsigned long long;

constexpr int kTile = 64;         // boxes in a word
constexpr int kMostWords = 4096;  // words of the list that fit into shared memory

// overlaps[n, w]: bit i tells that box n suppresses box 64 * w + i. A grid of words x words blocks of 64 threads.
extern "C" __global__ void nms_overlaps(const SUM* boxes, const Index* labels, Index count, SUM threshold,
                                        Bits* overlaps) {
  const Index words = (count + kTile - 1) / kTile, n = Index(blockIdx.y) * kTile + threadIdx.x;
  if (n >= count) return;
  Bits bits = 0;
  const SUM* one = boxes + 4 * n;
  const Box<SUM> box{one[0], one[1], one[2], one[3], box_area(one[0], one[1], one[2], one[3])};
  for (int i = 0; i < kTile && blockIdx.x >= blockIdx.y; ++i) {
    const Index other = Index(blockIdx.x) * kTile + i;
    if (other <= n || other >= count || labels[other] != labels[n]) continue;
    const SUM* two = boxes + 4 * other;
    const Box<SUM> worse{two[0], two[1], two[2], two[3], box_area(two[0], two[1], two[2], two[3])};
    if (box_iou(box, worse) > threshold) bits |= Bits(1) << i;
  }
  overlaps[n * words + blockIdx.x] = bits;
}

// keep[n]: whether box n stays. One block.
extern "C" __global__ void nms_select(const Bits* overlaps, Index count, bool* keep) {
  __shared__ Bits dropped[kMostWords];
  __shared__ Bits kept;
  const int words = int((count + kTile - 1) / kTile);
  for (int w = threadIdx.x; w < words; w += blockDim.x) dropped[w] = 0;  // the first one is read by who clears it
  for (int w = 0; w < words; ++w) {
    const int here = count - Index(w) * kTile < kTile ? int(count - Index(w) * kTile) : kTile;
    if (threadIdx.x == 0) {
      Bits gone = dropped[w];
      kept = 0;
      for (int i = 0; i < here; ++i) {
        if (gone >> i & 1) continue;
        kept |= Bits(1) << i;
        gone |= overlaps[(Index(w) * kTile + i) * words + w];
      }
    }
    __syncthreads();
    const Bits stay = kept;
    for (int i = threadIdx.x; i < here; i += blockDim.x) keep[Index(w) * kTile + i] = stay >> i & 1;
    for (int later = w + 1 + threadIdx.x; later < words; later += blockDim.x)
      for (int i = 0; i < here; ++i)
        if (stay >> i & 1) dropped[later] |= overlaps[(Index(w) * kTile + i) * words + later];
    __syncthreads();
  }
}
