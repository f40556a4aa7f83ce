"""The compiled operators as torch sees them: registered, so that autograd, autocast and `torch.compile` work.

The functions here check what they are given (compiled code does not) and hand pointers to the C++ library; for tensors
on a GPU `model.ops_cuda` registers its own. Callers use `model.ops`. In a graph that `torch.compile` made where no
library can be had, or none that gives right numbers, the reference runs inside.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import kernels, ops_check, ops_reference
from model.ops_reference import pairs

WORK_PER_THREAD = 1 << 18  # channels times samples; less than this costs more to hand out than to do
SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


def call(name: str, dtype: torch.dtype, *arguments: Any) -> int:
    """Call `codetr_<name>_<f32|f64>`; tensors become pointers, tuples arrays of 64-bit integers.

    Raises:
        RuntimeError: it reports failure.
    """
    library = kernels.library()
    assert library is not None
    function = getattr(library.functions, f"codetr_{name}_{SUFFIX[dtype]}")
    function.restype = ctypes.c_int64 if name == "soft_nms" else ctypes.c_int
    status = function(*map(_argument, arguments))
    if status < 0 or (status and name != "soft_nms"):
        raise RuntimeError(f"{name} failed with status {status}; it needs more memory than there is, or more levels")
    return int(status)


def _argument(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, tuple):
        return (ctypes.c_int64 * len(value))(*value)
    return ctypes.c_double(value) if isinstance(value, float) else value


def threads(work: int) -> int:
    """As many as torch uses, fewer for little work; results do not depend on it."""
    return max(1, min(torch.get_num_threads(), work // WORK_PER_THREAD))


def available() -> bool:
    """Whether there is a library and it gives what the definitions give; if not, the reference runs, one line says why.

    Raises:
        RuntimeError: `CODETR_OPS=compiled`, and there is not, or it does not.
    """
    library = kernels.library()
    return library is not None and _right(library.path)


@functools.cache
def _right(path: Path) -> bool:
    return ops_check.trusted(KERNELS, torch.device("cpu"), ops_check.problems(torch.float32))


def _chosen(operator: str) -> Callable[..., Any]:
    return KERNELS[operator] if available() else ops_reference.REGISTERED[operator]


# ---- deformable attention -----------------------------------------------------------------------------------------


def check_ms_deform_attn(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> tuple[int, ...]:
    """B, S, K, D, Q, L, P.

    Raises:
        ValueError: shapes or types do not belong together.
    """
    levels, area = len(sizes) // 2, sum(h * w for h, w in pairs(sizes))
    if value.dim() != 4 or locations.dim() != 6 or min(sizes, default=0) < 1 or value.shape[1] != area:
        raise ValueError(
            f"ms_deform_attn: value must be [B, S, K, D] and locations [B, Q, K, L, P, 2], with the {area} tokens of "
            f"levels {pairs(sizes)} as S; they are {tuple(value.shape)} and {tuple(locations.shape)}"
        )
    batch, tokens, heads, width = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    expected = (batch, queries, heads, levels, points)
    if locations.shape != (*expected, 2) or weights.shape != expected:
        raise ValueError(
            f"ms_deform_attn: for value {tuple(value.shape)} and {levels} levels, locations must be [B, Q, K, L, P, 2] "
            f"and weights [B, Q, K, L, P]; they are {tuple(locations.shape)} and {tuple(weights.shape)}"
        )
    if locations.dtype != weights.dtype or (value.dtype != weights.dtype and value.device.type == "cpu"):
        raise ValueError(f"ms_deform_attn: types differ: {value.dtype}, {locations.dtype}, {weights.dtype}")
    return batch, tokens, heads, width, queries, levels, points


@torch.library.custom_op("codetr::ms_deform_attn", mutates_args=(), device_types="cpu")
def ms_deform_attn(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """As `model.ops.ms_deform_attn`, of contiguous or other tensors of one type; `sizes` are h, w, h, w, ..."""
    check_ms_deform_attn(value, sizes, locations, weights)
    output: Tensor = _chosen("ms_deform_attn")(value, sizes, locations, weights)
    return output


def _attend(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    shape = check_ms_deform_attn(value, sizes, locations, weights)
    batch, _, heads, width, queries, levels, points = shape
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    output = weights.new_empty(batch, queries, heads * width)
    if not weights.numel() or not width:
        return output.zero_()
    count = threads(weights.numel() * width)
    call("ms_deform_attn", value.dtype, value, locations, weights, tuple(sizes), shape, output, count)
    return output


@ms_deform_attn.register_fake
def _(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return weights.new_empty(value.shape[0], weights.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("codetr::ms_deform_attn_backward", mutates_args=(), device_types="cpu")
def ms_deform_attn_backward(
    gradient: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights."""
    check_ms_deform_attn(value, sizes, locations, weights)
    gradients: tuple[Tensor, Tensor, Tensor] = _chosen("ms_deform_attn_backward")(
        gradient, value, sizes, locations, weights
    )
    return gradients


def _attend_backward(
    gradient: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    shape = check_ms_deform_attn(value, sizes, locations, weights)
    gradient, value = gradient.contiguous(), value.contiguous()
    locations, weights = locations.contiguous(), weights.contiguous()
    results = torch.empty_like(value), torch.empty_like(locations), torch.empty_like(weights)
    if not weights.numel() or not value.numel():
        return results[0].zero_(), results[1].zero_(), results[2].zero_()
    count = threads(weights.numel() * value.shape[-1])
    given = gradient, value, locations, weights, tuple(sizes), shape
    call("ms_deform_attn_backward", value.dtype, *given, *results, count)
    return results


@ms_deform_attn_backward.register_fake
def _(
    gradient: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return value.new_empty(value.shape), locations.new_empty(locations.shape), weights.new_empty(weights.shape)


def _save_attention(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, sizes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)
    ctx.sizes = sizes


def _attention_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    found = torch.ops.codetr.ms_deform_attn_backward.default(gradient, value, ctx.sizes, locations, weights)
    return found[0], None, found[1], found[2]


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
    raise RuntimeError("ms_deform_attn has no second derivative; take the first one without create_graph")


ms_deform_attn_backward.register_autograd(_no_second_derivative)
ms_deform_attn.register_autograd(_attention_gradients, setup_context=_save_attention)


# ---- RoIAlign -----------------------------------------------------------------------------------------------------


def check_roi_align(feature: Tensor, rois: Tensor, output_size: int) -> None:
    """Everything but the image indices.

    Raises:
        ValueError: shapes or types do not belong together.
    """
    if feature.dim() != 4 or rois.dim() != 2 or rois.shape[1] != 5 or output_size < 1 or 0 in feature.shape[1:]:
        raise ValueError(
            "roi_align: feature must be [B, D, H, W], rois [N, 5] and the output at least one bin; they are "
            f"{tuple(feature.shape)}, {tuple(rois.shape)} and {output_size}"
        )
    if rois.dtype != feature.dtype and feature.device.type == "cpu":
        raise ValueError(f"roi_align: types differ: feature {feature.dtype}, rois {rois.dtype}")


def _check_images(rois: Tensor, count: int) -> None:
    if len(rois) and not (rois[:, 0].min() >= 0 and rois[:, 0].max() < count):
        raise ValueError(f"roi_align: the first column of rois must be an image index below {count}")


def channels_last(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Empty, of type and device of `like`, [B, D, H, W] with the channels of a cell side by side."""
    memory_format = torch.channels_last
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=memory_format)


@torch.library.custom_op("codetr::roi_align", mutates_args=(), device_types="cpu")
def roi_align(feature: Tensor, rois: Tensor, output_size: int, spatial_scale: float) -> Tensor:
    """As `model.ops.roi_align`."""
    check_roi_align(feature, rois, output_size)
    output: Tensor = _chosen("roi_align")(feature, rois, output_size, spatial_scale)
    return output


def _pool(feature: Tensor, rois: Tensor, output_size: int, spatial_scale: float) -> Tensor:
    _check_images(rois, len(feature))
    batch, channels, height, width = feature.shape
    feature, rois = feature.contiguous(memory_format=torch.channels_last), rois.contiguous()
    output = feature.new_empty(len(rois), channels, output_size, output_size)
    shape = (batch, height, width, channels, len(rois))
    call(
        *("roi_align", feature.dtype, feature, rois, shape, output_size, float(spatial_scale), output),
        threads(output.numel() * 4),
    )
    return output


@roi_align.register_fake
def _(feature: Tensor, rois: Tensor, output_size: int, spatial_scale: float) -> Tensor:
    return rois.new_empty(len(rois), feature.shape[1], output_size, output_size)


@torch.library.custom_op("codetr::roi_align_backward", mutates_args=(), device_types="cpu")
def roi_align_backward(gradient: Tensor, rois: Tensor, feature_shape: Sequence[int], spatial_scale: float) -> Tensor:
    """Gradient of the feature, in the memory format of channels last."""
    found: Tensor = _chosen("roi_align_backward")(gradient, rois, feature_shape, spatial_scale)
    return found


def _pool_backward(gradient: Tensor, rois: Tensor, feature_shape: Sequence[int], spatial_scale: float) -> Tensor:
    batch, channels, height, width = feature_shape
    output_size = gradient.shape[-1]
    _check_images(rois, batch)
    result = channels_last(gradient, feature_shape)
    gradient, rois = gradient.contiguous(), rois.contiguous()
    shape = (batch, height, width, channels, len(rois))
    call(
        *("roi_align_backward", gradient.dtype, gradient, rois, shape, output_size, float(spatial_scale), result),
        threads(gradient.numel() * 4),
    )
    return result


@roi_align_backward.register_fake
def _(gradient: Tensor, rois: Tensor, feature_shape: Sequence[int], spatial_scale: float) -> Tensor:
    return channels_last(gradient, feature_shape)


def _save_regions(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    feature, rois, _, ctx.spatial_scale = inputs
    ctx.save_for_backward(rois)
    ctx.feature_shape = feature.shape


def _feature_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (rois,) = ctx.saved_tensors
    found = torch.ops.codetr.roi_align_backward.default(gradient, rois, ctx.feature_shape, ctx.spatial_scale)
    return found, None, None, None


roi_align.register_autograd(_feature_gradient, setup_context=_save_regions)


# ---- non-maximum suppression --------------------------------------------------------------------------------------


@torch.library.custom_op("codetr::nms", mutates_args=(), device_types="cpu")
def nms(boxes_xyxy: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """[N] bool, which boxes stay; they come by descending score."""
    keep: Tensor = _chosen("nms")(boxes_xyxy, labels, iou_threshold)
    return keep


def _suppress(boxes_xyxy: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    keep = torch.empty(len(boxes_xyxy), dtype=torch.bool)
    boxes, labels = boxes_xyxy.contiguous(), labels.contiguous()
    count = torch.get_num_threads()
    call("nms", boxes.dtype, boxes, labels, ctypes.c_int64(len(boxes)), float(iou_threshold), keep, count)
    return keep


@nms.register_fake
def _(boxes_xyxy: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    return boxes_xyxy.new_empty(len(boxes_xyxy), dtype=torch.bool)


def soft_nms(
    boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, min_score: float
) -> tuple[Tensor, Tensor]:
    """As `model.ops.soft_nms`, on the CPU; not for compiled graphs, since it belongs to evaluation."""
    boxes, scores, labels = boxes_xyxy.contiguous(), scores.contiguous(), labels.contiguous()
    numbers, kept = torch.empty_like(labels), torch.empty_like(scores)
    given = boxes, scores, labels, ctypes.c_int64(len(boxes)), float(iou_threshold), float(min_score)
    count = call("soft_nms", boxes.dtype, *given, numbers, kept)
    return numbers[:count].clone(), kept[:count].clone()


KERNELS: dict[str, Callable[..., Any]] = {
    "ms_deform_attn": _attend,
    "ms_deform_attn_backward": _attend_backward,
    "roi_align": _pool,
    "roi_align_backward": _pool_backward,
    "nms": _suppress,
}
