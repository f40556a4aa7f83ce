"""Activation checkpointing (Chen et al. 2016): what a backward pass needs of a part is computed again, not kept.

Losses and gradients are those of a training without it, to the last bit; random numbers are drawn again from the state
they were drawn from, and statistics that a norm gathers are gathered once. A step takes the time of another forward
pass of these parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run(module: nn.Module, *arguments: Any, again: bool) -> Any:
    """`module(*arguments)`; with `again`, of what it computes only the result is kept for the backward pass."""
    if not again or not torch.is_grad_enabled():
        return module(*arguments)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_stay(module)

    return checkpoint(module, *arguments, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_stay(module: nn.Module) -> Iterator[None]:
    """Within, batch norms gather their running statistics in copies."""
    norms = [own for own in module.modules() if isinstance(own, _BatchNorm)]
    buffers = [(norm, name, own) for norm in norms for name, own in norm.named_buffers(recurse=False)]
    for norm, name, own in buffers:
        setattr(norm, name, own.clone())
    try:
        yield
    finally:
        for norm, name, own in buffers:
            setattr(norm, name, own)
