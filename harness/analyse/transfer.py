"""Does a step for a head help the decoder? (after TAG, arXiv 2109.04617)

    T_h(ρ) = 1 - L_dec(θ - ρ ‖θ‖ g / ‖g‖) / L_dec(θ),        g = ∇_θ L_h

where θ are the parameters that all share (backbone, neck, encoder), g is a sum over some images and L_dec the mean over
others. Positive helps, zero is neutral, negative harms. The decoder's own step says what can be had at all.
docs/metrics.md has every choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.analyse.bootstrap import interval, resamples
from harness.analyse.shared import HeadGradients, decoder_loss, moved, see, shared_parameters
from model.detector import DECODER, Detector
from model.types import Batch

LENGTHS = {"transfer": 1e-5, "transfer.far": 1e-4}  # ρ, by the name of the metric


@dataclass
class Transfer:
    """Gathers the directions of H losses, the decoder's first, and tries them."""

    heads: tuple[str, ...]
    directions: dict[str, Tensor] = field(default_factory=dict)  # kind -> [H, P], sums over images
    losses: dict[tuple[str, float], np.ndarray] = field(default_factory=dict)  # of held-out images, by direction

    def add(self, own: HeadGradients, elsewhere: HeadGradients | None, again: HeadGradients | None) -> None:
        """An image of those that give the directions (see `Gradients.add`)."""
        for kind, found in (("own", own), ("ceiling", elsewhere), ("floor", again)):
            if found is not None:
                before = self.directions.get(kind)
                self.directions[kind] = found.shared if before is None else before + found.shared

    def try_out(self, detector: Detector, held_out: list[Batch], on_image: Callable[[], None] = lambda: None) -> None:
        """Measure L_dec on the held-out images, at θ and a step along each direction from it."""
        parameters = shared_parameters(detector)
        self.losses["start", 0.0] = mean_losses(detector, held_out, on_image)
        for kind, directions in self.directions.items():
            if directions.shape[1] != sum(own.numel() for own in parameters):
                continue  # of a training whose shared parts are others
            for name, direction in zip(self.heads, directions, strict=True):
                if kind != "own" and name == DECODER:
                    continue
                for length in LENGTHS.values():
                    with moved(parameters, direction, length):
                        self.losses[f"{kind}/{name}", length] = mean_losses(detector, held_out, on_image)

    def table(self) -> dict[str, Any]:
        """By length: the transfer of each head and of the decoder itself, and the anchors."""
        found: dict[str, Any] = {"heads": list(self.heads), "lengths": dict(LENGTHS)}
        start = self.losses.get(("start", 0.0), np.zeros(0))
        found |= {"loss": float(start.mean()) if len(start) else None, "num_images_used": len(start)}
        for metric, length in LENGTHS.items():
            own = {name: self._summary([f"own/{name}"], length) for name in self.heads}
            anchors = {kind: self._anchor(kind, length) for kind in ("ceiling", "floor")}
            found[metric] = {"heads": own, **anchors}
        return found

    def _anchor(self, kind: str, length: float) -> dict[str, float | None] | None:
        names = [f"{kind}/{name}" for name in self.heads if (f"{kind}/{name}", length) in self.losses]
        is_undefined = kind == "ceiling" and len(self.heads) > 1  # of a single image
        return self._summary(names, length) if names or is_undefined else None

    def _summary(self, names: list[str], length: float) -> dict[str, float | None]:
        """Mean over directions, with the 95 % interval over held-out images."""
        start = self.losses.get(("start", 0.0), np.zeros(0))
        after = [self.losses[name, length] for name in names if (name, length) in self.losses]
        if not after or not len(start):
            return {"value": None, "low": None, "high": None}
        moved_to, weights = np.mean(after, 0), resamples(len(start))
        low, high = interval(1 - (weights @ moved_to) / (weights @ start))
        return {"value": float(1 - moved_to.mean() / start.mean()), "low": float(low), "high": float(high)}


@torch.no_grad()
def mean_losses(detector: Detector, batches: list[Batch], on_image: Callable[[], None] = lambda: None) -> np.ndarray:
    """[N] L_dec of images, each a batch of its own."""
    found = []
    for batch in batches:
        batch = batch.to(next(detector.parameters()).device)
        found.append(decoder_loss(detector, see(detector, batch), batch.targets))
        on_image()
    return torch.stack(found).double().cpu().numpy() if found else np.zeros(0)


def transfer_scalars(table: dict[str, Any]) -> dict[str, float | None]:
    """`transfer/atss-decoder`, `transfer/decoder-decoder`, the anchors, and the same of `transfer.far`."""
    found: dict[str, float | None] = {}
    for metric in LENGTHS:
        own = table[metric]
        found |= {f"{metric}/{name}-{DECODER}": value["value"] for name, value in own["heads"].items()}
        found |= {f"{metric}/{kind}": own[kind]["value"] for kind in ("ceiling", "floor") if own[kind] is not None}
    return found
