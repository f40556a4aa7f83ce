"""One trial: build → train → evaluate → record, in that order.

`run_trial` continues from the trial's own checkpoint if there is one, writes the record after every epoch, and leaves
a true status behind whatever happens: finished, failed with the reason, or interrupted.
"""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from harness.analyse.instability import instabilities
from harness.build import Report, TrialState, build_trial, check_ranks, choose_device, peak_memory_mb
from harness.errors import OutOfMemory, RankLost
from harness.evaluate import evaluate, evaluator_version
from harness.launch import run_ranks
from harness.memory import explain_out_of_memory
from harness.ranks import ALONE, Ranks, join
from harness.results import RunStore, provenance, write_atomic
from harness.train import drop_checkpoints, save_checkpoint, save_weights, train_step
from model.ops import implementation
from model.types import Batch

if TYPE_CHECKING:
    from harness.grid import Trial

CHECKPOINT_SECONDS = 60.0  # between checkpoints inside an epoch
REPORT_SECONDS = 2.0  # between progress events


class Interrupted(Exception):  # noqa: N818 - an outcome, not an error
    """The trial was asked to stop and has left a checkpoint."""


def run_trial(
    trial: Trial, store: RunStore, *, report: Report, should_stop: Callable[[], bool] | None = None
) -> dict[str, Any]:
    """Train, evaluate and record one trial, from its checkpoint if there is one; by `trial.runtime.ranks` processes.

    Args:
        trial: what to run.
        store: where its record and checkpoint live.
        report: called with progress events (dicts with `kind` "step", "epoch" or "done").
        should_stop: asked between steps; when true the trial leaves a checkpoint and ends as interrupted.

    Returns:
        The record (see `harness.results`).

    Raises:
        Interrupted: after leaving a checkpoint.
        RankLost: one of its processes was killed; the trial can be run again.
        Exception: what went wrong; the record says `failed` and why, log.txt holds the traceback.
    """
    should_stop = should_stop or (lambda: False)
    try:
        if trial.runtime.ranks == 1:
            return _work(trial, store, report, should_stop)
        check_ranks(trial)
        job = trial, str(store.root)
        return run_ranks(trial.runtime.ranks, _work_as_rank, job, report=report, should_stop=should_stop)
    except (Interrupted, KeyboardInterrupt):
        _mark(trial, store, "interrupted")
        raise
    except RankLost as error:
        _mark(trial, store, "interrupted", str(error))
        raise
    except Exception as error:
        plain = isinstance(error, OutOfMemory)  # its text says all
        last = (str(error) if plain else f"{type(error).__name__}: {error}").splitlines()[0]
        write_atomic(store.dir(trial.trial_id) / "log.txt", traceback.format_exc())
        _mark(trial, store, "failed", last)
        raise


def _work(
    trial: Trial, store: RunStore, report: Report, should_stop: Callable[[], bool], ranks: Ranks = ALONE
) -> dict[str, Any]:
    """The trial, or one rank's part in it. The first rank leaves records; what goes wrong is marked by the caller."""
    state = None
    try:
        state = build_trial(trial, store, report, should_stop, ranks)
        _write_record(state, "running")
        while state.progress.epoch < state.epochs:
            train_epoch(state)
            finish_epoch(state)
        return finish(state)
    except (RuntimeError, MemoryError) as error:
        explanation = explain_out_of_memory(error, trial, None if state is None else state.progress.step)
        if explanation is None:
            raise
        raise OutOfMemory(explanation) from error


def _work_as_rank(
    rank: int,
    size: int,
    meeting_file: str,
    trial: Trial,
    root: str,
    *,
    report: Report,
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    """What a process of several does (see `harness.launch`)."""
    torch.set_num_threads(max(1, math.floor(trial.runtime.cpus_per_trial / size)))
    ranks = join(rank, size, meeting_file, choose_device(trial.runtime.device, rank))
    return _work(trial, RunStore(root), report, lambda: ranks.any(should_stop()), ranks)


def _mark(trial: Trial, store: RunStore, status: str, error: str | None = None) -> None:
    fields = {name: value for name, value in _identity(trial).items() if name != "trial_id"}
    store.mark(trial.trial_id, status, error, **fields)


# ---- train --------------------------------------------------------------------------------------------------------


def train_epoch(state: TrialState) -> None:
    """The steps of the current epoch that are not done yet."""
    progress, config = state.progress, state.trial.config.train
    state.detector.train()
    first_step = progress.epoch * state.steps_per_epoch
    done = progress.step - first_step
    batches = state.train_loader.epoch(progress.epoch, start_batch=done * config.accumulate_steps)
    reported = saved = mark = time.monotonic()
    mark_step = progress.step
    for count, parts in enumerate(_in_groups(batches, config.accumulate_steps)):
        state.ranks.seed_own(state.trial.config.seed, progress.step)
        losses = train_step(
            state.detector,
            [part.to(state.device) for part in parts],
            state.optimizer,
            config,
            step=progress.step,
            total_steps=state.total_steps,
            steps_per_epoch=state.steps_per_epoch,
            ranks=state.ranks,
        )
        progress.step += 1
        for name, value in losses.items():
            progress.loss_sums[name] = progress.loss_sums.get(name, 0.0) + value
        now = time.monotonic()
        if now - reported >= REPORT_SECONDS or count == 0:
            seconds_per_step = (now - mark) / (progress.step - mark_step)
            state.report(_step_event(state, losses["total"], seconds_per_step))
            reported = now
        last = progress.step == first_step + state.steps_per_epoch
        stopping = state.should_stop()
        if stopping or (now - saved >= CHECKPOINT_SECONDS and not last):
            progress.train_seconds += now - mark
            mark, mark_step = now, progress.step
            _save(state)
            saved = time.monotonic()
            if stopping:
                state.ranks.wait()  # until the first has saved
                raise Interrupted(f"stopped at step {progress.step} of {state.total_steps}")
    progress.train_seconds += time.monotonic() - mark


def _in_groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while group := list(islice(batches, size)):
        yield group


def _step_event(state: TrialState, loss: float, seconds_per_step: float) -> dict[str, Any]:
    progress, trial = state.progress, state.trial
    left = state.total_steps - progress.step
    epochs_left = state.epochs - progress.epoch
    seconds_per_evaluation = progress.eval_seconds / progress.epoch if progress.epoch else 0.0
    return {
        "kind": "step",
        "trial_id": trial.trial_id,
        "label": trial.label,
        "epoch": progress.epoch + 1,
        "epochs": state.epochs,
        "step": progress.step,
        "total_steps": state.total_steps,
        "loss": loss,
        "seconds_per_step": seconds_per_step,
        "eta_seconds": left * seconds_per_step + epochs_left * seconds_per_evaluation,
    }


# ---- evaluate and record ------------------------------------------------------------------------------------------


def finish_epoch(state: TrialState) -> None:
    """Evaluate, write the epoch's metrics and the record, and leave a checkpoint."""
    progress, config = state.progress, state.trial.config
    steps = progress.step - progress.epoch * state.steps_per_epoch
    means = {name: value / max(steps, 1) for name, value in progress.loss_sums.items()}
    progress.epoch += 1
    entry: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step, "loss": means.pop("total", None)}
    if progress.epoch % config.evaluate.every_epochs == 0 or progress.epoch == state.epochs:
        started = time.monotonic()
        found = evaluate(
            state.detector,
            state.val_loader,
            state.val_data,
            config.evaluate,
            state.device,
            on_batch=_evaluation_reporter(state, entry["loss"] or 0.0),
            ranks=state.ranks,
        )
        progress.eval_seconds += time.monotonic() - started
        entry |= found.metrics
        if state.ranks.is_first:
            entry |= instabilities(progress.matching, found.matching)
            progress.matching = found.matching
            write_atomic(state.folder / "detections.json", json.dumps(found.detections))
            write_atomic(state.folder / "per_class.json", json.dumps(found.per_class))
    entry |= {"seconds": progress.train_seconds + progress.eval_seconds, "losses": means}
    progress.loss_sums = {}
    progress.history.append(entry)
    if state.ranks.is_first:
        state.store.append_metrics(state.trial.trial_id, entry)
    _write_record(state, "running")
    _save(state)
    event = _step_event(state, entry["loss"] or 0.0, progress.train_seconds / max(progress.step, 1))
    state.report({**event, **entry, "kind": "epoch", "epoch": progress.epoch})
    if state.should_stop() and progress.epoch < state.epochs:
        state.ranks.wait()
        raise Interrupted(f"stopped after epoch {progress.epoch}")


def _evaluation_reporter(state: TrialState, loss: float) -> Callable[[int, int], None]:
    """Signs of life during a long evaluation."""
    seconds_per_step = state.progress.train_seconds / max(state.progress.step, 1)
    reported = time.monotonic()

    def on_batch(done: int, count: int) -> None:
        nonlocal reported
        if time.monotonic() - reported >= REPORT_SECONDS:
            reported = time.monotonic()
            event = _step_event(state, loss, seconds_per_step)
            state.report({**event, "kind": "evaluate", "epoch": state.progress.epoch, "evaluated": done / count})

    return on_batch


def finish(state: TrialState) -> dict[str, Any]:
    """Keep the weights, write the final record, drop what only a continuation would need."""
    if not state.ranks.is_first:
        return {}
    save_weights(state.folder / "checkpoint", state.detector)
    record = _write_record(state, "finished")
    drop_checkpoints(state.folder / "checkpoint")
    state.report({**record["history"][-1], "kind": "done", "trial_id": record["trial_id"], "label": record["label"]})
    return record


def _save(state: TrialState) -> None:
    _update_clock(state)
    if not state.ranks.is_first:
        return
    state.ranks.return_random_state()
    save_checkpoint(state.folder / "checkpoint", state.detector, state.optimizer, state.progress)


def _update_clock(state: TrialState) -> None:
    progress, now = state.progress, time.monotonic()
    progress.wall_seconds += now - state.clock
    state.clock = now
    progress.peak_memory_mb = max(progress.peak_memory_mb, peak_memory_mb(state.device))


def _identity(trial: Trial) -> dict[str, Any]:
    """The part of a record that is known before anything ran."""
    from harness.grid import config_to_dict

    return {
        "schema": 1,
        "trial_id": trial.trial_id,
        "label": trial.label,
        "config": config_to_dict(trial.config),
        "fingerprint": trial.fingerprint,
        "factors": dict(trial.factors),
    }


def _write_record(state: TrialState, status: str) -> dict[str, Any]:
    _update_clock(state)
    if not state.ranks.is_first:
        return {}
    trial, progress = state.trial, state.progress
    evaluated = [entry for entry in progress.history if "AP" in entry]
    bookkeeping = ("epoch", "step", "loss", "losses", "seconds")
    metrics = {k: v for k, v in evaluated[-1].items() if k not in bookkeeping} if evaluated else {}
    per_class = state.folder / "per_class.json"
    seconds = progress.train_seconds + progress.eval_seconds
    record = {
        **_identity(trial),
        "status": status,
        "metrics": metrics,
        "history": progress.history,
        "per_class": json.loads(per_class.read_text()) if evaluated and per_class.exists() else {},
        "cost": {
            "train_seconds": progress.train_seconds,
            "eval_seconds": progress.eval_seconds,
            "wall_seconds": progress.wall_seconds,
            "seconds_per_step": progress.train_seconds / progress.step if progress.step else None,
            "peak_memory_mb": progress.peak_memory_mb,
            "num_parameters": sum(p.numel() for p in state.detector.parameters()),
            "device_hours": seconds / 3600 * max(trial.runtime.gpus_per_trial, 1.0),
        },
        "provenance": provenance()
        | {
            "device": torch.cuda.get_device_name() if state.device.type == "cuda" else "cpu",
            "ops": implementation(state.device),
            "evaluator": evaluator_version(trial.config.evaluate.evaluator),
            "area_bounds": list(state.val_data.area_bounds),
            "threads": torch.get_num_threads(),
            "ranks": state.ranks.size,
        },
        "error": None,
        "started": state.started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds") if status == "finished" else None,
    }
    state.store.write_result(trial.trial_id, record)
    return record
