"""Linear layers and 1x1 convolutions by oneDNN: the values and gradients of torch's own, and torch's own elsewhere."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model import kernels
from model import linear as room
from model.backbones.resnet import FrozenBatchNorm, _normalised
from model.linear import Conv2d, Linear, linear


@pytest.fixture
def calls(monkeypatch):
    """How many products oneDNN computed; by the rule for processors that are not Intel's."""
    if room._LINEAR_POINTWISE is None or kernels.library() is None:
        pytest.skip("this torch has no oneDNN, or there is no compiler")
    monkeypatch.setattr(room, "INTEL", False)
    counted = []
    product = room._product
    monkeypatch.setattr(room, "_product", lambda *arguments: counted.append(1) or product(*arguments))
    return counted


def gradients(function, *inputs):
    """Value and gradients of a weighted sum of it, all in float64."""
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    result = function(*inputs)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad((result * weights.to(result)).sum(), inputs)
    return [result.double(), *(value.double() for value in found)]


@pytest.mark.parametrize("intel", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(2100, 64, 64), (700, 48, 130), (700, 130, 48), (9000, 24, 40), (70, 256, 300)]
)
def test_linear_equals_float64(calls, monkeypatch, rows, inputs, outputs, relu, intel):
    monkeypatch.setattr(room, "INTEL", intel)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, rows // 2, inputs), torch.randn(outputs, inputs), torch.randn(outputs)

    def reference(x, weight, bias):
        result = F.linear(x, weight, bias)
        return F.relu(result) if relu else result

    ours = gradients(lambda *given: linear(*given, relu=relu), x, weight, bias)
    exact = gradients(reference, x.double(), weight.double(), bias.double())
    narrower = min(inputs, outputs)
    assert len(calls) == 3 - (narrower < room.NARROWEST or (intel and narrower >= room.WIDE))
    for mine, right in zip(ours, exact, strict=True):
        assert mine.shape == right.shape
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5 * float(right.detach().abs().max()))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_convolution_equals_float64(calls, stride, layout):
    torch.manual_seed(0)
    x = torch.randn(2, 64, 47, 50).contiguous(memory_format=layout)
    conv = Conv2d(64, 96, 1, stride)
    exact = nn.Conv2d(64, 96, 1, stride).double()
    exact.load_state_dict(conv.state_dict())
    expected = gradients(exact, x.double())
    for mine, right in zip(gradients(conv, x), expected, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-4)
    assert len(calls) == 3
    out = conv(x)
    out.sum().backward()
    exact(x.double()).sum().backward()
    torch.testing.assert_close(conv.weight.grad.double(), exact.weight.grad, rtol=1e-4, atol=1e-2)
    assert out.is_contiguous(memory_format=torch.channels_last)  # what follows works channels last as well


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_fixed_norm_becomes_part_of_the_kernel(kernel):
    torch.manual_seed(0)
    conv, norm = Conv2d(32, 48, kernel, padding=kernel // 2, bias=False), FrozenBatchNorm(48)
    for buffer in norm.buffers():
        buffer.copy_(torch.rand(48) + 0.5)
    x, mask = torch.randn(2, 32, 40, 44), torch.zeros(2, 40, 44, dtype=torch.bool)
    mask[1, :, 30:] = True
    torch.testing.assert_close(_normalised(conv, norm, x, mask), norm(conv(x), mask), rtol=1e-5, atol=1e-5)


def test_torch_computes_what_onednn_is_not_for(calls, monkeypatch):
    layer, x = Linear(64, 128), torch.randn(400, 64)
    expected = layer(x)
    assert len(calls) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert Linear(64, 128).double()(x.double()).dtype == torch.float64
    layer(x[:4])  # too small to pay
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), expected)
    monkeypatch.setattr(kernels, "library", lambda: None)
    torch.testing.assert_close(layer(x), expected)
    assert len(calls) == 1


def test_a_relu_keeps_what_is_not_a_number(calls):
    layer, x = Linear(256, 512, relu=True), torch.randn(1000, 256)
    x[3, 5], x[4, 1] = torch.nan, torch.inf
    expected = torch.relu(torch.nn.functional.linear(x, layer.weight, layer.bias))
    result = layer(x)
    assert calls and result[3].isnan().all()
    torch.testing.assert_close(result, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (33, 1), (16, 16), (17, 31), (6380, 256)])
def test_transpose_is_exact_also_of_strided_matrices(calls, shape, dtype):
    matrix = torch.randn(shape[0], 2 * shape[1], dtype=dtype)[:, ::2]
    result = room._transposed(matrix)
    assert result.is_contiguous() and torch.equal(result, matrix.t())


@pytest.mark.parametrize("outputs", [8, 16])
@pytest.mark.parametrize("inputs", [2, 7, 15])
@pytest.mark.parametrize("size", [8, 24, 56])
@pytest.mark.parametrize("stride", [2, (1, 2), 3])
def test_narrow_convolutions_with_a_stride_survive(inputs, outputs, size, stride):
    """In a process of its own: oneDNN's own way ends it by a signal, on some processors."""
    torch.manual_seed(0)
    layer = Conv2d(inputs, outputs, 1, stride, bias=False)
    x = torch.randn(4, inputs, size, size)
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        torch.set_num_threads(1)
        for _ in range(3):
            layer(x.clone(memory_format=torch.channels_last).requires_grad_()).square().mean().backward()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    rows = x[:, :, :: layer.stride[0], :: layer.stride[1]].permute(0, 2, 3, 1).double()
    exact = (rows @ layer.weight.detach().double().flatten(1).T).permute(0, 3, 1, 2)
    assert torch.allclose(layer(x.contiguous(memory_format=torch.channels_last)).double(), exact, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("size", [(1, 1), (4, 1), (1, 4)])
def test_gradients_of_strided_convolutions_over_narrow_maps_are_right_in_bf16(size, kernel):
    """oneDNN's own way leaves a part of them as the memory was, on some processors."""
    torch.manual_seed(0)
    layer, x = Conv2d(32, 32, kernel, 2, padding=kernel // 2), torch.randn(2, 32, *size)
    exact = nn.Conv2d(32, 32, kernel, 2, padding=kernel // 2).double()
    exact.load_state_dict(layer.state_dict())
    given = x.double().requires_grad_()
    exact(given).square().sum().backward()
    for _ in range(20):
        torch.full((10, layer.weight.numel()), torch.nan, dtype=torch.bfloat16)  # what the memory holds then
        layer.zero_grad()
        own = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(own)
        out.float().square().sum().backward()
        assert out.shape[2:] == ((size[0] + 1) // 2, (size[1] + 1) // 2)
        torch.testing.assert_close(own.grad.double(), given.grad, rtol=0.1, atol=0.1)
        for mine, right in zip(layer.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(mine.grad.double(), right.grad, rtol=0.1, atol=0.1)
