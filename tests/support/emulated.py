"""The CUDA sources as plain C++ (cuda_on_cpu/), by themselves or watched by a sanitizer of the compiler.

A sanitizer must be loaded before anything else of a process. So what it watches runs in a small Python of its own
(cuda_on_cpu/call.py), which loads no torch.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model import kernels, nvrtc, ops_cuda, ops_reference
from tests.support.compiler import COMPILER
from tests.support.operators import MAP, attention_inputs, boxes_of, reference_attention, with_gradients

HERE = Path(__file__).parent / "cuda_on_cpu"
SANITIZERS = {"thread": "libtsan.so", "address": "libasan.so"}
SIZES = ((5, 6), (1, 1), (3, 2))  # levels of the attention
FAULT = 66  # exit code of a process in which a sanitizer found something


class Fault(AssertionError):
    """A sanitizer's report."""


class Emulated:
    """`csrc/<source>.cu` with every thread of a GPU a thread of its own.

    Args:
        source: without ".cu".
        defines: as NVRTC gets them.
        folder: for the library, and for changed sources.
        sanitizer: one of `SANITIZERS`; None: none.
        changes: file of csrc/ and what is made of its text, such as one barrier less.
    """

    def __init__(
        self,
        source: str,
        defines: nvrtc.Defines,
        folder: Path,
        sanitizer: str | None = None,
        changes: dict[str, Callable[[str], str]] | None = None,
    ):
        self.path, self.sanitizer = folder / f"{source}.so", sanitizer
        sources = kernels.SOURCES
        if changes:  # all of them, since a file finds its neighbours first
            sources = Path(shutil.copytree(sources, folder / "changed", dirs_exist_ok=True))
        for name, change in (changes or {}).items():
            text = (sources / name).read_text(encoding="utf-8")
            assert change(text) != text, f"nothing to change in {name}"
            (sources / name).write_text(change(text), encoding="utf-8")
        options = ["-std=c++17", "-shared", "-fPIC", "-pthread", "-ffp-contract=off"]
        options += [f"-I{place}" for place in (HERE, sources)]
        options += [f"-D{name}={value}" for name, value in defines]
        options += ["-O1", "-g", f"-fsanitize={sanitizer}"] if sanitizer else ["-O0"]
        command = [str(COMPILER), *options, str(HERE / f"{source}.cpp"), "-o", str(self.path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if sanitizer and done.returncode and re.search(r"fsanitize|lib[at]san", done.stderr):
            pytest.skip(f"the compiler has no {sanitizer} sanitizer")
        assert done.returncode == 0, done.stderr
        self._library = None if sanitizer else ctypes.CDLL(str(self.path))

    def call(self, function: str, *arguments: Any, order: int = 0) -> int:
        """Tensors are read and written where they lie; other arguments are ctypes values.

        Args:
            function: of cuda_on_cpu/<source>.cpp.
            arguments: in its order.
            order: another number, another order of the blocks.

        Raises:
            Fault: the sanitizer has found something.
        """
        if self._library is not None:
            self._library.shuffle_blocks(ctypes.c_uint(order))
            return int(getattr(self._library, function)(*map(_pointer, arguments)))
        return self._watched(function, arguments, order)

    def _watched(self, function: str, arguments: tuple[Any, ...], order: int) -> int:
        sent = [(None, _bytes(a)) if _by_reference(a) else (type(a).__name__, a.value) for a in arguments]
        job = pickle.dumps((str(self.path), function, sent, order))
        runtime = subprocess.run(
            [str(COMPILER), f"-print-file-name={SANITIZERS[str(self.sanitizer)]}"], capture_output=True, text=True
        ).stdout.strip()
        environment = os.environ | {
            "LD_PRELOAD": runtime,
            "PYTHONMALLOC": "malloc",  # so that the address sanitizer knows where an array ends
            "TSAN_OPTIONS": f"exitcode={FAULT} halt_on_error=1",
            "ASAN_OPTIONS": f"exitcode={FAULT} detect_leaks=0",
        }
        command = [sys.executable, "-I", str(HERE / "call.py")]
        done = subprocess.run(command, input=job, capture_output=True, env=environment)
        report = done.stderr.decode(errors="replace")
        if done.returncode == FAULT:
            raise Fault(report)
        if "unexpected memory mapping" in report:
            pytest.skip("the sanitizer does not know how this system lays out memory")
        assert done.returncode == 0, report
        result, written = pickle.loads(done.stdout)
        for argument, data in zip(filter(_by_reference, arguments), written, strict=True):
            if isinstance(argument, Tensor):
                ctypes.memmove(argument.data_ptr(), data, len(data))
        return int(result)


def _by_reference(argument: Any) -> bool:
    return isinstance(argument, (Tensor, ctypes.Structure, ctypes.Array))


def _bytes(argument: Tensor | ctypes.Structure | ctypes.Array) -> bytes:
    if isinstance(argument, Tensor):
        return ctypes.string_at(argument.data_ptr(), argument.numel() * argument.itemsize)
    return bytes(argument)


def _pointer(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        assert argument.is_contiguous() or argument.is_contiguous(memory_format=torch.channels_last)
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.byref(argument) if isinstance(argument, ctypes.Structure) else argument


# ---- each operator: what the source gives, and the reference ------------------------------------------------------

Both = tuple[list[Tensor], list[Tensor]]


def longs(*numbers: int) -> list[ctypes.c_longlong]:
    return [ctypes.c_longlong(number) for number in numbers]


def emulated_attention(attention: Emulated, dtype: torch.dtype, width: int, *, order: int = 0) -> Both:
    """Output and gradients of two heads, two points and `SIZES`, for values of a type."""
    heads, queries = 2, 16
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = attention_inputs(SIZES, batch=2, heads=heads, width=width, queries=queries, points=2, dtype=sums)
    value = tensors[0].to(dtype)
    expected = with_gradients(reference_attention, (value.to(sums), *tensors[1:]), SIZES)
    assert 2 * queries * heads * ops_cuda.lanes(dtype, width) % 32 == 0  # whole blocks meet where lanes are exchanged
    direction = torch.randn(expected[0].shape, generator=torch.Generator().manual_seed(1), dtype=sums)
    results = [torch.zeros(tensor.shape, dtype=sums) for tensor in expected]
    sizes = (ctypes.c_longlong * 6)(*[side for shape in SIZES for side in shape])
    numbers = longs(value.shape[1], queries, 2 * queries * heads)
    given = value, tensors[1], tensors[2], sizes
    attention.call("forward", *given, results[0], *numbers, order=order)
    attention.call("backward", direction, *given, *results[1:], *numbers, order=order)
    return results, expected


def emulated_roi_align(roi_align: Emulated, rois: Tensor, *, order: int = 0, expected: bool = True) -> Both:
    """Output and gradient of nine regions in three channels; without the reference's where it would raise."""
    feature = MAP[:, :3].contiguous(memory_format=torch.channels_last)
    pooled, gradient = torch.full((9, 2, 2, 3), torch.nan), torch.zeros_like(feature)
    shape = ops_cuda.roi_shape(torch.float32, (2, 12, 17, 3, 9), 2, 0.25)
    roi_align.call("forward", feature, rois, pooled, shape, order=order)
    direction = torch.randn(9, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    direction = direction.permute(0, 2, 3, 1).contiguous()
    roi_align.call("backward", direction, rois, gradient, shape, order=order)
    results = [pooled.permute(0, 3, 1, 2), gradient]
    if not expected:
        return results, []
    return results, with_gradients(lambda t: ops_reference.roi_align(t[0], rois, 2, 0.25), (feature,))


def emulated_nms(nms: Emulated, count: int, *, order: int = 0) -> tuple[Tensor, Tensor]:
    """[N] bool, which boxes stay, and which shall."""
    boxes, _, labels = boxes_of(count, 2)
    keep = torch.zeros(count, dtype=torch.bool)
    overlaps = torch.zeros(count, -(-count // 64), dtype=torch.int64)
    nms.call("suppress", boxes, labels, *longs(count), ctypes.c_float(0.3), overlaps, keep, order=order)
    return keep, ops_reference.nms(boxes, labels, 0.3)
