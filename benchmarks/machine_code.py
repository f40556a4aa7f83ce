"""What the CUDA kernels take of a GPU, read from their machine code: `python -m benchmarks machine_code`. Needs no GPU.

NVRTC compiles each kernel as a trial would for the paper's decoder (8 heads of width 32, 4 levels, 4 points);
`cuobjdump` tells registers and memory, `nvdisasm` the instructions. `pip install` of the extra `dev` brings all three.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from model import nvrtc, ops_cuda

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
SHAPE = (8, 32, 4, 4)  # heads, width, levels, points
OTHERS = ("roi_align.cu", "nms.cu")
HEADING = (
    f"kernel, values | registers ({', '.join(ARCHITECTURES)}) | spills | shared memory | loads of 128 bits"
    " | additions of 128 bits"
)


@dataclass(frozen=True)
class Usage:
    """What one kernel takes: registers of a thread, bytes of a thread's stack and local memory (where registers are
    spilled to), bytes of a block's shared memory, and how often each instruction stands in its code."""

    registers: int
    stack: int
    local: int
    shared: int
    instructions: Counter[str]

    @property
    def spills(self) -> int:
        """Loads and stores of a thread's own memory."""
        return sum(count for name, count in self.instructions.items() if name.startswith(("LDL", "STL")))

    @property
    def wide_loads(self) -> int:
        """Loads of 128 bits from the GPU's memory."""
        return sum(count for name, count in self.instructions.items() if name.startswith("LDG") and ".128" in name)

    def count(self, part: str) -> int:
        """Instructions with this in their name."""
        return sum(count for name, count in self.instructions.items() if part in name)


def read(code: bytes) -> dict[str, Usage]:
    """What each kernel of a cubin takes.

    Raises:
        FileNotFoundError: the wheels with NVIDIA's tools are not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(code)
        resources, listing = _run("cuobjdump", "-res-usage", str(path)), _run("nvdisasm", str(path))
    found = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", resources)
    instructions = _instructions(listing)
    return {
        name: Usage(int(registers), int(stack), int(local), int(shared), instructions[name])
        for name, registers, stack, shared, local in found
    }


def _run(tool: str, *arguments: str) -> str:
    for folder in map(Path, sys.path):
        for program in sorted(folder.glob(f"nvidia/*/bin/{tool}")):
            done = subprocess.run([str(program), *arguments], capture_output=True, encoding="utf-8", check=True)
            return done.stdout
    raise FileNotFoundError(f"{tool} is not installed: pip install nvidia-cuda-{tool}")


def _instructions(listing: str) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for line in listing.splitlines():
        if kernel := re.match(r"\.text\.(\w+):", line):
            counts[kernel[1]] = Counter()
        elif counts and (instruction := re.search(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", line)):
            counts[list(counts)[-1]][instruction[1]] += 1
    return counts


@functools.cache
def kernels_of(dtype: torch.dtype, architecture: str, shape: tuple[int, int, int, int] = SHAPE) -> dict[str, Usage]:
    """All kernels for values of this type; attention only where its values are 16 bits wide."""
    found = read(nvrtc.compile_source("ms_deform_attn.cu", ops_cuda.attention_defines(dtype, *shape), architecture))
    for source in OTHERS if dtype.itemsize >= 4 else ():
        found |= read(nvrtc.compile_source(source, ops_cuda.sums(dtype), architecture))
    return dict(sorted(found.items()))


def lines() -> Iterator[str]:
    """The table of docs/kernels.md; numbers of the architectures side by side where they differ."""
    yield f"| {HEADING} |"
    yield "|---|---|---|---|---|---|"
    for dtype in (torch.float32, torch.bfloat16):
        usages = [kernels_of(dtype, architecture) for architecture in ARCHITECTURES]
        for kernel in usages[0]:
            each = [usage[kernel] for usage in usages]
            cells = [
                [usage.registers for usage in each],
                [usage.spills for usage in each],
                [f"{usage.shared:,} B" for usage in each],
                [f"{usage.wide_loads} of {usage.count('LDG')}" for usage in each],
                [usage.count("F32x4") for usage in each],
            ]
            yield f"| `{kernel}`, {str(dtype).removeprefix('torch.')} | " + " | ".join(map(_side_by_side, cells)) + " |"


def _side_by_side(values: Sequence[object]) -> str:
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))


def main(arguments: Sequence[str] = ()) -> None:
    """Print the table."""
    print(f"NVRTC {nvrtc.nvrtc_version()}")
    for line in lines():
        print(line)
