"""Every part of every room keeps the contract of its room, and what is true of all of them.

A new part is checked by its line in its room's dict; without a line in `TINY` of tests/support/rooms.py this fails.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from model.checks import FORBID_UNKNOWN
from model.parts import Parts
from tests.support.assigner_contract import AssignerContract
from tests.support.decoder_contract import DecoderContract
from tests.support.feature_contracts import AdapterContract, BackboneContract, EncoderContract, NeckContract
from tests.support.group_contract import GroupContract
from tests.support.prediction_contracts import ClassificationContract, PostprocessContract
from tests.support.proposals_contract import ProposalsContract
from tests.support.rooms import ROOMS, TINY, config_of, every, name_of

ROOT = Path(__file__).parents[1]
EVERY_PART = pytest.mark.parametrize(
    ("room", "name"), [(room, name) for room, parts in ROOMS.items() for name in parts]
)


@EVERY_PART
def test_every_part_has_a_tiny_setting(room: str, name: str) -> None:
    assert any(name_of(case) == name for case in TINY[room]), f"add a line to TINY[{room!r}] in tests/support/rooms.py"


def test_every_tiny_setting_is_of_a_part() -> None:
    assert TINY.keys() == ROOMS.keys()
    assert {
        (room, name_of(case)) for room, cases in TINY.items() for case in cases if name_of(case) not in ROOMS[room]
    } == set()


def test_every_room_is_in_the_suites() -> None:
    folders = {path.parent.name for path in (ROOT / "model").glob("*/__init__.py")}
    assert folders - {"official"} == {*ROOMS, "heads"}
    for room in ROOMS:
        assert "docs/add-a-part.md" in (ROOT / "model" / room / "__init__.py").read_text()


@EVERY_PART
def test_a_part_is_found_by_its_name_and_by_its_config(room: str, name: str) -> None:
    parts = ROOMS[room]
    assert callable(parts.choose(name))
    assert parts.name_of(parts.config_of(name)(**required(room, name))) == name


def required(room: str, name: str) -> dict[str, Any]:
    """Settings without a default, from the tiny ones."""
    case = next(case for case in TINY[room] if name_of(case) == name)
    return TINY[room][case]


@EVERY_PART
def test_settings_are_frozen_and_refuse_what_they_do_not_know(room: str, name: str) -> None:
    config = config_of(room, next(case for case in TINY[room] if name_of(case) == name))
    assert is_dataclass(config) and config == type(config)(**required(room, name)) and hash(config) is not None
    assert type(config).__pydantic_config__ == {"extra": "forbid"}
    with pytest.raises(FrozenInstanceError):
        config.anything = 0
    assert type(config).__doc__ and not type(config).__doc__.startswith(type(config).__name__ + "(")


def test_rooms_and_settings_are_read_without_torch() -> None:
    code = (
        "import sys; from importlib import import_module; import model.config\n"
        f"rooms = {[*ROOMS, 'heads']}\n"
        "for room in rooms:\n"
        "    module = import_module(f'model.{room}')\n"
        "    for parts in [value for value in vars(module).values() if type(value).__name__ == 'Parts']:\n"
        "        [parts.name_of(config()) for config in parts.configs.values()]\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@every("backbones")
class TestEveryBackbone(BackboneContract):
    pass


@every("necks")
class TestEveryNeck(NeckContract):
    pass


@every("encoders")
class TestEveryEncoder(EncoderContract):
    pass


@every("adapters")
class TestEveryAdapter(AdapterContract):
    pass


@every("proposals")
class TestEveryKindOfProposals(ProposalsContract):
    pass


@every("decoders")
class TestEveryDecoder(DecoderContract):
    pass


@every("groups")
class TestEveryGroup(GroupContract):
    pass


@every("assign")
class TestEveryAssigner(AssignerContract):
    pass


@every("classification")
class TestEveryClassification(ClassificationContract):
    pass


@every("postprocess")
class TestEveryPostprocessing(PostprocessContract):
    pass


class Fine:
    """A part of one's own, with its settings beside it."""

    @dataclass(frozen=True)
    class Config:
        """None."""

        __pydantic_config__ = FORBID_UNKNOWN

    def __init__(self, config: Config, *, size: int):
        self.config, self.size = config, size


def test_an_unknown_name_is_answered_with_the_nearest_and_the_known() -> None:
    parts = Parts("model.shapes", "shape", {"round": Fine, "square": "model.parts:Parts"}, {})
    for ask in (parts.choose, parts.config_of):
        with pytest.raises(ValueError, match="^unknown shape 'squar'; did you mean 'square'\\? known: round, square$"):
            ask("squar")
    with pytest.raises(ValueError, match="^unknown shape '7'; known: round, square$"):
        parts.choose("7")
    assert Parts("model.shapes", "shape", {}, {}).unknown("x") == "unknown shape 'x'; known: none"


def test_a_part_is_built_from_its_config() -> None:
    parts = Parts("model.shapes", "shape", {"round": Fine}, {})
    config = Fine.Config()
    built = parts.build(config, size=3)
    assert isinstance(built, Fine) and built.config is config and built.size == 3
    with pytest.raises(ValueError, match="^object is not the Config of a shape; known: round$"):
        parts.build(object())


def test_several_of_a_name_are_numbered() -> None:
    parts = Parts("model.shapes", "shape", {"round": Fine}, {})
    assert parts.instance_names([Fine.Config()] * 3) == ("round", "round.2", "round.3")
