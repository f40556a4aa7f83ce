"""Parts of one's own that are not as they should be: each is a line where it is named, and nobody else's trouble."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import UserError
from harness.spec.grid import open_grid
from model.backbones import BACKBONES
from model.checks import FORBID_UNKNOWN
from model.config import DetectorConfig
from model.criterion import loss_weights
from model.groups import GROUPS
from model.types import Proposals, QueryGroup
from tests.support.own_parts import Mine

FILES = {
    "raises": "raise RuntimeError('no such GPU')\n",
    "torn": "class Torn(:\n",
    "empty": "",
    "bare": "class Bare:\n    pass\n",
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text("rows: [{label: a}]")
    return path


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone for each of FILES, listed before all others, and one whose module is not there."""
    for name, text in FILES.items():
        (tmp_path / f"own_{name}.py").write_text(text)
        monkeypatch.setitem(BACKBONES, name, f"own_{name}:{name.capitalize()}")
        monkeypatch.delitem(sys.modules, f"own_{name}", raising=False)
    monkeypatch.setitem(BACKBONES, "gone", "own_gone:Gone")
    monkeypatch.setitem(BACKBONES, "mine", Mine)
    monkeypatch.setattr(BACKBONES, "data", dict(reversed(BACKBONES.data.items())))
    monkeypatch.syspath_prepend(str(tmp_path))


def refused(rows: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        open_grid(rows, "digits", list(overrides), require_data=False)
    [line] = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("raises", "cannot be loaded from own_raises:Raises (RuntimeError: no such GPU)"),
        ("torn", "cannot be loaded from own_torn:Torn (SyntaxError: "),
        ("empty", "cannot be loaded from own_empty:Empty (AttributeError: "),
        ("gone", "cannot be loaded from own_gone:Gone (ModuleNotFoundError: "),
        ("bare", "its class has no Config, a frozen dataclass of its settings"),
    ],
)
def test_one_that_cannot_be_used_is_a_line(rows: Path, files: None, name: str, told: str) -> None:
    line = refused(rows, f"model.backbone={name}")
    assert f"the backbone {name}" in line and told in line


def test_its_neighbours_are_not_troubled(rows: Path, files: None) -> None:
    [first, *_] = open_grid(rows, "digits", ["model.backbone=mine"], require_data=False).trials
    assert first.config.model.backbone == Mine.Config()
    assert BACKBONES.name_of(DetectorConfig().backbone) == "resnet"


def settings(**fields: Any) -> type[Any]:
    """The class of a part whose `Config` has these fields (type, default)."""
    spec = [(name, kind, dataclasses.field(default=default)) for name, (kind, default) in fields.items()]
    config = dataclasses.make_dataclass("Config", spec, frozen=True)
    config.__pydantic_config__ = FORBID_UNKNOWN
    return type("Own", (), {"Config": config})


def test_a_setting_called_name_would_be_another_part(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "named", settings(name=(str, "x")))
    assert "has a field called name" in refused(rows, "model.backbone=named")


def test_settings_that_let_misspelt_ones_pass_are_refused(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = settings(size=(int, 1))
    part.Config.__pydantic_config__ = {}
    monkeypatch.setitem(BACKBONES, "lax", part)
    assert "lacks the line `__pydantic_config__ = FORBID_UNKNOWN`" in refused(rows, "model.backbone=lax")

    @dataclass(frozen=True)
    class Outer:
        __pydantic_config__ = FORBID_UNKNOWN
        inner: part.Config = dataclasses.field(default_factory=part.Config)  # type: ignore[name-defined]

    Outer.__annotations__["inner"] = part.Config
    monkeypatch.setitem(BACKBONES, "lax", type("Own", (), {"Config": Outer}))
    assert "lacks the line" in refused(rows, "model.backbone=lax")


def test_fields_of_other_types_are_about_something_else(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "counting", settings(stages=(int, 3), weights=(float, 0.5), norm=(int, 2)))
    grid = open_grid(rows, "digits", ["model.backbone=counting", "runtime.ranks=2"], require_data=False)
    assert grid.trials[0].config.model.backbone.stages == 3


def test_a_config_that_fails_by_itself_is_a_line(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = settings(size=(int, 1))
    part.Config.__post_init__ = lambda self: self.size + "px"
    monkeypatch.setitem(BACKBONES, "failing", part)
    assert "the Config of the backbone failing raises TypeError" in refused(rows, "model.backbone=failing")


# ---- what would be two things under one name, or more than there is -----------------------------------------------


@pytest.mark.parametrize(("name", "heads"), [("decoder", []), ("encoder", []), ("atss", ["atss", "atss"])])
def test_a_group_whose_losses_would_be_others_is_refused(
    rows: Path, monkeypatch: pytest.MonkeyPatch, name: str, heads: list[str]
) -> None:
    monkeypatch.setitem(GROUPS, name, settings())
    line = refused(rows, f"model.groups=[{name}]", f"model.heads=[{', '.join(heads)}]")
    assert f"the losses of the query group {name} and others would have one name" in line


class Learning:
    """A part with one loss."""

    def __init__(self, name: str):
        self.name = name

    def loss_weights(self) -> dict[str, float]:
        return {self.name: 1.0}


def test_two_losses_of_one_name_are_an_error() -> None:
    with pytest.raises(ValueError, match="two losses are called mine.0/l1"):
        loss_weights(DetectorConfig(), [Learning("mine.0/l1"), Learning("mine.0/l1")], {})
    with pytest.raises(ValueError, match="two losses are called atss/l1"):
        loss_weights(DetectorConfig(), [Learning("atss/l1")], {"atss": {"l1": 1.0}})


def test_a_number_of_proposals_below_zero_is_refused(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GROUPS, "owing", settings(num_proposals=(int, -3)))
    assert "num_proposals of owing must not be negative: -3" in refused(rows, "model.groups=[owing]")


def group_of(number: int, **changes: Any) -> QueryGroup:
    return QueryGroup(torch.zeros(1, number, 4), None, torch.zeros(1, number, 4), has_size=True, **changes)


@pytest.mark.parametrize("blocks", [(3, 3), (2, 2), (6, -1)])
def test_blocks_that_do_not_add_up_are_refused(blocks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not add up to its 5 queries"):
        group_of(5, blocks=blocks)


def test_no_proposal_is_handed_out_twice() -> None:
    proposals = Proposals(group_of(5))
    proposals.take(4)
    assert proposals.take(-3).content.shape[1] == 0 and proposals.take(1).content.shape[1] == 1
    with pytest.raises(ValueError, match="num_proposals"):
        proposals.take(1)
