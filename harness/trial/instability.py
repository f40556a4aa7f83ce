"""Instability of the one-to-one matching (DN-DETR; paper Figure 5).

Between two evaluated epochs: how many decoder queries of a validation image are matched with another ground truth than
before. The matching comes from the evaluation pass that is made anyway (`evaluate.detect_all`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.types import BACKGROUND


def instability(previous: Tensor, current: Tensor) -> float:
    """IS^i = mean over images of Σ_n 1(V_n^i ≠ V_n^(i-1)).

    Args:
        previous: V^(i-1) [N, Q], the ground truth that query n of the last layer was matched with, or BACKGROUND; or
            [N, G] from `sources_by_object`, for the version keyed by ground truth.
        current: V^i, the same images in the same order.

    Returns:
        Changes per image. By queries at most twice the number of objects, by ground truth at most that number.
    """
    return float((previous != current).sum(1).double().mean())


def sources_by_object(gt_index: Tensor, sources: Tensor, count: int) -> Tensor:
    """V keyed by ground truth: where the query came from that each object was matched with.

    The queries of a two-stage detector are ranks among the encoder's proposals. They are others in every epoch; what
    stays is the place on the feature maps that a query was taken from.

    Args:
        gt_index: [N, Q] ground truth of each query, or BACKGROUND.
        sources: [N, Q] (see `model.types.QueryGroup.source`).
        count: G, above every ground truth's number; an image may have more objects than queries.

    Returns:
        [N, G], entry g for ground truth g; BACKGROUND where there is none.
    """
    found = torch.full((len(gt_index), count + 1), BACKGROUND, dtype=sources.dtype)
    slots = torch.where(gt_index >= 0, gt_index, count).long()  # unmatched queries share a column that is cut off
    return found.scatter(1, slots, sources)[:, :count]


def instabilities(previous: Tensor | None, current: Tensor) -> dict[str, float | None]:
    """Both versions by the names under which they are recorded; None in the first evaluated epoch.

    Args:
        previous: [N, 2, Q] ground truth and source of each query an evaluated epoch before.
        current: the same now.
    """
    if previous is None or previous.shape != current.shape:  # the data set has changed
        return {"instability": None, "instability_gt": None}
    count = int(torch.stack([previous[:, 0], current[:, 0]]).max()) + 1  # both need the same columns
    by_object = [sources_by_object(matching[:, 0], matching[:, 1], count) for matching in (previous, current)]
    return {"instability": instability(previous[:, 0], current[:, 0]), "instability_gt": instability(*by_object)}
