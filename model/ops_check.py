"""Compiled operators against their definitions on a small problem, before anything relies on them.

A kernel is made where it is used, by a compiler and for a processor that nobody may have tried. So the operators of a
device compute something small there first, and its definition computes the same in float64 on the CPU: neither a
setting of the device nor what lies in its memory reaches that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model import kernels, ops_reference

# Largest difference that rounding explains, relative to the largest number of a tensor; suppression decides alike.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.bool: 0.0}

CPU = torch.device("cpu")
SHAPE = (8, 32, 4, 4)  # the paper's attention: heads, channels of each, levels, points

Operator = Callable[..., Any]  # gives a tensor or several


class Differs(RuntimeError):
    """A compiled operator gives other numbers than its definition; one line says which."""


class Problem(NamedTuple):
    """A small input of a registered operator."""

    operator: str  # without `codetr::`
    arguments: tuple[Any, ...]  # tensors on the CPU, of the types that are meant
    told: str = ""  # for messages: which of the operator's kernels it needs


def compare(operator: Operator, reference: Operator, device: torch.device, problem: Problem) -> None:
    """Let the operator compute the problem on the device, and the reference on the CPU.

    Raises:
        Differs: shapes, or numbers by more than rounding explains; what is not a number does, too.
    """
    on_device = [a.to(device) if isinstance(a, Tensor) else a for a in problem.arguments]
    exact = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in problem.arguments]
    found = [tensor.cpu() for tensor in _tensors(operator(*on_device))]
    expected = _tensors(reference(*exact))
    where = f"{problem.operator}{problem.told} on {_name(device)}"
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        raise Differs(f"{where} gives other shapes than its definition")
    for one, other in zip(found, expected, strict=True):
        exactly = other.double()
        error = float((one.double() - exactly).abs().max() / exactly.abs().max())
        if not error <= TOLERANCES[one.dtype]:  # nor where it is not a number
            raise Differs(f"{where} gives other numbers than its definition, by {error:.0e} of the largest")


def trusted(operators: Mapping[str, Operator], device: torch.device, problems: Iterable[Problem]) -> bool:
    """Whether the operators, by name, can be built and give what their definitions give; if not, one line says why.

    Raises:
        RuntimeError: `CODETR_OPS=compiled`, and they do not.
        torch.OutOfMemoryError: the device is full, which says nothing about them.
    """
    try:
        with _no_settings(device):
            for problem in problems:
                compare(operators[problem.operator], ops_reference.REGISTERED[problem.operator], device, problem)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:  # a failed build and a fault of the device are the former
        if kernels.mode() == "compiled":
            raise
        kernels.announce(error)
        return False
    return True


@contextmanager
def _no_settings(device: torch.device = CPU) -> Iterator[None]:
    """Whatever the caller has set: nothing is recorded, and types and places are as they are written.

    Nor does what a gradient here needs go the caller's way: a part that is computed again in the backward pass may be
    the first that uses an operator.
    """
    exact = torch.autocast(device.type, enabled=False), torch.autocast("cpu", enabled=False)
    kept = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.inference_mode(False), torch.no_grad(), CPU, exact[0], exact[1], kept:
        yield


def _tensors(result: Any) -> Sequence[Tensor]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _name(device: torch.device) -> str:
    if device.type != "cuda":
        return f"this {device.type}"
    return "{} (sm_{}{})".format(torch.cuda.get_device_name(device), *torch.cuda.get_device_capability(device))


# ---- problems -----------------------------------------------------------------------------------------------------


@_no_settings()
def attention_problems(
    dtype: torch.dtype, heads: int = SHAPE[0], width: int = SHAPE[1], levels: int = SHAPE[2], points: int = SHAPE[3]
) -> list[Problem]:
    """Forward and backward; a few locations lie outside, none where a derivative jumps.

    Args:
        dtype: of the value; all else is float32, or float64 beside float64.
        heads: attention heads K.
        width: channels D of each.
        levels: L.
        points: P.
    """
    make = torch.Generator().manual_seed(dtype.itemsize)  # no two types have the same numbers
    wide = torch.promote_types(dtype, torch.float32)
    shapes = [(max(1, 7 >> level), max(1, 10 >> level)) for level in range(levels)]
    tokens, queries = sum(height * width for height, width in shapes), 9
    value = torch.randn(2, tokens, heads, width, generator=make).to(dtype)
    sides = torch.tensor(shapes, dtype=wide).flip(1)[:, None]  # [L, 1, 2] x, y
    shape = (2, queries, heads, levels, points)
    fraction = 0.1 + 0.8 * torch.rand(*shape, 2, generator=make, dtype=wide)
    cell = (torch.rand(*shape, 2, generator=make, dtype=wide) * (sides + 3)).floor() - 2
    locations = (cell + fraction + 0.5) / sides
    weights = torch.rand(shape, generator=make, dtype=wide)
    gradient = torch.randn(2, queries, heads * width, generator=make, dtype=wide)
    sizes = [side for pair in shapes for side in pair]
    told = f" of {heads} heads of {width} ({str(dtype).removeprefix('torch.')}), {levels} levels, {points} points"
    return [
        Problem("ms_deform_attn", (value, sizes, locations, weights), told),
        Problem("ms_deform_attn_backward", (gradient, value, sizes, locations, weights), told),
    ]


@_no_settings()
def region_problems() -> list[Problem]:
    """RoIAlign, forward and backward: regions inside, across the border, outside, and one without area."""
    make = torch.Generator().manual_seed(1)
    feature = torch.randn(2, 20, 9, 12, generator=make)
    boxes = torch.tensor([[5, 3, 17, 14], [-9, 8, 11, 31], [30, 20, 61, 49], [90, 0, 99, 9], [8, 8, 8, 20]])
    rois = torch.cat([torch.tensor([[0], [1], [1], [0], [1]]), boxes + 0.3 * torch.rand(5, 4, generator=make)], 1)
    rois[4, 3] = rois[4, 1]
    gradient = torch.randn(5, 20, 3, 3, generator=make)
    return [
        Problem("roi_align", (feature, rois, 3, 0.25)),
        Problem("roi_align_backward", (gradient, rois, list(feature.shape), 0.25)),
    ]


@_no_settings()
def suppression_problems() -> list[Problem]:
    """NMS: three words of boxes with whole sides, whose overlaps are exact at the threshold, too."""
    make = torch.Generator().manual_seed(2)
    corners, sides = (torch.randint(low, 60, (150, 2), generator=make).float() for low in (0, 10))
    return [Problem("nms", (torch.cat([corners, corners + sides], 1), torch.arange(150) % 2, 0.5))]


def problems(*values: torch.dtype) -> list[Problem]:
    """All operators, attention with values of these types in the paper's shape."""
    attention = [problem for dtype in values for problem in attention_problems(dtype)]
    return [*attention, *region_problems(), *suppression_problems()]
