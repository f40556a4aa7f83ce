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
from harness.mistakes.thresholds import Threshold
from harness.report import write_report
from harness.report.detected import Detected, detected, sheet_of
from harness.report.shown_images import recorded_threshold
from harness.report.shown_trials import by_data_set
from harness.spec.grid import Grid, open_grid
from harness.store.results import RunStore
from harness.trial.detections import DetectionTable
from harness.trial.evaluate import errors_of, evaluate_detections
from tests.support.detected_store import CLASSES, DETECTIONS, FILE, filled_store, keep_records, leave, write_data
from tests.support.page import Page


def arguments(grid: Grid, store: RunStore, out: Path, data: Path | None = None) -> list[str]:
    own = ["--preset", "digits_fast", "--seeds", "0,1", "--store", str(store.root), "--out", str(out)]
    return ["report", str(FILE), *own, *(["--data", str(data)] if data else []), "--from", "records"]


def test_classes_with_their_objects_and_the_best_trials_images(tmp_path):
    data = write_data(tmp_path / "data")
    grid, store = filled_store(tmp_path / "store", str(data))
    (found,) = detected(grid, [store.read(trial.trial_id) for trial in grid.trials], store)
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
    (found,) = detected(grid, [store.read(trial.trial_id) for trial in grid.trials], store)
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
    (found,) = detected(grid, records, store)
    assert found.sheet is None and "not in the store, only their records" in found.missing
    assert found.classes.lines[0] == (CLASSES[0], None, (0.5, 2.5, 4.5))  # the order of the records, without counts
    filled_store(tmp_path / "store", str(data))
    shutil.rmtree(data / "val")
    (found,) = detected(grid, records, store)
    assert found.sheet is None and "no pictures of the detections of" in found.missing and "val" in found.missing
    kept = store.dir(found.trial) / "detections.json"
    write_data(tmp_path / "again")
    shutil.rmtree(data)
    (tmp_path / "again").rename(data)
    for damage in ("[{", '[{"image_id": 99}]', '{"a": 1}', '[{"image_id": 1}]'):
        kept.write_text(damage)
        assert "they are damaged" in detected(grid, records, store)[0].missing
    assert detected(grid, [], store) == ()


def test_an_unreadable_image_is_told(tmp_path):
    data = write_data(tmp_path / "data")
    broken = data / "val" / "sub" / "picture 1.png"
    broken.write_bytes(broken.read_bytes()[:60])  # its head is whole
    grid, store = filled_store(tmp_path / "store", str(data))
    records = [store.read(trial.trial_id) for trial in grid.trials]
    (found,) = detected(grid, records, store)
    assert found.sheet is None and "picture 1.png" in found.missing


def test_no_digit_scenes_are_generated_for_a_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))
    grid, store = filled_store(tmp_path / "store", None)
    (found,) = detected(grid, [store.read(trial.trial_id) for trial in grid.trials], store)
    assert "the digit scenes are not in the cache" in found.missing and len(found.classes.lines) == 10
    assert not (tmp_path / "cache").exists()


def test_names_come_from_the_record_where_another_source_had_to_change_them(tmp_path):
    data = write_data(tmp_path / "data")
    grid, store = filled_store(tmp_path / "store", str(data))
    records = [{**store.read(trial.trial_id), "per_class": {"a safe name": 1.0}} for trial in grid.trials]
    assert [name for name, _, _ in detected(grid, records, store)[0].classes.lines] == [CLASSES[1], CLASSES[0]]
    elsewhere = RunStore(tmp_path / "empty")
    assert detected(grid, records, elsewhere)[0].classes.lines == (("a safe name", None, (1.0, 1.0, 1.0)),)


def test_a_detector_that_is_never_right_has_a_sheet(tmp_path):
    dataset = CocoDataset(write_data(tmp_path / "data"), "val", progress=lambda line: None)
    sheet = sheet_of(dataset, [])
    assert (sheet.score, sheet.why) == (0.5, "no detection of the split is right at any score")
    assert [own.file_name for own in sheet.worst][:2] == ["sub/picture 4.png", "sub/picture 1.png"]
    assert len(sheet.draw().axes) == 8
    assert sheet_of(dataset, [], 0.1).score == 0.1
    assert to_json([own.image_id for own in sheet.worst])  # plain numbers


# ---- beside the baseline

AXES = """
rows: [{label: none, set: {model.heads: []}}, {label: x, set: {model.heads: [atss]}}]
axes: {model.num_queries: [30, 40]}
baseline: none
"""
OWN = """
rows:
  - {label: none, set: {model.heads: []}}
  - {label: x, set: {model.heads: [atss]}, baseline: none}
  - {label: y, set: {model.heads: [gfl]}, baseline: x}
"""
POOR = DETECTIONS[:4]
NAMES = ("birds", "cells")


def grid_of(text: str, tmp_path: Path, *data: Path, seeds: tuple[int, ...] = (0, 1)) -> Grid:
    (tmp_path / "mine.yaml").write_text(text)
    return open_grid(str(tmp_path / "mine.yaml"), "digits_fast", [], data=[*map(str, data)], seeds=seeds)


def shown(found: Detected) -> tuple[list[str], list[str]]:
    """The headings of a gallery, and of the panels beside what is there."""
    gallery = found.images.gallery
    panels = [panel["title"] for panel in gallery["images"][0]["panels"]]
    return [group["title"] for group in gallery["groups"]], panels[1:]


@pytest.mark.parametrize(
    ("text", "baseline", "best"),
    [(AXES, "none, num_queries=40", "x, num_queries=40"), (OWN, "x", "y")],
    ids=["axes", "baselines of rows"],
)
def test_the_best_row_stands_beside_what_its_gain_is_over(text, baseline, best, tmp_path):
    grid, store = grid_of(text, tmp_path, write_data(tmp_path / "data")), RunStore(tmp_path / "store")
    records = keep_records(store, grid, CLASSES)
    for trial in grid.trials:
        leave(store, trial.trial_id, DETECTIONS if trial.row == best else POOR)
    (found,) = detected(grid, records, store)
    assert (found.row, found.missing, found.images.missing) == (best, "", "")
    assert shown(found) == (["Images that changed most", f"Worst images of {best}"], [baseline, best])


def test_of_one_seed_where_both_left_their_detections(tmp_path):
    grid, store = grid_of(AXES, tmp_path, write_data(tmp_path / "data")), RunStore(tmp_path / "store")
    records = keep_records(store, grid, CLASSES)
    none, best = grid.rows[1], grid.rows[3]
    for key in (*best.trial_ids, none.trial_ids[1]):
        leave(store, key, POOR if key in none.trial_ids else DETECTIONS)
    (found,) = detected(grid, records, store)
    assert (found.row, found.seed) == (best.label, 1) and len(shown(found)[1]) == 2


def test_why_no_baseline_stands_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    grid, store = grid_of(AXES, tmp_path, write_data(tmp_path / "data"), seeds=(0,)), RunStore(tmp_path / "store")
    records = keep_records(store, grid, CLASSES)
    none, best = grid.rows[1], grid.rows[3]
    (own,), (other,) = best.trial_ids, none.trial_ids
    leave(store, own)

    def told(known: list[dict]) -> str:
        (found,) = detected(grid, known, store)
        assert found.missing == "" and shown(found)[0] == ["Worst images"]
        return found.images.missing

    beginning = f"no comparison with the baseline '{none.label}': "
    assert told(records) == f"{beginning}the detections of {other} are not in the store, only its record"
    assert told([one for one in records if one["trial_id"] != other]) == f"{beginning}it has not finished with seed 0"
    for damage in ("[{", '[{"image_id": 99, "category_id": 7, "bbox": [0, 0, 5, 5], "score": 0.5}]', '[{"score": 1}]'):
        (store.dir(other) / "detections.json").write_text(damage)
        assert told(records) == f"{beginning}the detections of {other} are damaged"
    page = write_report([grid], tmp_path / "out", ("html",), records=records).paths[0]
    assert f"the detections of {other} are damaged" in Page(page.read_text()).text
    (store.dir(own) / "detections.json").unlink()
    leave(store, other)
    assert told(records) == f"{beginning}these are its own detections"


# ---- several data sets


def test_each_data_set_has_its_own_objects_best_row_and_images(tmp_path, monkeypatch):
    """Cells are easier than birds: of means over both, or over all rows, a row on cells is the best."""
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    folders = [write_data(tmp_path / name, many) for name, many in (("birds", 4), ("cells", 9))]
    text = AXES.replace("axes: {model.num_queries: [30, 40]}\n", "")
    grid, store = grid_of(text, tmp_path, *folders), RunStore(tmp_path / "store")
    assert [row.label for row in grid.rows] == [f"{row}, data={name}" for row in ("none", "x") for name in NAMES]
    records = keep_records(store, grid, CLASSES)
    for trial in grid.trials:
        leave(store, trial.trial_id, DETECTIONS if trial.row.startswith("x") else POOR)
    found = detected(grid, records, store)
    assert [own.data for own in found] == [*NAMES]
    assert [own.row for own in found] == [f"x, data={name}" for name in NAMES]
    assert [own.classes.rows for own in found] == [(f"none, data={name}", f"x, data={name}") for name in NAMES]
    assert [own.classes.lines[1][:2] for own in found] == [(CLASSES[0], 5), (CLASSES[0], 10)]
    assert [own.images.gallery["anchor"] for own in found] == ["mine-birds", "mine-cells"]
    assert [[own.trial for own in row] for row in zip(found, strict=True)] == [
        [grid.rows[n].trial_ids[0]] for n in (2, 3)
    ]
    made = write_report([grid], tmp_path / "out", ("html", "png", "md"), records=records)
    assert {f"mine_detections_{name}.png" for name in NAMES} <= {path.name for path in made.paths}
    page = Page(made.paths[0].read_text())
    for name, count in (("birds", 5), ("cells", 10)):
        assert f"What is detected on {name}" in page.text
        assert re.search(
            rf"none, data={name} x, data={name} {re.escape(CLASSES[1])} 1 – – {re.escape(CLASSES[0])} {count} ",
            page.text,
        )
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_objects_of_a_record_stand_beside_its_own_data_alone(tmp_path):
    folders = [write_data(tmp_path / name, many) for name, many in (("birds", 4), ("cells", 9))]
    text = "rows: [{label: none, set: {model.heads: []}}, {label: x, set: {model.heads: [atss]}}]"
    grid, store = (
        grid_of(text, tmp_path, *folders),
        RunStore(tmp_path / "s"),
    )
    keep_records(store, grid, CLASSES)
    key = grid.rows[0].trial_ids[0]
    columns = {
        "class": CLASSES,
        "objects": [5, 1],
        "threshold": [0.5] * 2,
        "precision": [50.0] * 2,
        "recall": [9.0] * 2,
    }
    store.write_result(key, store.read(key) | {"classes": {"decoder": columns}})
    found = detected(grid, [store.read(trial.trial_id) for trial in grid.trials], store)
    assert [[count for _, count, _ in own.classes.lines] for own in found] == [[5, 1], [None, None]]
    assert found[0].best.trial == key and found[1].best is None


def test_a_baseline_on_other_data_is_no_baseline_of_a_gallery(tmp_path):
    folders = [write_data(tmp_path / name, many) for name, many in (("birds", 4), ("cells", 9))]
    text = f"""
rows: [{{label: a, set: {{model.heads: []}}}}, {{label: b, set: {{model.heads: [atss]}}}}]
axes: {{data.path: [{", ".join(map(str, folders))}]}}
baseline: {{row: a, data.path: {folders[0]}}}
"""
    grid, store = grid_of(text, tmp_path), RunStore(tmp_path / "store")
    records = keep_records(store, grid, CLASSES)
    for trial in grid.trials:
        leave(store, trial.trial_id)
    first, second = detected(grid, records, store)
    assert first.images.missing == "" and second.row == "b, data=cells"
    assert second.images.missing == "no comparison with the baseline 'a, data=birds': it is on other data"


def test_more_scenes_to_train_are_no_other_images_to_validate(tmp_path):
    text = """
rows: [{label: a, set: {model.heads: []}}, {label: b, set: {model.heads: [atss]}}]
axes: {data.digits.num_train: [8, 12]}
baseline: {row: a, data.digits.num_train: 8}
"""
    grid, store = grid_of(text, tmp_path), RunStore(tmp_path / "store")
    records = keep_records(store, grid, CLASSES)
    found = by_data_set(grid, records)
    assert [own.name for own in found] == [""] and len(found[0].rows) == 4


# ---- one threshold


def test_the_threshold_is_that_of_the_record(tmp_path):
    """The sheet and the gallery have the one that the tables name, and are made of the detections that AP counts."""
    grid, store = filled_store(tmp_path / "store", str(write_data(tmp_path / "data")))
    key = grid.rows[-1].trial_ids[1]
    errors = {"best_f1": 60.0, "best_f1_threshold": 0.25, "best_f1_precision": 75.0, "best_f1_recall": 50.0}
    store.write_result(key, store.read(key) | {"metrics": store.read(key)["metrics"] | errors})
    (found,) = detected(grid, [store.read(trial.trial_id) for trial in grid.trials], store)
    assert (found.sheet.score, found.sheet.why) == (0.25, "best of the split, F1 0.60: precision 0.75, recall 0.50")
    assert "from a score of 0.25 on (the best F1 of the split)" in found.images.words
    (found,) = detected(grid, [store.read(trial.trial_id) for trial in grid.trials], store, 0.3)
    assert found.sheet.score == 0.3 and "best of the split is 0.25" in found.sheet.why


def test_a_trial_of_one_branch_left_the_detections_of_that_branch():
    numbers = {"best_f1_threshold": 0.4, "best_f1_precision": 50.0, "best_f1_recall": 25.0}
    metrics = {f"atss/{name}": number for name, number in numbers.items()}
    record = {"metrics": metrics, "config": {"evaluate": {"branches": ["atss", "paa"]}}}
    assert recorded_threshold(record) == Threshold(0.4, 0.5, 0.25)
    assert recorded_threshold({"metrics": metrics}) is None
    assert recorded_threshold({"metrics": dict.fromkeys(numbers)}) is None  # nothing was right at any score


def test_detections_beyond_the_limit_of_ap_are_no_mistakes(tmp_path):
    """As AP and the errors have it, the 100 best of an image count; a detector may have kept 300."""
    dataset = CocoDataset(write_data(tmp_path / "data"), "val", progress=lambda line: None)
    wrong = [{"image_id": 4, "category_id": 7, "bbox": [0, 30, 5, 5], "score": 0.9} for _ in range(150)]
    right = [{**row, "score": 0.95} for row in DETECTIONS[1:8]]
    last = {"image_id": 4, "category_id": 7, "bbox": [42, 0, 5, 5], "score": 0.3}
    table = DetectionTable.of([*wrong, *right, last])
    errors, _ = errors_of(dataset, table, "pycocotools", evaluate_detections(dataset, table, "pycocotools"))
    sheet = sheet_of(dataset, [*wrong, *right, last])
    assert sheet.score == errors["best_f1_threshold"]
    sheet = sheet_of(dataset, [*wrong, *right, last], 0.1)
    (matches,) = [own.matches for own in sheet.worst if own.image_id == 4]
    assert (len(matches.true_positives), len(matches.false_positives)) == (7, 93)


# ---- other data by now


def test_pictures_of_other_data_are_not_drawn(tmp_path):
    data = write_data(tmp_path / "data")
    grid, store = filled_store(tmp_path / "store", str(data))
    records = [store.read(trial.trial_id) for trial in grid.trials]
    shutil.rmtree(data)
    write_data(data, 4)
    (found,) = detected(grid, records, store)
    assert found.sheet is None and found.images is None
    assert re.fullmatch(
        rf"no pictures of the detections of {found.trial}: {re.escape(str(data))} holds other data than "
        r"the trial was evaluated on \(fingerprint [0-9a-f]{16} instead of [0-9a-f]{16}\)",
        found.missing,
    )
    assert [count for _, count, _ in found.classes.lines] == [None, None]  # not those of the data there
