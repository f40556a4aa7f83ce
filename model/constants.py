"""Numbers that are known on the host, as tensors of a device: each is copied once, since a copy makes the host wait."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Numbers = tuple[float, ...] | tuple[tuple[float, ...], ...]


def constant(numbers: Sequence[float] | Sequence[Sequence[float]], like: Tensor, dtype: torch.dtype) -> Tensor:
    """`numbers` on the device of `like`. It is shared by all who ask for it, so nobody may write to it."""
    frozen = tuple(tuple(row) if isinstance(row, Sequence) else row for row in numbers)
    return _constant(frozen, dtype, like.device)


@functools.lru_cache(maxsize=1024)
def _constant(numbers: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it may serve a backward pass later
        return torch.tensor(numbers, dtype=dtype, device=device)


@functools.lru_cache(maxsize=64)
def of_sizes(
    make: Callable[[tuple[tuple[int, int], ...]], Tensor], sizes: tuple[tuple[int, int], ...], device: torch.device
) -> Tensor:
    """What `make(sizes)` gives for the sizes of some maps, on a device; shared, so nobody may write to it."""
    with torch.inference_mode(False):
        return make(sizes).to(device)
