"""The operators that torch lacks or has only slowly: deformable attention, RoIAlign, non-maximum suppression.

Each has one function that the rest of the package calls. Behind it run compiled kernels (`csrc/`, built on first use,
see `model.kernels`) or, where those cannot be had, the pure-torch definitions in `model.ops_reference`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from model import kernels, ops_compiled, ops_cuda, ops_reference


def implementation(device: torch.device | str = "cpu") -> str:
    """Name what runs on such a device, for the record: "reference" or "compiled (…)". Builds and checks kernels first.

    Raises:
        RuntimeError: `CODETR_OPS=compiled`, and they cannot be had (`kernels.BuildError`) or give wrong numbers.
    """
    if torch.device(device).type == "cuda":
        return ops_cuda.implementation(device)
    library = kernels.library()
    return f"compiled ({library.compiler})" if library and ops_compiled.available() else "reference"


_as_defined = False


@contextmanager
def as_defined() -> Iterator[None]:
    """Within, the pure-torch definitions run: a graph for other programs holds torch's own operators only."""
    global _as_defined  # a plain one: torch.compile cannot follow a context variable
    before, _as_defined = _as_defined, True
    try:
        yield
    finally:
        _as_defined = before


def _compiled(tensor: Tensor) -> bool:
    if _as_defined:
        return False
    if torch.compiler.is_compiling():
        return True  # the registered operator, which turns to the reference by itself
    if tensor.device.type == "cuda":
        return ops_cuda.available(tensor.device)
    return tensor.device.type == "cpu" and ops_compiled.available()


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention (Deformable-DETR Eq. 3), in at least float32 whatever autocast says.

    Args:
        value: [B, S, K, D], the tokens of all levels, level by level, row-major; K attention heads.
        spatial_shapes: (height, width) of each of the L levels; S is the sum of their areas.
        sampling_locations: [B, Q, K, L, P, 2], (x, y) normalised to [0, 1] over each whole map;
            `location * size - 0.5` is the pixel index and what lies outside counts as zero.
        attention_weights: [B, Q, K, L, P].

    Returns:
        [B, Q, K * D] float32 (float64 for float64 input). There is no second derivative.

    Raises:
        ValueError: the shapes do not belong together.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    locations, weights = sampling_locations.to(dtype), attention_weights.to(dtype)
    sizes = [side for shape in spatial_shapes for side in shape]
    if _compiled(value):
        if value.device.type == "cpu":
            value = value.to(dtype)  # a GPU reads half precision as it is, and sums in float32
        return torch.ops.codetr.ms_deform_attn.default(value, sizes, locations, weights)
    value = value.to(dtype)
    if not torch.compiler.is_compiling():  # whose sizes are symbols: each comparison would have to be proven
        ops_compiled.check_ms_deform_attn(value, sizes, locations, weights)
    with torch.autocast(value.device.type, enabled=False):
        return ops_reference.ms_deform_attn(value, spatial_shapes, locations, weights)


def roi_align(feature: Tensor, rois: Tensor, output_size: int, spatial_scale: float) -> Tensor:
    """Mean over bilinear samples in each bin of each region (Mask R-CNN), in at least float32.

    Cell centres lie at half cells, and each bin has one sample per cell it spans, rounded up, in each direction (what
    toolboxes call aligned, with an adaptive sampling ratio). Samples up to one cell outside the map count as its
    border, farther ones as zero. Nothing flows back to the regions.

    Args:
        feature: [B, D, H, W].
        rois: [N, 5], image index and x1, y1, x2, y2 in pixels of the input.
        output_size: bins in each direction.
        spatial_scale: cells per pixel, 1 / stride.

    Returns:
        [N, D, output_size, output_size] float32 (float64 for float64 features); zeros for an empty region.

    Raises:
        ValueError: the shapes do not belong together, or an image index is out of range. Compiled kernels on a GPU do
            not let the host wait for the indices: there a region of no image gives NaN and passes nothing back.
    """
    dtype = torch.promote_types(feature.dtype, torch.float32)
    rois = rois.detach().to(dtype)
    feature = feature.to(dtype)
    if _compiled(feature):
        return torch.ops.codetr.roi_align.default(feature, rois, output_size, spatial_scale)
    ops_compiled.check_roi_align(feature, rois, output_size)
    with torch.autocast(feature.device.type, enabled=False):
        return ops_reference.roi_align(feature, rois, output_size, spatial_scale)


def nms(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Class-aware non-maximum suppression.

    Args:
        boxes_xyxy: [N, 4].
        scores: [N].
        labels: [N] int; boxes of different labels never suppress each other.
        iou_threshold: a box is dropped when its IoU with a better kept one is above this.

    Returns:
        [M] int64, indices of the kept boxes by descending score.
    """
    boxes, labels = _boxes_and_labels(boxes_xyxy, scores, labels)
    order = scores.argsort(descending=True, stable=True)
    return order[survivors(boxes[order], labels[order], iou_threshold)]


def survivors(boxes_xyxy: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """[N] bool, which boxes `nms` keeps of [N, 4] that come by descending score; at least float32."""
    if _compiled(boxes_xyxy):
        keep: Tensor = torch.ops.codetr.nms.default(boxes_xyxy, labels, iou_threshold)
        return keep
    return ops_reference.nms(boxes_xyxy, labels, iou_threshold)


def soft_nms(
    boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, min_score: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Class-aware soft suppression, linear: overlapped boxes lose score instead of being dropped (Soft-NMS Eq. 2).

    The best box is taken, every other of its label with IoU at or above the threshold has its score multiplied by
    1 - IoU, and so on until no score is left above `min_score`. The very best box stays, whatever its score (official).
    Runs on the CPU.

    Args:
        boxes_xyxy: [N, 4].
        scores: [N].
        labels: [N] int.
        iou_threshold: overlap from which on a score decays.
        min_score: below this a box is gone, but for the first.

    Returns:
        Indices [M] int64 in the order of selection, and their final scores [M].
    """
    boxes, labels = _boxes_and_labels(boxes_xyxy, scores, labels)
    given = boxes.cpu(), scores.detach().to("cpu", boxes.dtype), labels.cpu()
    run = ops_compiled.soft_nms if ops_compiled.available() else ops_reference.soft_nms
    numbers, kept = run(*given, iou_threshold, min_score)
    return numbers.to(scores.device), kept.to(scores.device, scores.dtype)


def _boxes_and_labels(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    count = len(boxes_xyxy)
    if boxes_xyxy.shape != (count, 4) or scores.shape != (count,) or labels.shape != (count,):
        raise ValueError(
            "suppression needs boxes [N, 4], scores [N] and labels [N]; they are "
            f"{tuple(boxes_xyxy.shape)}, {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    return boxes_xyxy.detach().to(torch.promote_types(boxes_xyxy.dtype, torch.float32)), labels.long()
