"""The CUDA sources without a GPU: NVRTC compiles them, and run as plain C++ they give what the reference gives."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model import kernels, nvrtc, ops, ops_cuda, ops_reference
from tests.support.compiler import COMPILER, needs_compiler
from tests.support.operators import MAP, attention_inputs, boxes_of, reference_attention, regions, same, with_gradients

HERE = Path(__file__).parent / "support" / "cuda_on_cpu"
SIZES = ((5, 6), (1, 1), (3, 2))


@pytest.fixture(scope="module")
def compiler() -> ctypes.CDLL:
    try:
        return nvrtc.nvrtc()
    except kernels.BuildError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
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


def emulated(source: str, defines: nvrtc.Defines, folder: Path) -> ctypes.CDLL:
    """`csrc/<source>.cu` with every GPU thread a thread of its own."""
    library = folder / f"{source}.so"
    options = [
        "-std=c++20",
        "-O0",
        "-shared",
        "-fPIC",
        "-pthread",
        "-ffp-contract=off",
        f"-I{HERE}",
        f"-I{kernels.SOURCES}",
    ]
    options += [f"-D{name}={value}" for name, value in defines]
    done = subprocess.run(
        [str(COMPILER), *options, str(HERE / f"{source}.cpp"), "-o", str(library)], capture_output=True, text=True
    )
    if "std=c++20" in done.stderr or "barrier" in done.stderr:
        pytest.skip("the compiler does not know C++20")
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def longs(*numbers: int) -> list[ctypes.c_longlong]:
    return [ctypes.c_longlong(number) for number in numbers]


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "width"),
    [(torch.float32, 32), (torch.float32, 160), (torch.float64, 5), (torch.bfloat16, 16)],
    ids=str,
)
def test_cuda_attention_run_as_plain_code_equals_the_reference(dtype, width, tmp_path):
    heads, queries = 2, 16
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = attention_inputs(SIZES, batch=2, heads=heads, width=width, queries=queries, points=2, dtype=sums)
    value = tensors[0].to(dtype)
    expected = with_gradients(reference_attention, (value.to(sums), *tensors[1:]), SIZES)
    library = emulated("attention", ops_cuda.attention_defines(dtype, heads, width, len(SIZES), 2), tmp_path)
    assert library.lanes() == ops_cuda.lanes(dtype, width)
    assert 2 * queries * heads * library.lanes() % 32 == 0  # so that whole blocks meet where lanes are exchanged
    direction = torch.randn(expected[0].shape, generator=torch.Generator().manual_seed(1), dtype=sums)
    results = [torch.zeros(tensor.shape, dtype=sums) for tensor in expected]
    sizes = (ctypes.c_longlong * 6)(*[side for shape in SIZES for side in shape])
    numbers = longs(value.shape[1], queries, 2 * queries * heads)
    given = pointer(value), pointer(tensors[1]), pointer(tensors[2]), sizes
    library.forward(*given, pointer(results[0]), *numbers)
    library.backward(pointer(direction), *given, *map(pointer, results[1:]), *numbers)
    same(results, expected)


@needs_compiler
def test_cuda_roi_align_run_as_plain_code_equals_the_reference(tmp_path):
    library = emulated("roi_align", ops_cuda.sums(torch.float32), tmp_path)
    feature, rois = MAP[:, :3].contiguous(memory_format=torch.channels_last), regions(9)
    expected = with_gradients(lambda t: ops_reference.roi_align(t[0], rois, 2, 0.25), (feature,))
    pooled, gradient = torch.full((9, 2, 2, 3), torch.nan), torch.zeros_like(feature)
    shape = ops_cuda.roi_shape(torch.float32, (12, 17, 3, 9), 2, 0.25)
    library.forward(pointer(feature), pointer(rois), pointer(pooled), ctypes.byref(shape))
    direction = torch.randn(expected[0].shape, generator=torch.Generator().manual_seed(1))
    direction = direction.permute(0, 2, 3, 1).contiguous()
    library.backward(pointer(direction), pointer(rois), pointer(gradient), ctypes.byref(shape))
    same([pooled.permute(0, 3, 1, 2), gradient], expected)


@pytest.fixture(scope="module")
def emulated_nms(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return emulated("nms", ops_cuda.sums(torch.float32), tmp_path_factory.mktemp("nms"))


@needs_compiler
@pytest.mark.parametrize("count", [1, 64, 150])
def test_cuda_nms_run_as_plain_code_equals_the_reference(count, emulated_nms):
    boxes, _, labels = boxes_of(count, 2)
    keep = torch.zeros(count, dtype=torch.bool)
    overlaps = torch.zeros(count, -(-count // 64), dtype=torch.int64)
    given = pointer(boxes), pointer(labels), *longs(count), ctypes.c_float(0.3), pointer(overlaps), pointer(keep)
    emulated_nms.suppress(*given)
    assert torch.equal(keep, ops_reference.nms(boxes, labels, 0.3))


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
