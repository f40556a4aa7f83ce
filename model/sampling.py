"""Random samples of an image's candidates: a fixed number, of which at most a share is positive.

Works on a whole batch; the only randomness is one `rand` per call, so torch's seed decides the choice.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.share import rand
from model.types import BACKGROUND, IGNORED


class Sample(NamedTuple):
    """Candidates of a batch that were chosen, positives first, each kind in the candidates' order."""

    candidate: Tensor  # [B, M] int64 into the candidates
    gt_index: Tensor  # [B, M] int64; IGNORED in rows that an image cannot fill


@torch.no_grad()
def choose(gt_index: Tensor, number: int, positive_fraction: float) -> Tensor:
    """[B, A] bool: per image up to `number` candidates, of which at most `positive_fraction` are positive.

    Places that positives leave free go to background candidates (official random sampler).

    Args:
        gt_index: [B, A], 0-based ground truth, BACKGROUND or IGNORED; the last is never chosen.
        number: per image.
        positive_fraction: in [0, 1]; the product with `number` is rounded down.
    """
    priority = rand(gt_index.shape, gt_index.device)
    positive = _highest(priority, gt_index >= 0, int(number * positive_fraction))
    free = number - positive.sum(1, keepdim=True)
    return positive | _highest(priority, gt_index == BACKGROUND, number, free)


def _highest(priority: Tensor, eligible: Tensor, number: int, limit: Tensor | None = None) -> Tensor:
    """[B, A] bool: the `number` eligible ones of highest priority, or `limit` [B, 1] of them where that is less."""
    if number >= priority.shape[1] and limit is None:
        return eligible
    best = priority.masked_fill(~eligible, -1.0).topk(min(number, priority.shape[1]), 1)
    taken = best.values >= 0
    if limit is not None:
        taken &= torch.arange(taken.shape[1], device=taken.device) < limit
    return torch.zeros_like(eligible).scatter(1, best.indices, taken)


@torch.no_grad()
def sample(gt_index: Tensor, number: int, positive_fraction: float) -> Sample:
    """The candidates that `choose` takes, as rows: M is `number`, or A if that is less."""
    num_candidates = gt_index.shape[1]
    chosen = choose(gt_index, number, positive_fraction)
    group = torch.where(chosen, (gt_index < 0).long(), 2)  # positives, negatives, not chosen
    order = group * num_candidates + torch.arange(num_candidates, device=group.device)
    first = order.topk(min(number, num_candidates), 1, largest=False, sorted=True)
    rows = gt_index.gather(1, first.indices)
    return Sample(first.indices, rows.masked_fill(first.values >= 2 * num_candidates, IGNORED))
