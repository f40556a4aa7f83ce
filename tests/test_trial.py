"""A trial from data to record: true statuses, exact continuation, and that the detector can learn a few images."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import pytest
import torch

from harness.config import EvaluateConfig
from harness.data import open_dataset
from harness.data.loader import Loader
from harness.errors import Interrupted
from harness.revisit.trained import build, read_trial
from harness.store.results import RunStore
from harness.trial.checkpoint import CHECKPOINT, WEIGHTS
from harness.trial.evaluate import evaluate
from harness.trial.train import build_optimizer, train_step
from harness.trial.trial import run_trial
from model import kernels
from model.detector import Detector
from model.ops import implementation
from tests.support.folders import write_folder
from tests.support.quickstart import silent, timeless, trial_of

VIT = "{name: vit, channels: 32, depth: 2, num_heads: 2, window: 2, global_blocks: [1]}"
SMALL = ("data.digits.num_train=8", "data.digits.num_val=4", "train.batch_size=2")  # four steps an epoch
SEE_PADDING = {
    "official": ("model.compatibility=official",),
    "vit": (f"model.backbone={VIT}", "model.neck=simple_fpn"),
}


@pytest.mark.parametrize("name", SEE_PADDING)
def test_a_trial_evaluates_an_image_as_it_is_alone_where_padding_would_change_it(tmp_path, name):
    root = write_folder(tmp_path / "set")
    options = ("train.epochs=1", "train.batch_size=4", f"data.path={root}", *SEE_PADDING[name])
    trial, store = trial_of(0, *options), RunStore(tmp_path)
    run_trial(trial, store, report=silent)
    kept = json.loads((store.dir(trial.trial_id) / "detections.json").read_bytes())
    detector = build(read_trial(store, trial.trial_id), torch.device("cpu")).detector
    data = open_dataset(trial.config.data, "val", progress=silent)
    singles = Loader(data, trial.config.data, batch_size=1, training=False, seed=0, size_divisor=detector.size_divisor)
    found = list(evaluate(detector, singles, data, EvaluateConfig(), "cpu").detections)
    assert [row["image_id"] for row in kept] == [row["image_id"] for row in found]
    assert [row["score"] for row in kept] == pytest.approx([row["score"] for row in found], rel=1e-6)


def test_record_holds_what_the_report_needs(tmp_path):
    store, events = RunStore(tmp_path), []
    trial = trial_of(2, *SMALL)
    record = run_trial(trial, store, report=events.append)
    assert record == store.read(trial.trial_id)
    assert record["status"] == store.status(trial.trial_id) == "finished"
    assert {"AP", "AP50", "AP75", "APS", "APM", "APL", "AR100"} <= record["metrics"].keys()
    assert [entry["epoch"] for entry in record["history"]] == [1, 2]
    assert {"decoder.1/giou", "queries.atss.0/l1", "atss/centerness"} <= record["history"][0]["losses"].keys()
    provenance = record["provenance"]
    assert provenance["ops"] == implementation("cpu") and provenance["area_bounds"] == [256, 1024]
    assert record["cost"]["num_parameters"] > 100_000 and record["cost"]["seconds_per_step"] > 0
    assert [event["kind"] for event in events][-1] == "done"
    assert sorted(path.name for path in (store.dir(trial.trial_id) / "checkpoint").iterdir()) == [WEIGHTS]
    assert len(store.metrics(trial.trial_id)) == 2


def test_an_interrupted_trial_continues_to_the_very_same_numbers(tmp_path):
    """Stopped inside the first epoch and again after it; metrics, losses and weights must not notice."""
    trial = trial_of(2, *SMALL)
    whole, pieces = RunStore(tmp_path / "whole"), RunStore(tmp_path / "pieces")
    expected = run_trial(trial, whole, report=silent)
    for stop_after in (2, 3):
        asked = iter(range(100))
        torch.manual_seed(12345)  # a new process has any random state
        with pytest.raises(Interrupted):
            run_trial(trial, pieces, report=silent, should_stop=lambda n=stop_after, a=asked: next(a) >= n)
        assert pieces.status(trial.trial_id) == "interrupted"
        assert (pieces.dir(trial.trial_id) / "checkpoint" / CHECKPOINT).exists()
    record = run_trial(trial, pieces, report=silent)
    assert record["metrics"] == expected["metrics"]
    assert timeless(record["history"]) == timeless(expected["history"])
    assert [entry["instability"] is None for entry in record["history"]] == [True, False]
    assert record["metrics"]["instability"] >= record["metrics"]["instability_gt"] >= 0
    for name in ("detections.json", f"checkpoint/{WEIGHTS}"):
        read = [(store.dir(trial.trial_id) / name).read_bytes() for store in (whole, pieces)]
        assert read[0] == read[1], name


def test_a_failing_trial_says_why_and_can_be_run_again(tmp_path):
    store = RunStore(tmp_path)
    bad = trial_of(0, "train.learning_rate=1e30", "train.warmup_fraction=0.0", "train.schedule=step")
    with pytest.raises(RuntimeError, match="not finite"):
        run_trial(bad, store, report=silent)
    record = store.read(bad.trial_id)
    assert record["status"] == "failed" and "not finite" in record["error"] and "images" in record["error"]
    assert "Traceback" in (store.dir(bad.trial_id) / "log.txt").read_text()
    assert record["label"] == bad.label and record["config"]["train"]["learning_rate"] == 1e30


def test_a_trial_without_compiled_operators_runs_and_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "not-there")
    monkeypatch.setattr(kernels, "library", cache(kernels.library.__wrapped__))  # as if not looked for yet
    events = []
    record = run_trial(trial_of(0, *SMALL, "train.epochs=1"), RunStore(tmp_path), report=events.append)
    assert record["status"] == "finished" and record["provenance"]["ops"] == "reference"
    (warning,) = [event["message"] for event in events if event["kind"] == "warning"]
    assert "no C++ compiler" in warning


def test_branches_are_evaluated_in_the_same_pass(tmp_path):
    trial = trial_of(2, *SMALL, "evaluate.branches=[decoder, atss]", "train.epochs=1", "model.heads=[atss]")
    metrics = run_trial(trial, RunStore(tmp_path), report=silent)["metrics"]
    assert {"AP", "atss/AP", "atss/AP50"} <= metrics.keys()


def test_a_trial_without_the_decoder_s_branch_has_a_whole_record(tmp_path):
    trial = trial_of(2, *SMALL, "evaluate.branches=[atss]", "train.epochs=1", "model.heads=[atss]")
    store = RunStore(tmp_path)
    record = run_trial(trial, store, report=silent)
    assert {"atss/AP", "atss/AR100"} <= record["metrics"].keys() and "AP" not in record["metrics"]
    assert record["per_class"] and record["classes"].keys() == {"atss"}


def test_masks_are_learnt_and_evaluated(tmp_path):
    head = "{name: mask_rcnn, rpn: {num_proposals: 16, train_candidates: 32}, roi: {num_samples: 16, fc_channels: 16}}"
    options = ("data.digits.num_train=8", "data.digits.num_val=4", "train.epochs=1", f"model.heads=[{head}]")
    trial = trial_of(2, "evaluate.branches=[decoder, mask_rcnn]", *options)
    record = run_trial(trial, RunStore(tmp_path), report=silent)
    assert {"AP", "mask_rcnn/AP", "mask_rcnn/segm_AP", "mask_rcnn/segm_APS"} <= record["metrics"].keys()
    assert record["history"][0]["losses"]["mask_rcnn/masks"] > 0


@pytest.mark.parametrize("row", [pytest.param(0, id="K0", marks=pytest.mark.slow), pytest.param(2, id="K1")])
def test_eight_images_are_learnt_by_heart(row):
    """AP50 above 90 on the training images themselves: the losses, matching, boxes and evaluation all agree.

    With one head (K1) all is trained that is without (K0), and more.
    """
    small = ("data.digits.image_size=64", "data.train_short_sides=[64]", "data.eval_short_side=64")
    config = trial_of(row, "data.digits.num_train=8", "data.digits.num_val=8", *small).config
    config = replace(config, train=replace(config.train, learning_rate=2e-3, sampling_lr_factor=1.0))
    dataset = open_dataset(config.data, "train")
    torch.manual_seed(0)
    detector = Detector(config.model, dataset.num_classes)
    optimizer = build_optimizer(detector, config.train)
    common = {"batch_size": 8, "seed": 0, "size_divisor": detector.size_divisor}
    batch = next(Loader(dataset, config.data, training=True, **common).epoch(0)).to("cpu")
    total = 200
    for step in range(total):
        train_step(detector, [batch], optimizer, config.train, step=step, total_steps=total, steps_per_epoch=1)
    loader = Loader(dataset, config.data, training=False, **common)
    metrics, _, results, *_ = evaluate(detector.eval(), loader, dataset, EvaluateConfig(), torch.device("cpu"))
    assert metrics["AP50"] > 90, metrics
    assert json.loads(results.to_json()) == list(results)


def test_a_small_data_set_is_gone_through_more_often(tmp_path):
    """8 images make 4 steps an epoch: 10 steps take 3 epochs."""
    trial = trial_of(0, *SMALL, "train.epochs=1", "train.min_steps=10")
    events: list[dict] = []
    record = run_trial(trial, RunStore(tmp_path), report=events.append)
    assert [entry["step"] for entry in record["history"]] == [4, 8, 12]
    assert {event["epochs"] for event in events if event["kind"] == "epoch"} == {3}
