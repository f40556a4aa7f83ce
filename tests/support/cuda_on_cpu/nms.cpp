#include "device.h"
// after the above
#include "cuda.h"
using namespace codetr;
#include "nms.cu"

extern "C" void suppress(const SUM* boxes, const long long* labels, long long count, SUM threshold, Bits* overlaps,
                         bool* keep) {
  const int words = int((count + kTile - 1) / kTile);
  run(words, words, kTile, [&] { nms_overlaps(boxes, labels, count, threshold, overlaps); });
  run(1, 1, 32, [&] { nms_select(overlaps, count, keep); });
}
