"""Inputs of the compiled operators, their references, and how both are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from model import ops_reference

LEVELS = ((7, 9), (1, 1), (4, 1), (1, 5))  # maps of one pixel, one column and one row among them


def attention_inputs(
    sizes=LEVELS, *, batch=2, heads=3, width=8, queries=13, points=4, reach=1.4, dtype=torch.float32, seed=0
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations (from `-reach / 4` to `reach`) and weights."""
    make = torch.Generator().manual_seed(seed)
    tokens = sum(h * w for h, w in sizes)
    value = torch.randn(batch, tokens, heads, width, generator=make, dtype=dtype)
    shape = (batch, queries, heads, len(sizes), points)
    locations = torch.rand(*shape, 2, generator=make, dtype=dtype) * (1.25 * reach) - reach / 4
    return value, locations, torch.rand(shape, generator=make, dtype=dtype)


def with_gradients(function, tensors: tuple[Tensor, ...], *rest) -> list[Tensor]:
    """The output and the gradients of all `tensors`, for one fixed direction."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    output = function(leaves, *rest)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, direction)]


def reference_attention(tensors, sizes) -> Tensor:
    return ops_reference.ms_deform_attn(tensors[0], sizes, tensors[1], tensors[2])


def same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        tolerance = {torch.float32: 2e-5, torch.float64: 1e-11}[other.dtype] * max(
            1.0, float(other.detach().abs().max())
        )
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


MAP = torch.randn(2, 70, 12, 17, generator=torch.Generator().manual_seed(3))


def regions(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    make = torch.Generator().manual_seed(4)
    corners = torch.rand(count, 2, generator=make, dtype=dtype) * 90 - 20
    sizes = torch.rand(count, 2, generator=make, dtype=dtype) ** 3 * 120
    images = torch.randint(2, (count, 1), generator=make)
    return torch.cat([images.to(dtype), corners, corners + sizes], 1)


def boxes_of(count: int, labels: int, seed: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    make = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=make) * 200
    boxes = torch.cat([corners, corners + torch.rand(count, 2, generator=make) * 80], 1)
    scores = (torch.rand(count, generator=make) * 50).round() / 50  # with many ties
    return boxes, scores, torch.randint(labels, (count,), generator=make)
