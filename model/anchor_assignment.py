"""Label assignment of the auxiliary heads: which candidate belongs to which ground truth.

Every assigner takes a whole padded batch and gives `gt_index` [B, A]: 0-based ground truth, BACKGROUND, or IGNORED for
candidates that take no part. What is known of each pair of a ground truth and a candidate is kept for a few images at
a time (`model.overlaps`). Nothing here is differentiated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.boxes import encode_distances, iou_aligned, xyxy_to_cxcywh
from model.constants import constant
from model.inquiry import Inquiry, asking, places
from model.mixture import low_loss_component
from model.overlaps import best_overlaps, images_at_once
from model.types import BACKGROUND, IGNORED, Targets

INSIDE_MARGIN = 0.01  # pixels an anchor's centre must lie inside its ground truth
POINT_RANGE = 8.0  # strides: a level's points regress distances up to this, the next level's from here on


@torch.no_grad()
def assign_atss(
    anchors_xyxy: Tensor,
    level_sizes: tuple[int, ...],
    targets: Targets,
    *,
    top_k: int = 9,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Adaptive training sample selection (Zhang et al. 2020).

    Of every level the `top_k` anchors nearest to a ground truth's centre are its candidates; positive are those whose
    IoU reaches mean + standard deviation of the candidates' IoUs and whose centre lies inside the box. An anchor
    claimed by several ground truths goes to the one of largest IoU. The deviation is the unbiased one (as the official
    implementation); a single candidate counts as deviation 0 instead of not-a-number.

    Args:
        anchors_xyxy: [A, 4] pixels, one anchor per location, levels fine to coarse.
        level_sizes: number of anchors of each level; they sum to A.
        targets: ground truth of B images.
        top_k: candidates per level.
        valid: [B, A] bool, False for anchors that take no part; None: all do.

    Returns:
        gt_index [B, A] int64 and iou [B, A], the overlap with the assigned ground truth (0 where there is none).
    """
    assert sum(level_sizes) == len(anchors_xyxy), f"levels {level_sizes} do not sum to {len(anchors_xyxy)} anchors"
    num_images, num_gts = targets.labels.shape
    num_anchors = len(anchors_xyxy)
    if valid is None:
        valid = torch.ones(num_images, num_anchors, dtype=torch.bool, device=anchors_xyxy.device)
    if num_gts == 0 or num_anchors == 0 or num_images == 0:
        return torch.where(valid, BACKGROUND, IGNORED), anchors_xyxy.new_zeros(num_images, num_anchors)
    found = [
        _atss(anchors_xyxy, level_sizes, targets.of_images(part), top_k, valid[part])
        for part in images_at_once(num_images, num_gts * num_anchors)
    ]
    gt_index, iou = (torch.cat(parts) for parts in zip(*found, strict=True))
    return gt_index, iou


def _atss(
    anchors_xyxy: Tensor, level_sizes: tuple[int, ...], targets: Targets, top_k: int, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """`assign_atss` of a few images."""
    centres = xyxy_to_cxcywh(anchors_xyxy)[:, :2]
    candidates, usable = _nearest_per_level(centres, level_sizes, targets, top_k, valid)  # [B, G, M]
    usable = usable & targets.valid[..., None]
    overlap = iou_aligned(anchors_xyxy[candidates], targets.boxes_xyxy[:, :, None])  # [B, G, M]

    # float64: the threshold must not depend on how many masked candidates stand between the others.
    count = usable.sum(-1)
    exact = overlap.double() * usable
    mean = exact.sum(-1) / count.clamp(min=1)
    variance = ((exact - mean[..., None]).square() * usable).sum(-1) / (count - 1).clamp(min=1)
    threshold = mean + variance.sqrt()

    candidate_centres = centres[candidates]
    boxes = targets.boxes_xyxy[:, :, None]
    inside = torch.cat([candidate_centres - boxes[..., :2], boxes[..., 2:] - candidate_centres], -1).amin(-1)
    positive = usable & (exact >= threshold[..., None]) & (inside > INSIDE_MARGIN)

    claims = overlap.new_full((*targets.labels.shape, len(anchors_xyxy)), -1.0)
    claims.scatter_(2, candidates, overlap.where(positive, -1.0))
    best, owner = claims.max(1)  # the first of equals
    assigned = best >= 0
    return torch.where(assigned, owner, torch.where(valid, BACKGROUND, IGNORED)), best.clamp(min=0)


def _nearest_per_level(
    centres: Tensor, level_sizes: tuple[int, ...], targets: Targets, top_k: int, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Candidates [B, G, M] (indices into the anchors) and which of them exist, for levels smaller than `top_k`."""
    gt_centres = xyxy_to_cxcywh(targets.boxes_xyxy)[..., :2].double()
    # Equally near anchors are taken row by row: an offset far below any real difference of distances. Otherwise the
    # choice among them would depend on the size of the padded batch.
    row_by_row = (centres.double() * constant((1e-10, 1e-8), centres, torch.float64)).sum(-1)
    candidates, usable = [], []
    start = 0
    for size in level_sizes:
        level = slice(start, start + size)
        offset = centres[level].double() - gt_centres[:, :, None]
        distance = offset.square().sum(-1) + row_by_row[level]  # [B, G, size]
        distance = distance.masked_fill(~valid[:, None, level], torch.inf)
        nearest = distance.topk(min(top_k, size), largest=False)
        candidates.append(nearest.indices + start)
        usable.append(nearest.values.isfinite())
        start += size
    return torch.cat(candidates, -1), torch.cat(usable, -1)


@torch.no_grad()
def assign_max_iou(
    candidates_xyxy: Tensor,
    targets: Targets,
    *,
    positive_iou: float,
    negative_iou: float,
    min_best_iou: float | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Assignment by the largest IoU (Faster R-CNN, RetinaNet, first step of PAA).

    A candidate belongs to the ground truth it overlaps most if that IoU reaches `positive_iou`, is background below
    `negative_iou`, and ignored between the two. With `min_best_iou` each ground truth also claims every candidate
    whose IoU equals its own largest one, if that reaches `min_best_iou` and is not 0; of several claims the last wins,
    also over a larger overlap (official order).

    Args:
        candidates_xyxy: [A, 4] pixels, or [B, A, 4].
        targets: ground truth of B images.
        positive_iou: at least this is positive.
        negative_iou: less than this is background.
        min_best_iou: of a ground truth's best candidates; None: they get no special treatment.
        valid: [B, A] bool, False for candidates that take no part; None: all do.

    Returns:
        gt_index [B, A] int64 and iou [B, A], the largest overlap with any ground truth (0 where there is none).
    """
    num_images, num_gts = targets.labels.shape
    num_candidates = candidates_xyxy.shape[-2]
    if valid is None:
        valid = torch.ones(num_images, num_candidates, dtype=torch.bool, device=candidates_xyxy.device)
    if num_gts == 0 or num_candidates == 0 or num_images == 0:
        return torch.where(valid, BACKGROUND, IGNORED), candidates_xyxy.new_zeros(num_images, num_candidates)
    iou, owner, claimant = best_overlaps(targets.boxes_xyxy, targets.valid, candidates_xyxy, valid, min_best_iou)
    gt_index = torch.where(iou < negative_iou, BACKGROUND, IGNORED)
    gt_index = torch.where(iou >= positive_iou, owner, gt_index)
    if claimant is not None:
        gt_index = torch.where(claimant >= 0, claimant, gt_index)
    return gt_index.masked_fill(~valid, IGNORED), iou.clamp(min=0)


@torch.no_grad()
def assign_points(
    points: Tensor,
    level_sizes: tuple[int, ...],
    strides: tuple[int, ...],
    targets: Targets,
    *,
    center_radius: float | None = 1.5,
    range_scale: float = 1.0,
    valid: Tensor | None = None,
) -> Tensor:
    """Points inside an object, each level within its range of sizes (FCOS, Tian et al. 2019).

    A point is positive for a ground truth if it lies inside it and near its centre, and if the largest distance to a
    side is in the level's range: from 8 strides of the level before to 8 of its own, both included; the finest level
    starts at 0, the coarsest has no end. A point claimed by several belongs to the smallest in area.

    Args:
        points: [A, 2] (x, y) pixels, levels fine to coarse.
        level_sizes: number of points of each level; they sum to A.
        strides: pixels per position of each level.
        targets: ground truth of B images.
        center_radius: strides in x and y around an object's centre; None: anywhere in the object.
        range_scale: multiplies the ranges.
        valid: [B, A] bool, False for points that take no part; None: all do.

    Returns:
        gt_index [B, A] int64.
    """
    ends = [POINT_RANGE * range_scale * stride for stride in strides[:-1]]
    per_level = constant((strides, (0.0, *ends), (*ends, torch.inf)), points, points.dtype)  # [3, L]
    levels = per_level.repeat_interleave(constant(level_sizes, points, torch.int64), 1, output_size=sum(level_sizes))
    num_images, num_gts = targets.labels.shape
    gt_index = torch.cat(
        [
            _points(points, levels, targets.of_images(part), center_radius)
            for part in images_at_once(num_images, 4 * num_gts * len(points))  # a distance to each side
        ]
    )
    return gt_index if valid is None else gt_index.masked_fill(~valid, IGNORED)


def _points(points: Tensor, levels: Tensor, targets: Targets, center_radius: float | None) -> Tensor:
    """`assign_points` of a few images; `levels` [3, A] are stride, and start and end of the range, of each point."""
    stride, start, end = levels
    boxes = targets.boxes_xyxy[:, :, None]  # [B, G, 1, 4]
    distances = encode_distances(points, boxes)  # [B, G, A, 4]
    inside = distances.amin(-1) > 0
    if center_radius is not None:
        offset = (points - xyxy_to_cxcywh(boxes)[..., :2]).abs().amax(-1)
        inside &= offset < center_radius * stride
    furthest = distances.amax(-1)
    claims = inside & (furthest >= start) & (furthest <= end) & targets.valid[..., None]
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])  # [B, G, 1]
    smallest, owner = torch.where(claims, area, torch.inf).min(1)  # the first of equals
    return torch.where(smallest.isfinite(), owner, BACKGROUND)


@asking
@torch.no_grad()
def assign_by_loss(
    candidate_gt: Tensor, losses: Tensor, level_sizes: tuple[int, ...], num_gts: int, *, top_k: int = 9
) -> Inquiry[tuple[Tensor, tuple[int, ...]]]:
    """Probabilistic anchor assignment (PAA, Kim and Lee 2020): of each object's candidates, those of low loss.

    Of every level the `top_k` candidates of least loss are kept; two Gaussians fitted to their losses tell which are
    positive (see `low_loss_component`). All other candidates become background; no candidate is ignored. An object
    with a single candidate has no positive (official).

    Args:
        candidate_gt: [B, A] int64, the ground truth of each candidate, BACKGROUND or IGNORED.
        losses: [B, A] of each candidate; finite where `candidate_gt` is not negative.
        level_sizes: number of anchors of each level; they sum to A.
        num_gts: G.
        top_k: candidates per level and ground truth.

    Returns:
        gt_index [B, A] int64, and on the host how many positives each image has.
    """
    gt_index = candidate_gt.masked_fill(candidate_gt >= 0, BACKGROUND)
    if num_gts == 0:
        return gt_index, (0,) * len(gt_index)
    found = [
        _least_losses(candidate_gt[part], losses[part], level_sizes, num_gts, top_k)
        for part in images_at_once(len(losses), num_gts * losses.shape[1])
    ]
    kept_losses, kept = (torch.cat(parts) for parts in zip(*found, strict=True))
    ascending, order = kept_losses.sort(stable=True, dim=-1)  # [B, G, M], absent ones at the end
    positive = low_loss_component(*(yield (ascending,)))
    counts = tuple(positive.sum((1, 2)).tolist())
    image, gt, rank = places(positive.to(gt_index.device), sum(counts))
    gt_index[image, kept.gather(-1, order)[image, gt, rank]] = gt
    return gt_index, counts


def _least_losses(
    candidate_gt: Tensor, losses: Tensor, level_sizes: tuple[int, ...], num_gts: int, top_k: int
) -> tuple[Tensor, Tensor]:
    """[B, G, M] losses and numbers of each object's best candidates of each level, for a few images."""
    gts = torch.arange(num_gts, device=candidate_gt.device)[:, None]
    kept_losses, kept = [], []
    start = 0
    for size in level_sizes:
        level = slice(start, start + size)
        own = candidate_gt[:, None, level] == gts
        least = torch.where(own, losses[:, None, level], torch.inf).topk(min(top_k, size), largest=False)
        kept_losses.append(least.values)
        kept.append(least.indices + start)
        start += size
    return torch.cat(kept_losses, -1), torch.cat(kept, -1)
