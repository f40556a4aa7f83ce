"""The moving average of a detector: its formula, its place in a trial, and that nothing else notices it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import harness.trial.analysis
from harness.config import TrainConfig
from harness.errors import Interrupted
from harness.spec.grid import Trial
from harness.store.results import RunStore
from harness.trial.build import build_trial
from harness.trial.checkpoint import CHECKPOINT, WEIGHTS
from harness.trial.ema import MovingAverage, ema_momentum
from harness.trial.trial import run_trial
from tests.support.quickstart import silent, timeless, trial_of

SMALL = (
    *("data.digits.num_train=4", "data.digits.num_val=2", "train.batch_size=2", "train.epochs=2"),
    "model.transformer.dropout=0.1",  # so that the random state matters
)
HALF = ("train.ema_decay=0.5", "train.ema_warmup=exponential", "train.ema_warmup_steps=3")


# ---- the average --------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """A weight with two names, one that is not trained, and buffers that are averaged, counted and not kept."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, 1, bias=False)
        self.second = self.first
        self.frozen = nn.Parameter(torch.tensor(0.1), requires_grad=False)
        self.register_buffer("mean", torch.tensor(8.0))
        self.register_buffer("count", torch.tensor(1))
        self.register_buffer("table", torch.tensor(1.0), persistent=False)
        self.become(4.0, 8.0, 1)

    def become(self, weight: float, mean: float, count: int) -> None:
        self.first.weight.data.fill_(weight)
        self.mean.fill_(mean)
        self.count.fill_(count)

    def state(self) -> list[float]:
        return [tensor.item() for tensor in (self.first.weight, self.second.weight, self.mean, self.count, self.frozen)]


def test_parameters_and_buffers_are_averaged_each_once() -> None:
    network = Network()
    average = MovingAverage(network)  # type: ignore[arg-type]
    network.become(8.0, 0.0, 5)
    average.update(0.25)
    assert {name: value.item() for name, value in average.tensors.items()} == pytest.approx(
        {"first.weight": 5.0, "frozen": 0.1, "mean": 6.0}
    )
    average.update(0.25)
    before = network.state()
    with average.in_place():
        assert network.state() == pytest.approx([5.75, 5.75, 4.5, 5, 0.1])
    assert network.state() == before
    with pytest.raises(KeyError, match="told to"), average.in_place():
        raise KeyError("told to")
    assert network.state() == before and average.tensors["mean"].item() == 4.5


def test_what_does_not_change_stays_to_the_last_bit() -> None:
    network = Network()
    average = MovingAverage(network)  # type: ignore[arg-type]
    for step in range(200):
        average.update(ema_momentum(step, TrainConfig(ema_decay=0.997, ema_warmup="exponential", ema_warmup_steps=50)))
    assert torch.equal(average.tensors["frozen"], network.frozen)


@pytest.mark.parametrize(
    ("step", "momentum"),
    [(0, 0.9995001749), (1999, 0.3679426532), (19999, 0.00014539539), (10**6, 0.0001)],
)
def test_the_official_warmup(step: int, momentum: float) -> None:
    """(1 − 1e-4)·exp(−(1 + step)/2000) + 1e-4."""
    config = TrainConfig(ema_decay=0.9999, ema_warmup="exponential")
    assert ema_momentum(step, config) == pytest.approx(momentum, rel=1e-6)
    assert ema_momentum(step, TrainConfig(ema_decay=0.9999)) == pytest.approx(1e-4, rel=1e-9)


# ---- in a trial ---------------------------------------------------------------------------------------------------


def weights_of(store: RunStore, trial: Trial) -> dict[str, Tensor]:
    return load_file(store.dir(trial.trial_id) / "checkpoint" / WEIGHTS)


def finished(folder: Path, *options: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    store, trial = RunStore(folder), trial_of(2, *SMALL, *options)
    return run_trial(trial, store, report=silent), weights_of(store, trial)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return finished(tmp_path_factory.mktemp("plain"))


def losses_of(record: dict[str, Any]) -> list[Any]:
    return [entry["losses"] for entry in record["history"]]


def test_the_average_is_evaluated_and_kept_and_training_does_not_notice(
    plain: tuple[dict[str, Any], dict[str, Tensor]], tmp_path: Path
) -> None:
    record, weights = finished(tmp_path, *HALF)
    assert losses_of(record) == losses_of(plain[0])
    assert record["metrics"]["instability"] is not None and record["cost"] != plain[0]["cost"]
    changed = [name for name, value in weights.items() if not torch.equal(value, plain[1][name])]
    assert weights.keys() == plain[1].keys() and len(changed) > len(weights) / 2


def test_an_average_that_follows_at_once_is_the_detector_itself(
    plain: tuple[dict[str, Any], dict[str, Tensor]], tmp_path: Path
) -> None:
    record, weights = finished(tmp_path, "train.ema_decay=1e-12")
    assert timeless(record["history"]) == timeless(plain[0]["history"])
    assert all(torch.equal(value, plain[1][name]) for name, value in weights.items())


def test_an_average_that_hardly_moves_detects_as_the_untrained_detector(tmp_path: Path) -> None:
    trial = trial_of(2, *SMALL, "train.ema_decay=0.999999999999")
    state = build_trial(trial, RunStore(tmp_path / "untrained"), silent, lambda: False)
    untrained = {name: value.clone() for name, value in state.detector.state_dict().items()}
    store, detections = RunStore(tmp_path), []

    def report(event: dict[str, Any]) -> None:
        if event["kind"] == "epoch":
            found = json.loads((store.dir(trial.trial_id) / "detections.json").read_text())
            detections.append([row["score"] for row in found])

    record = run_trial(trial, store, report=report)
    kept = weights_of(store, trial)
    assert all(torch.allclose(value, kept[name], rtol=0, atol=1e-9) for name, value in untrained.items())
    assert len(detections) == 2 and detections[0] == pytest.approx(detections[1], rel=1e-5) and detections[0]
    assert record["metrics"]["instability"] == 0


def test_the_average_is_what_is_analysed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = harness.trial.analysis.analyse, []

    def analyse(detector: nn.Module, *arguments: Any, **named: Any) -> Any:
        seen.append({name: value.clone() for name, value in detector.state_dict().items()})
        return real(detector, *arguments, **named)

    monkeypatch.setattr(harness.trial.analysis, "analyse", analyse)
    record, weights = finished(tmp_path, *HALF, "analyse=[queries]", "analyse.num_images=2")
    assert record["analysis"]["error"] is None and len(seen) == 1
    assert all(torch.equal(value, weights[name]) for name, value in seen[0].items())


# ---- continuation -------------------------------------------------------------------------------------------------


def result(store: RunStore, trial: Trial) -> tuple[Any, ...]:
    record, folder = store.read(trial.trial_id) or {}, store.dir(trial.trial_id)
    files = [(folder / name).read_bytes() for name in ("detections.json", f"checkpoint/{WEIGHTS}")]
    return record["status"], timeless(record["history"]), *files


STOPS = {"at step 1": 0, "while epoch 1": 1, "after epoch 1": 1, "at step 3": 0, "while epoch 2": 1}  # how often asked


def test_stopped_at_every_moment_it_ends_the_same(tmp_path: Path) -> None:
    """After steps, while epochs are evaluated, and between epochs; bit for bit."""
    trial, whole, pieces = trial_of(2, *SMALL, *HALF), RunStore(tmp_path / "whole"), RunStore(tmp_path / "pieces")
    run_trial(trial, whole, report=silent)
    for moment, questions in STOPS.items():
        asked = iter(range(100))
        torch.manual_seed(len(moment))  # a new process has any random state
        with pytest.raises(Interrupted, match=f"^stopped {moment}"):
            run_trial(trial, pieces, report=silent, should_stop=lambda n=questions, a=asked: next(a) >= n)
        saved = load_file(pieces.dir(trial.trial_id) / "checkpoint" / CHECKPOINT)
        kept = {name.removeprefix("average."): value for name, value in saved.items() if name.startswith("average.")}
        assert kept and any(not torch.equal(value, saved[f"model.{name}"]) for name, value in kept.items())
    run_trial(trial, pieces, report=silent)
    assert result(pieces, trial) == result(whole, trial)


# ---- identity -----------------------------------------------------------------------------------------------------


def test_how_the_average_begins_makes_a_trial_only_where_there_is_one() -> None:
    exponential, steps = "train.ema_warmup=exponential", "train.ema_warmup_steps=7"
    none = [trial_of(2, *options).trial_id for options in ((), (exponential, steps), ("train.ema_decay=0",))]
    assert len(set(none)) == 1
    decay = "train.ema_decay=0.99"
    assert trial_of(2, decay).trial_id == trial_of(2, decay, steps).trial_id
    all_different = [trial_of(2, *options).trial_id for options in ((), (decay,), (decay, exponential))]
    assert len({*all_different, trial_of(2, decay, exponential, steps).trial_id}) == 4
