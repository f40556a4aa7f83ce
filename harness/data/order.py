"""Which images an epoch of training shows, and in which order."""

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


def samples_of_epoch(image_hw: Sequence[tuple[int, int]], config: DataConfig, batch_size: int) -> int:
    """How many images an epoch shows; some of them twice where groups must fill whole batches."""
    return sum(_filled(len(group), config, batch_size) for group in aspect_groups(image_hw, config))


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
        groups: see `aspect_groups`.
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
