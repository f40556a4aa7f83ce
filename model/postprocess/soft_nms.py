"""The best (query, class) pairs after soft-NMS (Bodla et al. 2017, linear), as Co-DINO is tested (official)."""

from __future__ import annotations

from torch import Tensor

from model.ops import soft_nms
from model.postprocess.configs import SoftNMSConfig
from model.postprocess.top_k import best_pairs
from model.types import Detections


class SoftNMS:
    """A detection that overlaps a better one of its class loses score; one that is left with too little is dropped.

    How many pairs enter does not depend on `max_detections`, which only cuts the list that comes out: the best 100 are
    the same whether 100 or 300 are asked for, so `AP` is as well. The official 300 are `evaluate.max_detections: 300`.
    """

    def __init__(self, config: SoftNMSConfig):
        self.config = config

    def __call__(self, logits: Tensor, boxes_cxcywh: Tensor, valid_hw: Tensor, max_detections: int) -> list[Detections]:
        """See the contract."""
        number = self.config.candidates or logits.shape[1]
        found = best_pairs(logits, boxes_cxcywh, valid_hw, number)
        return [self._suppress(candidates, max_detections) for candidates in found]

    def _suppress(self, candidates: Detections, max_detections: int) -> Detections:
        boxes, labels = candidates.boxes_xyxy, candidates.labels
        settings = self.config.iou_threshold, self.config.min_score
        kept, scores = soft_nms(boxes, candidates.scores, labels, *settings)
        kept = kept[:max_detections]
        return Detections(boxes[kept], scores[:max_detections], labels[kept])
