"""A detector that knows the truth, COCO's metrics, and black images."""

from __future__ import annotations

import json

import torch
from PIL import Image
from torch import nn

from harness.data import CocoDataset
from model.types import BACKGROUND, Detections

METRICS = ["AP", "AP50", "AP75", "APS", "APM", "APL", "AR1", "AR10", "AR100"]


def open_tables(root, content, **options) -> CocoDataset:
    """A data set with black images."""
    (root / "annotations").mkdir(parents=True)
    (root / "val").mkdir()
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    for row in content["images"]:
        path = root / "val" / row["file_name"]
        Image.new("L", (row["width"], row["height"])).save(path)
    return CocoDataset(root, "val", progress=lambda line: None, **options)


def no_matching(batch) -> torch.Tensor:
    """Five queries, none matched; their source is the image."""
    images = torch.tensor(batch.image_ids, dtype=torch.int32)[:, None].expand(-1, 5)
    return torch.stack([torch.full_like(images, BACKGROUND), images], 1)


class Oracle(nn.Module):
    """Detects the ground truth: the decoder all of it, the branch `atss` only label 0, `blind` nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, ...]] = []

    def detect_and_match(self, batch, branches, max_detections=100):
        assert not self.training and not torch.is_grad_enabled()
        self.calls.append(tuple(branches))
        keep = {
            "decoder": lambda label: label >= 0,
            "atss": lambda label: label == 0,
            "blind": lambda label: label > 99,
        }
        answer = {}
        for branch in branches:
            masks = [keep[branch](labels) for labels in batch.targets.labels]
            answer[branch] = [
                Detections(boxes[mask], torch.linspace(0.9, 0.5, int(mask.sum())), labels[mask])
                for boxes, labels, mask in zip(batch.targets.boxes_xyxy, batch.targets.labels, masks, strict=True)
            ]
        return answer, no_matching(batch)
