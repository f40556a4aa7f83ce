"""Compiles CUDA sources at first use with NVRTC, which torch's CUDA builds bring, and launches them: no toolkit needed.

A kernel is compiled for the very numbers it is told (shapes, types) and the GPU at hand, kept in the cache of
`model.kernels`, and launched through the driver on torch's current stream.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import kernels

NO_FMA = ("nms.cu",)  # decisions at a threshold: rounded as everywhere else
Defines = tuple[tuple[str, str | int], ...]


# ---- compile ------------------------------------------------------------------------------------------------------


@functools.cache
def nvrtc() -> ctypes.CDLL:
    """The compiler library, of torch's own CUDA version or of the package `nvidia-cuda-nvrtc`.

    Raises:
        kernels.BuildError: there is none.
    """
    for name in _nvrtc_names():
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise kernels.BuildError("NVRTC is not installed: pip install nvidia-cuda-nvrtc")


def _nvrtc_names() -> Iterator[str]:
    if torch.version.cuda:
        yield f"libnvrtc.so.{torch.version.cuda.split('.')[0]}"
    for folder in map(Path, sys.path):
        for pattern in ("nvidia/*/lib/libnvrtc.so.*", "nvidia/*/lib/x86_64-linux-gnu/libnvrtc.so.*"):
            yield from map(str, sorted(folder.glob(pattern), reverse=True))
    yield "libnvrtc.so"


def nvrtc_version() -> str:
    """Such as "13.0"."""
    numbers = ctypes.c_int(), ctypes.c_int()
    _check(nvrtc(), nvrtc().nvrtcVersion(*map(ctypes.byref, numbers)))
    return ".".join(str(number.value) for number in numbers)


def _check(library: ctypes.CDLL, status: int) -> None:
    if status:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise kernels.BuildError(f"NVRTC: {library.nvrtcGetErrorString(status).decode()}")


def compile_source(source: str, defines: Defines, architecture: str) -> bytes:
    """Machine code of `csrc/<source>` for a GPU such as "sm_90". Needs no GPU.

    Raises:
        kernels.BuildError: NVRTC is missing, or reports an error, whose first line is in the message.
    """
    library = nvrtc()
    headers = [path for path in kernels.SOURCES.glob("*.h") if path.name in ("geometry.h", "cuda.h")]
    text = (kernels.SOURCES / source).read_text(encoding="utf-8")
    text = "using namespace codetr;\n" + text  # VALUE may be one of our types
    text = '#include "cuda.h"\n' + text
    program = ctypes.c_void_p()
    _check(
        library,
        library.nvrtcCreateProgram(
            ctypes.byref(program),
            text.encode(),
            source.encode(),
            len(headers),
            (ctypes.c_char_p * len(headers))(*[path.read_bytes() for path in headers]),
            (ctypes.c_char_p * len(headers))(*[path.name.encode() for path in headers]),
        ),
    )
    try:
        options = [
            f"--gpu-architecture={architecture}",
            "--std=c++17",
            *[f"-D{name}={value}" for name, value in defines],
        ]
        options += ["--fmad=false"] if source in NO_FMA else []
        encoded = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        if library.nvrtcCompileProgram(program, len(options), encoded):
            log = _read(library, program, "ProgramLog").decode(errors="replace").rstrip("\0")
            errors = [line for line in log.splitlines() if "error" in line]
            raise kernels.BuildError(f"NVRTC cannot compile {source}: {(errors or [log])[0]}")
        return _read(library, program, "CUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _read(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _binary(source: str, defines: Defines, architecture: str) -> bytes:
    digest = hashlib.sha256(repr((source, defines, architecture, source in NO_FMA)).encode())
    for path in [kernels.SOURCES / source, *sorted(kernels.SOURCES.glob("*.h"))]:
        digest.update(path.read_bytes())
    digest.update(nvrtc_version().encode())

    def build(folder: Path) -> Path:
        path = folder / "kernel.cubin"
        path.write_bytes(compile_source(source, defines, architecture))
        return path

    return kernels.cached(digest.hexdigest()[:16], ".cubin", build).read_bytes()


# ---- launch -------------------------------------------------------------------------------------------------------


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise kernels.BuildError(f"the CUDA driver cannot be loaded: {error}") from error


def _check_driver(status: int) -> None:
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"CUDA driver: {(text.value or b'unknown error').decode()}")


@functools.cache
def function(source: str, name: str, defines: Defines, device: int) -> ctypes.c_void_p:
    """The kernel, loaded on that device, which is the current one."""
    architecture = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    module, found = ctypes.c_void_p(), ctypes.c_void_p()
    _check_driver(_driver().cuModuleLoadData(ctypes.byref(module), _binary(source, defines, architecture)))
    _check_driver(_driver().cuModuleGetFunction(ctypes.byref(found), module, name.encode()))
    return found


def launch(
    source: str,
    name: str,
    defines: Defines,
    device: torch.device,
    blocks: tuple[int, int],
    block: int,
    arguments: Sequence[Any],
) -> None:
    """Queue a kernel; arguments are tensors and ctypes values."""
    if 0 in blocks:
        return
    with torch.cuda.device(device):
        kernel = function(source, name, defines, torch.cuda.current_device())
        values = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments]
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        _check_driver(_driver().cuLaunchKernel(kernel, *blocks, 1, block, 1, 1, 0, stream, pointers, None))
