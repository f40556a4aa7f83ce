"""Every detector preset with every auxiliary head, and with all heads and all query groups at once.

A new preset, head or group joins by itself (tests/support/detectors.py). Every pair goes forward and backward, each
preset and each head once through the rest. All pairs through all of it, and whole trials: `-m slow`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.analyse import analyse
from harness.config import AnalyseConfig, DataConfig
from harness.data.coco import CocoDataset
from harness.errors import Interrupted
from harness.spec.grid import Trial, open_grid
from harness.store.results import RunStore
from harness.system.launch import run_ranks
from harness.trial.checkpoint import WEIGHTS
from harness.trial.instability import instabilities
from harness.trial.trial import run_trial
from model.detector import Detector
from model.types import Batch, Detections
from tests.support.detectors import (
    EVERY_GROUP,
    EVERY_HEAD,
    ONCE,
    PAIRS,
    PRESETS,
    SIZES,
    WITHOUT,
    assert_all_learns,
    batch_of,
    learn,
    paper_config,
    scattered,
    tiny_preset,
    train_pair,
    train_pairs,
)
from tests.support.folders import tables, write_split
from tests.support.quickstart import QUICKSTART, silent, timeless
from tests.support.rooms import losses_by_share

EVERY_PRESET = pytest.mark.parametrize("preset", PRESETS)
EVERY_PAIR = pytest.mark.parametrize(("preset", "head"), PAIRS)
EACH_ONCE = pytest.mark.parametrize(("preset", "head"), ONCE)
EACH_ONCE_OR_SLOWLY = pytest.mark.parametrize(
    ("preset", "head"), [pytest.param(*pair, marks=[] if pair in ONCE else pytest.mark.slow) for pair in PAIRS]
)


def crowded(preset: str) -> Detector:
    """With every head, and every group beside those that it has."""
    own = paper_config(preset).groups
    config = tiny_preset(preset)
    others = [group for group in EVERY_GROUP.values() if type(group) not in map(type, own)]
    return scattered(tiny_preset(preset, *EVERY_HEAD, groups=(*config.groups, *others)))


def parts_of(losses: Iterable[str]) -> set[str]:
    """What the losses are of: `decoder`, `encoder`, `queries.atss`, `atss`, `hybrid`."""
    return {name.split("/")[0].rsplit(".", 1)[0] for name in losses}


def test_each_preset_and_each_head_come_once() -> None:
    assert {preset for preset, _ in ONCE} == set(PRESETS) and {head for _, head in ONCE} == set(EVERY_HEAD)


def assert_same(found: list[Detections], expected: list[Detections]) -> None:
    for own, other in zip(found, expected, strict=True):
        assert torch.equal(own.boxes_xyxy, other.boxes_xyxy) and torch.equal(own.scores, other.scores)


# ---- every pair ---------------------------------------------------------------------------------------------------


@EVERY_PAIR
def test_all_of_a_pair_learns_from_a_batch(preset: str, head: str) -> None:
    """One image of which is empty."""
    assert_all_learns(scattered(tiny_preset(preset, head)), batch_of())


@EACH_ONCE_OR_SLOWLY
def test_a_pair_takes_a_batch_without_objects(preset: str, head: str) -> None:
    detector = scattered(tiny_preset(preset, head))
    total, losses = learn(detector, batch_of(WITHOUT))
    weighted = torch.stack([detector.loss_weights[name] * loss for name, loss in losses.items()])
    torch.testing.assert_close(total, weighted.sum())
    assert losses.keys() == detector.loss_weights.keys() and torch.isfinite(weighted).all()
    groups = {"denoising", "hybrid", "replicas"} & parts_of(losses)
    assert len(groups) == len(detector.groups)
    encoder = {"encoder"} if detector.config.two_stage else set()
    assert parts_of(losses) == {"decoder", head, f"queries.{head}", *encoder, *groups}


@EACH_ONCE_OR_SLOWLY
def test_a_pair_detects_and_is_the_same_after_a_reload(preset: str, head: str) -> None:
    detector, other = (scattered(tiny_preset(preset, head), seed).eval() for seed in (0, 1))
    batch = batch_of()
    found = detector.detect_branches(batch, ("decoder", head), 20)
    for branch in found.values():
        for detections, (height, width) in zip(branch, SIZES, strict=True):
            assert 0 < len(detections.scores) <= 20 and torch.isfinite(detections.scores).all()
            corners = detections.boxes_xyxy.view(-1, 2)
            assert (corners >= 0).all() and (corners <= torch.tensor([width, height])).all()
    other.load_state_dict(detector.state_dict())
    for name, branch in other.detect_branches(batch, ("decoder", head), 20).items():
        assert_same(branch, found[name])


# ---- all at once --------------------------------------------------------------------------------------------------


@EVERY_PRESET
def test_all_learns_with_every_head_and_every_group(preset: str) -> None:
    """Thus DINO with all heads at once, and hybrid, replica and denoising queries side by side."""
    detector = crowded(preset)
    assert_all_learns(detector, batch_of())
    own = {*EVERY_HEAD, *(f"queries.{head}" for head in EVERY_HEAD), *EVERY_GROUP, "decoder"}
    assert parts_of(detector.loss_weights) - {"encoder"} == own


@EVERY_PRESET
def test_all_learns_without_a_head(preset: str) -> None:
    detector, batch = scattered(tiny_preset(preset)), batch_of()
    assert_all_learns(detector, batch)
    assert_same(detector.eval().detect(batch), detector.detect_branches(batch, ("decoder",))["decoder"])


@EVERY_PRESET
def test_heads_and_groups_change_nothing_of_what_is_beside_them(preset: str) -> None:
    """Neither losses, except those of which chance decides, nor detections."""
    among, alone = crowded(preset).eval(), scattered(tiny_preset(preset)).eval()
    weights = among.state_dict()
    state = {name: weights[name][: len(value)] for name, value in alone.state_dict().items()}  # its own ranks
    alone.load_state_dict(state)
    batch = batch_of()

    def losses(detector: Detector, seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        with torch.no_grad():
            found: dict[str, Tensor] = detector(batch)[1]
        return found

    expected, other, beside = losses(alone, 0), losses(alone, 1), losses(among, 0)
    certain = {name for name, loss in expected.items() if torch.equal(loss, other[name])}
    assert {"decoder", "encoder", "hybrid", "replicas"} & parts_of(expected) <= parts_of(certain)
    for name in certain:
        torch.testing.assert_close(beside[name], expected[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n} {m}")
    for own, wanted in zip(among.detect(batch), alone.detect(batch), strict=True):
        torch.testing.assert_close(own.scores, wanted.scores)
        torch.testing.assert_close(own.boxes_xyxy, wanted.boxes_xyxy, rtol=1e-4, atol=1e-4)


@EACH_ONCE
def test_half_precision_is_finite(preset: str, head: str) -> None:
    detector = scattered(tiny_preset(preset, head))
    with torch.autocast("cpu", torch.bfloat16):
        total, losses = detector(batch_of())
    total.backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)


# ---- checkpoints and ranks ----------------------------------------------------------------------------------------


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the ranks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@EACH_ONCE_OR_SLOWLY
def test_a_training_goes_on_from_its_checkpoint(preset: str, head: str, tmp_path: Path) -> None:
    """After its first step; it ends as one that went through."""
    whole = train_pair(preset, head, dropout=0.1)
    first = train_pair(preset, head, dropout=0.1, folder=str(tmp_path), stop=1)
    torch.manual_seed(99)  # a new process has any random state
    rest = train_pair(preset, head, dropout=0.1, folder=str(tmp_path), start=1)
    assert first["losses"] + rest["losses"] == whole["losses"]
    assert all(np.array_equal(value, rest["weights"][name]) for name, value in whole["weights"].items())


@EACH_ONCE
def test_losses_and_gradients_of_shares_add_up(preset: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = scattered(tiny_preset(preset, head))

    def learned(batch: Batch) -> dict[str, Tensor]:
        torch.manual_seed(int(batch.image_ids[0]))  # another state on each rank
        detector.zero_grad()
        _, losses = learn(detector, batch)
        gradients = {f"gradient of {name}": p.grad for name, p in detector.named_parameters() if p.grad is not None}
        return losses | {name: gradient.clone() for name, gradient in gradients.items()}

    whole, sums = losses_by_share(learned, batch_of(), monkeypatch)
    assert whole.keys() == sums.keys()
    for name, value in whole.items():
        torch.testing.assert_close(sums[name], value.detach(), rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_ranks_train_every_pair_as_one_process_does() -> None:
    """To rounding; but AdamW divides even the smallest gradients by themselves, which later steps show large."""
    together = run_ranks(2, train_pairs, (PAIRS,), report=lambda event: None, should_stop=lambda: False)
    for pair, found in zip(PAIRS, together, strict=True):
        alone = train_pair(*pair)
        for step, (own, other) in enumerate(zip(found["losses"], alone["losses"], strict=True)):
            assert own == pytest.approx(other, rel=1e-3 if step else 1e-4, abs=1e-5), (pair, step)
        for name, weights in alone["weights"].items():
            difference = np.abs(found["weights"][name] - weights)
            assert (difference > 2e-4).mean() < 0.01 and difference.max() < 2e-3, f"{pair}: {name}"


def trial_of(preset: str, head: str) -> Trial:
    options = (f"model.preset={preset}", f"model.heads=[{head}]", "data.digits.num_train=4", "data.digits.num_val=2")
    return open_grid(QUICKSTART, "digits_fast", (*options, "train.batch_size=2")).trials[0]


def left_by(store: RunStore, trial: Trial) -> tuple[Any, ...]:
    """All of a finished trial that does not tell the time."""
    record, folder = store.read(trial.trial_id) or {}, store.dir(trial.trial_id)
    assert record["status"] == "finished"
    files = [(folder / name).read_bytes() for name in ("detections.json", f"checkpoint/{WEIGHTS}")]
    return record["metrics"], timeless(record["history"]), *files


@pytest.mark.slow
@EACH_ONCE
def test_a_trial_that_is_stopped_after_a_step_ends_the_same(preset: str, head: str, tmp_path: Path) -> None:
    trial, whole, stopped = trial_of(preset, head), RunStore(tmp_path / "whole"), RunStore(tmp_path / "stopped")
    run_trial(trial, whole, report=silent)
    asked = iter(range(100))
    with pytest.raises(Interrupted, match="stopped at step 1 of 4"):
        run_trial(trial, stopped, report=silent, should_stop=lambda: next(asked) >= 0)
    run_trial(trial, stopped, report=silent)
    assert left_by(stopped, trial) == left_by(whole, trial)


# ---- analyses -----------------------------------------------------------------------------------------------------

ALL_ANALYSES = AnalyseConfig(metrics=("conflict", "discriminability", "queries"))
DATA = DataConfig(eval_short_side=64, max_long_side=128)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """Four images of other sizes, one of them empty, one with a crowd."""
    folder = tmp_path_factory.mktemp("photographs")
    write_split(folder, "val", tables(1))
    return CocoDataset(folder, "val")


@EACH_ONCE
def test_every_analysis_of_a_detector(preset: str, head: str, photographs: CocoDataset) -> None:
    """Each has numbers, of the decoder, the head and all pairs of them."""
    detector = scattered(tiny_preset(preset, head)).eval()
    found = analyse(detector, photographs, DATA, ALL_ANALYSES, "cpu", batch_size=4)
    expected = {f"conflict/{head}", "discriminability/encoder_auc", "discriminability/attention_auc"}
    assert {*expected, f"queries/{head}/positives_per_gt", "queries/decoder/positives_per_gt"} <= found.scalars.keys()
    assert all(value is not None and np.isfinite(value) for value in found.scalars.values())
    assert found.scalars[f"conflict/{head}"] > 0  # type: ignore[operator]


@EACH_ONCE
def test_the_matching_of_a_detector_is_followed(preset: str, head: str) -> None:
    """Its queries are told apart, and moved weights match others."""
    detector, batch = scattered(tiny_preset(preset, head)).eval(), batch_of()

    def matching() -> Tensor:
        found: Tensor = detector.detect_and_match(batch, ("decoder", head))[1]
        return found

    before = matching()
    assert all(len(set(sources)) == len(sources) for sources in before[:, 1].tolist())
    assert instabilities(before, matching()) == {"instability": 0, "instability_gt": 0}
    for parameter in detector.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    moved: dict[str, Any] = instabilities(before, matching())
    assert moved["instability"] > 0
