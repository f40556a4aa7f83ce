"""Customised positive queries: how many there are, and how near they lie to the original ones (paper Figure 7).

Positions are centres of the queries' own boxes in pixels of the network's input: of a positive's anchor, point or
proposal, and of an original query's reference before the decoder moves it. Distances are shares of the diagonal.
"""

from __future__ import annotations

import torch
from torch import Tensor


def positives_per_gt(gt_index: Tensor, valid: Tensor) -> tuple[int, int]:
    """(positives, ground truths) of a batch: candidates `gt_index` [B, N] of ground truths `valid` [B, G]."""
    return int((gt_index >= 0).sum()), int(valid.sum())


def query_distances(
    positives: Tensor, gt_index: Tensor, queries: Tensor, matched_gt: Tensor, diagonal: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean distance of customised positives to the original queries, per image (Figure 7b).

    To positives: the original query that is matched to the same ground truth. To negatives: all original queries
    that are matched to none.

    Args:
        positives: [B, N, 2] centres of a head's candidates in pixels.
        gt_index: [B, N] their ground truth; negative: no positive, it takes no part.
        queries: [B, Q, 2] centres of the original queries in pixels.
        matched_gt: [B, Q] their ground truth by the matching; negative: none.
        diagonal: [B] pixels.

    Returns:
        to_positives [B], to_negatives [B] as shares of the diagonal; not-a-number where an image has no such pair.
    """
    distance = torch.cdist(positives.double(), queries.double()) / diagonal.double()[:, None, None]  # [B, N, Q]
    is_positive = (gt_index >= 0)[..., None]
    same = is_positive & (gt_index[..., None] == matched_gt[:, None])
    other = is_positive & (matched_gt < 0)[:, None]
    return _mean_where(distance, same), _mean_where(distance, other)


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    count = chosen.sum((1, 2))
    return torch.where(count > 0, (values * chosen).sum((1, 2)) / count.clamp(min=1), torch.nan)
