"""A tiny detector whose parameters are away from their initial values."""

from __future__ import annotations

import torch

from model.config import DetectorConfig
from model.detector import Detector
from model.heads import HEADS
from tests.support.tiny import NUM_CLASSES, tiny_config
from tests.support.tiny_heads import TINY


def build_detector(*heads: str, seed: int = 0, **changes) -> Detector:
    """Away from the initial values, where attention is uniform and every logit the same."""
    config = tiny_config(**changes)
    settings = {**config.__dict__, "heads": tuple(HEADS[name].Config(**TINY[name]) for name in heads)}
    torch.manual_seed(seed)
    detector = Detector(DetectorConfig(**settings), NUM_CLASSES)
    for parameter in detector.parameters():
        if parameter.dim() > 1:
            parameter.data += torch.randn_like(parameter) * 0.05
    return detector.eval()
