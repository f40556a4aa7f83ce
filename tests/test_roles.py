"""What parts declare of their parameters is what the official recipe reads from their names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from harness.config import TrainConfig
from harness.trial.train import parameter_groups
from model.detector import Detector
from model.heads import HEADS
from model.roles import declared_roles
from tests.support.tiny import NUM_CLASSES, PLAIN, tiny_config

VARIANTS: dict[str, dict[str, Any]] = {"one-stage": PLAIN, "two-stage": {}}
HEADS_TOO = [(), *((name,) for name in sorted(HEADS)), ("atss", "faster_rcnn", "atss")]
EACH = [
    pytest.mark.parametrize("variant", VARIANTS),
    pytest.mark.parametrize("heads", HEADS_TOO, ids=lambda heads: "+".join(heads) or "none"),
]


def by_name(name: str) -> str:
    """The official rule."""
    if name.startswith("backbone."):
        return "backbone"
    return "sampling" if "sampling_offsets" in name or "reference_points" in name else ""


def build(variant: str, heads: tuple[str, ...]) -> Detector:
    torch.manual_seed(0)
    return Detector(tiny_config(*heads, **VARIANTS[variant]), NUM_CLASSES)


@EACH[0]
@EACH[1]
def test_declared_roles_are_those_of_the_names(variant: str, heads: tuple[str, ...]) -> None:
    detector = build(variant, heads)
    roles = detector.parameter_roles()
    assert {name: role.name for name, role in roles.items()} == {n: by_name(n) for n, _ in detector.named_parameters()}
    for name, role in roles.items():
        own = name.startswith("backbone.")
        assert role.depth == (detector.backbone.lr_depth(name.removeprefix("backbone.")) if own else 0)


@EACH[0]
@EACH[1]
@pytest.mark.parametrize("factors", [(0.1, 0.1), (0.1, 0.2), (1.0, 0.5)], ids=str)
def test_the_optimisers_groups_are_those_of_the_names_in_their_order(
    variant: str, heads: tuple[str, ...], factors: tuple[float, float]
) -> None:
    detector = build(variant, heads)
    config = TrainConfig(learning_rate=0.5, backbone_lr_factor=factors[0], sampling_lr_factor=factors[1])
    expected: dict[float, list[int]] = {}  # rate → parameters, both in order of appearance
    for name, parameter in detector.named_parameters():
        factor = {"backbone": factors[0], "sampling": factors[1], "": 1.0}[by_name(name)]
        if parameter.requires_grad:
            expected.setdefault(0.5 * factor, []).append(id(parameter))
    groups = [(group["lr"], [id(own) for own in group["params"]]) for group in parameter_groups(detector, config)]
    assert groups == list(expected.items())


class Inner(nn.Module):
    roles = {"offsets": "sampling"}

    def __init__(self) -> None:
        super().__init__()
        self.offsets, self.other = nn.Linear(1, 1), nn.Linear(1, 1)


class Outer(nn.Module):
    roles = {"stem": "backbone", "scale": "sampling"}

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.stem, self.rest = Inner(), Inner()


def test_the_outermost_declaration_holds_for_everything_inside() -> None:
    outer = Outer()
    declared = dict(declared_roles(outer))
    assert list(declared) == [name for name, _ in outer.named_parameters()]
    assert {role for name, role in declared.items() if name.startswith("stem.")} == {"backbone"}
    assert declared["scale"] == declared["rest.offsets.weight"] == "sampling" and declared["rest.other.weight"] == ""
