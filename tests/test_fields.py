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
from model.heads import HEADS
from tests.support.tiny import tiny_config

TABLE = Path(__file__).parent / "expected" / "fields.json"


def deciding_fields(kind: type, path: str = "") -> Iterator[tuple[str, int, Any]]:
    """(dotted name, since, default of a newer field) of every field that takes part in a trial's id."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        since = field.metadata.get("since", 1)
        default = None if since == 1 else field_default(field)
        plain = dataclasses.asdict(default) if dataclasses.is_dataclass(default) else default
        yield f"{path}{field.name}", since, plain
        inner = hints[field.name]
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            yield from deciding_fields(inner, f"{path}{field.name}.")


def table() -> dict[str, list[Any]]:
    rows = list(deciding_fields(TrialConfig))
    for name, head in HEADS.items():
        rows += list(deciding_fields(head.Config, f"heads.{name}."))
    return {name: [since] if since == 1 else [since, default] for name, since, default in rows}


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
            assert told[last] == default[0] and last not in node


@pytest.fixture
def config() -> TrialConfig:
    from harness.config import DataConfig, TrainConfig

    return TrialConfig(tiny_config("atss", "faster_rcnn"), DataConfig(), TrainConfig())
