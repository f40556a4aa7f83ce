"""Configuration fields and the ids of trials: what is added later does not touch the trials of before."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from harness.config import TrialConfig
from harness.spec.identity import config_from_dict, config_to_dict, field_default, identity, trial_id
from harness.spec.parts import FIELDS, ROOMS, SINGLE, part_name
from tests.support.tiny import tiny_config

TABLE = Path(__file__).parent / "expected" / "fields.json"


Row = tuple[str, int, list[Any]]  # dotted name, since, and the default where it is frozen


def deciding_fields(kind: type, path: str = "", *, frozen: bool = False) -> Iterator[Row]:
    """Every field that takes part in a trial's id; `frozen`: with all defaults, not just those of newer fields."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        since = field.metadata.get("since", 1)
        yield f"{path}{field.name}", since, [_default(field)] if frozen or since > 1 else []
        inner = hints[field.name]
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            yield from deciding_fields(inner, f"{path}{field.name}.", frozen=frozen)


def _default(field: dataclasses.Field[Any]) -> Any:
    """Of a part its name: what it is set to has lines of its own."""
    default = field_default(field)
    if "parts" in field.metadata and default:
        return field.metadata["parts"].name_of(default)
    return dataclasses.asdict(default) if dataclasses.is_dataclass(default) else default


def fields_of_parts() -> Iterator[Row]:
    """Of every part of every room. One that stands where none is named may change no default: it is in no id."""
    for field, parts in ROOMS.items():
        since = FIELDS[field].metadata.get("since", 1)
        implied = {part_name(field, None, two_stage) for two_stage in (True, False)} if field in SINGLE else set()
        for name in parts:
            nameless = name in implied and since == 1  # it was there before parts had names
            path = f"model.{field}." if nameless else f"{field}.{name}."
            yield from deciding_fields(parts.config_of(name), path, frozen=name in implied and not nameless)


def table() -> dict[str, list[Any]]:
    rows = [*deciding_fields(TrialConfig), *fields_of_parts()]
    return {name: [since, *default] for name, since, default in rows}


def test_the_table_of_fields_is_as_committed() -> None:
    """A field added now carries `metadata={"since": 2}`, and its default is frozen: see harness/spec/identity.py.

    Where a line is missing, write it into tests/expected/fields.json: `"section.field": [2, default]`. A line that is
    there already never changes.
    """
    assert json.loads(json.dumps(table())) == json.loads(TABLE.read_text())


@dataclasses.dataclass(frozen=True)
class _Part:
    old: int = 1
    new: float = dataclasses.field(default=0.5, metadata={"since": 2})


@dataclasses.dataclass(frozen=True)
class _Newer:
    part: _Part = dataclasses.field(default_factory=_Part)
    parts: tuple[_Part, ...] = ()
    late: _Part = dataclasses.field(default_factory=_Part, metadata={"since": 3})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (_Newer(), {"part": {"old": 1}, "parts": []}),
        (_Newer(part=_Part(new=0.5)), {"part": {"old": 1}, "parts": []}),
        (_Newer(part=_Part(new=1)), {"part": {"old": 1, "new": 1.0}, "parts": []}),
        (_Newer(parts=(_Part(), _Part(new=2.0))), {"part": {"old": 1}, "parts": [{"old": 1}, {"old": 1, "new": 2.0}]}),
        (_Newer(late=_Part(old=7)), {"part": {"old": 1}, "parts": [], "late": {"old": 7}}),
    ],
)
def test_a_newer_field_counts_only_where_it_was_set(value: Any, expected: dict[str, Any]) -> None:
    from harness.spec.identity import plain

    assert plain(value, deciding=True) == expected


def test_what_is_recorded_holds_every_field_and_gives_the_same_id(config: TrialConfig) -> None:
    recorded = config_to_dict(config)
    assert trial_id(config_from_dict(recorded), "f") == trial_id(config, "f")
    for name, (since, *default) in table().items():
        section, _, rest = name.partition(".")
        if since > 1 and section in ("model", "data", "train", "evaluate"):
            node, told = identity(config, "f")[section], recorded[section]
            for part in rest.split(".")[:-1]:
                node, told = node[part], told[part]
            last = rest.rpartition(".")[2]
            name = told[last].get("name") if isinstance(told[last], dict) else told[last]
            assert name == json.loads(json.dumps(default[0])) and last not in node


@pytest.fixture
def config() -> TrialConfig:
    from harness.config import DataConfig, TrainConfig

    return TrialConfig(tiny_config("atss", "faster_rcnn"), DataConfig(), TrainConfig())
