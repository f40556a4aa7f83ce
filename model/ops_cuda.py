"""The operators on a GPU: the same registered operators as in `model.ops_compiled`, answered by `csrc/*.cu`.

Kernels are compiled for the very shape they serve (`model.nvrtc`). Sums are float32 whatever the type of the values,
float64 for float64; the gradient of a value is summed atomically, so its last bits may differ from run to run.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from model import kernels, ops_check, ops_compiled, ops_reference
from model.nvrtc import Defines, launch, nvrtc_version
from model.ops_compiled import channels_last, check_ms_deform_attn, check_roi_align
from model.ops_reference import pairs

TYPES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "Bfloat16", torch.float16: "Float16"}
TRIED = (torch.float32, torch.bfloat16)  # types of values that the first check looks at
BLOCK = 256  # threads


def available(device: torch.device | str = "cuda") -> bool:
    """Whether kernels can be compiled for that GPU and give there what their definitions give.

    All are compiled and tried at the first question; if not all is well the reference runs and one line says why.

    Raises:
        RuntimeError: `CODETR_OPS=compiled`, and they cannot be compiled (`kernels.BuildError`) or give wrong numbers.
    """
    return torch.cuda.is_available() and kernels.mode() != "reference" and _right(_index(device))


def _index(device: torch.device | str) -> int:
    index = torch.device(device).index
    return torch.cuda.current_device() if index is None else index


@functools.cache
def _right(index: int) -> bool:
    return _trusted(index, ops_check.problems(*TRIED))


def _trusted(index: int, problems: list[ops_check.Problem]) -> bool:
    def usable() -> Iterator[ops_check.Problem]:
        if torch.version.hip:
            raise kernels.BuildError("there are no kernels for AMD GPUs")
        torch.cuda.current_stream()  # makes torch's context current for the driver
        yield from problems

    with torch.cuda.device(index):
        return ops_check.trusted(KERNELS, torch.device("cuda", index), usable())


@functools.cache
def _right_attention(index: int, value: torch.dtype, heads: int, width: int, levels: int, points: int) -> bool:
    """Whether the kernels of this very shape are right: each shape has kernels of its own."""
    if not _right(index):
        return False
    if (heads, width, levels, points) == ops_check.SHAPE and value in TRIED:
        return True
    right = _trusted(index, ops_check.attention_problems(value, heads, width, levels, points))
    if not right:
        _refused.append(f"{heads}x{width}x{levels}x{points}")
    return right


_refused: list[str] = []  # shapes whose attention the reference computes


def implementation(device: torch.device | str = "cuda") -> str:
    """For the record; see `model.ops.implementation`."""
    if not available(device):
        return "reference"
    capability = "".join(map(str, torch.cuda.get_device_capability(_index(device))))
    but = f"; reference for attention of {', '.join(_refused)}" if _refused else ""
    return f"compiled (nvrtc {nvrtc_version()}, sm_{capability}{but})"


# ---- the operators ------------------------------------------------------------------------------------------------


def sums(value: torch.dtype) -> Defines:
    """Types of values and of sums, which all sources want."""
    return (("VALUE", TYPES[value]), ("SUM", "double" if value == torch.float64 else "float"))


def attention_defines(value: torch.dtype, heads: int, width: int, levels: int, points: int) -> Defines:
    """Definitions that `ms_deform_attn.cu` wants."""
    return (*sums(value), ("HEADS", heads), ("WIDTH", width), ("LEVELS", levels), ("POINTS", points))


def lanes(value: torch.dtype, width: int) -> int:
    """Threads for one query and head: `kLanes` of `ms_deform_attn.cu`."""
    vector = 16 // value.itemsize
    while width % vector:
        vector //= 2
    return min(32, 1 << (-(-width // vector) - 1).bit_length())


def _levels(sizes: Sequence[int]) -> ctypes.Structure:
    count, start, starts = len(sizes) // 2, 0, []
    for height, width in pairs(sizes):
        starts.append(start)
        start += height * width

    class Levels(ctypes.Structure):
        _fields_ = (
            ("height", ctypes.c_int * count),
            ("width", ctypes.c_int * count),
            ("start", ctypes.c_longlong * count),
        )

    return Levels(
        (ctypes.c_int * count)(*sizes[::2]), (ctypes.c_int * count)(*sizes[1::2]), (ctypes.c_longlong * count)(*starts)
    )


def _aligned(tensor: Tensor) -> Tensor:
    """Contiguous, and where loads of 16 bytes may start."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _attend(name: str, tensors: Sequence[Tensor], value: Tensor, sizes: Sequence[int], shape: tuple[int, ...]) -> None:
    batch, tokens, heads, width, queries, levels, points = shape
    count = batch * queries * heads
    defines = attention_defines(value.dtype, heads, width, levels, points)
    blocks = -(-count * lanes(value.dtype, width) // BLOCK)
    numbers = [ctypes.c_longlong(number) for number in (tokens, queries, count)]
    launch("ms_deform_attn.cu", name, defines, value.device, (blocks, 1), BLOCK, [*tensors, _levels(sizes), *numbers])


def _ms_deform_attn(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    shape = check_ms_deform_attn(value, sizes, locations, weights)
    value, locations, weights = _aligned(value), locations.contiguous(), weights.contiguous()
    output = weights.new_empty(shape[0], shape[4], shape[2] * shape[3])
    if not weights.numel() or not value.numel():
        return output.zero_()
    _attend("ms_deform_attn", (value, locations, weights, output), value, sizes, shape)
    return output


def _ms_deform_attn_backward(
    gradient: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    shape = check_ms_deform_attn(value, sizes, locations, weights)
    gradient, value = gradient.contiguous(), _aligned(value)
    locations, weights = locations.contiguous(), weights.contiguous()
    results = torch.zeros_like(value, dtype=weights.dtype), torch.empty_like(locations), torch.empty_like(weights)
    if weights.numel() and value.numel():
        _attend("ms_deform_attn_backward", (gradient, value, locations, weights, *results), value, sizes, shape)
    return results[0].to(value.dtype), results[1], results[2]


def roi_shape(dtype: torch.dtype, numbers: Sequence[int], bins: int, scale: float) -> ctypes.Structure:
    """`Shape` of `roi_align.cu`; `numbers` are images, height, width, channels and regions."""
    real = ctypes.c_double if dtype == torch.float64 else ctypes.c_float

    class Shape(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_longlong) for name in ("images", "height", "width", "channels", "regions")),
            ("bins", ctypes.c_int),
            ("scale", real),
        )

    return Shape(*numbers, bins, scale)


def _pool(name: str, tensors: Sequence[Tensor], numbers: Sequence[int], bins: int, scale: float) -> None:
    dtype, count = tensors[0].dtype, numbers[3] * numbers[4] * bins * bins
    shape = roi_shape(dtype, numbers, bins, scale)
    place = sums(dtype), tensors[0].device
    launch("roi_align.cu", name, *place, (-(-count // BLOCK), 1), BLOCK, [*tensors, shape])


def _roi_align(feature: Tensor, rois: Tensor, output_size: int, spatial_scale: float) -> Tensor:
    check_roi_align(feature, rois, output_size)
    batch, channels, height, width = feature.shape
    pooled = feature.new_empty(len(rois), output_size, output_size, channels)
    given = feature.contiguous(memory_format=torch.channels_last), rois.contiguous(), pooled
    _pool("roi_align", given, (batch, height, width, channels, len(rois)), output_size, spatial_scale)
    return pooled.permute(0, 3, 1, 2).contiguous()


def _roi_align_backward(gradient: Tensor, rois: Tensor, feature_shape: Sequence[int], spatial_scale: float) -> Tensor:
    batch, channels, height, width = feature_shape
    result = channels_last(gradient, feature_shape).zero_()
    given = gradient.contiguous(memory_format=torch.channels_last), rois.contiguous(), result
    _pool("roi_align_backward", given, (batch, height, width, channels, len(rois)), gradient.shape[-1], spatial_scale)
    return result


def _nms(boxes_xyxy: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    boxes, labels, count = boxes_xyxy.contiguous(), labels.contiguous(), len(boxes_xyxy)
    words = -(-count // 64)
    overlaps = torch.empty(count, words, dtype=torch.int64, device=boxes.device)
    keep = torch.empty(count, dtype=torch.bool, device=boxes.device)
    if words > 4096:
        raise ValueError(f"nms on a GPU takes at most {4096 * 64} boxes, these are {count}")
    real = ctypes.c_double if boxes.dtype == torch.float64 else ctypes.c_float
    number, place = ctypes.c_longlong(count), (sums(boxes.dtype), boxes.device)
    launch("nms.cu", "nms_overlaps", *place, (words, words), 64, [boxes, labels, number, real(iou_threshold), overlaps])
    launch("nms.cu", "nms_select", *place, (min(words, 1), 1), BLOCK, [overlaps, number, keep])
    return keep


KERNELS: dict[str, Callable[..., Any]] = {
    "ms_deform_attn": _ms_deform_attn,
    "ms_deform_attn_backward": _ms_deform_attn_backward,
    "roi_align": _roi_align,
    "roi_align_backward": _roi_align_backward,
    "nms": _nms,
}


def _attention_or_reference(operator: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        value, sizes, locations, weights = arguments[-4:]  # a gradient may come before
        check_ms_deform_attn(value, sizes, locations, weights)
        shape = value.shape[2], value.shape[3], len(sizes) // 2, locations.shape[4]
        right = not value.numel() or not weights.numel() or _right_attention(_index(value.device), value.dtype, *shape)
        return (KERNELS if right else ops_reference.REGISTERED)[operator](*arguments)

    return run


def _or_reference(operator: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        return (KERNELS if available(arguments[0].device) else ops_reference.REGISTERED)[operator](*arguments)

    return run


for _name in KERNELS:
    _made = _attention_or_reference if "attn" in _name else _or_reference
    getattr(ops_compiled, _name).register_kernel("cuda", _made(_name))
