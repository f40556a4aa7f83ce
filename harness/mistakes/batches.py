"""Images beside each other: columns of a split become padded arrays of some images each, and boxes overlap there.

Images with about as many objects come together, so that little is padding; a batch holds as many as its overlaps leave
room for.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

MOST_PAIRS = 2**20  # of detection and object in a batch


def batches(first: np.ndarray, second: np.ndarray, num_images: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places of two sides in batches of images, those with fewest of the second side first.

    Args:
        first: [N] image of each row, ascending.
        second: [M] the same of the other side.
        num_images: I; images are 0 to I - 1. Those without a row of the first side are left out.

    Yields:
        [B, D] and [B, G] rows of both sides, -1 where an image has no more.
    """
    counts = [np.bincount(images, minlength=num_images) for images in (first, second)]
    starts = [np.cumsum(own) - own for own in counts]
    order = np.lexsort((counts[0], counts[1]))
    order = order[counts[0][order] > 0]
    at = 0
    while at < len(order):
        end = at + _size(counts[0][order[at:]], counts[1][order[at:]])
        chosen = order[at:end]
        yield _padded(starts[0][chosen], counts[0][chosen]), _padded(starts[1][chosen], counts[1][chosen])
        at = end


def _size(first: np.ndarray, second: np.ndarray) -> int:
    """How many of these images, which have so many rows each, make a batch; one at least."""
    pairs = np.maximum.accumulate(first) * np.maximum(np.maximum.accumulate(second), 1)
    return max(1, int(np.searchsorted(pairs * np.arange(1, len(pairs) + 1), MOST_PAIRS, side="right")))


def _padded(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    places = np.arange(counts.max(initial=0))
    return np.where(places < counts[:, None], starts[:, None] + places, -1)


def common_area(first_xywh: np.ndarray, second_xywh: np.ndarray) -> np.ndarray:
    """[B, D, G] pixels that boxes [B, D, 4] and [B, G, 4] share."""
    sides = []
    for axis in (0, 1):
        low = np.maximum(first_xywh[:, :, None, axis], second_xywh[:, None, :, axis])
        ends = [boxes[..., axis] + boxes[..., axis + 2] for boxes in (first_xywh, second_xywh)]
        high = np.minimum(ends[0][:, :, None], ends[1][:, None, :])
        sides.append(np.maximum(high - low, 0.0))
    return sides[0] * sides[1]


def overlaps(first_xywh: np.ndarray, second_xywh: np.ndarray, is_crowd: np.ndarray | None = None) -> np.ndarray:
    """[B, D, G] intersection over union; with a crowd region the share of the first box that it covers.

    Args:
        first_xywh: [B, D, 4].
        second_xywh: [B, G, 4].
        is_crowd: [B, G] bool, which of the second boxes are crowd regions.
    """
    common = common_area(first_xywh, second_xywh)
    own, theirs = (boxes[..., 2] * boxes[..., 3] for boxes in (first_xywh, second_xywh))
    whole = own[:, :, None] + theirs[:, None, :] - common
    if is_crowd is not None and is_crowd.any():
        whole = np.where(is_crowd[:, None, :], own[:, :, None], whole)
    return np.divide(common, whole, out=np.zeros_like(common), where=whole > 0)
