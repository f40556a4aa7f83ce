"""Do two heads teach the encoder the same? Cosines and sizes of their gradients (after PCGrad, arXiv 2001.06782).

    cos(a, b) = g_a · g_b / (‖g_a‖ ‖g_b‖)        size(a, b) = 2 ‖g_a‖ ‖g_b‖ / (‖g_a‖² + ‖g_b‖²)

of each image, then the mean over images, and the share of images whose cosine is below zero: where a step for one is a
step against the other. docs/metrics.md has every choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.analyse.bootstrap import mean_interval
from harness.analyse.compare import summary
from harness.analyse.shared import HeadGradients

PLACES = ("root", "shared")  # the encoder's output, and the parameters before it


def products(first: Tensor, second: Tensor) -> np.ndarray:
    """[H, H'] scalar products of gradients [H, P] and [H', P], in float64."""
    return (first.double() @ second.double().T).cpu().numpy()


def cosines(own: np.ndarray, squares: np.ndarray, other_squares: np.ndarray) -> np.ndarray:
    """[..., H, H'] of scalar products and the squared norms of both sides; not-a-number for a gradient of zero."""
    sizes = np.sqrt(squares[..., :, None] * other_squares[..., None, :])
    return np.divide(own, sizes, out=np.full(own.shape, np.nan), where=sizes > 0)


def magnitude_similarity(squares: np.ndarray) -> np.ndarray:
    """[..., H, H] from squared norms [..., H]: 1 for equal sizes, towards 0 the more they differ."""
    sums = squares[..., :, None] + squares[..., None, :]
    sizes = 2 * np.sqrt(squares[..., :, None] * squares[..., None, :])
    return np.divide(sizes, sums, out=np.full(sums.shape, np.nan), where=sums > 0)


@dataclass
class Gradients:
    """Gathers the scalar products of H losses, image by image."""

    heads: tuple[str, ...]
    own: dict[str, list[np.ndarray]] = field(default_factory=lambda: {place: [] for place in PLACES})  # [H, H]
    between: dict[str, list[np.ndarray]] = field(default_factory=lambda: {place: [] for place in PLACES})  # cosines
    floor: dict[str, list[np.ndarray]] = field(default_factory=lambda: {place: [] for place in PLACES})  # [H] cosines

    def add(self, own: HeadGradients, elsewhere: HeadGradients | None, again: HeadGradients | None) -> None:
        """An image.

        Args:
            own: gradients.
            elsewhere: of the same losses with the objects of another image; None: there is none.
            again: of another training of the same heads; None: there is none.
        """
        for place in PLACES:
            first = getattr(own, place)
            self.own[place].append(products(first, first))
            if elsewhere is not None:
                second = getattr(elsewhere, place)
                squares = self.own[place][-1].diagonal(), second.double().square().sum(1).cpu().numpy()
                self.between[place].append(cosines(products(first, second), *squares))
            if again is not None and (third := getattr(again, place)).shape == first.shape:
                self.floor[place].append(_same_loss(first, third))

    def table(self) -> dict[str, Any]:
        """By place: matrices over the heads, and the anchors."""
        return {"heads": list(self.heads), **{place: self._at(place) for place in PLACES}}

    def _at(self, place: str) -> dict[str, Any]:
        count = len(self.heads)
        own = np.array(self.own[place]).reshape(-1, count, count)
        squares = np.einsum("nii->ni", own)
        cosine, size = cosines(own, squares, squares), magnitude_similarity(squares)
        between = np.array(self.between[place]).reshape(-1, count, count)
        apart = ~np.eye(count, dtype=bool)
        used = np.isfinite(cosine).all((1, 2))
        cosine, size = cosine[used], size[used]
        undefined = [[None] * count for _ in range(count)]
        found: dict[str, Any] = dict.fromkeys(("cosine", "low", "high", "below_zero", "magnitude"), undefined)
        if len(cosine):
            low, high = mean_interval(cosine)
            made = (cosine.mean(0), low, high, (cosine < 0).mean(0), size.mean(0))
            found = {name: values.tolist() for name, values in zip(found, made, strict=True)}
        return {
            **found,
            "ceiling": summary(_finite_means(between[:, apart])) if count > 1 else None,
            "floor": summary(_finite_means(np.array(self.floor[place]))) if self.floor[place] else None,
            "num_images_used": len(cosine),
        }


def _same_loss(first: Tensor, second: Tensor) -> np.ndarray:
    """[H] cosine of each row of [H, P] with that of another training; not-a-number where one of them is zero."""
    return torch.cosine_similarity(first.double(), second.double(), dim=1, eps=0).cpu().numpy()


def _finite_means(values: np.ndarray) -> np.ndarray:
    """[N'] mean over the finite values of each row of [N, M] that has some."""
    rows = [row[np.isfinite(row)] for row in values]
    return np.array([row.mean() for row in rows if len(row)])


def gradient_scalars(table: dict[str, Any]) -> dict[str, float | None]:
    """`gradient/decoder-atss`, `gradient.below_zero/…`, `gradient.magnitude/…`, and the same at `gradient.shared…`."""
    heads: list[str] = table["heads"]
    found: dict[str, float | None] = {}
    for place in PLACES:
        own, prefix = table[place], "gradient" if place == "root" else "gradient.shared"
        joint = "." if place == "root" else "_"
        for name, key in ((prefix, "cosine"), *((f"{prefix}{joint}{k}", k) for k in ("below_zero", "magnitude"))):
            for i, first in enumerate(heads):
                found |= {f"{name}/{first}-{heads[j]}": own[key][i][j] for j in range(i + 1, len(heads))}
        if len(heads) > 1:
            found |= {f"{prefix}/{at}": own[at]["value"] for at in ("ceiling", "floor") if own[at] is not None}
    return found
