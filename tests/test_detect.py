"""`codetr detect`: image files as evaluation shows them, pictures and one JSON; broken files stop no other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from safetensors.torch import load_file, save_file

from harness.__main__ import main
from harness.config import EvaluateConfig
from harness.data import fingerprint
from harness.data.coco import CocoDataset
from harness.data.loader import Loader
from harness.data.photographs import Named, Photograph, Photographs, image_files
from harness.errors import UserError
from harness.spec.identity import config_from_dict, config_to_dict
from harness.store.results import RunStore
from harness.trial.checkpoint import WEIGHTS
from model.config import DetectorConfig
from model.detector import Detector
from tests.support.folders import real_data, write_folder
from tests.support.kept_trial import CLASSES, TRIAL, data_config, keep_trial
from tests.support.tiny import tiny_config

MODEL: DetectorConfig = tiny_config("atss")
SETTINGS = [{}, {"resize": "official"}, {"square": 96, "max_long_side": 96}]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "data")
    return RunStore()


@pytest.fixture
def detector(tmp_path: Path, store: RunStore) -> Detector:
    return keep_trial(store, MODEL, data_config(tmp_path / "data"))


@pytest.fixture
def detect(detector: Detector, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command; its exit code, standard output and standard error."""

    def run(*words: Any) -> tuple[int, str, str]:
        code = main(["detect", TRIAL[:5], *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, without_progress(err)

    return run


def without_progress(text: str) -> str:
    """Lines that come on a slow machine only are left out."""
    return "".join(line for line in text.splitlines(keepends=True) if " s left" not in line)


def content_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "detections.json").read_text())


# ---- images as evaluation shows them


@pytest.mark.parametrize("changes", SETTINGS, ids=lambda changes: next(iter(changes), "plain"))
def test_files_become_the_batches_of_an_evaluation(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = data_config(write_folder(tmp_path / "data"), **changes)
    dataset = CocoDataset(tmp_path / "data", "val", progress=lambda line: None)
    loader = Loader(dataset, config, batch_size=1, training=False, seed=0, size_divisor=32)
    files = [Named(dataset.image_folder / name, name, name) for name in dataset.file_names]
    found = list(Photographs(files, config, 32).each())
    assert len(found) == len(dataset) == 4
    for batch, (_, photograph) in zip(loader.epoch(0), found, strict=True):
        assert isinstance(photograph, Photograph)
        own = photograph.batch
        for name in ("images", "valid_hw", "original_hw"):
            assert torch.equal(getattr(own, name), getattr(batch, name)), name
        assert (own.content_hw is None) == (batch.content_hw is None)
        if batch.content_hw is not None:
            assert torch.equal(own.content_hw, batch.content_hw)


def test_pixels_are_those_of_the_data_loader(tmp_path: Path) -> None:
    grey = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48) * 21
    Image.fromarray(grey).save(tmp_path / "a.png")
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8))
    rgb.convert("P").save(tmp_path / "b.png")
    rgb.convert("CMYK").save(tmp_path / "c.jpg")
    rgb.convert("L").save(tmp_path / "d.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb.save(tmp_path / "e.jpg", exif=turned)
    found = dict(Photographs(image_files([str(tmp_path)]), data_config(tmp_path), 32).each())
    shown = {file.name: one for file, one in found.items() if isinstance(one, Photograph)}
    assert list(shown) == ["a.png", "b.png", "c.jpg", "d.png", "e.jpg"]
    expected = (grey.astype(np.uint32) * 255 + 32767) // 65535
    assert (shown["a.png"].pixels == expected[:, :, None]).all()
    assert [one.is_turned for one in shown.values()] == [False, False, False, False, True]
    assert {one.pixels.shape for one in shown.values()} == {(64, 48, 3)}  # as stored


def test_files_and_folders_are_found_once(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/deeper/1.JPG", "a.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name, "PNG")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    names = [str(tmp_path / "a.jpeg"), str(tmp_path / "b"), str(tmp_path / "b" / "2.png")]
    assert [(file.name, file.stem) for file in image_files(names)] == [
        *((names[0], "a"), ("2.png", "2"), ("deeper/1.JPG", "deeper/1"))
    ]
    (tmp_path / "empty").mkdir()
    for name, told in (("empty", "holds no image"), ("b/notes", "is neither an image nor a folder")):
        with pytest.raises(UserError, match=told):
            image_files([str(tmp_path / name)])


# ---- what is found


def test_a_trial_finds_what_its_evaluation_finds(
    tmp_path: Path, detector: Detector, detect: Callable[..., tuple[int, str, str]]
) -> None:
    names = ["10.jpg", "40.jpg"]
    files = [tmp_path / "data" / "val" / name for name in names]
    code, out, err = detect(*files, "--threshold", "0.02", "--out", tmp_path / "out")
    assert (code, err) == (0, "") and "score ≥ 0.02 (as asked)" in out
    found = content_of(tmp_path / "out")
    assert found["categories"] == CLASSES.rows() and found["threshold"] == {"score": 0.02, "why": "as asked"}
    assert [row["file_name"] for row in found["images"]] == [*map(str, files)]
    dataset = CocoDataset(tmp_path / "data", "val", progress=lambda line: None)
    loader = Loader(dataset, data_config(tmp_path / "data"), batch_size=1, training=False, seed=0, size_divisor=32)
    expected = 0
    shown = [batch for batch in loader.epoch(0) if batch.image_ids[0] in (10, 40)]
    for row, batch in zip(found["images"], shown, strict=True):
        (own,) = detector.detect(batch.to("cpu"))
        kept = own.scores >= 0.02
        rows = [one for one in found["annotations"] if one["image_id"] == row["id"]]
        assert [one["score"] for one in rows] == pytest.approx(own.scores[kept].tolist(), abs=1e-6)
        assert [one["category_name"] for one in rows] == [CLASSES.names[label] for label in own.labels[kept].tolist()]
        assert [one["category_id"] for one in rows] == [CLASSES.ids[label] for label in own.labels[kept].tolist()]
        x, y, w, h = np.array([one["bbox"] for one in rows]).reshape(-1, 4).T
        assert (x >= 0).all() and (x + w <= row["width"] + 1e-6).all() and (y + h <= row["height"] + 1e-6).all()
        expected += len(rows)
        with Image.open(tmp_path / "out" / row["picture"]) as picture:
            assert max(picture.size) == 1000 and picture.width * row["height"] == pytest.approx(
                picture.height * row["width"], rel=0.01
            )
    assert expected == len(found["annotations"]) > 0
    readable = COCO(tmp_path / "out" / "detections.json")  # as any data set
    ids = [one["id"] for one in found["annotations"]]
    assert readable.getAnnIds() == ids == list(range(1, expected + 1))
    assert sorted(row["file_name"] for row in readable.loadImgs(readable.getImgIds())) == sorted(map(str, files))
    assert all(one["area"] == one["bbox"][2] * one["bbox"][3] and not one["iscrowd"] for one in found["annotations"])


@pytest.mark.parametrize(("protocol", "asked", "number"), [("lvis", 100, 300), ("lvis", 500, 500), (None, 100, 100)])
def test_as_many_detections_are_kept_as_the_trials_protocol_counts(
    tmp_path: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch, protocol: str | None, asked: int, number: int
) -> None:
    made_by = {"protocol": protocol} if protocol else {}
    evaluate = EvaluateConfig(max_detections=asked)
    keep_trial(store, MODEL, data_config(tmp_path / "data"), evaluate=evaluate, provenance=made_by)
    limits, own = [], Detector.detect_branches
    monkeypatch.setattr(Detector, "detect_branches", lambda *given: limits.append(given[-1]) or own(*given))
    assert main(["detect", TRIAL, str(tmp_path / "data" / "val" / "10.jpg")]) == 0
    assert limits == [number]


def test_a_branch_is_drawn_that_is_a_head(tmp_path: Path, detect: Callable[..., tuple[int, str, str]]) -> None:
    image = tmp_path / "data" / "val" / "10.jpg"
    code, out, _ = detect(image, "--branch", "atss", "--threshold", "0", "--out", tmp_path / "out")
    assert code == 0 and content_of(tmp_path / "out")["detector"]["branch"] == "atss"
    code, out, err = detect(image, "--branch", "ats")
    assert code == 2 and err == "error: --branch: unknown 'ats'; did you mean 'atss'?\n"


def test_the_threshold_is_the_best_of_the_split_or_said_to_be_none(
    tmp_path: Path, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of three objects are found at 0.7 and above, below that more is wrong than right."""
    data = data_config(tmp_path / "data")
    dataset = CocoDataset(tmp_path / "data", "val", progress=lambda line: None)
    objects = [row for row in dataset.ground_truth["annotations"] if not row["iscrowd"]]
    rows = [
        {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": row["bbox"], "score": score}
        for row, score in zip(objects, (0.9, 0.7, 0.8, 0.75, 0.72), strict=True)
    ]
    wrong = [{**rows[0], "bbox": [0, 0, 1, 1], "score": 0.4} for _ in range(9)]
    keep_trial(store, MODEL, data, detections=[*rows, *wrong])
    command = ["detect", TRIAL, str(tmp_path / "data" / "val" / "10.jpg"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "score ≥ 0.7 (the best F1 of its validation split, 1.00)" in capsys.readouterr().out
    (store.dir(TRIAL) / "detections.json").unlink()
    assert main(command) == 0
    assert "score ≥ 0.5 (its detections or its validation split are not here" in capsys.readouterr().out
    numbers = {"best_f1": 60.0, "best_f1_threshold": 0.3, "best_f1_precision": 50.0, "best_f1_recall": 75.0}
    store.write_result(TRIAL, (store.read(TRIAL) or {}) | {"metrics": {"AP": 0.0, **numbers}})
    assert main(command) == 0
    assert "score ≥ 0.3 (the best F1 of its validation split, 0.60)" in capsys.readouterr().out


def test_a_branch_takes_the_threshold_of_its_own_and_of_no_other(
    tmp_path: Path, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the record has, else what the detections give that were kept, which are of the first branch evaluated."""
    image = str(tmp_path / "data" / "val" / "10.jpg")
    dataset = CocoDataset(tmp_path / "data", "val", progress=lambda line: None)
    rows = [
        {key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.7}
        for row in dataset.ground_truth["annotations"]
        if not row["iscrowd"]
    ]

    def told(branch: str, branches: tuple[str, ...], **metrics: float | None) -> str:
        data, evaluate = data_config(tmp_path / "data"), EvaluateConfig(branches=branches)
        named = {name.replace("atss_", "atss/"): value for name, value in metrics.items()}
        keep_trial(store, MODEL, data, detections=rows, evaluate=evaluate, metrics=named)
        assert main(["detect", TRIAL, image, "--branch", branch, "--out", str(tmp_path / "out")]) == 0
        return capsys.readouterr().out.partition("score ≥ ")[2].splitlines()[0]

    both = {"best_f1_threshold": 0.0004, "best_f1": 81.0, "atss_best_f1_threshold": 0.2, "atss_best_f1": 64.0}
    assert told("decoder", ("decoder", "atss"), **both) == "0.0004 (the best F1 of its validation split, 0.81)"
    assert told("atss", ("decoder", "atss"), **both) == "0.2 (the best F1 of its validation split, 0.64)"
    nothing = "0.5 (no detection of its validation split is right at any score)"
    assert told("decoder", ("decoder",), best_f1_threshold=None, best_f1=None) == nothing
    assert told("atss", ("atss",)) == "0.7 (the best F1 of its validation split, 1.00)"
    unknown = "0.5 (no threshold is known of it; --threshold gives one)"
    assert told("decoder", ("atss",)) == told("atss", ("decoder", "atss")) == unknown
    assert told("decoder", ("atss",), atss_best_f1_threshold=0.2, atss_best_f1=64.0) == unknown


def test_a_split_that_was_changed_gives_no_threshold(
    tmp_path: Path, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file = data_config(tmp_path / "data"), tmp_path / "data" / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    rows = [{**content["annotations"][0], "score": 0.7}]
    command = ["detect", TRIAL, str(tmp_path / "data" / "val" / "10.jpg"), "--out", str(tmp_path / "out")]

    def told(**fields: Any) -> str:
        keep_trial(store, MODEL, data, detections=rows, **fields)
        assert main(command) == 0
        return capsys.readouterr().out.partition("score ≥ ")[2].splitlines()[0]

    known = fingerprint(data)
    assert told(fingerprint=known).startswith("0.7 (the best F1")
    content["annotations"][-1]["bbox"][0] += 1
    file.write_text(json.dumps(content))
    assert told(fingerprint=known) == "0.5 (its validation split is another one now; --threshold gives one)"
    assert told(fingerprint=fingerprint(data)).startswith("0.7 (the best F1")
    assert told().startswith("0.7 (the best F1")  # an old record does not tell


# ---- what is wrong


def test_a_broken_file_is_one_line_and_the_others_are_done(
    tmp_path: Path, detect: Callable[..., tuple[int, str, str]]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    (folder / "b.jpg").write_bytes(b"no image")
    Image.new("RGB", (40, 30)).save(folder / "c.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)).save(folder / "d.png")
    (folder / "d.png").write_bytes((folder / "d.png").read_bytes()[:900])
    code, out, err = detect(folder, folder / "gone.png")
    assert code == 1
    lines = err.splitlines()
    assert [line.split(" ")[:4] for line in lines[:-1]] == [
        ["error:", "b.jpg", "cannot", "be"],
        ["error:", "d.png", "cannot", "be"],
        ["error:", str(folder / "gone.png"), "cannot", "be"],
    ]
    assert lines[-1] == "3 of 5 images could not be read"
    made = tmp_path / "detections" / TRIAL
    assert sorted(os.listdir(made)) == ["a.png", "c.png", "detections.json"]
    assert [row["file_name"] for row in content_of(made)["images"]] == ["a.png", "c.jpg"]


def test_mistakes_are_told_before_anything_is_written(
    tmp_path: Path, detect: Callable[..., tuple[int, str, str]]
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "b.png").write_bytes(b"")
    for words, told in (
        ((tmp_path / "a.png", "--out", tmp_path), "a.png there is an image that is to be read"),
        ((tmp_path / "empty",), "holds no image"),
        ((tmp_path / "b.png",), "none of the 1 images could be read"),
        ((tmp_path / "a.png", "--model", "dino_4scale"), "has a configuration of its own"),
        ((tmp_path / "a.png", "--out", tmp_path / "b.png"), "is a file, and no folder"),
    ):
        code, out, err = detect(*words)
        assert (code, out) == (2, "") and told in err.splitlines()[-1]
    assert not (tmp_path / "detections").exists()


def test_two_files_of_a_name_have_two_pictures(tmp_path: Path, detect: Callable[..., tuple[int, str, str]]) -> None:
    for name in ("one/a.png", "two/a.jpg", "two/a-2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    code, _, _ = detect(*(tmp_path / name for name in ("one/a.png", "two/a.jpg", "two/a-2.png")))
    rows = content_of(tmp_path / "detections" / TRIAL)["images"]
    assert code == 0 and [row["picture"] for row in rows] == ["a.png", "a-2.png", "a-2-2.png"]


def test_images_of_one_name_in_two_folders_are_told_apart(
    tmp_path: Path, detect: Callable[..., tuple[int, str, str]]
) -> None:
    for name in ("one/a.png", "two/a.png", "two/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    code, _, _ = detect(tmp_path / "one", tmp_path / "two")
    rows = content_of(tmp_path / "detections" / TRIAL)["images"]
    assert code == 0
    assert [row["file_name"] for row in rows] == [str(tmp_path / "one/a.png"), str(tmp_path / "two/a.png"), "b.png"]


def test_the_longest_names_that_a_disk_takes_are_drawn(
    tmp_path: Path, detect: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "mine").mkdir()
    names = ["x" * 251 + ".gif", "x" * 251 + ".png", "é" * 125 + ".png"]
    for name in names:
        Image.new("RGB", (40, 30)).save(tmp_path / "mine" / name)
    code, _, err = detect(tmp_path / "mine")
    made = tmp_path / "detections" / TRIAL
    rows = content_of(made)["images"]
    assert (code, err) == (0, "") and [row["file_name"] for row in rows] == names
    assert [row["picture"] for row in rows] == ["x" * 240 + ".png", "x" * 240 + "-2.png", "é" * 120 + ".png"]
    assert all((made / row["picture"]).is_file() for row in rows)


def test_an_empty_name_is_no_image(tmp_path: Path, detect: Callable[..., tuple[int, str, str]]) -> None:
    """A variable that is not set must not stand for all images of the working folder."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    code, out, err = detect("")
    assert (code, out) == (2, "") and err == (
        "error: the name of an image is empty; name a file or a folder (. is this one)\n"
    )


# ---- files of weights


def test_files_of_weights_name_their_classes_by_themselves_by_a_folder_or_by_numbers(
    tmp_path: Path, store: RunStore, detector: Detector, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, image = tmp_path / "own.safetensors", str(tmp_path / "data" / "val" / "10.jpg")
    config = store.read(TRIAL)["config"]

    def names(*words: str, **metadata: str) -> tuple[list[str], str]:
        said = {"schema": 1, "model": "", "source": "", "sha256": "", "family": "own", "num_classes": 3}
        content = {"codetr": json.dumps({**said, "config": config}), **metadata}
        save_file(load_file(store.dir(TRIAL) / "checkpoint" / WEIGHTS), weights, content)
        assert main(["detect", str(weights), image, *words, "--threshold", "0", "--out", str(tmp_path / "out")]) == 0
        told = without_progress(capsys.readouterr().err)
        return [row["name"] for row in content_of(tmp_path / "out")["categories"]], told

    assert names(**CLASSES.to_metadata()) == (["ant", "bee", "cow"], "")
    found, told = names()
    assert found == ["class 0", "class 1", "class 2"] and "does not tell its classes: they are numbered" in told
    assert names("--data", str(tmp_path / "data")) == (["ant", "bee", "cow"], "")
    save_file(load_file(weights), weights)
    assert main(["detect", str(weights), image]) == 2
    assert "does not say which detector it is of; give --model NAME" in capsys.readouterr().err


def test_rows_may_be_category_ids_of_a_folder_or_of_coco(
    tmp_path: Path, store: RunStore, detector: Detector, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row for each number up to 90: of `data` the classes have the ids 0, 7 and 90."""
    weights, image = tmp_path / "ids.safetensors", str(tmp_path / "data" / "val" / "10.jpg")
    said = {"schema": 1, "model": "", "source": "", "sha256": "", "family": "own", "num_classes": 91}
    model = replace(MODEL, heads=())  # which DETR does not have
    config = replace(config_from_dict(store.read(TRIAL)["config"]), model=model)
    content = {"codetr": json.dumps({**said, "config": config_to_dict(config)})}
    save_file({name: value.contiguous() for name, value in Detector(model, 91).state_dict().items()}, weights, content)

    def names(*words: str) -> list[tuple[int, str]]:
        command = ["detect", str(weights), image, "--class-rows", "ids", *words, "--out", str(tmp_path / "out")]
        assert main(command) == 0
        return [(row["id"], row["name"]) for row in content_of(tmp_path / "out")["categories"]]

    assert names()[:2] == [(1, "person"), (2, "bicycle")] and len(names()) == 80
    assert names("--data", str(tmp_path / "data")) == [(0, "ant"), (7, "bee"), (90, "cow")]
    capsys.readouterr()
    assert main(["detect", str(weights), image, "--class-rows", "ids", "--data", str(tmp_path / "gone")]) == 2
    assert "gone: no classes there; name a data set whose category ids are the rows" in capsys.readouterr().err


def test_real_photographs_of_every_size_are_drawn(tmp_path: Path, detect: Callable[..., tuple[int, str, str]]) -> None:
    files = sorted((real_data("cards") / "val").iterdir())[:2]
    code, _, _ = detect(*files, "--threshold", "0.1", "--out", tmp_path / "out")
    assert code == 0 and len(content_of(tmp_path / "out")["images"]) == 2
