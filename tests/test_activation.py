"""PReLU with one slope equals torch's own, and so do its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.activation import PReLU


@pytest.mark.parametrize("slope", [0.25, 0.0, -0.3, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch(slope, dtype):
    ours, theirs = PReLU().to(dtype), nn.PReLU(init=slope).to(dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(0), dtype=dtype)
    x[0, 0] = 0.0
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    results = [module(own) for module, own in zip((ours, theirs), inputs, strict=True)]
    assert torch.equal(*results)
    for result in results:
        (result * x.cos()).sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-5, atol=1e-4)


def test_gradcheck():
    module = PReLU().double()
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda given, slope: torch.func.functional_call(module, {"weight": slope}, given), (x, module.weight)
    )


def test_a_frozen_slope_and_other_types_pass():
    module = PReLU()
    module.weight.requires_grad_(False)
    x = torch.tensor([-2.0, 3.0], requires_grad=True)
    module(x).sum().backward()
    assert x.grad.tolist() == [0.25, 1.0]
    with torch.autocast("cpu", torch.bfloat16):
        assert module(torch.tensor([-2.0, 3.0], dtype=torch.bfloat16)).tolist() == [-0.5, 3.0]
