"""A trial is its resolved configuration: as a dictionary, and as the id that follows from it.

The id hashes all settings that can change a result, the data set's content and that of a file of pretrained weights.
Where these lie, the `runtime` settings and what is analysed afterwards take no part. A field that was added after the
first records carries `metadata={"since": 2}` (or a later number) and takes no part while it has its default, so that
older trials keep their ids; such a default is frozen (tests/expected/fields.json), and better values go into presets.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, get_args, get_type_hints

from harness.config import TrainConfig, TrialConfig
from harness.spec.parts import FIELDS, LISTS, NAME, ROOMS, SINGLE, default_part
from harness.spec.resolve import SECTIONS, leaves, resolve
from harness.spec.strict import Mistakes
from model.backbones.configs import asked
from model.config import DetectorConfig
from model.groups.configs import MainConfig, PositivesConfig
from model.parts import Parts

SCHEMA = 1  # of the identity; a new number makes every trial a new one

# settings of the detector that have no effect without auxiliary heads, and what they then are
NEEDS_HEADS: dict[str, Any] = {
    "auxiliary_loss": False,
    "positive_queries": False,
    **{name: getattr(DetectorConfig, name) for name in ("min_positive_queries", "max_positive_queries")},
    **{name: getattr(DetectorConfig, name) for name in ("anchor_scale", "lambda1", "lambda2")},
    "adapter": default_part("adapter"),
}


def canonical_model(model: DetectorConfig) -> DetectorConfig:
    """One form for settings without effect: K = 0 is one trial whatever a row says about the heads' losses.

    Proposals that would stand there anyway are as good as not named.
    """
    if model.proposals == default_part("proposals", model.two_stage):
        model = replace(model, proposals=None)
    return model if model.heads else replace(model, **NEEDS_HEADS)


def canonical_train(train: TrainConfig) -> TrainConfig:
    """One form for settings without effect: how the moving average begins says nothing where there is none."""
    if train.ema_decay == 0:
        train = replace(train, ema_warmup=TrainConfig.ema_warmup)
    return train if train.ema_warmup != "none" else replace(train, ema_warmup_steps=TrainConfig.ema_warmup_steps)


def part_difference(field: str, config: Any, defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A part's name and those of its settings that are not the default.

    Args:
        field: the detector's field that the part stands in.
        config: the part's.
        defaults: a preset's `Config` by name, which count instead of the part's own.
    """
    name = ROOMS[field].name_of(config)
    own, preset = plain(config), (defaults or {}).get(name)
    return {NAME: name, **_difference(own, plain(preset) if preset is not None else _defaults(type(config)))}


def _defaults(kind: type) -> dict[str, Any]:
    """The defaults of a dataclass in JSON types, as far as it has them."""
    fields = {field.name: field_default(field) for field in dataclasses.fields(kind)}
    return {
        name: plain(value, _hints(kind)[name]) for name, value in fields.items() if value is not dataclasses.MISSING
    }


def _difference(own: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in own.items():
        below = default.get(key)
        if key not in default or value != below:
            found[key] = _difference(value, below) if isinstance(value, dict) and isinstance(below, dict) else value
    return found


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def plain(value: Any, hint: Any = None, *, deciding: bool = False) -> Any:
    """JSON types of a configuration value; an int in a float field becomes a float.

    With `deciding`, newer fields that have their default are left out.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        return {
            f.name: plain(getattr(value, f.name), hints[f.name], deciding=deciding)
            for f in dataclasses.fields(value)
            if not (deciding and "since" in f.metadata and getattr(value, f.name) == field_default(f))
        }
    if isinstance(value, tuple | list):
        inner = next(iter(get_args(hint)), None)
        return [plain(item, inner, deciding=deciding) for item in value]
    if isinstance(value, Mapping):
        return {name: plain(item, deciding=deciding) for name, item in value.items()}
    if isinstance(value, int) and not isinstance(value, bool) and (hint is float or float in get_args(hint)):
        return float(value)
    return value


def field_default(field: dataclasses.Field[Any]) -> Any:
    """The default of a dataclass's field; `dataclasses.MISSING` where it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


@cache
def newer_defaults() -> dict[str, Any]:
    """Dotted key and default, in JSON types, of each newer setting: what older records leave out.

    Names of the parts that stood there when none had a name are among them; settings of heads are not.
    """

    def walk(kind: type, path: str, newer: bool) -> Iterator[tuple[str, Any]]:
        for field in dataclasses.fields(kind):
            hint, name, own = _hints(kind)[field.name], f"{path}{field.name}", newer or "since" in field.metadata
            parts, default = field.metadata.get("parts"), field_default(field)
            if parts is not None and dataclasses.is_dataclass(default):
                yield f"{name}.{NAME}", parts.name_of(default)
                hint = type(default)
            if dataclasses.is_dataclass(hint) and isinstance(hint, type):
                yield from walk(hint, f"{name}.", own)
            elif own:
                yield name, plain(default, hint)

    return dict(walk(TrialConfig, "", False))


def named_parts(model: DetectorConfig) -> tuple[str, ...]:
    """The parts that a detector is made of, as its code is recorded: `heads.atss`; those that follow included."""
    chosen = {field: [getattr(model, field)] for field in SINGLE} | {field: getattr(model, field) for field in LISTS}
    chosen["proposals"] = [model.proposals_or_default]
    chosen["groups"] = [
        MainConfig(),
        *([PositivesConfig()] if model.heads and model.positive_queries else []),
        *model.groups,
    ]
    if not model.heads:
        del chosen["adapter"]
    names = (f"{ROOMS[field].room}.{ROOMS[field].name_of(own)}" for field, parts in chosen.items() for own in parts)
    return tuple(dict.fromkeys(names))


def config_to_dict(config: TrialConfig) -> dict[str, Any]:
    """A trial's configuration in JSON types; a part is `{"name": "atss", …all its settings}`."""
    return _tree(config)


def _tree(config: TrialConfig, *, deciding: bool = False) -> dict[str, Any]:
    tree = dict(plain(config, deciding=deciding))
    for name in FIELDS.keys() & tree["model"].keys():
        value = getattr(config.model, name)
        if name in LISTS:
            tree["model"][name] = [_part(ROOMS[name], part, deciding) for part in value]
        elif value is not None and not (deciding and _was_nameless(name, value)):
            tree["model"][name] = _part(ROOMS[name], value, deciding)
    return tree


def _part(parts: Parts, config: Any, deciding: bool) -> dict[str, Any]:
    return {NAME: parts.name_of(config), **plain(config, deciding=deciding)}


def _was_nameless(field: str, config: Any) -> bool:
    """Whether a part stood there before parts had names: its name is in no id."""
    return "since" not in FIELDS[field].metadata and type(config) is type(default_part(field))


def config_from_dict(tree: Mapping[str, Any]) -> TrialConfig:
    """The configuration that `config_to_dict` wrote.

    Raises:
        UserError: it does not fit this version: a key is unknown or of a wrong type.
    """
    mistakes = Mistakes()
    sections = {name: tree[name] for name in SECTIONS if name in tree}
    resolved = resolve(leaves(sections, "configuration: ", mistakes), "configuration", mistakes)
    mistakes.check()
    assert resolved is not None
    return resolved.trial(int(tree.get("seed", 0)))


def identity(config: TrialConfig, fingerprint: str, weights_hash: str | None = None) -> dict[str, Any]:
    """Everything that makes the trial what it is.

    Args:
        config: all settings.
        fingerprint: of the data set's content; takes the place of its path.
        weights_hash: SHA-256 of the backbone's file of weights, 64 hex digits; takes the place of its path. None where
            there is no such file, and for records of before these hashes: their ids were made from the path.
    """
    canonical = replace(config, model=canonical_model(config.model), train=canonical_train(config.train))
    tree = _tree(canonical, deciding=True)
    data, backbone = tree["data"], tree["model"]["backbone"]
    if data.pop("path") is not None:
        del data["digits"]
    if asked(config.model.backbone, "weights") is not None and weights_hash is not None:
        backbone["weights"] = weights_hash
    if not asked(config.model.backbone, "frozen_at_random"):
        backbone.pop("random_frozen", None)  # there is nothing that it could allow
    return {"schema": SCHEMA, **tree, "data": {**data, "fingerprint": fingerprint}}


def trial_id(config: TrialConfig, fingerprint: str, weights_hash: str | None = None) -> str:
    """First 12 hex digits of SHA-256 over the canonical JSON of `identity`."""
    tree = identity(config, fingerprint, weights_hash)
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def recorded_id(record: Mapping[str, Any]) -> str:
    """The id that follows from a record alone: from its configuration, `fingerprint` and `weights_hash`.

    Raises:
        UserError: its configuration does not fit this version.
        ValueError: a hash is none.
    """
    weights_hash = record.get("weights_hash")
    if weights_hash is not None and not re.fullmatch("[0-9a-f]{64}", str(weights_hash)):
        raise ValueError(f"weights_hash {weights_hash!r} is no SHA-256")
    return trial_id(config_from_dict(record["config"]), record["fingerprint"], weights_hash)
