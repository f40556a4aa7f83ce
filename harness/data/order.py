"""Which images an epoch of training shows, how often, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from harness.config import DataConfig


def learnt_from(image_hw: Sequence[tuple[int, int]], config: DataConfig) -> np.ndarray:
    """[I'] indices of the images that are large enough for `config.min_image_side`, of [I] sizes."""
    sides = np.array(image_hw, np.int64).reshape(-1, 2)
    return np.flatnonzero(sides.min(1) >= config.min_image_side)


def aspect_groups(image_hw: Sequence[tuple[int, int]], config: DataConfig) -> list[np.ndarray]:
    """Indices of the images to learn from that share their shape; all of them are one group where that is not asked."""
    indices = learnt_from(image_hw, config)
    if not config.aspect_group_size:
        return [indices]
    sides = np.array(image_hw, np.int64).reshape(-1, 2)[indices]
    is_wide = sides[:, 1] > sides[:, 0]
    return [group for group in (indices[~is_wide], indices[is_wide]) if len(group)]


def samples_of_epoch(
    image_hw: Sequence[tuple[int, int]], config: DataConfig, batch_size: int, factors: np.ndarray | None = None
) -> int:
    """How many images an epoch shows, each as often as it is repeated; more where groups must fill whole batches.

    Args:
        image_hw: sizes of [I] images.
        config: of the data.
        batch_size: images of an optimiser step.
        factors: [I] see `repeat_factors`; None: each image is shown once.
    """
    groups = aspect_groups(image_hw, config)
    sizes = [len(group) if factors is None else _repeated_size(factors[group], config) for group in groups]
    return sum(_filled(size, config, batch_size) for size in sizes)


def _filled(size: int, config: DataConfig, batch_size: int) -> int:
    """How many samples a group of images gives."""
    return -(-size // batch_size) * batch_size if config.aspect_group_size else size


def epoch_order(
    groups: Sequence[np.ndarray],
    config: DataConfig,
    batch_size: int,
    permutation: Callable[[int], np.ndarray],
) -> list[int]:
    """Indices in the order of an epoch.

    Args:
        groups: see `aspect_groups` and `repeated`.
        config: of the data.
        batch_size: images of an optimiser step.
        permutation: draws one of 0 .. n-1.

    Returns:
        All images shuffled; or, in groups, `aspect_group_size` in a row from one of them, every group repeated from
        its beginning until it fills whole batches (official: `DistributedGroupSampler`).
    """
    shuffled = [group[permutation(len(group))] for group in groups]
    if not config.aspect_group_size:
        return np.concatenate(shuffled).tolist()
    filled = [np.resize(group, _filled(len(group), config, batch_size)) for group in shuffled]
    slices = np.concatenate(filled).reshape(-1, config.aspect_group_size)
    return slices[permutation(len(slices))].flatten().tolist()


def showings(order: np.ndarray) -> np.ndarray:
    """[N] how often the image of each place of an epoch's order [N] stands before it."""
    places = np.argsort(order, kind="stable")
    counts = np.bincount(order)
    found = np.empty_like(places)
    found[places] = np.arange(len(order)) - (np.cumsum(counts) - counts)[order[places]]
    return found


# ---- rare classes more often --------------------------------------------------------------------------------------


def repeat_factors(
    images: np.ndarray, classes: np.ndarray, image_hw: Sequence[tuple[int, int]], config: DataConfig
) -> np.ndarray | None:
    """How often each image is shown, [I] float64 of at least 1; None where `config.repeat_threshold` is 0.

    A class that a share f of the images to learn from has, below the threshold t, wants its images sqrt(t / f) times,
    and an image takes the most that one of its classes wants (Gupta et al. 2019, LVIS; official:
    `ClassBalancedDataset`).

    Args:
        images: [N] index of each object's image.
        classes: [N] whole numbers.
        image_hw: sizes of the I images.
        config: of the data.
    """
    if not config.repeat_threshold:
        return None
    learnt = np.zeros(len(image_hw), bool)
    learnt[learnt_from(image_hw, config)] = True
    pairs = np.unique(np.stack([images, classes], 1)[learnt[images]], axis=0)
    if config.repeat_empty:
        empty = learnt & (np.bincount(images, minlength=len(learnt)) == 0)
        own = np.full(int(empty.sum()), classes.max(initial=-1) + 1)
        pairs = np.concatenate([pairs, np.stack([np.flatnonzero(empty), own], 1)])
    factors = np.ones(len(learnt))
    _, number, counts = np.unique(pairs[:, 1], return_inverse=True, return_counts=True)
    wanted = np.maximum(1, np.sqrt(config.repeat_threshold / (counts / learnt.sum())))
    np.maximum.at(factors, pairs[:, 0], wanted[number])
    return factors


def repeated(
    groups: Sequence[np.ndarray], factors: np.ndarray, config: DataConfig, draws: np.random.Generator
) -> list[np.ndarray]:
    """Each group with its images as often as they are shown in an epoch.

    Args:
        groups: see `aspect_groups`.
        factors: [I] see `repeat_factors`.
        config: of the data; `repeat` is "ceil" for factors rounded up, so that all epochs are alike, or "drawn": every
            factor is rounded up or down anew, and of a group so many are rounded up that it always has the same size,
            the sum of its factors as a whole number. An image is shown its factor of times in the mean of many epochs.
        draws: of the epoch.
    """
    return [np.repeat(group, _counts(factors[group], config, draws)) for group in groups]


def _repeated_size(factors: np.ndarray, config: DataConfig) -> int:
    if config.repeat == "ceil":
        return int(np.ceil(factors).sum())
    return int(np.floor(factors).sum()) + round(float((factors % 1).sum()))


def _counts(factors: np.ndarray, config: DataConfig, draws: np.random.Generator) -> np.ndarray:
    """[G] how often each image of a group is shown."""
    if config.repeat == "ceil":
        return np.ceil(factors).astype(np.int64)
    counts, shares = np.floor(factors).astype(np.int64), factors % 1
    number = _repeated_size(factors, config) - int(counts.sum())
    uneven = np.flatnonzero(shares)
    if number <= shares.sum():
        counts[uneven[_chosen(shares[uneven], number, draws)]] += 1
    else:  # shares that are made larger could exceed 1, so those that are rounded down are drawn
        counts[uneven] += 1
        counts[uneven[_chosen(1 - shares[uneven], len(uneven) - number, draws)]] -= 1
    return counts


def _chosen(shares: np.ndarray, number: int, draws: np.random.Generator) -> np.ndarray:
    """[number] distinct indices, each as likely as its share: one at every step along all of them, in drawn order."""
    order, start = draws.permutation(len(shares)), draws.random()
    if not number:
        return order[:0]
    ends = np.cumsum(shares[order])
    steps = (start + np.arange(number)) * (ends[-1] / number)
    return order[np.minimum(np.searchsorted(ends, steps, side="right"), len(order) - 1)]
