"""COCO metrics: published figures, agreement of the two evaluators, and the passage from detector to numbers."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from harness.config import DataConfig, EvaluateConfig
from harness.data import CocoDataset
from harness.data.loader import Loader
from harness.errors import UserError
from harness.spec.error_metrics import ERROR_METRICS
from harness.trial.detections import DetectionTable
from harness.trial.evaluate import EVALUATORS, errors_of, evaluate, evaluate_detections, evaluator_version
from model.types import Detections
from tests.support.folders import real_data, tables
from tests.support.oracle import METRICS, Oracle, no_matching, open_tables

PUBLISHED = [0.504581, 0.696973, 0.572982, 0.585626, 0.519400, 0.501398, 0.386813, 0.593680, 0.595353]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """40 images with up to six boxes of three classes; the class `cow` has only large boxes; some crowds."""
    rng = np.random.default_rng(0)
    content = tables(sizes=[(120, 160)] * 40)
    content["annotations"] = []
    for row in content["images"]:
        for _ in range(int(rng.integers(0, 7))):
            category = int(rng.choice([0, 7, 90]))
            w, h = (rng.uniform(40, 75, 2) if category == 90 else np.exp(rng.uniform(1.5, 4.3, 2))).round(2).tolist()
            x, y = (rng.uniform(0, 1, 2) * [160 - w, 120 - h]).round(2).tolist()
            content["annotations"].append(
                {
                    "id": len(content["annotations"]),  # from 0, which the evaluators themselves mistake
                    "image_id": row["id"],
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": round(w * h * 0.7, 3),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
    content["info"] = {"area_bounds": [256, 1024]}
    return open_tables(tmp_path_factory.mktemp("set"), content)


def noisy_results(dataset: CocoDataset, seed: int = 0) -> list[dict]:
    """Shifted ground truth, false alarms and ties in score, more than 100 on one image."""
    rng = np.random.default_rng(seed)
    results = []
    for row in dataset.ground_truth["annotations"]:
        for _ in range(int(rng.integers(0, 12))):
            box = (np.array(row["bbox"]) * rng.normal(1, 0.05, 4)).tolist()
            category = row["category_id"] if rng.random() < 0.9 else 7
            score = round(float(rng.random()), 1)
            results.append({"image_id": row["image_id"], "category_id": category, "bbox": box, "score": score})
    for _ in range(250):
        box = [*rng.uniform(0, 60, 2).tolist(), *rng.uniform(5, 60, 2).tolist()]
        results.append({"image_id": 10, "category_id": 0, "bbox": box, "score": round(float(rng.random()), 2)})
    return results


# ---- the protocol -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_published_figures(tmp_path, evaluator):
    folder = real_data("cocoeval")
    dataset = open_tables(tmp_path / "set", json.loads((folder / "instances_val2014_100.json").read_text()))
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    metrics = evaluate_detections(dataset, results, evaluator)
    assert [metrics[name] / 100 for name in METRICS] == pytest.approx(PUBLISHED, abs=1e-6)
    assert len(metrics["per_class"]) == 80


@pytest.mark.parametrize("seed", range(3))
def test_both_evaluators_give_the_same_numbers(dataset, seed):
    results = noisy_results(dataset, seed)
    ours, oracle = (evaluate_detections(dataset, results, name) for name in EVALUATORS)
    assert list(ours) == [*METRICS, "per_class"]
    assert 5 < ours["AP"] < 90 and len(set(ours[name] for name in METRICS)) == len(METRICS)
    for mine, theirs in ((ours, oracle), (ours["per_class"], oracle["per_class"])):
        for name in set(mine) - {"per_class"}:
            assert mine[name] == pytest.approx(theirs[name], abs=1e-9), name
    assert np.mean(list(ours["per_class"].values())) == pytest.approx(ours["AP"])


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("first", [2**53, 2**62, -(2**62), -20])
def test_ids_of_any_size_are_told_apart(dataset, tmp_path, evaluator, first):
    """Evaluators keep some as floats, which merges those beyond 2^53, and take no negative ones beside masks."""
    truth, found = dataset.ground_truth, noisy_results(dataset)
    images = {row["id"]: first + number for number, row in enumerate(truth["images"])}
    classes = {row["id"]: first + number for number, row in enumerate(truth["categories"])}

    def renamed(row: dict) -> dict:
        return {**row, "image_id": images[row["image_id"]], "category_id": classes[row["category_id"]]}

    content = {
        "info": {"area_bounds": [256, 1024]},
        "images": [{**row, "id": images[row["id"]], "file_name": f"{row['id']}.png"} for row in truth["images"]],
        "categories": [{**row, "id": classes[row["id"]]} for row in truth["categories"]],
        "annotations": [renamed(row) for row in truth["annotations"]],
    }
    other = open_tables(tmp_path, content)
    expected = evaluate_detections(dataset, found, evaluator)
    assert evaluate_detections(other, [renamed(row) for row in found], evaluator) == expected


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_masks_of_an_image_with_a_negative_id(tmp_path, evaluator):
    content = tables(1, sizes=[(50, 60)])
    content["images"][0]["id"] = -1
    box = {"image_id": -1, "category_id": content["categories"][0]["id"], "bbox": [3.0, 4.0, 20.0, 20.0]}
    outline = [[3.0, 4.0, 23.0, 4.0, 23.0, 24.0, 3.0, 24.0]]
    content["annotations"] = [{**box, "id": 1, "area": 400.0, "iscrowd": 0, "segmentation": outline}]
    truth = open_tables(tmp_path, content, with_masks=True)
    mask = truth.ground_truth["annotations"][0]["segmentation"]
    found = [{**box, "score": 0.9, "segmentation": mask}]
    assert evaluate_detections(truth, found, evaluator, "segm")["AP"] == pytest.approx(100)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_perfect_detections_are_worth_100(dataset, evaluator, capfd):
    truth = [row for row in dataset.ground_truth["annotations"] if not row["iscrowd"]]
    results = [{key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": 1.0} for row in truth]
    metrics = evaluate_detections(dataset, results, evaluator)
    assert [metrics[name] for name in (*METRICS[:6], "AR10", "AR100")] == pytest.approx([100] * 8)
    assert 0 < metrics["AR1"] < 100
    assert metrics["per_class"] == pytest.approx({"ant": 100, "bee": 100, "cow": 100})
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_no_detections_are_zeros(dataset, evaluator):
    metrics = evaluate_detections(dataset, [], evaluator)
    assert all(metrics[name] == 0 for name in METRICS)


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("found", [True, False])
def test_what_has_no_ground_truth_is_none(tmp_path, evaluator, found):
    content = tables(sizes=[(100, 100)] * 2)
    box = [10, 10, 20, 20]
    content["annotations"] = [
        {"id": 1, "image_id": 10, "category_id": 7, "bbox": box, "area": 400, "iscrowd": 0},
        {"id": 2, "image_id": 20, "category_id": 0, "bbox": box, "area": 400, "iscrowd": 1},
    ]
    dataset = open_tables(tmp_path, content)
    results = [{"image_id": 10, "category_id": 7, "bbox": box, "score": 0.5}] if found else []
    metrics = evaluate_detections(dataset, results, evaluator)
    expected = 100 if found else 0
    assert (metrics["AP"], metrics["APS"]) == pytest.approx((expected, expected))
    assert metrics["APM"] is None and metrics["APL"] is None
    assert metrics["per_class"] == {"ant": None, "bee": pytest.approx(expected), "cow": None}


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_area_bounds_are_the_data_sets(dataset, evaluator, monkeypatch):
    results = noisy_results(dataset)
    own = evaluate_detections(dataset, results, evaluator)
    monkeypatch.setattr(dataset, "area_bounds", (32.0**2, 96.0**2))
    coco = evaluate_detections(dataset, results, evaluator)
    assert own["AP"] == coco["AP"] and own["APS"] != coco["APS"]
    assert own["APL"] is not None and coco["APL"] is None


def test_ground_truth_is_left_as_it_was(dataset):
    before = json.dumps(dataset.ground_truth)
    for evaluator in EVALUATORS:
        evaluate_detections(dataset, noisy_results(dataset), evaluator)
    assert json.dumps(dataset.ground_truth) == before


def test_unknown_evaluator(dataset):
    with pytest.raises(UserError, match="choose one of faster_coco_eval, pycocotools"):
        evaluate_detections(dataset, [], "cocoeval")


def test_evaluator_that_is_not_installed(dataset, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match="install it or set evaluate.evaluator: pycocotools"):
        evaluate_detections(dataset, [], "faster_coco_eval")


@pytest.mark.parametrize("name", EVALUATORS)
def test_version(name):
    assert re.fullmatch(rf"{name} \d+\.\d+.*", evaluator_version(name))


# ---- from the detector to numbers ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batches(dataset):
    config = DataConfig(eval_short_side=64, max_long_side=100)
    return Loader(dataset, config, batch_size=16, training=False, seed=0, size_divisor=32)


def test_every_branch_is_scored_from_one_pass(dataset, batches):
    detector, seen = Oracle().train(), []
    config = EvaluateConfig(branches=("decoder", "atss", "blind"))
    metrics, per_class, results, matching, _ = evaluate(
        detector, batches, dataset, config, "cpu", on_batch=lambda done, total: seen.append((done, total))
    )
    assert detector.calls == [("decoder", "atss", "blind")] * 3 and seen == [(1, 3), (2, 3), (3, 3)]
    assert detector.training
    assert (
        metrics["AP"] == pytest.approx(100)
        and metrics["atss/AP"] == pytest.approx(100 / 3)
        and metrics["blind/AP"] == 0
    )
    assert set(metrics) == {*METRICS, *(f"{branch}/{name}" for branch in ("atss", "blind") for name in METRICS)}
    assert per_class == pytest.approx({"ant": 100, "bee": 100, "cow": 100})
    assert len(results) == dataset.num_boxes
    assert matching.shape == (40, 2, 5) and matching[:, 1, 0].tolist() == list(dataset.image_ids)
    assert json.loads(results.to_json()) == list(results)


def test_without_the_decoder_the_first_branch_gives_classes_and_results(dataset, batches):
    config = EvaluateConfig(branches=("atss",), evaluator="pycocotools")
    metrics, per_class, results, matching, _ = evaluate(Oracle(), batches, dataset, config, "cpu")
    assert "AP" not in metrics and metrics["atss/AP"] == pytest.approx(100 / 3)
    assert per_class == pytest.approx({"ant": 100, "bee": 0, "cow": 0})
    assert {row["category_id"] for row in results} == {0}


def test_diverged_weights_are_said(dataset, batches):
    class Diverged(Oracle):
        def detect_and_match(self, batch, branches, max_detections=100):
            nan = Detections(torch.full((1, 4), torch.nan), torch.ones(1), torch.zeros(1, dtype=torch.int64))
            return {branch: [nan] * len(batch.image_ids) for branch in branches}, no_matching(batch)

    detector = Diverged().train()
    with pytest.raises(FloatingPointError, match="image 10 are not finite"):
        evaluate(detector, batches, dataset, EvaluateConfig(), "cpu")
    assert detector.training


def test_boxes_are_clipped_to_the_image(dataset, batches):
    class Generous(Oracle):
        def detect_and_match(self, batch, branches, max_detections=100):
            wide = Detections(torch.tensor([[-9.0, -9, 999, 999]]), torch.ones(1), torch.zeros(1, dtype=torch.int64))
            return {branch: [wide] * len(batch.image_ids) for branch in branches}, no_matching(batch)

    _, _, results, *_ = evaluate(Generous(), batches, dataset, EvaluateConfig(), "cpu")
    assert all(row["bbox"] == [0, 0, 160, 120] for row in results)


# ---- errors -------------------------------------------------------------------------------------------------------


def test_errors_of_every_branch_come_with_its_metrics(dataset, batches):
    config = EvaluateConfig(branches=("decoder", "atss", "blind"))
    plain = evaluate(Oracle(), batches, dataset, config, "cpu")
    found = evaluate(Oracle(), batches, dataset, config, "cpu", errors=True)
    assert {name: found.metrics[name] for name in plain.metrics} == plain.metrics and plain.classes == {}
    prefixes = ("", "atss/", "blind/")
    assert set(found.metrics) - set(plain.metrics) == {p + name for p in prefixes for name in ERROR_METRICS}
    assert found.metrics["errors/miss"] == 0 and found.metrics["best_f1"] == pytest.approx(100)
    assert found.metrics["errors/best_regressed_recall"] == pytest.approx(100)
    # of three classes one is found; the others have nothing to be as precise as
    assert found.metrics["atss/errors/miss"] == 0 and found.metrics["atss/errors/false_negatives"] == 0
    assert found.metrics["blind/best_f1"] is None and found.metrics["blind/errors/duplicate_gap"] == 0
    assert set(found.classes) == {"decoder", "atss", "blind"}
    classes = found.classes["atss"]
    assert classes["class"] == ["ant", "bee", "cow"] and sum(classes["objects"]) == dataset.num_boxes
    assert classes["AP"] == pytest.approx([100, 0, 0]) and classes["f1"] == [pytest.approx(100), None, None]
    assert list(classes) == ["class", "objects", "AP", "f1", "threshold", "precision", "recall"]


def test_the_duplicate_gap_is_what_nms_gives(dataset):
    """Every object three times, the second one as the first: NMS takes it, and leaves the third, which is far off."""
    rows = [row for row in dataset.ground_truth["annotations"] if not row["iscrowd"]]
    near = [{**row, "bbox": (np.array(row["bbox"]) * [1, 1, 1, 0.9]).tolist()} for row in rows]
    far = [{**row, "bbox": (np.array(row["bbox"]) * [1, 1, 1, 0.3]).tolist()} for row in rows]
    sides = {0.9: rows, 0.95: near, 0.4: far}
    table = DetectionTable.of({**row, "score": score} for score, own in sides.items() for row in own)
    scores = evaluate_detections(dataset, table, "faster_coco_eval")
    costs, _ = errors_of(dataset, table, "faster_coco_eval", scores)
    left = DetectionTable.of({**row, "score": score} for score, own in sides.items() if score != 0.9 for row in own)
    alone = evaluate_detections(dataset, left, "faster_coco_eval")["AP"]
    assert costs["errors/duplicate_gap"] == pytest.approx(alone - scores["AP"])
