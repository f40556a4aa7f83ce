"""Numbers that are known on the host, as tensors of a device: each is copied once, since a copy makes the host wait.

In a graph for images of any size (`model.exported`) the sizes of maps are symbols. What is made of them becomes a part
of the graph, and is kept nowhere; nor is anything that is made while a graph is traced, where tensors have no numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Numbers = tuple[float, ...] | tuple[tuple[float, ...], ...]


def constant(numbers: Sequence[float] | Sequence[Sequence[float]], like: Tensor, dtype: torch.dtype) -> Tensor:
    """`numbers` on the device of `like`. It is shared by all who ask for it, so nobody may write to it."""
    frozen = tuple(tuple(row) if isinstance(row, Sequence) else row for row in numbers)
    if _has_symbols(frozen):
        return _stacked(frozen, dtype, like.device)
    make = _constant.__wrapped__ if torch.compiler.is_compiling() else _constant
    return make(frozen, dtype, like.device)


@functools.lru_cache(maxsize=1024)
def _constant(numbers: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it may serve a backward pass later
        return torch.tensor(numbers, dtype=dtype, device=device)


def _stacked(numbers: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.stack(
        [
            _stacked(number, dtype, device)
            if isinstance(number, tuple)
            else torch.scalar_tensor(number, dtype=dtype, device=device)
            for number in numbers
        ]
    )


def _has_symbols(numbers: Sequence[Any]) -> bool:
    return any(
        _has_symbols(number) if isinstance(number, tuple) else isinstance(number, torch.SymInt | torch.SymFloat)
        for number in numbers
    )


def of_sizes(
    make: Callable[[tuple[tuple[int, int], ...]], Tensor], sizes: tuple[tuple[int, int], ...], device: torch.device
) -> Tensor:
    """The tensor `make(sizes)` for the sizes of some maps, on a device; shared, so nobody may write to it."""
    is_kept = not (_has_symbols(sizes) or torch.compiler.is_compiling())
    return _of_sizes(make, sizes, device) if is_kept else make(sizes).to(device)


@functools.lru_cache(maxsize=64)
def _of_sizes(
    make: Callable[[tuple[tuple[int, int], ...]], Tensor], sizes: tuple[tuple[int, int], ...], device: torch.device
) -> Tensor:
    with torch.inference_mode(False):
        return make(sizes).to(device)
