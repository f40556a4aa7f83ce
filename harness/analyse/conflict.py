"""Conflict of heads: how differently they look at the encoder's output (paper Figures 6, 8 and 9).

    S_ij = 1/|D| Σ_I KL( C(H_i(I)) ‖ C(H_j(I)) ),    S_i = 1/(2(H-1)) Σ_{j≠i} (S_ij + S_ji)

where C is Grad-CAM (Selvaraju et al. 2017) on the encoder output, made a distribution over positions, and H counts all
heads, the decoder among them: with one auxiliary head S_i is the distance between it and the decoder.
The paper leaves open how a map becomes a distribution and which output is differentiated. `cam-v1` is our definition
to the last choice; other readings have names of their own in `VARIANTS`. docs/metrics.md tells all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from harness.analyse.grids import divide_by_max, inside, resize
from harness.config import ConflictVariant

L1_EPSILON = 1e-6  # added to a map in [0, 1] before it is divided by its sum: KL is infinite at a zero otherwise


@dataclass(frozen=True)
class Variant:
    """One way to make a distribution of a head's gradients."""

    weights: Literal["pooled", "position"] = "pooled"  # α: mean of the gradient over positions, or the gradient itself
    signed: bool = False  # False: ReLU; True: negative evidence stays, the map is moved to [0, 1]
    levels: Literal["merged", "joint", "finest", "each"] = "merged"  # see `head_maps`
    added: bool = True  # with the levels that the multi-scale adapter adds, which the decoder does not see
    distribution: Literal["softmax", "l1"] = "softmax"


VARIANTS: dict[ConflictVariant, Variant] = {
    "cam-v1": Variant(),
    "cam-v1-positions": Variant(weights="position"),
    "cam-v1-signed": Variant(signed=True),
    "cam-v1-l1": Variant(distribution="l1"),
    "cam-v1-joint-levels": Variant(levels="joint"),
    "cam-v1-finest-level": Variant(levels="finest", added=False),
    "cam-v1-each-level": Variant(levels="each", added=False),
    "cam-v1-encoder-levels": Variant(added=False),
}
assert set(VARIANTS) == set(get_args(ConflictVariant))


# ---- maps ---------------------------------------------------------------------------------------------------------


def grad_cam(features: Tensor, gradient: Tensor, valid: Tensor, variant: Variant) -> Tensor:
    """M = ReLU(Σ_c α_c F_c), α_c the mean of the gradient over the image's own positions (Grad-CAM Eq. 1 and 2).

    Args:
        features: [B, D, h, w], one level of what the heads read.
        gradient: [B, D, h, w] of a head's scalar.
        valid: [B, h, w] bool.
        variant: `weights` and `signed`.

    Returns:
        [B, h, w], zero outside `valid`.
    """
    keep = valid[:, None].to(gradient.dtype)
    if variant.weights == "pooled":
        alpha = (gradient * keep).sum((2, 3), keepdim=True) / keep.sum((2, 3), keepdim=True).clamp(min=1)
    else:
        alpha = gradient
    cam = (alpha * features * keep).sum(1)
    return cam if variant.signed else cam.relu()


def unit_map(maps: Tensor, valid: Tensor, signed: bool = False) -> Tensor:
    """[B, h, w] in [0, 1]: over the maximum, or for signed maps from the smallest to the largest valid value."""
    if signed:
        lowest = maps.masked_fill(~valid, torch.inf).amin((1, 2), keepdim=True)
        maps = (maps - lowest).masked_fill(~valid, 0.0)
    return divide_by_max(maps)


def head_maps(
    features: Sequence[Tensor],
    gradients: Sequence[Tensor],
    cells: Sequence[Tensor],
    variant: Variant,
) -> list[Tensor]:
    """A head's maps in [0, 1].

    `merged`: each level over its maximum, bilinear to the finest level, their mean over its maximum. `joint`: the
    same without the first division, so that levels keep their relative strength. `finest`: that level alone.
    `each`: a map per level, compared level by level.

    Args:
        features: L levels [B, D, h, w], fine to coarse.
        gradients: the same shapes.
        cells: L x [B, 2] valid rows and columns.
        variant: which way.

    Returns:
        One map [B, h, w] on the finest level, or one per level for `each`; zero outside the valid cells.
    """
    sizes = [(level.shape[2], level.shape[3]) for level in features]
    count = 1 if variant.levels == "finest" else len(features)
    valid = [inside(own, size) for own, size in zip(cells, sizes, strict=True)]
    cams = [
        grad_cam(level, gradient, mask, variant)
        for level, gradient, mask in zip(features[:count], gradients, valid, strict=False)
    ]
    if variant.levels != "joint":
        cams = [unit_map(cam, mask, variant.signed) for cam, mask in zip(cams, valid, strict=False)]
    if variant.levels in ("finest", "each"):
        return cams
    spread = [resize(cam, own, sizes[0], cells[0]) for cam, own in zip(cams, cells, strict=True)]
    return [unit_map(torch.stack(spread).mean(0), valid[0], variant.signed)]


# ---- distributions ------------------------------------------------------------------------------------------------


def log_distribution(maps: Tensor, valid: Tensor, variant: Variant) -> Tensor:
    """Logarithm of the distribution over valid positions; float64 and 0 (not -inf) elsewhere.

    softmax: p = exp(M) / Σ exp(M) of the map in [0, 1], in which an all-zero map is uniform.
    l1: p = (M + ε) / Σ (M + ε).

    Args:
        maps: [..., h, w] in [0, 1].
        valid: [..., h, w] bool.
        variant: `distribution`.

    Returns:
        [..., h * w].
    """
    values, keep = maps.double().flatten(-2), valid.flatten(-2)
    if variant.distribution == "l1":
        values = (values + L1_EPSILON).log()
    logs = values.masked_fill(~keep, -torch.inf).log_softmax(-1)
    return logs.masked_fill(~keep, 0.0)


def divergences(log_p: Tensor, log_q: Tensor, valid: Tensor) -> Tensor:
    """KL( p_i ‖ q_j ) in nats, summed over positions, for every pair of heads.

    Args:
        log_p: [B, H, N] of `log_distribution`.
        log_q: [B, H', N].
        valid: [B, N] bool.

    Returns:
        [B, H, H'] float64, not negative.
    """
    p = log_p.exp() * valid[:, None]
    entropy = (p * log_p).sum(-1)  # [B, H]
    return (entropy[..., None] - p @ log_q.transpose(1, 2)).clamp(min=0)


def rms_differences(maps: Tensor, valid: Tensor) -> Tensor:
    """[B, H, H] root of the mean square difference of the heads' maps [B, H, h, w] over `valid` [B, h, w]."""
    own = (maps * valid[:, None]).double().flatten(2)
    count = valid.flatten(1).sum(1).clamp(min=1)[:, None, None]
    squares = (own[:, :, None] - own[:, None]).square().sum(-1) / count
    return squares.sqrt()


def distances(matrix: np.ndarray) -> np.ndarray:
    """S_i [..., H] of matrices S_ij [..., H, H]: the mean over both directions to every other head."""
    num_heads = matrix.shape[-1]
    off_diagonal = matrix * (1 - np.eye(num_heads))
    return (off_diagonal.sum(-1) + off_diagonal.sum(-2)) / (2 * (num_heads - 1))


# ---- what is compared ---------------------------------------------------------------------------------------------


def usable_gts(scores: list[Tensor]) -> Tensor:
    """[B, G] bool: ground truths of which every head has a positive, from the heads' scores [B, G] (nan: none)."""
    return torch.stack(scores).isfinite().all(0)


def scalar(scores: Tensor, usable: Tensor) -> Tensor:
    """Sum over images of the mean over usable ground truths of a head's scores [B, G].

    Images take no part in each other's scores, so the gradient of the sum is each image's own.
    """
    count = usable.sum(1).clamp(min=1)
    return (scores.where(usable, 0.0).sum(1) / count).sum()
