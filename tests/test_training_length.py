"""Lengths of trainings: whole epochs are run, and wherever they are told the steps stand beside those asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.__main__ import main
from harness.config import DataConfig, DigitsConfig, TrainConfig
from harness.report.tables import make_table
from harness.schedule.schedule import check_datasets
from harness.spec.grid import open_grid
from harness.spec.training_length import num_training_images, recorded_length, training_length
from tests.support.folders import write_folder
from tests.support.report_grid import CONFIG, make_grid, make_record


def train(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"drop_epochs": (), **changes})


@pytest.mark.parametrize(
    ("settings", "images", "told"),
    [
        ({"epochs": 1, "min_steps": 200, "batch_size": 2}, 340, "2 epochs, 340 steps (at least 200 asked)"),
        ({"epochs": 2, "min_steps": 200, "batch_size": 2}, 340, "2 epochs, 340 steps (at least 200 asked)"),
        ({"epochs": 5, "min_steps": 1250, "batch_size": 4}, 1000, "5 epochs, 1,250 steps (at least 1,250 asked)"),
        ({"epochs": 1, "min_steps": 1, "batch_size": 4}, 3, "1 epoch, 1 step (at least 1 asked)"),
        (
            {"epochs": 1, "min_steps": 5, "batch_size": 4, "accumulate_steps": 2},
            9,
            "2 epochs, 6 steps (at least 5 asked)",
        ),
        ({"epochs": 3, "min_steps": 0, "batch_size": 4}, 10, "3 epochs, 9 steps"),
    ],
)
def test_whole_epochs_are_told(settings, images, told):
    assert str(training_length(train(**settings), images)) == told


def test_a_record_tells_what_was_run():
    settings = train(epochs=1, min_steps=10)
    history = [{"epoch": 1, "step": 4}, {"epoch": 2, "step": 8}, {"epoch": 3, "step": 12}]
    assert str(recorded_length(settings, history)) == "3 epochs, 12 steps (at least 10 asked)"
    for damaged in ([], None, [3], [{"epoch": 1}], [{"epoch": "1", "step": 4}]):
        assert recorded_length(settings, damaged) is None


def test_images_are_counted_where_that_is_quick(tmp_path, monkeypatch):
    from harness.spec import training_length as room

    assert num_training_images(DataConfig(digits=DigitsConfig(num_train=7)), 4) == 7
    folder = write_folder(tmp_path / "coco")
    counted = num_training_images(DataConfig(path=str(folder)), 4)
    assert counted is not None and counted > 0
    monkeypatch.setattr(room, "LARGEST", 10)
    assert num_training_images(DataConfig(path=str(folder)), 4) is None
    monkeypatch.undo()
    for text in ("", "[]", '{"images": 3}', "{}", "[" * 100_000):
        (folder / "annotations" / "instances_train.json").write_text(text)
        assert num_training_images(DataConfig(path=str(folder)), 4) is None
    assert num_training_images(DataConfig(path=str(tmp_path / "away")), 4) is None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "table.yaml"
    path.write_text("base: {model.heads: []}\nrows: [{label: a}, {label: b, set: {train.epochs: 3}}]")
    return path


MORE = ["--set", "train.min_steps=10", "--set", "train.drop_epochs=[]"]


def test_plan_tells_it_and_says_nothing_where_no_least_number_was_asked(file, capsys):
    """32 images in batches of 8: 4 steps an epoch, and 10 steps take 3 epochs, as the second row asks for anyway."""
    options = ["plan", str(file), "--preset", "digits_fast"]
    assert main([*options, *MORE]) == 0
    assert "\ntraining: 3 epochs, 12 steps (at least 10 asked)\n" in capsys.readouterr().out
    assert main([*options, *MORE, "--set", "train.min_steps=8"]) == 0
    out = capsys.readouterr().out
    assert "\ntraining: 2 epochs, 8 steps (at least 8 asked): 1 trial\n" in out
    assert "\ntraining: 3 epochs, 12 steps (at least 8 asked): 1 trial\n" in out
    assert main(options) == 0
    assert "training:" not in capsys.readouterr().out


def test_run_tells_it_of_the_data_at_hand(file, tmp_path):
    folder = write_folder(tmp_path / "coco")
    images = num_training_images(DataConfig(path=str(folder)), 4)
    grid = open_grid(file, "digits_fast", MORE[1::2], data=str(folder))
    said: list[str] = []
    check_datasets(grid.trials, said.append)
    lengths = {str(training_length(trial.config.train, images or 0)) for trial in grid.trials}
    assert {line.removeprefix("training: ") for line in said if line.startswith("training: ")} == lengths
    assert all("(at least 10 asked)" in length for length in lengths)
    said.clear()
    check_datasets(open_grid(file, "digits_fast", data=str(folder)).trials, said.append)
    assert not [line for line in said if line.startswith("training")]


def test_overruled_epochs_are_told_with_the_steps(tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text("rows: [{label: a, set: {model.heads: []}}]")
    [note] = open_grid(path, "digits", ["train.epochs=2"]).notes
    assert "asks for 5 epochs, 2,000 steps (at least 2,000 asked), of 1,600 images" in note
    folder = write_folder(tmp_path / "coco")
    images = num_training_images(DataConfig(path=str(folder)), 4)
    [note] = open_grid(path, "digits", ["train.epochs=2"], data=str(folder)).notes
    length = training_length(train(epochs=2, min_steps=2000, batch_size=4), images or 0)
    assert str(length) in note and "train.min_steps=0 makes it 2" in note


def test_a_report_tells_what_its_records_ran(monkeypatch):
    longer = replace(CONFIG, train=train(epochs=1, min_steps=10, batch_size=8))
    monkeypatch.setattr("tests.support.report_grid.CONFIG", longer)
    grid = make_grid({"a": {}}, seeds=(0,))

    def told(history: list[dict[str, int]]) -> str:
        [note] = [
            note for note in make_table(grid, [make_record("0-0", 30.0, history=history)]).notes if "batch" in note
        ]
        return note

    assert "; 7 epochs, 14 steps (at least 10 asked), batch 8;" in told([{"epoch": 7, "step": 14}])
    assert "; 1 epoch, 125 steps (at least 10 asked), batch 8;" in told([])  # digit scenes are known without


def test_a_report_without_a_least_number_tells_the_epochs():
    table = make_table(make_grid({"a": {}}, seeds=(0,)), [make_record("0-0", 30.0)])
    assert any("; 4 epochs, batch 8;" in note for note in table.notes)


def test_a_report_names_pretrained_weights(monkeypatch):
    backbone = replace(CONFIG.model.backbone, weights="/far/away/resnet50.pth")
    pretrained = replace(CONFIG, model=replace(CONFIG.model, backbone=backbone))
    monkeypatch.setattr("tests.support.report_grid.CONFIG", pretrained)
    record = make_record("0-0", 30.0, weights_hash="0123456789abcdef" * 4)
    table = make_table(make_grid({"a": {}}, seeds=(0,)), [record])
    assert any("; pretrained weights resnet50.pth (0123456789ab);" in note for note in table.notes)
