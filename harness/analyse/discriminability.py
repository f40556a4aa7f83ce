"""Discriminability: how much stronger features are on objects than beside them (paper Figures 2 and 3).

For level j of the encoder output F the l2 norm over channels gives a map F̂_j, which is resized to the image:

    D(F) = 1/J Σ_j resize( F̂_j / max F̂_j )
    IoF(S) = Σ 1(D > S) M_fg / Σ M_fg,    IoB(S) = Σ 1(D > S) M_bg / Σ M_bg

with the foreground M_fg inside any box. Sweeping S from 0 to 1 draws the IoF-IoB curve from (1, 1) to (0, 0); its area
is 1 for features that are on where objects are and off elsewhere, and 0.5 for features that know nothing of objects.
The same recipe on the decoder's attention instead of F̂_j gives the second curve. This is version 2 of the definition,
the author's own order (Sense-X/Co-DETR, issue 95); other readings have names of their own in `READINGS`.
docs/metrics.md has every choice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from harness.analyse.bootstrap import interval, resamples
from harness.analyse.grids import divide_by_max, inside, resize
from model.ops import ms_deform_attn

NUM_THRESHOLDS = 101
VERSION = 2  # of the definition: of what stands under the plain name


Levels = tuple[Tensor, ...]


def thresholds(device: torch.device | str = "cpu") -> Tensor:
    """[101] float32 from 0 to 1."""
    return torch.linspace(0, 1, NUM_THRESHOLDS, device=device)


def feature_strength(levels: Levels) -> list[Tensor]:
    """F̂_j [B, h, w]: the l2 norm over channels of each level [B, D, h, w]."""
    return [level.float().norm(dim=1) for level in levels]


def attention_strength(
    locations: Tensor, weights: Tensor, sizes: tuple[tuple[int, int], ...], queries: Tensor
) -> list[Tensor]:
    """How much attention each position of each level gets from some of the queries.

    Every weight is given to the four positions around its location in bilinear shares, and what falls beside the map
    is lost: the transpose of what deformable attention reads, so its own backward pass computes it.

    Args:
        locations: [B, Q, K, L, P, 2] (x, y) normalised to each whole map, for K attention heads and P points.
        weights: [B, Q, K, L, P].
        sizes: (h, w) of the L levels.
        queries: [B, Q] bool, those that count.

    Returns:
        L maps [B, h, w], summed over heads, points and queries.
    """
    batch, _, num_heads = weights.shape[:3]
    chosen = weights.detach() * queries[:, :, None, None, None]
    with torch.enable_grad():
        value = chosen.new_zeros(batch, sum(h * w for h, w in sizes), num_heads, 1).requires_grad_()
        read = ms_deform_attn(value, sizes, locations.detach(), chosen).sum()
    (scattered,) = torch.autograd.grad(read, value)
    levels = scattered.sum((2, 3)).split([h * w for h, w in sizes], 1)
    return [level.unflatten(1, size) for level, size in zip(levels, sizes, strict=True)]


def discriminability_map(levels: Levels, cells: list[Tensor], size: tuple[int, int], valid_hw: Tensor) -> Tensor:
    """D [B, H, W] in [0, 1]: each level's norm over its maximum, resized to the image, then their mean.

    Args:
        levels: J levels [B, D, h, w]; of attention D is 1.
        cells: J x [B, 2] valid rows and columns of them.
        size: (H, W) of the batch in pixels.
        valid_hw: [B, 2] pixels of each image; D is zero outside.
    """
    maps = []
    for strength, own in zip(feature_strength(levels), cells, strict=True):
        strength = strength.masked_fill(~inside(own, (strength.shape[1], strength.shape[2])), 0.0)
        maps.append(resize(divide_by_max(strength), own, size, valid_hw))
    return torch.stack(maps).mean(0)


def resized_first(levels: Levels, cells: list[Tensor], size: tuple[int, int], valid_hw: Tensor) -> Tensor:
    """D [B, H, W] by version 1: the maximum is that of the map at the image's size, so that each level reaches 1 there.

    Arguments are those of `discriminability_map`.
    """
    both = zip(feature_strength(levels), cells, strict=True)
    return torch.stack([divide_by_max(resize(level, own, size, valid_hw)) for level, own in both]).mean(0)


def concatenated(levels: Levels, cells: list[Tensor], size: tuple[int, int], valid_hw: Tensor) -> Tensor:
    """D [B, H, W] of one map: the levels' features, resized to the finest level, are set side by side; the norm of all.

    So the author answered another question (Sense-X/Co-DETR, issue 136). Arguments are those of `discriminability_map`.
    """
    finest, first = (levels[0].shape[2], levels[0].shape[3]), cells[0]
    squares = torch.zeros_like(levels[0][:, 0], dtype=torch.float32)
    for level, own in zip(levels, cells, strict=True):
        channels = level.shape[1]
        old, new = (number.repeat_interleave(channels, 0) for number in (own, first))
        resized = resize(level.float().flatten(0, 1), old, finest, new)
        squares += resized.unflatten(0, (-1, channels)).square().sum(1)
    return resize(divide_by_max(squares.sqrt()), first, size, valid_hw)


Reading = Callable[[Levels, list[Tensor], tuple[int, int], Tensor], Tensor]
READINGS: dict[str, Reading] = {
    "discriminability": discriminability_map,
    "discriminability.v1": resized_first,
    "discriminability.concatenated": concatenated,
}


def inside_boxes(boxes_xyxy: Tensor, valid: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, H, W] bool: the pixel's centre lies in one of the `boxes_xyxy` [B, G, 4] that are `valid` [B, G]."""
    y = torch.arange(size[0], device=boxes_xyxy.device) + 0.5
    x = torch.arange(size[1], device=boxes_xyxy.device) + 0.5
    x0, y0, x1, y1 = (side[..., None] for side in boxes_xyxy.unbind(-1))
    rows = ((y >= y0) & (y < y1) & valid[..., None]).float()  # [B, G, H]
    columns = ((x >= x0) & (x < x1)).float()  # [B, G, W]
    return rows.transpose(1, 2) @ columns > 0


def exceeding_share(maps: Tensor, region: Tensor) -> Tensor:
    """Share of a region's pixels where the map exceeds each threshold.

    Args:
        maps: [B, H, W] in [0, 1].
        region: [B, H, W] bool.

    Returns:
        [B, 101] float64, falling from exactly 1 at S = 0, where every pixel counts (also one that is exactly 0), to 0
        at S = 1; not-a-number for an empty region.
    """
    # A value exceeds the thresholds before its place among them, so one histogram serves all thresholds.
    place = torch.searchsorted(thresholds(maps.device), maps.flatten(1).contiguous())  # [B, N], 0 .. 101
    counts = torch.zeros(len(maps), NUM_THRESHOLDS + 1, dtype=torch.float64, device=maps.device)
    counts.scatter_add_(1, place.clamp(max=NUM_THRESHOLDS), region.flatten(1).double())
    exceeding = counts.flip(1).cumsum(1).flip(1)[:, 1:]  # [B, 101]: pixels whose place is above k
    total = counts.sum(1, keepdim=True)
    shares = torch.where(total > 0, exceeding / total.clamp(min=1), torch.nan)
    shares[:, 0] = torch.where(total[:, 0] > 0, 1.0, torch.nan)
    return shares


def iof_iob(maps: Tensor, foreground: Tensor, ignored: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """IoF and IoB of each image at each threshold, [B, 101] each; not-a-number where an image has no such pixel.

    Args:
        maps: [B, H, W], D of each image.
        foreground: [B, H, W] bool, inside a box.
        ignored: [B, H, W] bool, crowd regions: what is no foreground there is no background either.
        valid: [B, H, W] bool, False beside the image.
    """
    return exceeding_share(maps, foreground & valid), exceeding_share(maps, ~foreground & ~ignored & valid)


def area(iof: np.ndarray, iob: np.ndarray) -> np.ndarray:
    """[...] area under IoF over IoB by the trapezoidal rule; both [..., 101] and falling from 1 to 0."""
    widths = iob[..., :-1] - iob[..., 1:]
    return (widths * (iof[..., :-1] + iof[..., 1:]) / 2).sum(-1)


def curve(iof: np.ndarray, iob: np.ndarray) -> dict[str, object]:
    """The mean curve over images, its area, and the area's 95 % interval (bootstrap over images).

    Args:
        iof: [num_images, 101].
        iob: [num_images, 101].
    """
    if not len(iof):
        return {"iof": [], "iob": [], "auc": None, "interval": [None, None]}
    weights = resamples(len(iof))
    low, high = interval(area(weights @ iof, weights @ iob))
    mean_iof, mean_iob = iof.mean(0), iob.mean(0)
    return {
        "iof": mean_iof.tolist(),
        "iob": mean_iob.tolist(),
        "auc": float(area(mean_iof, mean_iob)),
        "interval": [float(low), float(high)],
    }
