"""The CUDA sources without a GPU: NVRTC compiles them, and run as plain C++ they give what the reference gives."""

from __future__ import annotations

import ctypes

import pytest
import torch

from model import kernels, nvrtc, ops, ops_cuda, ops_reference
from tests.support.compiler import needs_compiler
from tests.support.emulated import SIZES, Emulated, emulated_attention, emulated_nms, emulated_roi_align
from tests.support.operators import MAP, attention_inputs, boxes_of, reference_attention, regions, same, with_gradients


@pytest.fixture(scope="module")
def compiler() -> ctypes.CDLL:
    try:
        return nvrtc.nvrtc()
    except kernels.BuildError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("dtype", ops_cuda.TYPES, ids=str)
def test_nvrtc_compiles_the_sources(compiler, dtype, architecture):
    for heads, width in ((8, 32), (3, 5))[: 1 + (dtype == torch.float32)]:
        defines = ops_cuda.attention_defines(dtype, heads, width, 4, 4)
        code = nvrtc.compile_source("ms_deform_attn.cu", defines, architecture)
        assert b"ms_deform_attn_backward" in code and code[:4] == b"\x7fELF"
    if dtype.itemsize >= 4:
        defines = ops_cuda.sums(dtype)
        assert b"nms_select" in nvrtc.compile_source("nms.cu", defines, architecture)
        assert b"roi_align_backward" in nvrtc.compile_source("roi_align.cu", defines, architecture)


def test_nvrtc_names_the_first_error(compiler):
    with pytest.raises(kernels.BuildError, match=r"NVRTC cannot compile ms_deform_attn.cu: .*error.*is undefined"):
        nvrtc.compile_source("ms_deform_attn.cu", ops_cuda.sums(torch.float32), "sm_80")


# ---- as plain C++ -------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "width"),
    [(torch.float32, 32), (torch.float32, 160), (torch.float64, 5), (torch.bfloat16, 16)],
    ids=str,
)
def test_cuda_attention_run_as_plain_code_equals_the_reference(dtype, width, tmp_path):
    defines = ops_cuda.attention_defines(dtype, 2, width, len(SIZES), 2)
    attention = Emulated("attention", defines, tmp_path)
    assert attention.call("lanes") == ops_cuda.lanes(dtype, width)
    for order in (0, 1):
        same(*emulated_attention(attention, dtype, width, order=order))


@pytest.fixture(scope="module")
def roi_align(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    return Emulated("roi_align", ops_cuda.sums(torch.float32), tmp_path_factory.mktemp("roi_align"))


@needs_compiler
def test_cuda_roi_align_run_as_plain_code_equals_the_reference(roi_align):
    for order in (0, 1):
        same(*emulated_roi_align(roi_align, regions(9), order=order))


@needs_compiler
def test_a_region_of_no_image_reads_and_writes_nothing_on_a_gpu(roi_align):
    """The host cannot look at the index without waiting for the GPU, so the kernel does."""
    rois = regions(9)
    rois[:, 0] = torch.tensor([0, 1, 2, -1, -0.5, torch.nan, torch.inf, 1e30, 1])
    missing = torch.tensor([False, False, True, True, True, True, True, True, False])
    (pooled, gradient), _ = emulated_roi_align(roi_align, rois, expected=False)
    assert torch.equal(pooled.isnan().all(3).all(2).all(1), missing)
    proper = regions(9)
    proper[missing, 1:] = 0  # without area: no samples
    proper[~missing, 0] = rois[~missing, 0]
    _, (expected, expected_gradient) = emulated_roi_align(roi_align, proper)
    same([pooled[~missing], gradient], [expected[~missing], expected_gradient])


@pytest.fixture(scope="module")
def nms(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    return Emulated("nms", ops_cuda.sums(torch.float32), tmp_path_factory.mktemp("nms"))


@needs_compiler
@pytest.mark.parametrize("count", [1, 64, 150])
def test_cuda_nms_run_as_plain_code_equals_the_reference(count, nms):
    for order in (0, 1):
        keep, expected = emulated_nms(nms, count, order=order)
        assert torch.equal(keep, expected)


# ---- with a GPU ---------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-4), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)])
@pytest.mark.parametrize("width", [16, 32, 5])
def test_attention_on_a_gpu_equals_the_float64_reference(dtype, tolerance, width):
    assert ops_cuda.available()
    sizes = ((40, 50), (20, 25), (10, 13))
    tensors = attention_inputs(sizes, heads=8, width=width, queries=500)
    tensors = (tensors[0].to(dtype).float(), *tensors[1:])
    expected = with_gradients(reference_attention, tuple(t.double() for t in tensors), sizes)
    leaves = [t.cuda().to(dtype if n == 0 else t.dtype).requires_grad_() for n, t in enumerate(tensors)]
    output = ops.ms_deform_attn(leaves[0], sizes, leaves[1], leaves[2])
    direction = torch.randn(expected[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = [output, *torch.autograd.grad(output, leaves, direction.float().cuda())]
    for one, other in zip(found, expected, strict=True):
        error = (one.double().cpu() - other).abs().max() / other.abs().max()
        assert error < tolerance, error


@pytest.mark.gpu
def test_roi_align_and_nms_on_a_gpu_equal_the_reference():
    assert ops_cuda.available()
    expected = with_gradients(lambda t: ops_reference.roi_align(t[0], regions(50), 7, 0.25), (MAP,))
    found = with_gradients(lambda t: ops.roi_align(t[0].cuda(), regions(50).cuda(), 7, 0.25).cpu(), (MAP,))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=3e-4)
    boxes, scores, labels = boxes_of(3000, 3)
    keep = ops.nms(boxes.cuda(), scores.cuda(), labels.cuda(), 0.5)
    assert torch.equal(keep.cpu(), ops.nms(boxes, scores, labels, 0.5))
