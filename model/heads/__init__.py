"""The auxiliary heads by name. A new head is one file in this folder and one line in `HEADS`."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from model.heads.atss import ATSSHead
from model.heads.base import AuxiliaryHead
from model.heads.faster_rcnn import FasterRCNNHead
from model.heads.fcos import FCOSHead
from model.heads.gfl import GFLHead
from model.heads.mask_rcnn import MaskRCNNHead
from model.heads.paa import PAAHead
from model.heads.retinanet import RetinaNetHead

HEADS: dict[str, type[AuxiliaryHead]] = {
    "atss": ATSSHead,
    "faster_rcnn": FasterRCNNHead,
    "mask_rcnn": MaskRCNNHead,
    "retinanet": RetinaNetHead,
    "fcos": FCOSHead,
    "paa": PAAHead,
    "gfl": GFLHead,
}


def head_class(name: str) -> type[AuxiliaryHead]:
    """The head of this name; a `ValueError` that lists the known ones otherwise."""
    if name not in HEADS:
        close = difflib.get_close_matches(name, HEADS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown head {name!r}; {hint}known heads: {', '.join(sorted(HEADS))}")
    return HEADS[name]


def head_name(config: Any) -> str:
    """The name under which the head of this `Config` is listed."""
    for name, head in HEADS.items():
        if type(config) is head.Config:
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
