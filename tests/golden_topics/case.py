"""What adaptors read and what they give back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """As in `torch.testing.assert_close`."""

    rtol: float
    atol: float


EXACT = Tolerance(0, 0)
FLOAT64 = Tolerance(1e-9, 1e-12)
FLOAT32 = Tolerance(1e-4, 1e-5)  # losses, logits
GRADIENT = Tolerance(1e-4, 1e-6)
PIXELS = Tolerance(0, 1e-3)  # boxes
GRADIENT_NORM = Tolerance(1e-3, 1e-6)


class Comparison(NamedTuple):
    """One array recomputed."""

    name: str
    actual: Tensor
    expected: Tensor
    tolerance: Tolerance

    def check(self) -> None:
        """Raise `AssertionError` unless equal within the tolerance."""
        assert self.actual.numel() == self.expected.numel(), (
            f"{self.name}: shape {tuple(self.actual.shape)} instead of {tuple(self.expected.shape)}"
        )
        rtol, atol = self.tolerance
        torch.testing.assert_close(
            self.actual.detach().reshape(self.expected.shape),
            self.expected,
            rtol=rtol,
            atol=atol,
            check_dtype=False,
            msg=lambda text: f"{self.name}: {text}",
        )


class Case(Mapping[str, Tensor]):
    """The arrays of one file, remembering which were read."""

    def __init__(self, path: Path):
        with np.load(path, allow_pickle=False) as arrays:
            self._arrays = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        array = self._arrays[name]
        self.read.add(name)
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._arrays  # asking is not reading

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """All arrays whose name begins with `prefix`, without it."""
        return {name.removeprefix(prefix): self[name] for name in self if name.startswith(prefix)}

    def sequence(self, prefix: str) -> tuple[Tensor, ...]:
        """`prefix0`, `prefix1`, ..."""
        names = []
        while f"{prefix}{len(names)}" in self._arrays:
            names.append(f"{prefix}{len(names)}")
        return tuple(self[name] for name in names)


def leaf(tensor: Tensor) -> Tensor:
    """A copy that collects gradients."""
    return tensor.clone().requires_grad_()
