"""The auxiliary heads by name. A new head is one file in this folder and one line in `HEADS`.

A head's class is loaded when it is asked for by its name, and torch with it. What a head is set to (`CONFIGS`, for the
heads that come with the program) needs neither.
"""

from __future__ import annotations

import difflib
from collections import Counter, UserDict
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from model.heads import configs

if TYPE_CHECKING:
    from model.heads.base import AuxiliaryHead


class _Heads(UserDict[str, Any]):
    """Heads by name; `module:Class` becomes the class when it is looked up."""

    def __getitem__(self, name: str) -> type[AuxiliaryHead]:
        place = self.data[name]
        if isinstance(place, str):
            module, _, kind = place.partition(":")
            place = self.data[name] = getattr(import_module(module), kind)
        head: type[AuxiliaryHead] = place
        return head


HEADS = _Heads(
    {
        "atss": "model.heads.atss:ATSSHead",
        "faster_rcnn": "model.heads.faster_rcnn:FasterRCNNHead",
        "mask_rcnn": "model.heads.mask_rcnn:MaskRCNNHead",
        "retinanet": "model.heads.retinanet:RetinaNetHead",
        "fcos": "model.heads.fcos:FCOSHead",
        "paa": "model.heads.paa:PAAHead",
        "gfl": "model.heads.gfl:GFLHead",
    }
)

CONFIGS: dict[str, type[Any]] = {  # of heads whose settings stand in `configs.py`
    "atss": configs.ATSSConfig,
    "faster_rcnn": configs.FasterRCNNConfig,
    "mask_rcnn": configs.MaskRCNNConfig,
    "retinanet": configs.RetinaNetConfig,
    "fcos": configs.FCOSConfig,
    "paa": configs.PAAConfig,
    "gfl": configs.GFLConfig,
}


def head_class(name: str) -> type[AuxiliaryHead]:
    """The head of this name; a `ValueError` that lists the known ones otherwise."""
    if name not in HEADS:
        close = difflib.get_close_matches(name, HEADS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown head {name!r}; {hint}known heads: {', '.join(sorted(HEADS))}")
    return HEADS[name]


def head_config(name: str) -> type[Any]:
    """The `Config` of the head of this name; torch is loaded only for a head that keeps it beside its class."""
    return CONFIGS[name] if name in CONFIGS else head_class(name).Config


def head_name(config: Any) -> str:
    """The name under which the head of this `Config` is listed."""
    for name in sorted(HEADS, key=lambda name: name not in CONFIGS):  # first those that need no torch
        if type(config) is head_config(name):
            return name
    raise ValueError(
        f"{type(config).__qualname__} is not the Config of a head; known heads: {', '.join(sorted(HEADS))}"
    )


def instance_names(configs: Sequence[Any]) -> tuple[str, ...]:
    """A distinct name for each head of a detector: a second ATSS is 'atss.2'; losses and branches are named so."""
    seen: Counter[str] = Counter()
    names = []
    for name in map(head_name, configs):
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}.{seen[name]}")
    return tuple(names)


def needs_masks(configs: Sequence[Any]) -> bool:
    """Does any of these heads learn from the masks of the ground truth?"""
    return any(head_class(head_name(config)).needs_masks for config in configs)
