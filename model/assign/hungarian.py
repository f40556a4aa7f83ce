"""One-to-one matching of predictions and ground truths by the Hungarian algorithm (Carion et al. 2020).

All decoder layers and all images share one cost computation and one copy to the CPU; scipy then solves each problem.
The costs carry the weights of the losses, unless the configuration gives them their own.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from model.assign.configs import HungarianConfig
from model.boxes import added_area, cxcywh_to_xyxy, giou_pairwise, size_whwh
from model.config import LossWeights
from model.inquiry import Inquiry, asking, inquiry
from model.overlaps import images_at_once
from model.types import BACKGROUND, Targets

FOCAL_ALPHA, FOCAL_GAMMA, LOG_EPSILON = 0.25, 2.0, 1e-12
PARALLEL_COST_SIZE = 200_000  # entries of the cost tensor from which threads pay


class Hungarian:
    """One-to-one matching; `weights` are those of the losses."""

    def __init__(self, config: HungarianConfig, *, weights: LossWeights):
        own = {term: getattr(config, term) for term in ("classification", "l1", "giou")}
        self.log_epsilon = config.log_epsilon
        self.weights = replace(weights, **{term: weight for term, weight in own.items() if weight is not None})

    @asking
    def __call__(
        self, logits: Tensor, boxes_cxcywh: Tensor, targets: Targets, valid_hw: Tensor, excluded: Tensor | None = None
    ) -> Inquiry[Tensor]:
        """See the contract, and `match`."""
        given = logits, boxes_cxcywh, targets, valid_hw, self.weights
        gt_index = yield from inquiry(match, *given, excluded=excluded, log_epsilon=self.log_epsilon)
        return gt_index


@asking
@torch.no_grad()
def match(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    targets: Targets,
    valid_hw: Tensor,
    weights: LossWeights,
    *,
    excluded: Tensor | None = None,
    log_epsilon: float = LOG_EPSILON,
) -> Inquiry[Tensor]:
    """Match every layer's queries with the ground truths of their image.

    Args:
        logits: [N, B, Q, C] class logits of N decoder layers (N = 1 and Q = S for the encoder's proposals).
        boxes_cxcywh: [N, B, Q, 4] normalised by the valid size.
        targets: ground truth; padding rows are never matched.
        valid_hw: [B, 2] pixels.
        weights: of the three costs, and what GIoU adds.
        excluded: [B, Q] bool, True for queries that may not be matched (tokens in the padding); None: all may.
        log_epsilon: inside the logarithms of the classification cost.

    Returns:
        gt_index [N, B, Q] int64: 0-based ground truth or BACKGROUND. Every ground truth is matched once per layer,
        unless there are fewer queries than ground truths.

    Raises:
        FloatingPointError: a cost is not finite; names the layers and images.
    """
    num_layers, num_images, num_queries, _ = logits.shape
    counts = targets.host_counts()
    if num_queries == 0 or max(counts, default=0) == 0:
        yield (logits.new_empty(0),)  # every share of a batch asks
        return torch.full((num_layers, num_images, num_queries), BACKGROUND, device=logits.device)
    question = [matching_costs(logits, boxes_cxcywh, targets, valid_hw, weights, log_epsilon)]
    costs, *rest = (tensor.numpy() for tensor in (yield (*question, *([] if excluded is None else [excluded]))))
    queries, gt_index = np.arange(num_queries), torch.full((num_layers, num_images, num_queries), BACKGROUND)
    allowed = [queries[~row] for row in rest[0]] if rest else [queries] * num_images
    indices = [(layer, image) for layer in range(num_layers) for image in range(num_images)]
    problems = [costs[layer, image, allowed[image], : counts[image]] for layer, image in indices]
    _check_finite(indices, problems)
    if costs.size < PARALLEL_COST_SIZE:
        solutions = list(map(linear_sum_assignment, problems))
    else:  # scipy releases the interpreter lock
        with ThreadPoolExecutor(min(len(problems), torch.get_num_threads())) as pool:
            solutions = list(pool.map(linear_sum_assignment, problems))
    result = gt_index.numpy()
    for (layer, image), (rows, gts) in zip(indices, solutions, strict=True):
        result[layer, image, allowed[image][rows]] = gts
    return gt_index.to(logits.device)


def matching_costs(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    targets: Targets,
    valid_hw: Tensor,
    weights: LossWeights,
    log_epsilon: float = LOG_EPSILON,
) -> Tensor:
    """[N, B, Q, G] weighted sum of focal, L1 (normalised) and GIoU (pixels) costs, in at least float32."""
    pairs = len(logits) * logits.shape[2] * targets.labels.shape[1]
    parts = [
        _costs(logits[:, part], boxes_cxcywh[:, part], targets.of_images(part), valid_hw[part], weights, log_epsilon)
        for part in images_at_once(len(valid_hw), pairs)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _costs(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    targets: Targets,
    valid_hw: Tensor,
    weights: LossWeights,
    log_epsilon: float,
) -> Tensor:
    """`matching_costs` of a few images."""
    with torch.autocast(logits.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(logits.dtype, boxes_cxcywh.dtype), torch.float32)
        logits, boxes = logits.to(dtype), boxes_cxcywh.to(dtype)
        gt_boxes = targets.boxes_xyxy.to(dtype)
        labels = targets.labels.clamp(min=0)[None, :, None].expand(*logits.shape[:3], -1)
        cost = weights.classification * focal_cost(logits.gather(-1, labels), log_epsilon)
        normalised = targets.boxes_cxcywh(valid_hw).to(dtype)
        cost += weights.l1 * torch.cdist(boxes, normalised.expand(len(boxes), -1, -1, -1), p=1)
        pixels = cxcywh_to_xyxy(boxes) * size_whwh(valid_hw).to(dtype)[:, None]
        more = added_area(weights.giou_epsilon, valid_hw[:, None, None].to(dtype))  # [B, 1, 1]
        cost -= weights.giou * giou_pairwise(pixels, gt_boxes, more)
    return cost


def focal_cost(logits: Tensor, epsilon: float = LOG_EPSILON) -> Tensor:
    """[...] change of the focal loss when a query of these logits takes the class instead of background."""
    probability = logits.sigmoid()
    taken = FOCAL_ALPHA * (1 - probability).pow(FOCAL_GAMMA) * -(probability + epsilon).log()
    left = (1 - FOCAL_ALPHA) * probability.pow(FOCAL_GAMMA) * -(1 - probability + epsilon).log()
    return taken - left


def _check_finite(indices: list[tuple[int, int]], problems: list[np.ndarray]) -> None:
    bad = [index for index, cost in zip(indices, problems, strict=True) if not np.isfinite(cost).all()]
    if bad:
        layers, images = sorted({layer for layer, _ in bad}), sorted({image for _, image in bad})
        raise FloatingPointError(
            f"matching: predictions are not finite in layers {layers}, images {images} of the batch; "
            "lower the learning rate or train in fp32"
        )
