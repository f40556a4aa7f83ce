"""The CUDA sources under the sanitizers of the compiler: no race between threads or blocks, nothing read outside.

Each mistake that is made here on purpose must be found, or silence would mean nothing.
"""

from __future__ import annotations

import re

import pytest
import torch

from model import kernels, ops_cuda
from tests.support.compiler import needs_compiler
from tests.support.emulated import (
    SANITIZERS,
    SIZES,
    Emulated,
    Fault,
    emulated_attention,
    emulated_nms,
    emulated_roi_align,
)
from tests.support.operators import regions, same

pytestmark = [pytest.mark.slow, needs_compiler]

FLOATS = ops_cuda.sums(torch.float32)
ATTENTION = ops_cuda.attention_defines(torch.float32, 2, 8, len(SIZES), 2)
BARRIER = re.compile(r"\n *__syncthreads\(\);")


def without_barrier(number: int):
    """A change of a source: one barrier less."""

    def change(text: str) -> str:
        found = list(BARRIER.finditer(text))[number]
        return text[: found.start()] + text[found.end() :]

    return change


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_no_sanitizer_finds_anything(sanitizer, tmp_path):
    for order in (1, 2):
        same(*emulated_attention(Emulated("attention", ATTENTION, tmp_path, sanitizer), torch.float32, 8, order=order))
    same(*emulated_roi_align(Emulated("roi_align", FLOATS, tmp_path, sanitizer), regions(9), order=3))
    nms = Emulated("nms", FLOATS, tmp_path, sanitizer)
    for count in (1, 64, 150):
        keep, expected = emulated_nms(nms, count, order=count)
        assert torch.equal(keep, expected)


def test_regions_of_no_image_reach_no_memory(tmp_path):
    rois = regions(9)
    rois[:, 0] = torch.tensor([0, 1, 2, -1, -0.5, torch.nan, torch.inf, 1e12, 1])
    emulated_roi_align(Emulated("roi_align", FLOATS, tmp_path, "address"), rois, expected=False)
    unchecked = {"roi_align.cu": lambda text: text.replace("if (!has_image(region, shape)) return;", "")}
    broken = Emulated("roi_align", FLOATS, tmp_path, "address", unchecked)
    with pytest.raises(Fault, match="AddressSanitizer"):
        emulated_roi_align(broken, rois, expected=False)


BARRIERS = [
    (path.name, number)
    for path in sorted(kernels.SOURCES.glob("*.cu"))
    for number, _ in enumerate(BARRIER.findall(path.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize(("name", "number"), BARRIERS)
def test_every_barrier_is_missed(name, number, tmp_path):
    assert name == "nms.cu"  # another source with barriers is called in another way
    broken = Emulated("nms", FLOATS, tmp_path, "thread", {name: without_barrier(number)})
    with pytest.raises(Fault, match="data race"):
        emulated_nms(broken, 150)


def test_an_addition_that_is_not_atomic_is_a_race(tmp_path):
    plain = {"cuda.h": lambda text: text.replace("atomicAdd(to + i, what[i])", "to[i] += what[i]")}
    with pytest.raises(Fault, match="data race"):
        emulated_attention(Emulated("attention", ATTENTION, tmp_path, "thread", plain), torch.float32, 8)


def test_a_box_behind_the_last_is_outside(tmp_path):
    careless = {"nms.cu": lambda text: text.replace("other >= count || ", "")}
    with pytest.raises(Fault, match="heap-buffer-overflow"):
        emulated_nms(Emulated("nms", FLOATS, tmp_path, "address", careless), 150)
