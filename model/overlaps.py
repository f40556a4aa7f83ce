"""Which ground truth each candidate overlaps most, and which candidates each ground truth overlaps most.

There may be a million pairs in an image and tens of millions in a batch, so nobody keeps all of them: on a CPU the
kernel of `csrc/overlaps.cpp` goes through them a block of candidates at a time, elsewhere torch a few images at a time.
Both give the same bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from model import kernels
from model.boxes import iou_pairwise
from model.ops_compiled import SUFFIX, call, threads
from model.types import BACKGROUND

PAIRS_AT_ONCE = 1 << 22  # of a ground truth and a candidate, in torch: 16 MB for each intermediate result
MOST_PIXELS = 1e9  # coordinates up to which products of sides are finite; beyond, torch says what infinities give


class Overlaps(NamedTuple):
    """Of each candidate; -1, 0 and BACKGROUND where it takes no part, or no ground truth does."""

    iou: Tensor  # [B, A], the largest with any ground truth
    owner: Tensor  # [B, A] int64, the ground truth that has it, the first of equals
    claimant: Tensor | None  # [B, A] int64, see `best_overlaps`; None: nobody asked


def images_at_once(num_images: int, pairs: int) -> Iterator[slice]:
    """Parts of a batch whose images, of so many `pairs` each, are looked at together; at least one at a time."""
    number = max(1, PAIRS_AT_ONCE // max(pairs, 1))
    for start in range(0, num_images, number):
        yield slice(start, min(start + number, num_images))


@torch.no_grad()
def best_overlaps(
    gt_boxes_xyxy: Tensor, gt_valid: Tensor, candidates_xyxy: Tensor, valid: Tensor, min_best_iou: float | None = None
) -> Overlaps:
    """The largest overlaps of candidates and of ground truths.

    With `min_best_iou` each ground truth claims every candidate whose IoU equals its own largest one, if that reaches
    `min_best_iou` and is not 0; of several claims the last stands.

    Args:
        gt_boxes_xyxy: [B, G, 4], G at least 1.
        gt_valid: [B, G] bool, False in padding rows.
        candidates_xyxy: [A, 4], or [B, A, 4]; A at least 1.
        valid: [B, A] bool, False for candidates that take no part.
        min_best_iou: None: nobody claims.
    """
    given = gt_boxes_xyxy, gt_valid, candidates_xyxy, valid, min_best_iou
    return _compiled(*given) if _kernel_takes(gt_boxes_xyxy, candidates_xyxy) else by_torch(*given)


def _kernel_takes(gt_boxes_xyxy: Tensor, candidates_xyxy: Tensor) -> bool:
    """Finite coordinates of one type on the CPU: what is not a number has rules of its own."""
    return (
        candidates_xyxy.device.type == "cpu"
        and gt_boxes_xyxy.dtype == candidates_xyxy.dtype
        and candidates_xyxy.dtype in SUFFIX
        and not torch.compiler.is_compiling()
        and kernels.library() is not None
        and all(
            float(low) > -MOST_PIXELS and float(high) < MOST_PIXELS
            for boxes in (gt_boxes_xyxy, candidates_xyxy)
            for low, high in [boxes.aminmax()]
        )
    )


def _compiled(
    gt_boxes_xyxy: Tensor, gt_valid: Tensor, candidates_xyxy: Tensor, valid: Tensor, min_best_iou: float | None
) -> Overlaps:
    images, gts = gt_valid.shape
    candidates = candidates_xyxy.shape[-2]
    boxes = gt_boxes_xyxy.contiguous(), gt_valid.contiguous(), candidates_xyxy.contiguous(), valid.contiguous()
    iou = candidates_xyxy.new_empty(images, candidates)
    owner = torch.empty(images, candidates, dtype=torch.int64)
    claimant = None if min_best_iou is None else torch.empty_like(owner)
    shape = (images, gts, candidates, int(candidates_xyxy.dim() == 3))
    results = iou, owner, ctypes.c_void_p(None) if claimant is None else claimant
    count = threads(images * gts * candidates)
    call("best_overlaps", iou.dtype, *boxes, shape, float(min_best_iou or 0.0), *results, count)
    return Overlaps(iou, owner, claimant)


def by_torch(
    gt_boxes_xyxy: Tensor, gt_valid: Tensor, candidates_xyxy: Tensor, valid: Tensor, min_best_iou: float | None = None
) -> Overlaps:
    """`best_overlaps` by its definition, as many images at a time as `PAIRS_AT_ONCE` allows."""
    images, gts = gt_valid.shape
    numbers = torch.arange(gts, device=valid.device, dtype=torch.int16 if gts < 2**15 else torch.int64)[:, None]
    found: list[tuple[Tensor, ...]] = []
    for part in images_at_once(images, gts * candidates_xyxy.shape[-2]):
        candidates = candidates_xyxy if candidates_xyxy.dim() == 2 else candidates_xyxy[part]
        overlap = iou_pairwise(gt_boxes_xyxy[part], candidates)
        overlap.masked_fill_(~(gt_valid[part, :, None] & valid[part, None]), -1.0)
        iou, owner = overlap.max(1)  # the first of equals
        if min_best_iou is None:
            found.append((iou, owner))
            continue
        best = overlap.amax(2, keepdim=True)
        claims = (overlap == best) & (best >= min_best_iou) & (best > 0)
        found.append((iou, owner, torch.where(claims, numbers, BACKGROUND).amax(1).long()))
    iou, owner, *claimant = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Overlaps(iou, owner, claimant[0] if claimant else None)
