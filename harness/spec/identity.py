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

from harness.config import TrialConfig
from harness.spec.resolve import SECTIONS, leaves, resolve
from harness.spec.strict import Mistakes
from model.config import DetectorConfig
from model.heads import HEADS

SCHEMA = 1  # of the identity; a new number makes every trial a new one

# settings of the detector that have no effect without auxiliary heads, and what they then are
NEEDS_HEADS: dict[str, Any] = {
    "auxiliary_loss": False,
    "positive_queries": False,
    **{name: getattr(DetectorConfig, name) for name in ("min_positive_queries", "max_positive_queries")},
    **{name: getattr(DetectorConfig, name) for name in ("anchor_scale", "lambda1", "lambda2")},
}


def canonical_model(model: DetectorConfig) -> DetectorConfig:
    """One form for settings without effect: K = 0 is one trial whatever a row says about the heads' losses."""
    return model if model.heads else replace(model, **NEEDS_HEADS)


def head_difference(head: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A head's name and those of its settings that are not the default; `defaults` holds a preset's, by name."""
    name = HEADS.name_of(head)
    return {"name": name, **_difference(plain(head), plain(defaults.get(name) or type(head)()))}


def _difference(own: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _difference(value, default[key]) if isinstance(value, dict) else value
        for key, value in own.items()
        if value != default[key]
    }


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
    if isinstance(value, int) and not isinstance(value, bool) and (hint is float or float in get_args(hint)):
        return float(value)
    return value


def field_default(field: dataclasses.Field[Any]) -> Any:
    """The default of a dataclass's field; `dataclasses.MISSING` where it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


@cache
def newer_defaults() -> dict[str, Any]:
    """Dotted key and default, in JSON types, of each newer setting: what older records leave out. None of a head."""

    def walk(kind: type, path: str, newer: bool) -> Iterator[tuple[str, Any]]:
        for field in dataclasses.fields(kind):
            hint, name, own = _hints(kind)[field.name], f"{path}{field.name}", newer or "since" in field.metadata
            if dataclasses.is_dataclass(hint) and isinstance(hint, type):
                yield from walk(hint, f"{name}.", own)
            elif own:
                yield name, plain(field_default(field), hint)

    return dict(walk(TrialConfig, "", False))


def config_to_dict(config: TrialConfig) -> dict[str, Any]:
    """A trial's configuration in JSON types; heads are `{"name": "atss", …all their settings}`."""
    return _tree(config)


def _tree(config: TrialConfig, *, deciding: bool = False) -> dict[str, Any]:
    tree = plain(config, deciding=deciding)
    tree["model"]["heads"] = [
        {"name": HEADS.name_of(head), **plain(head, deciding=deciding)} for head in config.model.heads
    ]
    return dict(tree)


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
    tree = _tree(replace(config, model=canonical_model(config.model)), deciding=True)
    data, backbone = tree["data"], tree["model"]["backbone"]
    if data.pop("path") is not None:
        del data["digits"]
    if backbone["weights"] is not None and weights_hash is not None:
        backbone["weights"] = weights_hash
    if not config.model.backbone.frozen_at_random:
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
