"""What is published of the detectors that were released with weights, by the names of their official configurations.

Sources: Co-DETR (arXiv 2211.12860 v6), Tables 4 and 5, and the README of the released code, which has AP alone. All are
on the validation split. The protocols are those of the released configurations; the GPU is not told, and with it
whether products and convolutions were in fp32 or in TF32, which was torch's default where a GPU has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SUFFIX = "_coco"  # of a configuration's name; the README leaves it out
METRICS = ("AP", "AP50", "AP75", "APS", "APM", "APL")
PRECISION = "fp32 or TF32 (not told)"


@dataclass(frozen=True)
class Protocol:
    """How a detector is evaluated, in words."""

    post: str  # what becomes of the decoder's predictions
    detections: int  # of an image, at most
    size: str  # of an image, in pixels
    precision: str = PRECISION

    def __str__(self) -> str:
        return f"{self.post}, {self.detections} detections, {self.size}, {self.precision}"


@dataclass(frozen=True)
class Released:
    """The published numbers of a released detector."""

    metrics: Mapping[str, float]
    source: str
    protocol: Protocol


SOFT_NMS = "soft-NMS at 0.8"
PLAIN = Protocol("no NMS", 100, "1333 x 800")
MORE_QUERIES = Protocol("no NMS", 300, "1333 x 800")
DINO = Protocol(SOFT_NMS, 300, "1333 x 800")
JITTER_1024, JITTER_1280 = (Protocol(SOFT_NMS, 300, f"padded to {side} x {side}") for side in (1024, 1280))
LARGE = Protocol(SOFT_NMS, 300, "2048 x 1280")
VIT = Protocol(SOFT_NMS, 1000, "2048 x 1280")
LVIS = Protocol(SOFT_NMS, 300, "padded to 1280 x 1280")
LARGE_LVIS = Protocol(SOFT_NMS, 1000, "padded to 1536 x 1536")


def _paper(protocol: Protocol, *numbers: float, table: int = 4) -> Released:
    return Released(dict(zip(METRICS, numbers, strict=False)), f"paper, Table {table}", protocol)


def _readme(protocol: Protocol, average: float) -> Released:
    return Released({"AP": average}, "README of the released code", protocol)


RELEASED = {
    "co_deformable_detr_r50_1x": _paper(PLAIN, 49.5, 67.6, 54.3, 32.4, 52.7, 63.7),
    "co_deformable_detr_swin_tiny_1x": _readme(PLAIN, 51.7),
    "co_deformable_detr_swin_tiny_3x": _readme(PLAIN, 54.1),
    "co_deformable_detr_swin_small_1x": _readme(PLAIN, 53.4),
    "co_deformable_detr_swin_small_3x": _readme(PLAIN, 55.3),
    "co_deformable_detr_swin_base_1x": _readme(PLAIN, 55.5),
    "co_deformable_detr_swin_base_3x": _readme(PLAIN, 57.5),
    "co_deformable_detr_swin_large_1x": _readme(PLAIN, 56.9),
    "co_deformable_detr_swin_large_900q_3x": _paper(MORE_QUERIES, 58.5, 77.1, 64.5, 42.4, 62.4, 74.0),
    "co_dino_5scale_r50_1x": _paper(DINO, 52.1, 69.4, 57.1, 35.4, 55.4, 65.9),
    "co_dino_5scale_lsj_r50_1x": _readme(JITTER_1024, 52.1),
    "co_dino_5scale_lsj_r50_3x": _paper(JITTER_1024, 54.8, 72.5, 60.1, 38.3, 58.4, 69.6),
    "co_dino_5scale_9encoder_lsj_r50_1x": _readme(JITTER_1024, 52.6),
    "co_dino_5scale_9encoder_lsj_r50_3x": _readme(JITTER_1024, 55.4),
    "co_dino_5scale_swin_large_1x": _paper(DINO, 58.9, 76.9, 64.8, 42.6, 62.7, 75.1),
    "co_dino_5scale_swin_large_2x": _readme(DINO, 59.8),
    "co_dino_5scale_swin_large_3x": _paper(DINO, 60.0, 77.7, 66.1, 44.6, 63.9, 75.7),
    "co_dino_5scale_lsj_swin_large_1x": _readme(JITTER_1280, 59.3),
    "co_dino_5scale_lsj_swin_large_2x": _readme(JITTER_1280, 60.4),
    "co_dino_5scale_lsj_swin_large_3x": _paper(JITTER_1280, 60.7, 78.5, 66.7, 45.1, 64.7, 76.4),
    "co_dino_5scale_swin_large_16e_o365tococo": _readme(LARGE, 64.1),
    "co_dino_5scale_lsj_swin_large_3x_lvis": _readme(LVIS, 56.9),
    "co_dino_5scale_lsj_swin_large_16e_o365tolvis": _readme(LARGE_LVIS, 64.5),
    "co_dino_5scale_vit_large": _paper(VIT, 65.9, table=5),
    "co_dino_5scale_vit_large_coco_instance": _readme(VIT, 65.8),
    "co_dino_5scale_lsj_vit_large_lvis": _readme(LARGE_LVIS, 68.0),
    "co_dino_5scale_lsj_vit_large_lvis_instance": _readme(LARGE_LVIS, 67.3),
}


def released(name: str) -> Released | None:
    """What is published of the configuration of this name, with or without `_coco` at its end; None: nothing."""
    return RELEASED.get(name.removesuffix(SUFFIX))
