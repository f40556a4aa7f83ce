"""How settings are shown to people: the shortest words that tell trials apart."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from harness.config import TrialConfig
from harness.spec.identity import NEEDS_HEADS, config_to_dict, part_difference
from harness.spec.parts import SINGLE, default_part
from model.config import DetectorConfig

Factor = str | int | float | bool
DETECTOR = "model.preset"  # names a detector; no setting of it is called so
DATA = "data.path"  # a data set, which people know by the name of its folder
SCENES = "digits"  # what stands for the generated scenes, which have no folder
HEADS = "model.heads"


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Dotted keys cut to the shortest ends that tell them apart; a data set is `data`."""
    names = list(keys)
    ends: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        tails = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        ends[name] = next(t for t in tails if sum(n == t or n.endswith("." + t) for n in names) == 1 or t == name)
    return ends | ({DATA: "data"} if DATA in ends else {})


def shown_at(key: str, value: Any) -> str:
    """The value of a setting as labels show it; of a data set the name of its folder."""
    if key != DATA:
        return show_value(value)
    if value in (None, "none"):
        return SCENES
    path = os.path.abspath(os.path.expanduser(str(value)))  # `.` and `~` are folders with names
    return os.path.basename(path) or path


def show_value(value: Any) -> str:
    """A setting as labels show it: `true`, `0.0002`, `atss+faster_rcnn`, `atss*6` (six times), `none`."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    if isinstance(value, dict):
        options = [f"{key}={show_value(v)}" for key, v in value.items() if key != "name"]
        return str(value.get("name", "")) + (f"({','.join(options)})" if options else "")
    if isinstance(value, list | tuple):
        if any(isinstance(item, str | dict) for item in value):
            runs = [(text, len(list(same))) for text, same in itertools.groupby(map(show_value, value))]
            return "+".join(text if count == 1 else f"{text}*{count}" for text, count in runs)
        return ",".join(map(show_value, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def factors_label(factors: Mapping[str, Any], short: Mapping[str, str]) -> str:
    """Settings and their values as labels show them: `heads=atss positive_queries=true`; `short` holds their names."""
    return " ".join(f"{short[name]}={shown_at(name, value)}" for name, value in factors.items())


def factor_of(value: Any) -> Factor:
    """A setting as a plain value: lists and mappings as their text."""
    return value if isinstance(value, str | int | float | bool) else show_value(value)


def factors_of(
    flats: Sequence[Mapping[str, Any]], presets: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[dict[str, Factor]]:
    """By row the settings that tell it from the others; what follows from the name of its detector is that name.

    Args:
        flats: of each row what `settings_of` says.
        presets: of each row the name of its detector's preset ("" where it has none), and what `settings_of` says of
            the presets alone with the row's heads, which are told in any case.
    """
    keys = dict.fromkeys(key for flat in flats for key in flat)
    varied = [key for key in keys if len({repr(flat[key]) for flat in flats if key in flat}) > 1]
    several = len({name for name, _ in presets}) > 1
    candidates = [key for key in varied if several and key != HEADS]
    by_name = [key for key in candidates if len({repr(p[key]) for _, p in presets if key in p}) > 1]
    rows: list[dict[str, Factor]] = []
    for flat, (name, preset) in zip(flats, presets, strict=True):
        follows = {key for key in by_name if key in preset and preset[key] == flat.get(key)}
        rows.append({DETECTOR: name} if several and name else {})
        rows[-1] |= {key: factor_of(flat[key]) for key in varied if key in flat and key not in follows}
    return rows


def different_parts(models: Iterable[DetectorConfig]) -> set[str]:
    """The fields in which these detectors have different parts, not just one with different settings."""
    known = list(models)
    return {field for field in SINGLE if len({type(getattr(model, field)) for model in known}) > 1}


def settings_of(
    config: TrialConfig, head_defaults: Mapping[str, Any], different: Collection[str] = ()
) -> dict[str, Any]:
    """Dotted keys and values that say what a trial is: only what has an effect, of a head only what it changes.

    Args:
        config: the trial's.
        head_defaults: the `Config` that a preset makes of a head, by its name.
        different: fields whose parts are told whole, as `deformable(position=learned)`.
    """
    flat: dict[str, Any] = {}

    def walk(node: dict[str, Any], path: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{path}{key}.")
            else:
                flat[f"{path}{key}"] = value

    tree, model = config_to_dict(config), config.model
    del tree["seed"]
    for field in different:
        part = getattr(model, field) or default_part(field, model.two_stage)
        tree["model"][field] = [part_difference(field, part)]  # a list is one value
    tree["model"]["heads"] = [part_difference("heads", head, head_defaults) for head in model.heads]
    tree["model"]["groups"] = [part_difference("groups", group) for group in model.groups]
    for name in () if model.heads else NEEDS_HEADS:
        del tree["model"][name]
    walk(tree, "")
    return flat
