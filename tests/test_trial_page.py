"""The page of one trial: all that its record and its folder tell, in a file that needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.store.results import RunStore
from tests.support.detected_store import CLASSES, DETECTIONS, filled_store, write_data
from tests.support.page import Page


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return filled_store(tmp_path / "store", str(write_data(tmp_path / "data")))[1]


def finished(store: RunStore) -> str:
    """The trial that left its detections."""
    return next(key for key in store.trials() if (store.dir(key) / "detections.json").exists())


def page_of(key: str, *options: str) -> tuple[Page, str]:
    assert main(["report", key[:8], "--out", "pages", *options]) == 0
    text = (Path("pages") / f"{key}.html").read_text()
    return Page(text), text


def test_it_has_numbers_classes_images_and_the_way_there(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    key = finished(store)
    record = store.read(key) or {}
    columns = {"class": [CLASSES[0]], "threshold": [0.35], "precision": [80.0], "recall": [75.5]}
    record["classes"] = {"decoder": columns}
    record["metrics"] |= {"atss/AP": 12.3, "gradient/decoder-atss": 0.25, "transfer/atss-decoder": 0.00125}
    record["history"] = [{"epoch": epoch, "AP": 10.0 * epoch, "loss": 9.0 - epoch} for epoch in (1, 2, 3)]
    store.write_result(key, record)
    page, text = page_of(key)
    assert capsys.readouterr().out == f"wrote pages/{key}.html\n"
    for part in (
        f"Trial {key}",
        "atss 12.3",
        "gradient decoder-atss 0.250",
        "(%) 0.125",
        "Worst images",
        "sub/picture 1.png",
    ):
        assert part in page.text, part
    assert (
        re.search(rf"{re.escape(CLASSES[0])} 10 \d+\.\d 0\.35 80\.0 75\.5", page.text)
        and f"codetr detect {key} IMAGES" in page.text
    )
    assert [own["alt"] for own in page.all("img")] == ["AP against epochs", "loss against epochs"]
    assert "num_queries" in page.text  # of the configuration
    assert not re.search(r"(?:href|src)=\"(?!#|data:)", text) and "<script" not in text and not page.open
    assert page_of(key)[1] == text


def test_figures_of_its_analysis_are_on_it(store: RunStore) -> None:
    from harness.figures.epochs import draw_curves
    from harness.figures.style import save_figure

    key = finished(store)
    figure = draw_curves([("one", [{"epoch": 1, "AP": 1.0}, {"epoch": 2, "AP": 2.0}])])
    (store.dir(key) / "analysis").mkdir()
    for name in ("discriminability", "maps_cam", "queries_17", "detections"):
        save_figure(figure, store.dir(key) / "analysis" / name)
    (store.dir(key) / "analysis" / "broken.png").write_bytes(b"no picture")
    page, _ = page_of(key)
    shown = [own["alt"] for own in page.all("img")]
    assert shown[-3] == "How well features tell objects from background"
    assert shown[-2] == "Images, and what each head's class logits depend on (Grad-CAM)"
    assert shown[-1] == "Where queries and their objects lie on an image"


def test_without_detections_a_line_says_so(store: RunStore) -> None:
    key = next(key for key in store.trials() if key != finished(store))
    page, _ = page_of(key)
    assert f"the detections of {key} are not in the store, only its record" in page.text
    assert not page.all("svg")


def test_without_pictures_the_objects_are_those_of_the_record(store: RunStore, tmp_path: Path) -> None:
    """Without detections, and where the data set is another one by now: then its numbers are not this trial's."""
    left = finished(store)
    other = next(key for key in store.trials() if key != left)
    for key in (left, other):
        columns = {"class": CLASSES, "objects": [1234, 5], "threshold": [0.35, None]}
        columns |= {"precision": [80.0, None], "recall": [75.5, None]}
        store.write_result(key, (store.read(key) or {}) | {"classes": {"decoder": columns}})
    shutil.rmtree(tmp_path / "data")
    write_data(tmp_path / "data", 4)
    for key in (left, other):
        page, _ = page_of(key)
        assert re.search(
            rf"{re.escape(CLASSES[0])} 1,234 \d+\.\d 0\.35 80\.0 75\.5 {re.escape(CLASSES[1])} 5 –", page.text
        )
        assert not page.all("image")
    told = rf"no pictures of the detections of {left}: \S+/data holds other data than the trial was evaluated on \("
    assert re.search(told, page_of(left)[0].text)


def test_damaged_detections_are_told(store: RunStore) -> None:
    key = finished(store)
    (store.dir(key) / "detections.json").write_text(json.dumps(DETECTIONS)[:-9])
    page, _ = page_of(key)
    assert f"no pictures of the detections of {key}: they are damaged" in page.text


def test_a_score_that_is_asked_for(store: RunStore) -> None:
    page, _ = page_of(finished(store), "--score", "0.3")
    assert "from a score of 0.3 on (as asked)" in page.text


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nosuch"], "trial 'nosuch': no such trial"),
        (["TRIAL", "--wide"], "--wide is about ablation files"),
        (["TRIAL", "--seeds", "1"], "--seeds is about ablation files"),
        (["TRIAL", "--format", "tex"], "--format: the page of a trial is HTML"),
    ],
)
def test_what_has_no_page(words: list[str], error: str, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *[finished(store) if word == "TRIAL" else word for word in words]]) == 2
    told = capsys.readouterr().err
    assert error in told and told.count("\n") == 1 and told.startswith("error: ")


def test_a_trial_that_has_not_finished(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    key = finished(store)
    record = store.read(key) or {}
    store.write_result(key, {**record, "status": "failed", "error": "no"})
    assert main(["report", key]) == 2
    assert f"error: trial {key} is failed: only a finished one has a page" in capsys.readouterr().err
