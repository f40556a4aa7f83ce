"""Swin Transformers by Microsoft's code and by mmdetection's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from model.backbones.configs import SwinConfig
from model.backbones.swin import Swin
from model.official import swin as official
from tests.golden_topics.case import FLOAT32, GRADIENT_NORM, Case, Comparison, Tolerance, leaf

OF_IMAGE = Tolerance(1e-4, 5e-5)  # gradients of size about 12


def swin(case: Case) -> Iterator[Comparison]:
    """Outputs, the image's gradient, and the norm of each parameter's."""
    outputs = [name.removeprefix("out.") for name in case if name.startswith("out.")]
    depths, heads = (tuple(case[name].tolist()) for name in ("depths", "num_heads"))
    config = SwinConfig(
        channels=int(case["embed_dim"]),
        depths=depths,
        num_heads=heads,
        window=int(case["window_size"]),
        stages=tuple(index + 1 for index in case["out_indices"].tolist()),
    )
    backbone = Swin(config).eval()
    parameters = {name: value.float() for name, value in case.under("param.").items()}
    backbone.load_state_dict(official.translate(parameters, backbone.state_dict()))
    image = leaf(case["image"].float())
    stages_out = backbone(image, lambda stride: None)
    total = torch.zeros(())
    for name, stage in zip(outputs, stages_out, strict=True):
        yield Comparison(f"out.{name}", stage, case[f"out.{name}"], FLOAT32)
        total = total + (stage * case[f"grad_out.{name}"].float()).sum()
    total.backward()
    assert image.grad is not None
    expected = case["grad_image_top8"]
    yield Comparison("grad_image_top8", image.grad[:, :, : expected.shape[2]], expected, OF_IMAGE)
    gradients = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    names = official.rename(parameters)
    for name, norm in case.under("gradnorm.").items():
        own = image.grad if name == "image" else _gradient(names[name], gradients)
        yield Comparison(f"gradnorm.{name}", own.double().norm(), norm, GRADIENT_NORM)


def _gradient(name: str, gradients: dict[str, Tensor]) -> Tensor:
    """Of what an official parameter is here: three of ours where it makes queries, keys and values."""
    before, kind, rest = name.rpartition(".qkv.")
    if kind:
        return torch.cat([gradients[f"{before}.{own}_proj.{rest}"] for own in "qkv"])
    return gradients[name.replace(".unfolded.", ".downsample.")]
