"""PReLU with one slope. torch's own, on a CPU, finds the slope's gradient element by element before it adds them up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _OneSlope(torch.autograd.Function):
    """max(x, 0) + slope · min(x, 0) with a slope [1]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.leaky_relu(x, slope.item())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, slope = ctx.saved_tensors
        to_x = torch.ops.aten.leaky_relu_backward(gradient, x, slope.item(), False) if ctx.needs_input_grad[0] else None
        to_slope = (gradient * x.clamp(max=0)).sum().view(1) if ctx.needs_input_grad[1] else None
        return to_x, to_slope


class PReLU(nn.PReLU):
    """`nn.PReLU` with one slope for all; its values, up to the rounding of the slope's gradient."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, and the same."""
        if x.device.type != "cpu" or x.dtype != self.weight.dtype or torch.compiler.is_compiling():
            return super().forward(x)
        result: Tensor = _OneSlope.apply(x, self.weight)
        return result
