"""The best (query, class) pairs, as Deformable-DETR gives them: no NMS."""

from __future__ import annotations

from torch import Tensor

from model.boxes import clip_boxes, cxcywh_to_xyxy, size_whwh
from model.postprocess.configs import TopKConfig
from model.types import Detections


class TopK:
    """A query may give several detections, of different classes."""

    def __init__(self, config: TopKConfig):
        self.config = config

    def __call__(self, logits: Tensor, boxes_cxcywh: Tensor, valid_hw: Tensor, max_detections: int) -> list[Detections]:
        """See the contract."""
        return best_pairs(logits, boxes_cxcywh, valid_hw, max_detections)


def best_pairs(logits: Tensor, boxes_cxcywh: Tensor, valid_hw: Tensor, number: int) -> list[Detections]:
    """The `number` best (query, class) pairs of each image, or all of them; the contract has the other arguments."""
    found = best_of_batch(logits, boxes_cxcywh, valid_hw, number)
    return [Detections(b, s, c) for b, s, c in zip(*found, strict=True)]


def best_of_batch(logits: Tensor, boxes_cxcywh: Tensor, valid_hw: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """`best_pairs` of all images together: boxes_xyxy [B, M, 4] in pixels, scores [B, M] and labels [B, M]."""
    num_classes = logits.shape[-1]
    scores = logits.sigmoid().flatten(1)  # [B, Q * C]
    best, index = scores.topk(min(number, scores.shape[1]), 1)
    queries, labels = index // num_classes, index % num_classes
    boxes = boxes_cxcywh.gather(1, queries[..., None].expand(-1, -1, 4))
    boxes = cxcywh_to_xyxy(boxes) * size_whwh(valid_hw).to(boxes)[:, None]
    return clip_boxes(boxes, valid_hw[:, None]), best, labels
