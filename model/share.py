"""The whole batch as far as losses must know it, where a process sees only its share of the images.

Several ranks may train one detector, each on a share of every batch. Their gradients add up to the whole batch's if
every normaliser counts the whole batch, if the customised queries are as many as its richest image asks for, and if
random choices are those that one process would make. A head uses `total`, `largest` and `rand`; without ranks, as at
evaluation, they are what their names say of the batch at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """The images of a whole batch that one rank has: those from `first` on.

    Every rank must have something to compute, or the others would wait for it in vain: with fewer images than ranks
    some borrow one, and nothing counts what they make of it.
    """

    first: int  # images of the whole batch before this share
    whole: int  # images of the whole batch
    borrowed: bool = False


_active: tuple[Share, torch.Generator] | None = None


@contextmanager
def sharing(share: Share, generator: torch.Generator) -> Iterator[None]:
    """Within: the batch is a share, and every rank of torch's default process group runs the same code.

    Args:
        share: of this rank.
        generator: on the device of the images, in the same state on all ranks.
    """
    global _active
    _active = share, generator
    try:
        yield
    finally:
        _active = None


@overload
def total(value: Tensor, minimum: float = 0) -> Tensor: ...


@overload
def total(value: float, minimum: float = 0) -> Tensor | float: ...


def total(value: Tensor | float, minimum: float = 0) -> Tensor | float:
    """A normaliser: `value`, a sum over the images at hand, summed over the whole batch; at least `minimum`.

    A constant to whatever is differentiated.
    """
    if _active is None:
        return value.clamp(min=minimum) if isinstance(value, Tensor) else max(value, minimum)
    own = torch.as_tensor(value).detach().clone()
    if _active[0].borrowed:
        own.zero_()
    torch.distributed.all_reduce(own)
    return own.clamp(min=minimum)


def num_images(here: int) -> int:
    """Images of the whole batch; `here` of them are at hand."""
    return here if _active is None else _active[0].whole


def largest(number: int) -> int:
    """The largest `number` of any rank."""
    return number if _active is None else _over_ranks(number, torch.distributed.ReduceOp.MAX)


def smallest(number: int) -> int:
    """The smallest `number` of any rank."""
    return number if _active is None else _over_ranks(number, torch.distributed.ReduceOp.MIN)


def _over_ranks(number: int, operation: torch.distributed.ReduceOp.RedOpType) -> int:
    # What was borrowed is the first image of the batch, which another rank counts: it changes neither extreme.
    value = torch.tensor(number)
    torch.distributed.all_reduce(value, operation)
    return int(value)


def rand(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Uniform random numbers in [0, 1) for the images at hand, one per row of `shape`.

    Every rank draws those of the whole batch and takes its own, so `shape` must not depend on the share except for
    its rows.
    """
    if _active is None:
        return torch.rand(shape, device=device)
    share, generator = _active
    numbers = torch.rand((share.whole, *shape[1:]), device=device, generator=generator)
    return numbers[share.first : share.first + shape[0]]
