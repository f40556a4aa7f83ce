"""Linear layers and 1x1 convolutions, by the fastest matrix product at hand.

On a CPU torch computes both with MKL, which on processors that are not Intel's stays at half of what they can do. torch
also brings oneDNN, the library behind its 3x3 convolutions, which does not; these layers call it where it pays. On
Intel's the two are equal forward, and MKL finds a weight's gradient without turning an operand over first. Names,
shapes and initialisation are those of `nn.Linear` and `nn.Conv2d`, and so are the values, up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import kernels
from model.ops_compiled import call, threads

SMALLEST = 2_000_000  # multiplications below which the calls around the product cost more than it gains
NARROWEST = 32  # columns of a weight's gradient, likewise
INTEL = "intel" in str(torch.cpu.get_capabilities().get("cpu_name", "")).lower()
WIDE = 256  # rows and columns of a weight from which MKL is asked on Intel's; below, numbers stay as they were recorded
# oneDNN's 1x1 convolutions with a stride write past their memory in the backward pass, where there are fewer channels
# than a register has lanes: 16 with AVX-512, 8 with AVX2 (torch 2.13; there seen with 2 to 7, from 4 x 4 positions on).
LANES = 16  # channels below which the stride is taken out of the convolution
# On processors with AVX-512 a part of a kernel's gradient stays as the memory was before, where a convolution in this
# type has a stride and the map is one position wide (torch 2.13; right from two positions on).
NARROW_BF16 = torch.bfloat16


def _one_dnn() -> Any:
    """oneDNN's linear layer, or None where this torch has none."""
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


_LINEAR_POINTWISE = _one_dnn()


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows [N, D] · weight [E, D]ᵀ + bias [E]."""
    result: Tensor = _LINEAR_POINTWISE(rows, weight, bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b for rows x [N, D], and max(y, 0) with `relu`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        result = _product(rows, weight, bias)
        if relu:  # oneDNN's own makes 0 of what is not a number, so that nobody would see it
            result.relu_()
        ctx.save_for_backward(rows, weight, result if relu else None)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, positive = ctx.saved_tensors
        gradient = gradient.contiguous()
        if positive is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, positive, 0)
        to_rows = _product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        to_weight = _weight_gradient(gradient, rows) if ctx.needs_input_grad[1] else None
        # The product with ones is several times as fast as a sum along the first axis.
        to_bias = gradient.new_ones(len(gradient)) @ gradient if ctx.needs_input_grad[2] else None
        return to_rows, to_weight, to_bias, None


def _weight_gradient(gradient: Tensor, rows: Tensor) -> Tensor:
    """gradientᵀ [E, N] · rows [N, D]; the wider operand is the one that oneDNN need not turn over first."""
    outputs, inputs = gradient.shape[1], rows.shape[1]
    narrower = min(outputs, inputs)
    if narrower < NARROWEST or (INTEL and narrower >= WIDE):
        return gradient.t() @ rows
    if outputs <= inputs:
        return _product(_transposed(gradient), rows.t())
    return _transposed(_product(_transposed(rows), gradient.t()))


def _transposed(matrix: Tensor) -> Tensor:
    """[N, D] → [D, N], contiguous; torch copies with one thread."""
    matrix = matrix.contiguous()
    result = matrix.new_empty(matrix.shape[1], matrix.shape[0])
    call("transpose", matrix.dtype, matrix, tuple(matrix.shape), result, threads(matrix.numel()))
    return result


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """`F.linear`, and `F.relu` of it: x [..., D], weight [E, D], bias [E] → [..., E]. Has no second derivative."""
    if not _takes(x, weight) or x.numel() * len(weight) < SMALLEST:
        result = F.linear(x, weight, bias)
        return F.relu(result) if relu else result
    rows = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias, relu)
    return rows.view(*x.shape[:-1], len(weight))


def matrix_products(device: torch.device) -> str:
    """Which library computes them on a device, for the record."""
    if device.type != "cpu":
        return device.type
    if _LINEAR_POINTWISE is None or kernels.library() is None:
        return "torch"
    return "oneDNN, MKL for wide weights' gradients" if INTEL else "oneDNN"


def _takes(x: Tensor, weight: Tensor) -> bool:
    return (
        _LINEAR_POINTWISE is not None
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # which chooses by itself, and may not know the sizes yet
        and kernels.library() is not None  # CODETR_OPS=reference means torch's own
    )


class Linear(nn.Linear):
    """`nn.Linear` by `linear`; with `relu` what is negative becomes 0."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, relu: bool = False):
        super().__init__(in_features, out_features, bias)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., E]."""
        return linear(x, self.weight, self.bias, relu=self.relu)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`; 1x1 kernels by `linear`, over the positions of a map whose channels lie last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, h, w] → [B, E, h', w']."""
        return self.apply_kernel(x, self.weight, self.bias)

    def apply_kernel(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool = False) -> Tensor:
        """The same with another kernel [E, D, kh, kw] and bias [E] in place of its own, and perhaps with ReLU."""
        plain = self.kernel_size == (1, 1) and self.padding == (0, 0) and self.groups == 1
        if plain:
            down, right = self.stride
            positions = x[:, :, ::down, ::right].permute(0, 2, 3, 1)
            if _takes(x, weight) and positions.numel() * self.out_channels >= SMALLEST:
                return linear(positions, weight.flatten(1), bias, relu=relu).permute(0, 3, 1, 2)
            if max(self.stride) > 1 and self.in_channels < LANES and x.device.type == "cpu":
                result = F.conv2d(positions.permute(0, 3, 1, 2), weight, bias)
                return F.relu(result) if relu else result
        result = self._conv_forward(self._wide_enough(x), weight, bias)
        return F.relu(result) if relu else result

    def _wide_enough(self, x: Tensor) -> Tensor:
        """A map one position wide with a column of zeros beside it, which changes no output: see `NARROW_BF16`."""
        same_output = 2 * self.padding[1] == self.kernel_size[1] - 1 and self.stride[1] > 1
        if not same_output or x.device.type != "cpu":
            return x
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return F.pad(x, (0, 1)) if dtype == NARROW_BF16 and x.shape[3] == 1 else x
