"""Weights say which classes their labels are, and nobody takes one for another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from harness.__main__ import main
from harness.data.categories import COCO, Categories, categories_of, coco_rows, disagreement, numbered, of_metadata
from harness.revisit.classes import of_released
from harness.revisit.described import classes_of
from harness.revisit.trained import named_trial, read_trial
from harness.store.results import RunStore
from harness.trial.checkpoint import WEIGHTS
from model.config import DetectorConfig
from tests.support.folders import tables, write_folder, write_split
from tests.support.kept_trial import CLASSES, TRIAL, data_config, keep_trial
from tests.support.tiny import tiny_config

MODEL: DetectorConfig = tiny_config("atss")


def test_a_table_of_classes_comes_back_as_it_was() -> None:
    names = Categories((3, 4, 900), ("ant", 'a "quoted" ü', "cow"))
    assert of_metadata(names.to_metadata()) == names
    assert of_metadata({"format": "pt"}) is None
    for wrong in ("", "[", "{}x", '[["1", "ant"]]', "[[1, 2]]", "[1]", "[[true, 'x']]"):
        with pytest.raises(ValueError, match="is no list of ids and names"):
            of_metadata({"codetr_classes": wrong})


def test_coco_has_its_80_classes_at_their_ids() -> None:
    names = dict(zip(*COCO, strict=True))
    assert len(COCO.ids) == len(COCO.names) == len(set(COCO.names)) == 80
    some = {1: "person", 11: "fire hydrant", 13: "stop sign", 27: "backpack", 44: "bottle", 67: "dining table"}
    some |= {70: "toilet", 82: "refrigerator", 84: "book", 90: "toothbrush"}
    assert {number: names[number] for number in some} == some
    rows = coco_rows(91)
    assert rows is not None and rows.names[17] == "cat" and rows.names[12] == "class 12" and rows.ids[90] == 90
    assert coco_rows(80) == COCO and coco_rows(1203) is None


@pytest.mark.parametrize(
    ("model", "count", "first"),
    [
        ("co_dino_5scale_r50_1x_coco", 80, "person"),
        ("co_dino_5scale_lsj_vit_large_lvis", 1203, None),
        ("co_dino_5scale_lsj_r50_1x_lvis", 80, None),
        ("dino_4scale", 10, None),
        ("", 80, None),
    ],
)
def test_released_models_of_coco_have_its_names(model: str, count: int, first: str | None) -> None:
    found = of_released(model, count)
    assert (None if found is None else found.names[0]) == first


def test_classes_differ_by_their_names_and_their_order() -> None:
    ours = Categories((0, 7, 90), ("ant", "bee", "cow"))
    assert disagreement(ours, Categories((1, 2, 3), ("Ant", "bee ", "cow"))) == ("", False)
    told, wrong = disagreement(ours, Categories((0, 7, 90), ("ant", "cow", "bee")))
    assert wrong and told == "label 1 is 'bee' and 'cow' there, label 2 is 'cow' and 'bee' there"
    told, wrong = disagreement(ours, Categories((0, 7, 90), ("ant", "wasp", "cow")))
    assert not wrong and told == "label 1 is 'bee' and 'wasp' there"
    told, wrong = disagreement(numbered(9), Categories(tuple(range(9)), tuple("abcdefghi")))
    assert not wrong and told.endswith("label 2 is 'class 2' and 'c' there, and 6 more")


def test_a_folder_tells_its_classes_by_its_annotations(tmp_path: Path) -> None:
    assert categories_of(data_config(write_folder(tmp_path / "data"))) == CLASSES
    assert categories_of(data_config(tmp_path / "nothing")) is None


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "data")
    return RunStore()


def renamed(tmp_path: Path, *names: str) -> str:
    """The same images with classes of these names."""
    for number, split in enumerate(("train", "val")):
        content = tables(number)
        content["categories"] = [{**row, "name": name} for row, name in zip(content["categories"], names, strict=True)]
        write_split(tmp_path / "other", split, content, seed=number)
    return str(tmp_path / "other")


def test_weights_of_a_trial_name_their_classes_and_old_ones_are_named_by_the_record(
    tmp_path: Path, store: RunStore
) -> None:
    data = data_config(tmp_path / "data")
    keep_trial(store, MODEL, data)
    weights = store.dir(TRIAL) / "checkpoint" / WEIGHTS
    assert classes_of(weights) == CLASSES
    with safe_open(weights, "pt") as file:
        assert json.loads(file.metadata()["codetr_classes"]) == [[0, "ant"], [7, "bee"], [90, "cow"]]
    assert named_trial(store, TRIAL[:4]).classes == CLASSES
    save_file(load_file(weights), weights)
    assert read_trial(store, TRIAL).classes == CLASSES
    keep_trial(store, MODEL, data_config(tmp_path / "gone"), classes=None)
    assert read_trial(store, TRIAL).classes == Categories((0, 1, 2), CLASSES.names)


def test_other_classes_are_refused_or_told(tmp_path: Path, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    keep_trial(store, MODEL, data_config(tmp_path / "data"))
    command = ["evaluate", TRIAL, "--branches", "decoder", "--out", str(tmp_path / "out"), "--data"]
    assert main([*command, renamed(tmp_path, "ant", "cow", "bee")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: trial {TRIAL} and ") and "label 1 is 'bee' and 'cow' there" in line
    assert not (tmp_path / "out").exists()
    assert main([*command, renamed(tmp_path, "ant", "wasp", "cow")]) == 0
    assert "label 1 is 'bee' and 'wasp' there; labels are compared" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "data")]) == 0
    assert "there" not in capsys.readouterr().out
    kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert kept["categories"] == CLASSES.rows() and list(kept["per_class"]) == list(CLASSES.names)
