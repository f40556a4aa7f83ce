"""More objects in an image than the 100 detections that AP counts: other limits under other names, and a note."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.analyse.resample import average_precision, match_images, thresholds
from harness.config import DataConfig, EvaluateConfig
from harness.data import CocoDataset
from harness.data.loader import Loader
from harness.data.masks import packed
from harness.errors import UserError
from harness.report.tables import make_table, metric_of
from harness.schedule.schedule import check_datasets
from harness.spec.detection_metrics import best_of_images, is_detection_metric, limit_of
from harness.spec.grid import open_grid
from harness.store.results import RunStore
from harness.trial.evaluate import EVALUATORS, evaluate, evaluate_at_limit, evaluate_detections
from harness.trial.trial import run_trial
from model.types import Detections
from tests.support.folders import tables, write_split
from tests.support.oracle import METRICS, Oracle, no_matching, open_tables
from tests.support.quickstart import silent, trial_of
from tests.support.report_grid import make_grid, make_record

AT_300 = [f"{name}@300" for name in ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR")]


def crowded(images: int = 2, objects: int = 250, categories: tuple[int, ...] = (7,)) -> dict[str, Any]:
    """So many objects of 14 x 9 pixels in each image of 400 x 200, of the categories by turns."""
    content = tables(sizes=[(200, 400)] * images)
    content["annotations"] = [
        {
            "id": number * objects + k + 1,
            "image_id": row["id"],
            "category_id": categories[k % len(categories)],
            "bbox": [k % 25 * 16, k // 25 * 12, 14, 9],
            "area": 126,
            "iscrowd": 0,
        }
        for number, row in enumerate(content["images"])
        for k in range(objects)
    ]
    return content


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return open_tables(tmp_path_factory.mktemp("dense"), crowded(categories=(0, 7, 7, 90)))


def truth(dataset: CocoDataset) -> list[dict[str, Any]]:
    names = ("image_id", "category_id", "bbox")
    return [{name: row[name] for name in names} | {"score": 0.9} for row in dataset.ground_truth["annotations"]]


def noisy(dataset: CocoDataset) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {**row, "bbox": (np.array(row["bbox"]) + rng.normal(0, 1, 4)).tolist(), "score": round(float(rng.random()), 2)}
        for row in truth(dataset)
        for _ in range(int(rng.integers(0, 3)))
    ]


# ---- numbers


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_the_ground_truth_itself(tmp_path: Path, evaluator: str) -> None:
    dataset = open_tables(tmp_path, crowded())
    assert evaluate_detections(dataset, truth(dataset), evaluator)["AP"] == pytest.approx(40.594059)
    for limit, share in (300, 1.0), (250, 1.0), (200, 0.8):
        found = evaluate_at_limit(dataset, truth(dataset), evaluator, limit)
        assert list(found) == [name.replace("300", str(limit)) for name in AT_300]
        assert found[f"AR@{limit}"] == pytest.approx(100 * share)
        assert found[f"AP@{limit}"] == pytest.approx(100 * (int(100 * share) + 1) / 101 if share < 1 else 100)
        assert found[f"APM@{limit}"] is None


@pytest.mark.parametrize("limit", [101, 150, 300])
def test_both_evaluators_agree_at_any_limit(dense: CocoDataset, limit: int) -> None:
    ours, oracle = (evaluate_at_limit(dense, noisy(dense), name, limit) for name in EVALUATORS)
    assert ours == pytest.approx(oracle, abs=1e-9) and 5 < (ours[f"AP@{limit}"] or 0) < 90


def test_the_best_of_each_image() -> None:
    rows = [
        {"image_id": image, "score": score, "n": n}
        for n, (image, score) in enumerate([(1, 0.1), (1, 0.9), (2, 0.3), (1, 0.9), (1, 0.5), (2, 0.2)])
    ]
    assert [row["n"] for row in best_of_images(rows, 2)] == [1, 2, 3, 5]
    assert best_of_images(rows, 4) is rows and best_of_images([], 1) == []


class Crowded(Oracle):
    """The ground truth with falling scores, cut at the limit, and after it as many inventions."""

    def __init__(self) -> None:
        super().__init__()
        self.limits: set[int] = set()

    def detect_and_match(self, batch, branches, max_detections=100):
        self.limits.add(max_detections)
        found = []
        for boxes, labels in zip(batch.targets.boxes_xyxy, batch.targets.labels, strict=True):
            boxes, labels = torch.cat([boxes, boxes.flip(0) * 0.9]), torch.cat([labels, labels])
            scores = torch.linspace(0.9, 0.1, len(boxes))
            found.append(Detections(*(part[:max_detections] for part in (boxes, scores, labels))))
        return dict.fromkeys(branches, found), no_matching(batch)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_ap_is_that_of_100_whatever_is_counted_beside_it(dense: CocoDataset, evaluator: str) -> None:
    loader = Loader(
        dense, DataConfig(eval_short_side=200, max_long_side=400), batch_size=2, training=False, seed=0, size_divisor=8
    )
    branches = ("decoder", "atss")
    detector = Crowded()
    plain = evaluate(detector, loader, dense, EvaluateConfig(branches=branches, evaluator=evaluator), "cpu")
    assert detector.limits == {100} and len(plain.detections) == 200
    config = EvaluateConfig(branches=branches, evaluator=evaluator, max_detections=300)
    more = evaluate(detector, loader, dense, config, "cpu")
    assert detector.limits == {100, 300} and len(more.detections) == 600
    assert list(more.metrics) == [*(f"{prefix}{name}" for prefix in ("", "atss/") for name in (*METRICS, *AT_300))]
    assert {name: more.metrics[name] for name in plain.metrics} == plain.metrics
    assert more.per_class == plain.per_class
    assert more.metrics["AP@300"] == pytest.approx(100) and (more.metrics["AP"] or 0) < 50


SMALL = ("train.epochs=1", "data.digits.num_train=8", "data.digits.num_val=4")


def test_a_trial_has_the_same_numbers_and_more(tmp_path: Path) -> None:
    """12 queries and 10 classes can give 120 detections."""
    records = [
        run_trial(trial_of(0, *SMALL, *own), RunStore(tmp_path), report=silent)
        for own in ((), ("evaluate.max_detections=120",))
    ]
    plain, more = (record["metrics"] for record in records)
    assert more.keys() - plain.keys() == {name.replace("300", "120") for name in AT_300}
    assert {name: more[name] for name in plain} == plain
    assert "beyond_limit" not in records[0]["provenance"]


def test_masks_have_other_limits_too(tmp_path: Path) -> None:
    content = crowded()
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    write_split(tmp_path, "val", content)
    val = CocoDataset(tmp_path, "val", progress=lambda line: None, with_masks=True)
    rows = zip(truth(val), content["annotations"], strict=True)
    found = [{**row, "segmentation": packed(told["segmentation"], 200, 400)} for row, told in rows]
    for evaluator in EVALUATORS:
        assert evaluate_at_limit(val, found, evaluator, 300, "segm")["AP@300"] == pytest.approx(100)
        assert evaluate_detections(val, found, evaluator, "segm")["AP"] < 50


@pytest.mark.parametrize("limit", [100, 150, 300])
def test_resampling_knows_the_limit(dense: CocoDataset, limit: int) -> None:
    results = noisy(dense)
    classes = match_images(dense, best_of_images(results, limit), limit)
    found = average_precision(classes, np.ones(2, int))
    expected = evaluate_at_limit(dense, results, "pycocotools", limit)
    for name in ("AP", "AP50", "AP75"):
        chosen = thresholds(f"{name}@{limit}" if limit > 100 else name)
        assert chosen is not None
        assert found[chosen].mean() == pytest.approx(expected[f"{name}@{limit}"], abs=1e-9)
    assert thresholds("AR@300") is None and thresholds("atss/AP") is None and thresholds("loss") is None


# ---- names


@pytest.mark.parametrize(
    "name", ["AP@300", "AP50@1000", "AR@101", "APS@300", "atss/AP@300", "segm_AP@300", "b/segm_AR@200"]
)
def test_names_with_a_limit(name: str) -> None:
    assert is_detection_metric(name) and limit_of(name) == int(name.partition("@")[2])
    metric = metric_of(name)
    assert metric.better == "higher" and metric.decimals == 1 and metric.heading.endswith(name.rpartition("_")[2][-6:])


ROWS = "rows: [{label: a, set: {model.heads: [atss]}, published: {AP: 40, AP@300: 45}}, {label: b}]"


def write(folder: Path, text: str) -> Path:
    path = folder / "table.yaml"
    path.write_text(text)
    return path


def test_an_ablation_file_may_ask_for_them(tmp_path: Path) -> None:
    claims = "claims: [{text: t, better: [a], than: b, metric: AP50@300}]"
    text = f"metrics: [AP, AP@300, AP50@300, atss/AR@300]\nbase: {{evaluate.max_detections: 300}}\n{claims}\n{ROWS}"
    grid = open_grid(write(tmp_path, text), "digits_fast", require_data=False)
    assert grid.metrics == ("AP", "AP@300", "AP50@300", "atss/AR@300") and grid.claims[0].metric == "AP50@300"
    assert grid.rows[0].published == {"AP": 40, "AP@300": 45}
    assert not [note for note in grid.notes if "measures" in note]
    fewer = open_grid(write(tmp_path, text), "digits_fast", ["evaluate.max_detections=100"], require_data=False)
    assert "no trial measures AP@300; evaluate.max_detections: 300 does" in fewer.notes
    unseen = open_grid(write(tmp_path, "rows: [{label: a}]"), "digits_fast", ["evaluate.max_detections=300"])
    assert [note for note in unseen.notes if note.startswith("AP@300 is measured; tables show it where")]


@pytest.mark.parametrize(
    "name", ["AP@100", "AP@99", "AP@", "AP@x", "AP@0300", "AP@1e3", "AR100@300", "loss@300", "AP@300@300", "AP@٣٠٠"]
)
def test_names_that_mean_nothing_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="take a limit above 100, as AP@300 does; AP has that of 100"):
        open_grid(write(tmp_path, f"metrics: ['{name}']\n{ROWS}"), "digits_fast", require_data=False)


def test_a_search_cannot_rank_by_what_nobody_measures(tmp_path: Path) -> None:
    text = "search: {space: {model.lambda1: {uniform: [0.5, 2.0]}}, num_trials: 2, metric: AP@300}"
    heads = "base: {model.heads: [atss]}\n"
    with pytest.raises(UserError, match="search.metric: no trial measures AP@300; evaluate.max_detections: 300 does"):
        open_grid(write(tmp_path, heads + text), "digits_fast", require_data=False)
    grid = open_grid(write(tmp_path, heads + text), "digits_fast", ["evaluate.max_detections=300"], require_data=False)
    assert grid.metrics[0] == "AP@300"


@pytest.mark.parametrize("value", [0, 99, -1, 100_001, 10**30])
def test_the_setting_has_bounds(value: int) -> None:
    with pytest.raises(ValueError, match="max_detections must be from 100"):
        EvaluateConfig(max_detections=value)


# ---- notes


def notes_of(folder: Path, file: Path, *overrides: str) -> list[str]:
    said: list[str] = []
    overrides = ("model.num_queries=300", "data.train_short_sides=[300]", "data.eval_short_side=300", *overrides)
    overrides += ("data.max_long_side=600",)  # enough of the encoder's tokens
    trials = open_grid(file, "digits_fast", list(overrides), data=str(folder)).trials
    check_datasets(trials, said.append)
    return [line for line in said if line.startswith("note: ")]


def test_a_limit_that_binds_is_told_before_training(tmp_path: Path) -> None:
    file = write(tmp_path, "rows: [{label: a}]")
    write_split(tmp_path, "train", crowded(3, 120))
    write_split(tmp_path, "val", crowded(2, 120), seed=1)
    [note] = notes_of(tmp_path, file)
    assert note == (
        "note: 2 of 2 validation images have more than 100 objects (120 at most), and AP counts only the 100 best "
        "detections of an image: evaluate.max_detections=120 adds AP@120, which counts all"
    )
    assert notes_of(tmp_path, file, "evaluate.max_detections=110") == [note]
    assert notes_of(tmp_path, file, "evaluate.max_detections=120") == []
    assert ["an image has 120 objects" in line for line in notes_of(tmp_path, file, "model.num_queries=119")] == [
        False,
        True,
    ]
    content = crowded(2, 101)
    for row in content["annotations"][100::101]:
        row["iscrowd"] = 1
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    assert notes_of(tmp_path, file) == []  # 100 objects and a crowd; the training images do not matter


def test_a_table_tells_where_the_limit_binds_and_what_was_not_measured() -> None:
    grid = make_grid({"a": {}, "b": {}}, metrics=("AP", "AP@300"))
    records = [make_record(f"{row}-{seed}", 30.0) for row in (0, 1) for seed in (0, 1, 2)]
    plain = make_table(grid, records)
    assert "AP@300 was not recorded; evaluate.max_detections=300 measures it" in dict(plain.footnotes).values()
    assert not [note for note in plain.notes if "objects" in note]
    for record in records:
        record["provenance"]["beyond_limit"] = {"images": 3, "of": 8, "most": 250}
        record["metrics"]["AP@300"] = 50.0
    told = make_table(grid, records)
    assert told.rows[0].cells["AP@300"].summary is not None
    assert [note for note in told.notes if "3 of 8 validation images have more than 100 objects (250 at most)" in note]
