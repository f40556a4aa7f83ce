"""From settings in layers to the checked configuration of a trial.

Settings are layered preset < base < presets.<name> < row < axes < command line, and each keeps the place it was
written at: a mistake is told where the person made it, once, however many trials it concerns. What is special about
the parts of a detector, such as its heads, stands in `harness.spec.parts`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_type_hints

from harness.config import AnalyseConfig, DataConfig, EvaluateConfig, RuntimeConfig, TrainConfig, TrialConfig
from harness.spec.image_tokens import shortages
from harness.spec.named_files import HOW, check_name
from harness.spec.origins import Origins
from harness.spec.parts import (
    HEAD_DEFAULTS,
    LISTS,
    ROOMS,
    SINGLE,
    Setting,
    names_first,
    part_path,
    read_detector,
    without_replaced,
)
from harness.spec.strict import Location, Mistakes, field_names, non_finite, show, suggest, validate
from harness.spec.training_length import training_length
from model.backbones.configs import asked
from model.checks import Conflict
from model.config import DetectorConfig
from model.heads import HEADS

SECTIONS: dict[str, type] = {
    "model": DetectorConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "analyse": AnalyseConfig,
    "runtime": RuntimeConfig,
}
WEIGHTS = ("model", "backbone", "weights")


def leaves(tree: Mapping[str, Any], origin: str, mistakes: Mistakes, whole: Iterable[str] = ()) -> list[Setting]:
    """(path, value, where it was written) of nested and dotted settings, which are one layer; lists are values.

    `model: {num_queries: 40}` and `model.num_queries: 40` are the same setting, so are `model.neck: x` and
    `model.neck: {name: x}`. What stands under a dotted key of `whole` is left as it is.
    """
    seen: set[tuple[str, ...]] = set()
    left = set(whole)

    def walk(node: Mapping[str, Any], path: tuple[str, ...], where: str) -> Iterator[Setting]:
        for key, value in node.items():
            here = f"{where}{key}"
            full = (*path, *str(key).split("."))
            if ".".join(full) not in left:
                if isinstance(value, dict) and value:
                    yield from walk(value, full, here + ".")
                    continue
                full = part_path(full, value)
            if full in seen:
                mistakes.add(here, "set twice, nested and dotted; remove one")
            else:
                seen.add(full)
                yield full, value, here

    return names_first(list(walk(tree, (), origin)))


@dataclasses.dataclass(frozen=True)
class Resolved:
    """Checked sections of one trial, before its seed."""

    model: DetectorConfig
    data: DataConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    analyse: AnalyseConfig
    runtime: RuntimeConfig
    head_defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # a preset's `Config` by head

    def trial(self, seed: int) -> TrialConfig:
        """The configuration of the trial with this seed."""
        return TrialConfig(self.model, self.data, self.train, self.evaluate, seed)


def resolve(settings: Iterable[Setting], where: str, mistakes: Mistakes) -> Resolved | None:
    """Layer `settings` (later ones win) and check them; None after a mistake.

    `where` names the file for mistakes that nobody wrote, such as a missing value.
    """
    tree: dict[str, Any] = {}
    origins = Origins(where)
    for path, value, origin in without_replaced(settings):
        if path == ("analyse",) and isinstance(value, list):
            path = ("analyse", "metrics")  # the short form
        if path[0] not in SECTIONS:
            hint = "; seeds are given by the file's `seeds` or --seeds" if path[0] in ("seed", "seeds") else ""
            mistakes.add(origin, f"unknown key{hint or suggest_key(path) or suggest(path[0], SECTIONS)}")
        elif non_finite(value):
            mistakes.add(origin, f"must be finite, got {show(value)}")
        elif (above := _value_above(tree, path)) is not None:
            mistakes.add(origin, f"{'.'.join(above)} is no mapping that could hold it, see {origins.place(above)}")
        else:
            _put(tree, path, value)
            origins.wrote(path, value, origin)
    before = mistakes.met
    sections: dict[str, Any] = {}
    defaults: dict[str, Any] = {}

    def blame(conflict: Conflict, locations: Sequence[Location | None]) -> int:
        index, place, what = origins.blame(conflict, locations)
        mistakes.add(place, what)
        return index

    for name, kind in SECTIONS.items():

        def tell(location: Location, what: str, name: str = name) -> None:
            full = (name, *location)
            if what.startswith("unknown key") and "; known:" in what and location[0] not in LISTS:
                what = f"unknown key{suggest_key(full)}" if suggest_key(full) else what
            if full == WEIGHTS and what.startswith("must be a text"):
                what += f"; write a path, or {HOW.removeprefix('write ')}"  # YAML takes `hub:` for a mapping
            mistakes.add(origins.place(full), what)

        def blame_section(conflict: Conflict, locations: Sequence[Location | None], name: str = name) -> int:
            return blame(conflict, [None if location is None else (name, *location) for location in locations])

        section = tree.get(name, {})
        if kind is DetectorConfig and isinstance(section, dict):
            sections[name], defaults = read_detector(section, tell, blame_section)
        else:
            sections[name] = validate(kind, section, tell, blame_section)
    if mistakes.met > before or None in sections.values():
        return None
    resolved = Resolved(**sections, head_defaults=defaults)
    for conflict in conflicts(resolved):
        blame(conflict, [tuple(name.split(".")) for name in conflict.values])
    return resolved


def overruled_epochs(
    settings: Iterable[Setting], resolved: Resolved, num_images: Callable[[DataConfig, int], int | None]
) -> str:
    """A remark on epochs that somebody sets while `train.min_steps` of another file asks for more; empty when it holds.

    Args:
        settings: the layers that `resolved` was made from.
        resolved: of these settings.
        num_images: gives the samples of an epoch in batches of a size; None where that is not known.
    """
    last = {path: (place, origin.partition(":")[0]) for place, (path, _, origin) in enumerate(settings)}
    epochs, least = last.get(("train", "epochs")), last.get(("train", "min_steps"))
    train, data = resolved.train, resolved.data
    if epochs is None or least is None or least > epochs or epochs[1] == least[1] or train.min_steps == 0:
        return ""
    told = f"train.epochs={train.epochs}: train.min_steps={train.min_steps} asks for"
    instead = f"train.min_steps=0 makes it {train.epochs}"
    if (images := num_images(data, train.batch_size)) is None:
        images = -(-train.min_steps // train.epochs) * train.batch_size
        return f"{told} more than {train.epochs} epochs of fewer than {images:,} images; {instead}"
    length = training_length(train, images)
    return f"{told} {length}, of {images:,} images; {instead}" if length.epochs > train.epochs else ""


def conflicts(trial: Resolved) -> Iterator[Conflict]:
    """What does not go together across sections."""
    model, heads = trial.model, HEADS.instance_names(trial.model.heads) if trial.model.heads else ()
    told: dict[str, Any] = {"evaluate.branches": list(trial.evaluate.branches), "model.heads": list(heads)}
    for branch in trial.evaluate.branches:
        if branch not in ("decoder", *heads):
            known = ", ".join(("decoder", *heads))
            yield Conflict(f'unknown branch "{branch}" in evaluate.branches; known for these heads: {known}', told)
    channels = model.transformer.channels
    for name, head in zip(heads, model.heads, strict=True):
        groups = getattr(head, "num_groups", None)
        if groups is not None and channels % groups:
            rule = f"num_groups of the head {name} ({groups}) must divide transformer.channels"
            below = getattr(trial.head_defaults.get(HEADS.name_of(head)), "num_groups", None)
            key, value = "model.heads", list(heads)
            if below == groups:
                key, value = f"model.{HEAD_DEFAULTS}.{HEADS.name_of(head)}.num_groups", groups
            yield Conflict(rule, {"model.transformer.channels": channels, key: value})
    if trial.runtime.ranks > 1 and asked(model.backbone, "norm") == "batch":
        rule = "norm: batch takes its statistics from one process, so that several ranks train another detector"
        yield Conflict(rule, {"model.backbone.norm": "batch", "runtime.ranks": trial.runtime.ranks})
    yield from _slice_conflicts(trial)
    weights = asked(model.backbone, "weights")
    if weights is not None:
        try:
            check_name(weights)
        except ValueError as error:
            yield Conflict(str(error), {"model.backbone.weights": weights})
    again, layers = trial.train.checkpoint_encoder_layers, model.transformer.num_encoder_layers
    if again > layers:
        rule = "train.checkpoint_encoder_layers must not be above model.transformer.num_encoder_layers"
        told = {"train.checkpoint_encoder_layers": again, "model.transformer.num_encoder_layers": layers}
        yield Conflict(rule, told)
    yield from shortages(model, trial.data)


def _slice_conflicts(trial: Resolved) -> Iterator[Conflict]:
    """Images that must come together and would not."""
    batch, parts = trial.train.batch_size, trial.train.accumulate_steps
    told = {"train.batch_size": batch, "train.accumulate_steps": parts}
    together = trial.data.aspect_group_size
    if together and batch % together:
        rule = f"data.aspect_group_size ({together}) must divide train.batch_size ({batch})"
        yield Conflict(rule, {"data.aspect_group_size": together, "train.batch_size": batch})
    images, forward = trial.model.positive_query_images, batch // parts
    if images and forward % images:
        rule = f"model.positive_query_images ({images}) must divide the {forward} images of a forward pass"
        yield Conflict(rule, {"model.positive_query_images": images, **told})


def _value_above(tree: dict[str, Any], path: tuple[str, ...]) -> tuple[str, ...] | None:
    """The beginning of `path` where a plain value stands, which would be lost; None when there is none."""
    for end, name in enumerate(path[:-1], 1):
        if name not in tree:
            return None
        tree = tree[name]
        if not isinstance(tree, dict):
            return path[:end]
    return None


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    if not (value == {} and isinstance(tree.get(path[-1]), dict)):  # an empty mapping changes nothing
        tree[path[-1]] = value


def known_keys() -> list[str]:
    """Every dotted key of the sections, those of the parts of which a detector has one, and that of its preset."""

    def walk(kind: type, path: str) -> Iterator[str]:
        hints = get_type_hints(kind)
        for name in field_names(kind):
            inner, key = hints[name], f"{path}.{name}"
            deeper = [inner] if dataclasses.is_dataclass(inner) and isinstance(inner, type) else []
            if kind is DetectorConfig and name in SINGLE:
                yield key
                deeper = list(ROOMS[name].configs.values())
            for part in deeper:
                yield from walk(part, key)
            if not deeper:
                yield key

    return list(dict.fromkeys([*(key for name, kind in SECTIONS.items() for key in walk(kind, name)), "model.preset"]))


def suggest_key(path: Sequence[str | int]) -> str:
    """`; did you mean 'x'?` with the nearest key of any section, or nothing when none is near."""
    names = [str(name) for name in path]
    keys = known_keys()
    part = ".".join(names[:2]) if names[1:2] and names[1] in SINGLE else ""
    same = [key for key in keys if key.rpartition(".")[2] == names[-1] and not (part and key.startswith(part))]
    if same:
        return f"; did you mean '{same[0]}'?"
    if part:
        return ""  # the keys of the part that stands there are told
    near = suggest(".".join(names), keys)
    return near if "did you mean" in near else ""
