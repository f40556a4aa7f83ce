"""The operators against their pure-torch definitions (`grid_sample` and friends), forward and backward.

Sizes: the encoder and 300 decoder queries over the four levels of an 800 x 1066 and a 480 x 640 image, the digits
preset, RoIAlign of 512 regions, suppression among 4,000 boxes. Locations lie around each query's place, as in training.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.table import Row, compare, milliseconds
from model import ops, ops_reference

Sizes = tuple[tuple[int, int], ...]
LARGE: Sizes = ((100, 134), (50, 67), (25, 34), (13, 17))
MEDIUM: Sizes = ((60, 80), (30, 40), (15, 20), (8, 10))
DIGITS: Sizes = ((20, 20), (10, 10), (5, 5))
POINTS = 4


def attention(
    sizes: Sizes, batch: int, heads: int, width: int, queries: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, locations, weights and a gradient; without `queries`, every token asks from its own place."""
    make = torch.Generator().manual_seed(0)
    places = [
        torch.stack([(torch.arange(w) + 0.5).repeat(h) / w, (torch.arange(h) + 0.5).repeat_interleave(w) / h], -1)
        for h, w in sizes
    ]
    centres = torch.cat(places) if queries is None else torch.rand(queries, 2, generator=make)
    shape = (batch, len(centres), heads, len(sizes), POINTS)
    pixels = torch.randn(*shape, 2, generator=make) * 2.5
    locations = centres[:, None, None, None] + pixels / torch.tensor([[w, h] for h, w in sizes])[:, None]
    weights = torch.rand(shape, generator=make).flatten(3).softmax(-1).view(shape)
    value = torch.randn(batch, sum(h * w for h, w in sizes), heads, width, generator=make)
    gradient = torch.randn(batch, len(centres), heads * width, generator=make)
    return value, locations, weights, gradient


def attention_row(name: str, sizes: Sizes, *shape: int, queries: int | None = None, repeats: int = 7) -> Row:
    """Forward and backward."""
    value, locations, weights, gradient = attention(sizes, *shape, queries=queries)
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]

    def step(function: Callable[..., Tensor]) -> object:
        return torch.autograd.grad(function(leaves[0], sizes, leaves[1], leaves[2]), leaves, gradient)

    return compare(
        name,
        lambda: step(ops.ms_deform_attn),
        lambda: step(ops_reference.ms_deform_attn),
        reference_name="grid_sample per level",
        repeats=repeats,
    )


def limits() -> tuple[float, float]:
    """As measured now: bytes per millisecond of a triad, floating point operations per millisecond of a product."""
    a, b, c = (torch.rand(1 << 24) for _ in range(3))
    square = torch.rand(1536, 1536)
    moved = statistics.median(milliseconds(lambda: torch.add(a, b, alpha=2.0, out=c)) for _ in range(7))
    multiplied = statistics.median(milliseconds(lambda: torch.mm(square, square)) for _ in range(7))
    return 3 * a.nbytes / moved, 2 * 1536**3 / multiplied


def limit_row() -> Row:
    """The large encoder's forward against the time that the machine's memory or arithmetic needs for it at least."""
    value, locations, weights, _ = attention(LARGE, 2, 8, 32)
    bandwidth, arithmetic = limits()
    output = ops.ms_deform_attn(value, LARGE, locations, weights)
    memory = sum(tensor.nbytes for tensor in (value, locations, weights, output)) / bandwidth
    products = weights.numel() * 4 * value.shape[-1] * 2 / arithmetic
    row = compare(
        "  the same, forward only",
        lambda: ops.ms_deform_attn(value, LARGE, locations, weights),
        lambda: ops_reference.ms_deform_attn(value, LARGE, locations, weights),
        reference_name="grid_sample per level",
    )
    note = (
        f"limits: memory {memory:.1f} ms ({bandwidth / 1e6:.0f} GB/s), arithmetic {products:.1f} ms "
        f"({arithmetic / 1e6:.0f} GFLOP/s); ours takes {row.ours / max(memory, products):.1f} times the larger"
    )
    return Row(row.name, row.ours, row.reference_name, row.reference, row.ratio, note)


def roi_align_row() -> Row:
    """512 regions of 20 to 200 pixels, 256 channels at stride 8, forward and backward."""
    make = torch.Generator().manual_seed(0)
    feature = torch.randn(2, 256, 100, 134, generator=make).requires_grad_()
    corners = torch.rand(512, 2, generator=make) * torch.tensor([900.0, 650.0])
    sides = 20 + 180 * torch.rand(512, 2, generator=make)
    rois = torch.cat([torch.arange(512)[:, None] % 2, corners, corners + sides], 1)
    gradient = torch.randn(512, 256, 7, 7, generator=make)

    def step(function: Callable[..., Tensor]) -> object:
        return torch.autograd.grad(function(feature, rois, 7, 1 / 8), feature, gradient)

    return compare(
        "RoIAlign, 512 regions, 256 channels, 100 x 134",
        lambda: step(ops.roi_align),
        lambda: step(ops_reference.roi_align),
        reference_name="grid_sample per shape",
    )


def nms_row(labels: int) -> Row:
    """4,000 boxes, about as many left as a detector leaves."""
    make = torch.Generator().manual_seed(0)
    corners = torch.rand(4000, 2, generator=make) * 800
    boxes = torch.cat([corners, corners + 20 + 150 * torch.rand(4000, 2, generator=make)], 1)
    scores, classes = torch.rand(4000, generator=make), torch.randint(labels, (4000,), generator=make)

    def reference() -> Tensor:
        order = scores.argsort(descending=True, stable=True)
        return order[ops_reference.nms(boxes[order], classes[order], 0.7)]

    kept = len(ops.nms(boxes, scores, classes, 0.7))
    return compare(
        f"NMS, 4,000 boxes, {labels} label{'s'[: labels > 1]}",
        lambda: ops.nms(boxes, scores, classes, 0.7),
        reference,
        reference_name="greedy over a matrix",
        repeats=5,
        note=f"{kept} kept",
    )


def rows() -> Iterator[Row]:
    """The suite."""
    yield attention_row("attention, 17,821 tokens x 8 x 32, batch 2", LARGE, 2, 8, 32)
    yield limit_row()
    yield attention_row("attention, 300 queries on these, batch 2", LARGE, 2, 8, 32, queries=300)
    yield attention_row("attention, 6,380 tokens x 8 x 32, batch 1", MEDIUM, 1, 8, 32)
    yield attention_row("attention, 300 queries on these, batch 1", MEDIUM, 1, 8, 32, queries=300)
    yield attention_row("attention, digits: 525 tokens x 4 x 16, batch 8", DIGITS, 8, 4, 16, repeats=25)
    yield attention_row("attention, digits, batch 4", DIGITS, 4, 4, 16, repeats=25)
    yield attention_row("attention, digits: 40 queries, batch 8", DIGITS, 8, 4, 16, queries=40, repeats=25)
    yield roi_align_row()
    yield nms_row(1)
    yield nms_row(80)
