"""AP on resampled images: the evaluator's own number on the split, and on a split where images really stand twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import harness.data
from harness.__main__ import main
from harness.analyse.resample import METRICS, average_precision, interval, match_images, resampled_ap
from harness.errors import UserError
from harness.report.images import over_images
from harness.report.tables import make_table
from harness.spec.grid import Grid, open_grid
from harness.store.results import RunStore
from harness.trial.evaluate import evaluate_detections
from tests.support.detected_store import CLASSES, DETECTIONS, keep_records, leave, write_data
from tests.support.page import command_line_store

IMAGES = 12
CATEGORIES = (3, 5, 8)


@dataclass
class Split:
    """What matching and evaluators need of a data set."""

    ground_truth: dict[str, Any]
    area_bounds: tuple[float, float] = (1024.0, 9216.0)
    category_names: tuple[str, ...] = ("ant", "bee", "cow")


def scene(seed: int, images: int = IMAGES) -> tuple[Split, list[dict[str, Any]]]:
    """Boxes with some crowds, images without any, a class in few images; ties, misses and inventions."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        for _ in range(0 if image % 5 == 0 else int(rng.integers(1, 6))):
            category = CATEGORIES[int(rng.choice(3, p=[0.6, 0.35, 0.05]))]
            x, y, w, h = (*rng.uniform(0, 60, 2), *rng.uniform(10, 40, 2))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                }
                | {"iscrowd": int(rng.random() < 0.1)}
            )
            for _ in range(int(rng.integers(0, 3))):
                box = (np.array([x, y, w, h]) + rng.normal(0, 3, 4)).clip(0.5).tolist()
                score = float(rng.integers(1, 8)) / 8
                results.append({"image_id": image, "category_id": category, "bbox": box, "score": score})
        invented = {"image_id": image, "category_id": CATEGORIES[image % 3], "bbox": [1.0, 1.0, 9.0, 9.0]}
        results.append({**invented, "score": float(rng.random())})
    categories = [{"id": key, "name": name} for key, name in zip(CATEGORIES, ("ant", "bee", "cow"), strict=True)]
    names = [{"id": image, "width": 100, "height": 100} for image in range(1, images + 1)]
    return Split({"images": names, "annotations": annotations, "categories": categories}), results


@pytest.mark.parametrize("seed", range(4))
def test_every_image_once_gives_the_evaluators_numbers(seed):
    split, results = scene(seed)
    found = average_precision(match_images(split, results), np.ones(IMAGES, int))
    expected = evaluate_detections(split, results, "pycocotools")
    for name, chosen in METRICS.items():
        assert found[chosen].mean() == pytest.approx(expected[name], abs=1e-9), name


@pytest.mark.parametrize("seed", range(4))
def test_an_image_counted_twice_is_an_image_that_stands_there_twice(seed):
    split, results = scene(seed)
    rng = np.random.default_rng(seed)
    for number, row in enumerate(results):
        row["score"] = float(rng.permutation(10_000)[0]) / 10_000 + number * 1e-6  # ties go by the images' order
    counts = rng.multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES))
    found = average_precision(match_images(split, results), counts)
    truth: dict[str, Any] = {**split.ground_truth, "images": [], "annotations": []}
    copies = []
    for image, count in enumerate(counts, 1):
        for _ in range(count):
            key = len(truth["images"]) + 1
            truth["images"].append({"id": key, "width": 100, "height": 100})
            for row in split.ground_truth["annotations"]:
                if row["image_id"] == image:
                    truth["annotations"].append({**row, "image_id": key, "id": len(truth["annotations"]) + 1})
            copies += [{**row, "image_id": key} for row in results if row["image_id"] == image]
    expected = evaluate_detections(Split(truth), copies, "pycocotools")
    for name, chosen in METRICS.items():
        # copies tie with each other, so a step of the curve is taken in pieces: the envelope hides all but a little
        assert found[chosen].mean() == pytest.approx(expected[name], abs=0.5), name


def test_no_detections_are_zero():
    split, _ = scene(0)
    found = average_precision(match_images(split, []), np.ones(IMAGES, int))
    assert found.tolist() == [0.0] * 10


def test_intervals_are_paired_and_cover_the_difference():
    split, results = scene(1, images=40)
    worse = [row for number, row in enumerate(results) if number % 4]
    ours, theirs = (resampled_ap(match_images(split, rows), 40, 200) for rows in (results, worse))
    assert interval(ours, ours, "AP") == (0.0, 0.0)
    low, high = interval(ours, theirs, "AP")
    full = [evaluate_detections(split, rows, "pycocotools")["AP"] for rows in (results, worse)]
    assert 0 < low < full[0] - full[1] < high
    unpaired = np.subtract(*np.percentile(ours.mean(1)[:, None] - theirs.mean(1)[None], [97.5, 2.5]))
    assert high - low < unpaired  # the same images make both numbers rise and fall


def test_a_report_gives_one_seed_an_interval_over_images_when_asked(tmp_path: Path, monkeypatch, capsys):
    from tests.support.folders import write_folder

    arguments = command_line_store(tmp_path, monkeypatch, data=str(write_folder(tmp_path / "coco")))
    arguments[arguments.index("0,1")] = "1"
    store = RunStore(tmp_path / "store")
    truth = json.loads((tmp_path / "coco" / "annotations" / "instances_val.json").read_text())
    assert main([*arguments, "--images"]) == 2
    assert "no such file; an interval over images needs the detections" in capsys.readouterr().err
    for number, key in enumerate(store.trials()):
        rows = [
            {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": row["bbox"], "score": 0.9}
            for row in truth["annotations"][number % 2 :]
        ]
        (store.dir(key) / "detections.json").write_text(json.dumps(rows))
    assert main([*arguments, "--images"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "paired bootstrap over the validation images (500 resamples)" in text
    assert "], n = 1" not in text and "undecided" in text  # the claim is not decided by it
    assert text.count("[-") + text.count("[+") + text.count("[0") == 2


def grid_over(folders: Sequence[Path], tmp_path: Path, baseline: str) -> tuple[Grid, list[dict[str, Any]], RunStore]:
    """Two rows on each data set with one seed, all detections in the store."""
    (tmp_path / "mine.yaml").write_text(
        "rows: [{label: a, set: {model.heads: []}}, {label: b, set: {model.heads: [atss]}}]\n"
        f"axes: {{data.path: [{', '.join(map(str, folders))}]}}\nbaseline: {baseline}\n"
    )
    grid, store = open_grid(str(tmp_path / "mine.yaml"), "digits_fast", [], seeds=(0,)), RunStore(tmp_path / "store")
    records = keep_records(store, grid, CLASSES)
    for number, trial in enumerate(grid.trials):
        leave(store, trial.trial_id, DETECTIONS[number:])
    return grid, records, store


def test_each_data_set_is_looked_at_once_and_must_be_as_it_was(tmp_path: Path, monkeypatch) -> None:
    folders = [write_data(tmp_path / name, many) for name, many in (("birds", 4), ("cells", 9))]
    grid, records, store = grid_over(folders, tmp_path, "a")
    looked = []
    kept = harness.data.fingerprint
    monkeypatch.setattr(harness.data, "fingerprint", lambda config: looked.append(config.path) or kept(config))
    table = over_images(make_table(grid, records), grid, store)
    assert [row.cells["AP"].gain.low is None for row in table.rows if not row.is_baseline] == [False, False]
    assert sorted(looked) == sorted(map(str, folders))
    shutil.rmtree(folders[1])
    write_data(folders[1], 7)
    with pytest.raises(UserError) as raised:
        over_images(make_table(grid, records), grid, store)
    told = str(raised.value)
    assert told.startswith(f"{folders[1]} holds other data than the trial was evaluated on (fingerprint ")
    assert told.endswith("an interval over images needs it: leave out --images") and "\n" not in told


def test_images_of_two_data_sets_are_no_pairs(tmp_path: Path) -> None:
    folders = [write_data(tmp_path / name, many) for name, many in (("birds", 4), ("cells", 9))]
    grid, records, store = grid_over(folders, tmp_path, f"{{row: a, data.path: {folders[0]}}}")
    rows = {row.label: row.cells["AP"].gain for row in over_images(make_table(grid, records), grid, store).rows}
    assert rows["b, data=birds"].low is not None
    assert rows["a, data=cells"].low is rows["b, data=cells"].low is None
