"""What adaptors read and what they give back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
    """The arrays of one file, .npz or .json, remembering which were read."""

    def __init__(self, path: Path):
        self._tables: dict[str, Any] = {}  # what a .json file has that is no array of numbers
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            self._tables = {name: value for name, value in content.items() if not _is_array(value)}
            self._arrays = {name: _tensor(value) for name, value in content.items() if name not in self._tables}
        else:
            with np.load(path, allow_pickle=False) as arrays:
                self._arrays = {name: _tensor(arrays[name]) for name in arrays.files}
        self.read: set[str] = set()

    def table(self, name: str) -> Any:
        """What stands under a name of a .json file and is no array of numbers."""
        self.read.add(name)
        return self._tables[name]

    def __getitem__(self, name: str) -> Tensor:
        array = self._arrays[name]
        self.read.add(name)
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._arrays or name in self._tables  # asking is not reading

    def __iter__(self) -> Iterator[str]:
        return iter((*self._arrays, *self._tables))

    def __len__(self) -> int:
        return len(self._arrays) + len(self._tables)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """All arrays whose name begins with `prefix`, without it."""
        return {name.removeprefix(prefix): self[name] for name in self if name.startswith(prefix)}

    def sequence(self, prefix: str) -> tuple[Tensor, ...]:
        """`prefix0`, `prefix1`, ..."""
        names = []
        while f"{prefix}{len(names)}" in self._arrays:
            names.append(f"{prefix}{len(names)}")
        return tuple(self[name] for name in names)


def _is_array(value: Any) -> bool:
    try:
        return np.asarray(value).dtype.kind in "iufb"
    except ValueError:  # rows of different lengths
        return False


def _tensor(value: Any) -> Tensor:
    array = np.asarray(value)
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind == "u" and array.itemsize > 1 else array)


def leaf(tensor: Tensor) -> Tensor:
    """A copy that collects gradients."""
    return tensor.clone().requires_grad_()
