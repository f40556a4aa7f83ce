"""`torch.gather` that keeps the index alone for the backward pass; torch's keeps what was gathered from as well."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dim: int, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.dim, ctx.shape = dim, values.shape
        return values.gather(dim, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.shape).scatter_add_(ctx.dim, index, gradient), None, None


def gather(values: Tensor, dim: int, index: Tensor) -> Tensor:
    """`values.gather(dim, index)`, and the same gradient to the last bit."""
    if torch.compiler.is_compiling() or not values.requires_grad:
        return values.gather(dim, index)
    result: Tensor = _Gather.apply(values, dim, index)
    return result


def rows(values: Tensor, index: Tensor) -> Tensor:
    """[B, S, D] and [B, n] → [B, n, D]."""
    return gather(values, 1, index[..., None].expand(-1, -1, values.shape[-1]))
