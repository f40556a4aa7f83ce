"""What a report says of detections: AP by class, the worst images, their sheet, and why they are not there."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.data.coco import CocoDataset
from harness.files import to_json
from harness.report.detected import detected, sheet_of
from harness.spec.grid import Grid
from harness.store.results import RunStore
from tests.support.detected_store import CLASSES, FILE, filled_store, write_data
from tests.support.page import Page


def arguments(grid: Grid, store: RunStore, out: Path, data: Path | None = None) -> list[str]:
    own = ["--preset", "digits_fast", "--seeds", "0,1", "--store", str(store.root), "--out", str(out)]
    return ["report", str(FILE), *own, *(["--data", str(data)] if data else []), "--from", "records"]


def test_classes_with_their_objects_and_the_best_trials_images(tmp_path):
    data = write_data(tmp_path / "data")
    grid, store = filled_store(tmp_path / "store", str(data))
    found = detected(grid, [store.read(trial.trial_id) for trial in grid.trials], store)
    assert found.classes.rows == tuple(row.label for row in grid.rows)
    # in the order of the category ids; crowd regions are no objects; the mean over seeds 0 and 1 of each row
    assert found.classes.lines == ((CLASSES[1], 1, (None,) * 3), (CLASSES[0], 10, (0.5, 2.5, 4.5)))
    assert (found.trial, found.row, found.seed) == (grid.rows[-1].trial_ids[1], grid.rows[-1].label, 1)
    assert found.missing == "" and found.sheet.score == 0.2  # eight right, two missed, one wrong
    assert found.sheet.why == "best of the split, F1 0.80: precision 0.89, recall 0.73"
    worst = [(own.file_name, own.num_objects, own.matches.num_errors) for own in found.sheet.worst]
    assert worst == [
        *(("sub/picture 1.png", 1, 2), ("sub/picture 4.png", 9, 2), ("sub/picture 2.png", 0, 0)),
        ("sub/picture 3.png", 1, 0),
    ]
    assert [scene.image.shape for scene in found.sheet.scenes] == [(40, 60, 3)] * 4


def test_they_are_in_the_page_and_beside_it(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    data = write_data(tmp_path / "data")
    grid, store = filled_store(tmp_path / "store", str(data))
    words = arguments(grid, store, tmp_path / "out", data)
    assert main(words) == 0
    page = Page((tmp_path / "out" / "report.html").read_text())
    for part in (
        *("AP of each class", CLASSES[0], CLASSES[1], "Worst images", "sub/picture 1.png", "from a score of 0.2 on"),
        *("Detections on the worst images", grid.rows[-1].trial_ids[1]),
    ):
        assert part in page.text, part
    assert re.search(rf"{re.escape(CLASSES[0])} 10 0.5 2.5 4.5", page.text)
    assert len(page.all("img")) == 1  # the images themselves are drawn over by the browser
    assert len(page.all("image")) == 2 and len(page.all("use")) == 4  # the two with mistakes, in two panels
    assert (tmp_path / "out" / "quickstart_detections.png").exists()
    assert "quickstart_detections.png" in (tmp_path / "out" / "quickstart.md").read_text()
    before = (tmp_path / "out" / "report.html").read_bytes()
    assert main(words) == 0
    assert (tmp_path / "out" / "report.html").read_bytes() == before
    assert main([*words, "--score", "0.3"]) == 0
    text = Page((tmp_path / "out" / "report.html").read_text()).text
    assert "from a score of 0.3 on (as asked; best of the split is 0.2" in text and "--score 0.3" in text
    capsys.readouterr()


def test_classes_have_their_thresholds_where_errors_were_measured(tmp_path, monkeypatch):
    """Those of the best row's first seed that has them; the objects are then known without the data."""
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    data = write_data(tmp_path / "data")
    grid, store = filled_store(tmp_path / "store", str(data), detections=False)
    key = grid.rows[-1].trial_ids[1]
    columns = {"class": CLASSES, "objects": [10, 1], "AP": [4, None], "f1": [80.0, None]}
    columns |= {"threshold": [0.25, None], "precision": [88.888, None], "recall": [72.7, None]}
    store.write_result(key, store.read(key) | {"classes": {"atss": {}, "decoder": columns}})
    found = detected(grid, [store.read(trial.trial_id) for trial in grid.trials], store)
    assert found.best.classes == {CLASSES[0]: (0.25, 88.888, 72.7)}
    assert (found.best.trial, found.best.row, found.best.seed) == (key, grid.rows[-1].label, 1)
    assert [(name, count) for name, count, _ in found.classes.lines] == [(CLASSES[0], 10), (CLASSES[1], 1)]
    assert main(arguments(grid, store, tmp_path / "out", data)) == 0
    text = Page((tmp_path / "out" / "report.html").read_text()).text
    assert re.search(rf"{re.escape(CLASSES[0])} 10 0.5 2.5 4.5 0.25 88.9 72.7", text)
    assert re.search(rf"{re.escape(CLASSES[1])} 1 – – – – – –", text)
    assert f"of trial {key} ({grid.rows[-1].label}, seed 1)" in text
    with open(tmp_path / "out" / "quickstart_classes.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["row"], line["seed"], line["class"]) for line in lines] == [
        (row.label, seed, name) for row in grid.rows for seed in "01" for name in CLASSES
    ]
    names = ("objects", "AP", "threshold", "precision", "recall")
    assert [[line[name] for name in names] for line in lines if line["trial_id"] == key] == [
        ["10", "5", "0.25", "88.888", "72.7"],
        ["1", "", "", "", ""],
    ]
    assert [[line[name] for name in names] for line in lines[:2]] == [["", "0", "", "", ""], [""] * 5]


@pytest.mark.parametrize("score", ["nan", "1.5", "-0.1", "high"])
def test_a_score_is_a_number_from_0_to_1(score, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", str(FILE), "--score", score])
    assert ended.value.code == 2
    assert f"must be a number from 0 to 1, got '{score}'" in capsys.readouterr().err


def test_without_detections_or_data_a_line_says_so(tmp_path, monkeypatch):
    data = write_data(tmp_path / "data")
    grid, store = filled_store(tmp_path / "store", str(data), detections=False)
    records = [store.read(trial.trial_id) for trial in grid.trials]
    found = detected(grid, records, store)
    assert found.sheet is None and "not in the store, only their records" in found.missing
    assert found.classes.lines[0] == (CLASSES[0], None, (0.5, 2.5, 4.5))  # the order of the records, without counts
    filled_store(tmp_path / "store", str(data))
    shutil.rmtree(data / "val")
    found = detected(grid, records, store)
    assert found.sheet is None and "no pictures of the detections of" in found.missing and "val" in found.missing
    kept = store.dir(found.trial) / "detections.json"
    write_data(tmp_path / "again")
    shutil.rmtree(data)
    (tmp_path / "again").rename(data)
    for damage in ("[{", '[{"image_id": 99}]', '{"a": 1}', '[{"image_id": 1}]'):
        kept.write_text(damage)
        assert "they are damaged" in detected(grid, records, store).missing
    assert detected(grid, [], store) is None


def test_an_unreadable_image_is_told(tmp_path):
    data = write_data(tmp_path / "data")
    grid, store = filled_store(tmp_path / "store", str(data))
    records = [store.read(trial.trial_id) for trial in grid.trials]
    broken = data / "val" / "sub" / "picture 1.png"
    broken.write_bytes(broken.read_bytes()[:60])  # its head is whole
    found = detected(grid, records, store)
    assert found.sheet is None and "picture 1.png" in found.missing


def test_no_digit_scenes_are_generated_for_a_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))
    grid, store = filled_store(tmp_path / "store", None)
    found = detected(grid, [store.read(trial.trial_id) for trial in grid.trials], store)
    assert "the digit scenes are not in the cache" in found.missing and len(found.classes.lines) == 10
    assert not (tmp_path / "cache").exists()


def test_names_come_from_the_record_where_another_source_had_to_change_them(tmp_path):
    data = write_data(tmp_path / "data")
    grid, store = filled_store(tmp_path / "store", str(data))
    records = [{**store.read(trial.trial_id), "per_class": {"a safe name": 1.0}} for trial in grid.trials]
    assert [name for name, _, _ in detected(grid, records, store).classes.lines] == [CLASSES[1], CLASSES[0]]
    elsewhere = RunStore(tmp_path / "empty")
    assert detected(grid, records, elsewhere).classes.lines == (("a safe name", None, (1.0, 1.0, 1.0)),)


def test_a_detector_that_is_never_right_has_a_sheet(tmp_path):
    dataset = CocoDataset(write_data(tmp_path / "data"), "val", progress=lambda line: None)
    sheet = sheet_of(dataset, [])
    assert (sheet.score, sheet.why) == (0.5, "no detection of the split is right at any score")
    assert [own.file_name for own in sheet.worst][:2] == ["sub/picture 4.png", "sub/picture 1.png"]
    assert len(sheet.draw().axes) == 8
    assert sheet_of(dataset, [], 0.1).score == 0.1
    assert to_json([own.image_id for own in sheet.worst])  # plain numbers
