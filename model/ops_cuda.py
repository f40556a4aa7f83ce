"""The operators on a GPU: the same registered operators as in `model.ops_compiled`, answered by `csrc/*.cu`.

Kernels are compiled for the very shape they serve (`model.nvrtc`). Sums are float32 whatever the type of the values,
float64 for float64; the gradient of a value is summed atomically, so its last bits may differ from run to run.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from model import kernels, ops_compiled
from model.nvrtc import Defines, function, launch, nvrtc_version
from model.ops_compiled import channels_last, check_ms_deform_attn, check_roi_align, pairs

TYPES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "Bfloat16", torch.float16: "Float16"}
BLOCK = 256  # threads


@functools.cache
def available() -> bool:
    """Whether kernels can be compiled for the GPU at hand; if not, the reference runs and one line says why.

    Raises:
        kernels.BuildError: `CODETR_OPS=compiled`, and they cannot.
    """
    chosen = kernels.mode()
    if chosen == "reference" or not torch.cuda.is_available():
        return False
    try:
        if torch.version.hip:
            raise kernels.BuildError("there are no kernels for AMD GPUs")
        with torch.cuda.device(torch.cuda.current_device()):
            torch.cuda.current_stream()  # makes torch's context current for the driver
            function("nms.cu", "nms_overlaps", sums(torch.float32), torch.cuda.current_device())
    except (kernels.BuildError, RuntimeError) as error:
        if chosen == "compiled":
            raise
        kernels.announce(error)
        return False
    return True


def implementation() -> str:
    """For the record; see `model.ops.implementation`."""
    if not available():
        return "reference"
    capability = "".join(map(str, torch.cuda.get_device_capability()))
    return f"compiled (nvrtc {nvrtc_version()}, sm_{capability})"


# ---- the operators ------------------------------------------------------------------------------------------------


def sums(value: torch.dtype) -> Defines:
    """What all sources want to know: the types of values and of sums."""
    return (("VALUE", TYPES[value]), ("SUM", "double" if value == torch.float64 else "float"))


def attention_defines(value: torch.dtype, heads: int, width: int, levels: int, points: int) -> Defines:
    """What `ms_deform_attn.cu` wants to know."""
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
    """`Shape` of `roi_align.cu`; `numbers` are height, width, channels and regions."""
    real = ctypes.c_double if dtype == torch.float64 else ctypes.c_float

    class Shape(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_longlong) for name in ("height", "width", "channels", "regions")),
            ("bins", ctypes.c_int),
            ("scale", real),
        )

    return Shape(*numbers, bins, scale)


def _pool(name: str, tensors: Sequence[Tensor], numbers: Sequence[int], bins: int, scale: float) -> None:
    dtype, count = tensors[0].dtype, numbers[2] * numbers[3] * bins * bins
    shape = roi_shape(dtype, numbers, bins, scale)
    place = sums(dtype), tensors[0].device
    launch("roi_align.cu", name, *place, (-(-count // BLOCK), 1), BLOCK, [*tensors, shape])


def _roi_align(feature: Tensor, rois: Tensor, output_size: int, spatial_scale: float) -> Tensor:
    check_roi_align(feature, rois, output_size)
    _, channels, height, width = feature.shape
    pooled = feature.new_empty(len(rois), output_size, output_size, channels)
    given = feature.contiguous(memory_format=torch.channels_last), rois.contiguous(), pooled
    _pool("roi_align", given, (height, width, channels, len(rois)), output_size, spatial_scale)
    return pooled.permute(0, 3, 1, 2).contiguous()


def _roi_align_backward(gradient: Tensor, rois: Tensor, feature_shape: Sequence[int], spatial_scale: float) -> Tensor:
    _, channels, height, width = feature_shape
    result = channels_last(gradient, feature_shape).zero_()
    given = gradient.contiguous(memory_format=torch.channels_last), rois.contiguous(), result
    _pool("roi_align_backward", given, (height, width, channels, len(rois)), gradient.shape[-1], spatial_scale)
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


ops_compiled.ms_deform_attn.register_kernel("cuda", _ms_deform_attn)
ops_compiled.ms_deform_attn_backward.register_kernel("cuda", _ms_deform_attn_backward)
ops_compiled.roi_align.register_kernel("cuda", _roi_align)
ops_compiled.roi_align_backward.register_kernel("cuda", _roi_align_backward)
ops_compiled.nms.register_kernel("cuda", _nms)
