"""What a report says of detections: AP by class, the worst images, their sheet, and why they are not there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.data.coco import CocoDataset
from harness.files import to_json
from harness.report.detected import detected, sheet_of
from harness.spec.grid import Grid, open_grid
from harness.spec.identity import config_to_dict
from harness.store.results import RunStore
from tests.support.page import Page
from tests.support.report_grid import make_record

FILE = Path(__file__).parents[1] / "ablations" / "quickstart.yaml"
CLASSES = ("a <b>class</b> & more", "红细胞")


def write_data(root: Path) -> Path:
    """Two classes; of four validation images the second one has no object, the third a crowd, the fourth many."""
    from PIL import Image

    (root / "annotations").mkdir(parents=True)
    categories = [{"id": 7 - 4 * place, "name": name} for place, name in enumerate(CLASSES)]  # ids 7 and 3
    objects = {
        1: [(7, [0, 0, 20, 20], 0)],
        2: [],
        3: [(3, [0, 0, 60, 40], 1), (3, [5, 5, 10, 10], 0)],
        4: [(7, [6 * place, 0, 5, 5], 0) for place in range(9)],
    }
    for split in ("train", "val"):
        (root / split / "sub").mkdir(parents=True)
        images, annotations = [], []
        for image_id, own in objects.items():
            name = f"sub/picture {image_id}.png"
            Image.new("RGB", (60, 40), (40 * image_id, 90, 120)).save(root / split / name)
            images.append({"id": image_id, "file_name": name, "width": 60, "height": 40})
            for category, bbox, crowd in own:
                row = {"image_id": image_id, "category_id": category, "bbox": bbox, "iscrowd": crowd, "area": 100.0}
                annotations.append({"id": len(annotations) + 1, **row})
        tables = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(tables))
    return root


DETECTIONS = [
    {"image_id": 1, "category_id": 3, "bbox": [0, 0, 20, 20], "score": 0.31},  # another class
    *({"image_id": 4, "category_id": 7, "bbox": [6 * place, 0, 5, 5], "score": 0.25} for place in range(7)),
    {"image_id": 3, "category_id": 3, "bbox": [5, 5, 10, 10], "score": 0.2},
    {"image_id": 4, "category_id": 7, "bbox": [0, 30, 5, 5], "score": 0.04},
]


def filled_store(root: Path, data: str | None, detections: bool = True) -> tuple[Grid, RunStore]:
    """Records of the quickstart with AP by class; of the last row, the best one, the detections too."""
    grid = open_grid(str(FILE), "digits_fast", [], data=data, seeds=(0, 1))
    store = RunStore(root)
    names = CLASSES if data else [str(number) for number in range(10)]
    for number, trial in enumerate(grid.trials):
        per_class = {name: 10.0 * place + number for place, name in enumerate(names)} | {names[-1]: None}
        record = make_record(trial.trial_id, 30.0 + number, config=config_to_dict(trial.config), per_class=per_class)
        store.write_result(trial.trial_id, record | {"fingerprint": trial.fingerprint})
    if detections:
        (store.dir(grid.rows[-1].trial_ids[1]) / "detections.json").write_text(json.dumps(DETECTIONS))
    return grid, store


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
