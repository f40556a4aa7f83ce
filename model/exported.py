"""The decoder's branch as one graph of tensors for programs that know nothing of this one: images in, boxes out.

A graph has no padding: the images of a batch have one size, so that it needs no mask. Each image gives what it gives in
a padded batch, up to rounding, but for released detectors (`DetectorConfig.official`), which padding changes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from model.constants import constant
from model.detector import Detector
from model.ops import as_defined
from model.postprocess.top_k import best_of_batch
from model.types import Batch, Targets

TRACED_HW = (160, 224)  # the sizes that a graph is traced at: no side of a map is like another, or like a count


class DecoderBranch(nn.Module):
    """The detections of `Detector.detect` on images that fill their batch, without NMS.

    Args:
        detector: with its weights.
        max_detections: of an image.
    """

    def __init__(self, detector: Detector, max_detections: int):
        super().__init__()
        self.detector, self.max_detections = detector, max_detections

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 3, H, W] normalised → boxes_xyxy [B, M, 4] in pixels of these images, scores [B, M], labels [B, M] int64.

        M is `max_detections`, or the number of all (query, class) pairs where these are fewer; best first.
        """
        count, _, height, width = images.shape
        valid_hw = constant((height, width), images, torch.int64).expand(count, 2)
        nothing = Targets(images.new_zeros(0, 1, 4), valid_hw.new_zeros(0, 1))
        memory, _ = self.detector.encode(Batch(images, valid_hw, nothing, padded=False))
        output = self.detector.decoder([self.detector.initial_queries(memory)], memory)
        return best_of_batch(output.logits[-1], output.boxes_cxcywh[-1], valid_hw, self.max_detections)


def program(detector: Detector, max_detections: int) -> ExportedProgram:
    """`DecoderBranch` as a graph of torch's own operators, for any number of images of any height and width.

    Raises:
        Exception: of torch's tracer: a part of the detector does what a graph cannot hold.
    """
    branch = DecoderBranch(detector, max_detections).eval()
    images = torch.zeros(2, 3, *TRACED_HW)
    sizes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with torch.no_grad(), as_defined():
        return torch.export.export(branch, (images,), dynamic_shapes=(sizes,), strict=False)
