"""A state dict of any family of names becomes one of ours. Nothing is guessed: what became of each name is told."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.backbones.configs import ResNetConfig, SwinConfig, ViTConfig, without_weights
from model.detector import Detector
from model.looks import backbone_look
from model.official import co_detr, conditional_detr, deformable_detr, lw_detr, swin, vit
from model.official.table import Family, unwrapped
from model.proposals.configs import BinaryConfig

if TYPE_CHECKING:
    from model.config import DetectorConfig

FAMILIES = (*co_detr.FAMILIES, *lw_detr.FAMILIES, *conditional_detr.FAMILIES, *deformable_detr.FAMILIES)
OWN = Family("own", lambda names: True, lambda state, config: {name: name for name in state})
WRAPPERS = ("module.", "model.")  # what DistributedDataParallel and trainers put before all names
CLASSES = re.compile(r"decoder\.class_branch(es\.0)?\.weight")
OF_CLASSES = re.compile(r"(.+\.)?(class_branch|class_branches\.\d+)\.(weight|bias)|groups\.denoising\.label_embedding")
LATER_BRANCH = re.compile(r"(decoder\.(?:class|box)_branches\.)\d+(\..+)")
# Beginnings of our names of what learns and detects nothing, so that a checkpoint may have it without the configuration
LEFT_OUT = (
    (re.compile(r"coarser\."), "the adapter of heads, where the configuration has none"),
    (re.compile(r"heads\.[^.]+\."), "a head that the configuration does not have"),
    (re.compile(r"heads\.[^.]+\.masks\."), "a mask branch that the configuration does not have"),
    (re.compile(r"positive_queries\.[^.]+\."), "customised queries of a head, which the configuration does not have"),
    (
        re.compile(r"positive_queries\.[^.]+\.feature_"),
        "features of customised queries, which the configuration leaves out",
    ),
    (re.compile(r"groups\.denoising\."), "a denoising group, which the configuration does not have"),
    *vit.LEFT_OUT,
)
COUNTS = "counts of batches, which a fixed norm does not need"
WINDOWS = "tables of positions, which follow from the window"
# Backbones whose names in official files are known, by their families (`model.looks`)
BUILT: dict[str, type] = {"resnet": ResNetConfig, "swin": SwinConfig, "vit": ViTConfig}


@dataclass(frozen=True)
class Translation:
    """Tensors under our names, and what became of each name."""

    family: str  # whose names they are; "own": ours
    tensors: dict[str, Tensor]  # of the names that the configuration has
    num_classes: int
    renamed: dict[str, str]  # official → ours
    dropped: dict[str, str]  # official → why
    unexpected: dict[str, str]  # official → ours, which this configuration does not have
    unknown: tuple[str, ...]  # official ones of no table
    missing: tuple[str, ...]  # ours
    misshapen: dict[str, str]  # ours → its shape, and the configuration's

    @property
    def is_own(self) -> bool:
        """Whether the names need no translation."""
        return self.family == OWN.name

    @property
    def fits(self) -> bool:
        """Whether the tensors are those of the configuration, all of them and no other."""
        return not (self.unexpected or self.unknown or self.missing or self.misshapen)


def translate(
    state: Mapping[str, Tensor],
    config: DetectorConfig,
    *,
    num_classes: int | None = None,
    category_ids: Sequence[int] | None = None,
    drop: Collection[str] = (),
) -> Translation:
    """Our state dict of a configuration from one with the names of any family that is known, or with ours.

    Args:
        state: tensors by name.
        config: of the detector that is to take them.
        num_classes: of that detector; None: as many as the state dict has rows for.
        category_ids: take these rows of everything that has one for each class, as DETR's models have one for each
            number from 0 to COCO's largest category id; None: a row is a class.
        drop: names that begin so are left out.

    Raises:
        ValueError: the names are of no known family, or of another backbone than the configuration's, or none begins
            as one of `drop`; one line.
    """
    state = unwrapped(state, WRAPPERS)
    _check_drop(state, drop)
    dropped = _besides(state, drop)
    state = {name: tensor for name, tensor in state.items() if name not in dropped}
    _check_backbone(state, config)
    family = next((family for family in FAMILIES if family.includes(state)), OWN)
    beyond = {name: why for beginning, why in family.beyond.items() for name in state if name.startswith(beginning)}
    dropped |= beyond
    state = {name: tensor for name, tensor in state.items() if name not in beyond}
    names = family.rename(state, config)
    branches = (state[name] for name, ours in names.items() if CLASSES.fullmatch(ours))
    rows = next((len(branch) for branch in branches if branch.dim() == 2), None)
    if rows is None:
        known = ", ".join(family.name for family in FAMILIES)
        raise ValueError(f"no names of a detector that is known ({known}, or this program's own)")
    if category_ids is not None and max(category_ids) >= rows:
        raise ValueError(f"has rows for {rows} classes, fewer than the category id {max(category_ids)} needs")
    number = num_classes or (rows if category_ids is None else len(category_ids))
    config = replace(config, backbone=without_weights(config.backbone))  # they need not be there any more
    with torch.device("meta"):  # names and shapes: no room is taken, and nothing is drawn
        expected = Detector(config, number).state_dict()
    named, same, unexpected = _distinct(names, state)
    dropped |= same if family is OWN else same | _left_out(named, state, expected)
    before = {ours: state[name] for ours, name in named.items() if name not in dropped}
    merged = family.merge(before, config)
    parts = before.keys() - merged.keys()  # several of ours in one, or one of ours in several
    unexpected |= {named[ours]: ours for ours in before if ours not in expected and ours not in parts}
    tensors = {ours: tensor for ours, tensor in merged.items() if ours in expected}
    if category_ids is not None:
        tensors = _rows(tensors, category_ids, config)
    return Translation(
        family=family.name,
        tensors=tensors,
        num_classes=number,
        renamed={named[ours]: ours for ours in before if named[ours] not in unexpected},
        dropped=dropped,
        unexpected=unexpected,
        unknown=tuple(name for name in state if name not in names),
        missing=tuple(name for name in expected if name not in tensors),
        misshapen={
            name: f"{_sides(tensor)} instead of {_sides(expected[name])}"
            for name, tensor in tensors.items()
            if tensor.shape != expected[name].shape
        },
    )


def _besides(names: Collection[str], drop: Collection[str]) -> dict[str, str]:
    """Name → why, of what is no part of the detector: what is asked for, and mmdetection's second set of weights."""
    raw = {f"ema_{name.replace('.', '_')}" for name in names}  # official: before they were averaged
    besides = {name: "weights before the moving average" for name in names if name in raw}
    return besides | {name: "asked for" for name in names if name.startswith(tuple(drop))}


def _check_drop(names: Collection[str], drop: Collection[str]) -> None:
    for own in drop:
        if own and any(name.startswith(own) for name in names):
            continue
        parts = [name.split(".") for name in names]
        beginnings = dict.fromkeys(".".join(part[:end]) for part in parts for end in range(1, len(part) + 1))
        near = difflib.get_close_matches(own, beginnings, 1, 0.5)
        first = ", ".join(dict.fromkeys(part[0] for part in parts))
        hint = f"; did you mean '{near[0]}'?" if near else f"; they begin with {first[:200]}"
        raise ValueError(f"drop: no name begins with '{own}'{hint}")


def _check_backbone(state: Mapping[str, Tensor], config: DetectorConfig) -> None:
    if isinstance(config.backbone, ViTConfig):
        vit.check_attention(state, config.backbone)
    name = next((name for name, kind in BUILT.items() if isinstance(config.backbone, kind)), None)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if name.startswith("backbone.")}
    look = backbone_look(shapes)
    if name is None or look is None or look.family == name:
        return
    told = f"its backbone looks like {look.words} ({look.name})"
    if look.family not in BUILT:
        raise ValueError(f"{told}, which is not built")
    raise ValueError(f"{told}, the configuration's is {name}; choose model.backbone={look.family}")


def _distinct(
    names: Mapping[str, str], state: Mapping[str, Tensor]
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Our name → the official one; further names of the same tensor → why; those of another one → ours."""
    named: dict[str, str] = {}
    same, other = {}, {}
    for name, ours in names.items():
        first = named.setdefault(ours, name)
        if first != name and torch.equal(state[first], state[name]):
            same[name] = "another name of a tensor that is there"
        elif first != name:
            other[name] = ours
    return named, same, other


def _left_out(named: Mapping[str, str], state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, str]:
    """Official name → why, of what the configuration does well without."""
    dropped = {}
    for ours, name in named.items():
        if ours in expected:
            continue
        if (later := LATER_BRANCH.fullmatch(ours)) and (first := named.get(f"{later[1]}0{later[2]}")):
            if torch.equal(state[first], state[name]):
                dropped[name] = "the first layer's branch, which all layers share"
        elif ours.endswith(".num_batches_tracked"):
            dropped[name] = COUNTS
        elif swin.FOLLOWS.fullmatch(ours):
            dropped[name] = WINDOWS
        elif why := next((why for pattern, why in LEFT_OUT if _is_without(ours, pattern, expected)), None):
            dropped[name] = why
    return dropped


def _is_without(ours: str, pattern: re.Pattern[str], expected: Collection[str]) -> bool:
    """Whether a name begins as the pattern says, and none of the configuration's begins like it."""
    first, _, rest = ours.partition(".")
    module, _, rest = rest.partition(".")  # several where one tensor is of all of them
    beginnings = [pattern.match(f"{first}.{own}.{rest}") for own in module.split(",")]
    return all(own and not any(name.startswith(own[0]) for name in expected) for own in beginnings)


def _rows(tensors: dict[str, Tensor], category_ids: Sequence[int], config: DetectorConfig) -> dict[str, Tensor]:
    """Tensors with a row for each class keep those of the category ids alone; one with too few rows stays as it is."""
    ids = torch.tensor(category_ids, device="cpu")
    objectness = torch.cat([ids.new_zeros(1), ids[1:]])  # all classes of the encoder are one, the first row (official)
    binary = isinstance(config.proposals_or_default, BinaryConfig)
    return {
        name: tensor[objectness if binary and name.startswith("queries.") else ids]
        if OF_CLASSES.fullmatch(name) and len(torch.atleast_1d(tensor)) > max(category_ids)
        else tensor
        for name, tensor in tensors.items()
    }


def _sides(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"
