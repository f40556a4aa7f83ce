"""The exponential moving average of a detector, which is evaluated, analysed and kept in its place.

Training does not notice: gradients and the optimiser see the detector's own weights. All ranks have the same weights
after a step and therefore the same average, without a word between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from harness.config import TrainConfig
from model.detector import Detector


class MovingAverage:
    """The average of a detector's parameters and floating-point buffers, begun at what they are now.

    Other buffers, such as counters, have no average: they are always the detector's own.
    """

    def __init__(self, detector: Detector):
        self._detector = detector
        self.tensors: dict[str, Tensor] = {name: own.detach().clone() for name, own in self._current().items()}

    def _current(self) -> dict[str, Tensor]:
        """What is averaged, by its name in the state dict; what has two names there, once."""
        kept = self._detector.state_dict().keys()
        named = [*self._detector.named_parameters(), *self._detector.named_buffers()]
        return {name: tensor for name, tensor in named if name in kept and tensor.is_floating_point()}

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Move by this share of the way to the detector's own weights; what has not changed stays to the last bit."""
        torch._foreach_lerp_(list(self.tensors.values()), list(self._current().values()), momentum)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from an average that was kept. Raises `KeyError` where one is missing."""
        for name, own in self.tensors.items():
            own.copy_(tensors[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the detector has the average for its weights, and the average must be left alone."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, own in self._current().items():
            kept = own.clone()
            own.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)


def ema_momentum(step: int, config: TrainConfig) -> float:
    """Share of the way to the weights after a 0-based step.

    `none`: 1 − decay. `exponential`: from nearly 1 down to that, so that the random beginning is soon forgotten
    (official: mmdet's `ExpMomentumEMAHook`, there over 2000 steps).
    """
    last = 1 - config.ema_decay
    if config.ema_warmup == "none":
        return last
    return (1 - last) * math.exp(-(1 + step) / config.ema_warmup_steps) + last
