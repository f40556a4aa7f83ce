"""Names of a ResNet in files of transformers, brought to those of torchvision."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")

STEM = re.compile(r"(.+\.)?embedder\.embedder\.(convolution|normalization)\.(\w+)")
BLOCK = re.compile(
    r"(.+\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|shortcut)\.(convolution|normalization)\.(\w+)"
)
SETTINGS = "config.json"  # lies beside a file of transformers
# What it may say of a ResNet whose numbers would be others than ours, though its tensors have the same names and shapes
EXPECTED: dict[str, Any] = {
    "downsample_in_bottleneck": False,  # True: the stride stands in the first 1x1 convolution instead of the 3x3 one
    "downsample_in_first_stage": False,
    "hidden_act": "relu",
}


def torchvision_names(weights: Mapping[str, Value], path: Path) -> dict[str, Value]:
    """The same values, those of a ResNet of transformers under torchvision's names; what stands before them is kept.

    Args:
        weights: by name; any names.
        path: the file that they were read from.

    Raises:
        ValueError: the settings beside the file are those of another ResNet; one line.
    """
    named = {name: _torchvision_name(name) for name in weights}
    if any(name != ours for name, ours in named.items()):
        _check_settings(path.parent / SETTINGS)
    return {named[name]: value for name, value in weights.items()}


def _torchvision_name(name: str) -> str:
    if found := STEM.fullmatch(name):
        prefix, kind, rest = found.groups(default="")
        return f"{prefix}{'conv1' if kind == 'convolution' else 'bn1'}.{rest}"
    if found := BLOCK.fullmatch(name):
        prefix, stage, block, number, kind, rest = found.groups(default="")
        convolves = kind == "convolution"
        if number:
            module = f"{'conv' if convolves else 'bn'}{int(number) + 1}"
        else:
            module = f"downsample.{0 if convolves else 1}"
        return f"{prefix}layer{int(stage) + 1}.{block}.{module}.{rest}"
    return name


def _check_settings(path: Path) -> None:
    """Refuse what the tensors cannot tell, as far as a file of settings does."""
    settings: Any = None
    with suppress(OSError, ValueError):
        settings = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        return
    basic = settings.get("layer_type") == "basic"  # has no bottleneck
    expected = {key: value for key, value in EXPECTED.items() if not (basic and key == "downsample_in_bottleneck")}
    other = {key: settings[key] for key, value in expected.items() if settings.get(key, value) != value}
    if other:
        raise ValueError(
            f"{path} says {_listed(other)}, which the ResNet here does not compute ({_listed(expected)}); "
            "take another file"
        )


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {json.dumps(value)}" for key, value in settings.items())
