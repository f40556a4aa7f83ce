"""The CUDA sources without a GPU: NVRTC compiles them, and run as plain C++ they give what the reference gives."""

from __future__ import annotations

import ctypes
import re
import shutil

import pytest
import torch

from benchmarks import machine_code
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


@pytest.mark.parametrize("architecture", machine_code.ARCHITECTURES)
@pytest.mark.parametrize("dtype", ops_cuda.TYPES, ids=str)
def test_nvrtc_compiles_the_sources(compiler, dtype, architecture):
    found = machine_code.kernels_of(dtype, architecture)
    attention = {"ms_deform_attn", "ms_deform_attn_backward"}
    others = {"nms_overlaps", "nms_select", "roi_align", "roi_align_backward"}
    assert set(found) == attention | (others if dtype.itemsize >= 4 else set())
    for kernel, usage in found.items():
        assert (usage.stack, usage.local, usage.spills) == (0, 0, 0), kernel
        assert usage.shared <= 48 * 1024, kernel  # more needs the host's leave
        assert usage.registers * ops_cuda.BLOCK <= 65536 // 2, kernel  # two blocks on a multiprocessor at least
    for kernel in attention:  # each corner's channels at once: 4 levels x 4 points x 4 corners, or a loop over samples
        assert found[kernel].wide_loads >= 4 and found["ms_deform_attn"].wide_loads >= 64
    if architecture != "sm_80" and dtype != torch.float64:
        assert found["ms_deform_attn_backward"].count("F32x4") >= 4


def test_a_width_that_no_vector_divides_has_kernels(compiler):
    found = machine_code.kernels_of(torch.float32, "sm_90", (3, 5, 4, 4))
    assert found["ms_deform_attn"].wide_loads == 0 and found["ms_deform_attn"].spills == 0


def test_the_page_on_kernels_has_what_their_machine_code_takes(compiler):
    page = (kernels.SOURCES.parent / "docs" / "kernels.md").read_text(encoding="utf-8")
    of = re.search(r"`python -m benchmarks machine_code`, NVRTC ([\d.]+)", page)
    assert of
    if of[1] != nvrtc.nvrtc_version():
        pytest.skip(f"the page is of NVRTC {of[1]}, this is {nvrtc.nvrtc_version()}")
    for line in machine_code.lines():
        assert line in page


def test_spills_are_seen(compiler, monkeypatch, tmp_path):
    """Indexed by a number that is known only when it runs, an array lies in the thread's own memory."""
    shutil.copytree(kernels.SOURCES, tmp_path / "csrc")
    monkeypatch.setattr(kernels, "SOURCES", tmp_path / "csrc")
    text = """extern "C" __global__ void spilling(float* to, const int* at) {
      float held[64];
      for (int i = 0; i < 64; ++i) held[at[i] % 64] = to[i];
      for (int i = 0; i < 64; ++i) to[i] = held[at[64 + i] % 64];
    }"""
    (tmp_path / "csrc" / "spilling.cu").write_text(text, encoding="utf-8")
    found = machine_code.read(nvrtc.compile_source("spilling.cu", ops_cuda.sums(torch.float32), "sm_90"))["spilling"]
    assert found.spills > 0 and found.stack >= 256


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
