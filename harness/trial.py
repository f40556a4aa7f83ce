"""One trial: build → train → evaluate → analyse → record, in that order.

`run_trial` continues from the trial's own checkpoint if there is one, writes the record after every epoch, and leaves
a true status behind whatever happens: finished, failed with the reason, or interrupted.
"""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from harness.analyse import Analysed, analyse, write_tables
from harness.analyse.instability import instabilities
from harness.build import (
    Report,
    TrialState,
    build_trial,
    check_ranks,
    choose_device,
    peak_memory_mb,
    reset_peak_memory,
)
from harness.errors import OutOfMemory, RankLost
from harness.evaluate import Evaluation, evaluate, evaluator_version
from harness.launch import run_ranks
from harness.lease import LeaseLost
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
        LeaseLost: another process has taken the trial over; the record is its own now.
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
    except LeaseLost:
        raise
    except Exception as error:
        plain = isinstance(error, OutOfMemory)  # its text says all
        last = (str(error) if plain else f"{type(error).__name__}: {error}").splitlines()[0]
        with suppress(OSError):  # what went wrong may be the storage: then say as much as it takes
            write_atomic(store.dir(trial.trial_id) / "log.txt", traceback.format_exc())
        with suppress(OSError):
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
        analyse_trial(state)
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
    """Evaluate, leave a checkpoint, and from then on the epoch's metrics and the record.

    The checkpoint comes first: what a killed process had told of an epoch is never undone by its continuation.
    """
    progress, config = state.progress, state.trial.config
    epoch, steps = progress.epoch + 1, progress.step - progress.epoch * state.steps_per_epoch
    means = {name: value / max(steps, 1) for name, value in progress.loss_sums.items()}
    entry: dict[str, Any] = {"epoch": epoch, "step": progress.step, "loss": means.pop("total", None)}
    if epoch % config.evaluate.every_epochs == 0 or epoch == state.epochs:
        started = time.monotonic()
        found = _evaluate(state, entry["loss"])
        progress.eval_seconds += time.monotonic() - started
        entry |= found.metrics
        if state.ranks.is_first:
            entry |= instabilities(progress.matching, found.matching)
            progress.matching = found.matching
            write_atomic(state.folder / "detections.json", json.dumps(found.detections))
            write_atomic(state.folder / "per_class.json", json.dumps(found.per_class))
    progress.epoch, progress.loss_sums = epoch, {}
    every = state.trial.analyse.every_epochs
    if state.ranks.is_first and every and epoch % every == 0 and epoch < state.epochs:
        analysed = run_analysis(state, entry["loss"])
        entry |= analysed.scalars if analysed else {}
    entry |= {"seconds": progress.train_seconds + progress.eval_seconds, "losses": means}
    progress.history.append(entry)
    _save(state)
    if state.ranks.is_first:
        state.store.append_metrics(state.trial.trial_id, entry)
    _write_record(state, "running")
    event = _step_event(state, entry["loss"] or 0.0, progress.train_seconds / max(progress.step, 1))
    state.report({**event, **entry, "kind": "epoch", "epoch": progress.epoch})
    if state.should_stop() and progress.epoch < state.epochs:
        state.ranks.wait()
        raise Interrupted(f"stopped after epoch {progress.epoch}")


def _evaluate(state: TrialState, loss: float | None) -> Evaluation:
    """Evaluate without moving the random state; when asked to stop, give up and leave the epoch's last step."""
    tell = _share_reporter(state, "evaluate", loss)

    def on_batch(done: int, count: int) -> None:
        if state.ranks.size == 1 and state.should_stop():  # ranks have different numbers of batches to ask after
            raise Interrupted(f"stopped while epoch {state.progress.epoch + 1} was evaluated")
        tell(done, count)

    devices = [state.device] if state.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            return evaluate(
                state.detector,
                state.val_loader,
                state.val_data,
                state.trial.config.evaluate,
                state.device,
                on_batch=on_batch,
                ranks=state.ranks,
            )
    except Interrupted:
        _save(state)
        raise


def _share_reporter(state: TrialState, kind: str, loss: float | None = None) -> Callable[[int, int], None]:
    """Signs of life during a long evaluation or analysis: events with the share that is `evaluated` or `analysed`."""
    seconds_per_step = state.progress.train_seconds / max(state.progress.step, 1)
    reported = time.monotonic()

    def on_batch(done: int, count: int) -> None:
        nonlocal reported
        if time.monotonic() - reported >= REPORT_SECONDS:
            reported = time.monotonic()
            event = _step_event(state, loss or 0.0, seconds_per_step)
            state.report({**event, "kind": kind, "epoch": state.progress.epoch, f"{kind}d": done / count})

    return on_batch


# ---- analyse ------------------------------------------------------------------------------------------------------


def analyse_trial(state: TrialState) -> None:
    """What the trial was asked to find out about its detector: tables in `analysis/`, numbers with the last epoch's.

    The last checkpoint is already written, so a trial that is stopped here only analyses again.
    """
    if not state.ranks.is_first:
        return
    last = state.progress.history[-1]
    alone = state.ranks.size == 1  # the others do not ask whether to stop meanwhile
    found = run_analysis(state, last["loss"], state.should_stop if alone else lambda: False)
    if found is None:
        return
    write_tables(found, state.folder / "analysis")
    _draw(state, found)
    last |= found.scalars
    state.analysis = found.for_record(state.trial.analyse)
    line = state.store.metrics(state.trial.trial_id)[-1]  # with its time
    state.store.append_metrics(state.trial.trial_id, line | found.scalars)


def _draw(state: TrialState, found: Analysed) -> None:
    """The figures beside the tables. A figure that fails is drawn later by `codetr analyse`."""
    from harness.report.trial_figures import save_trial_figures

    detections = json.loads((state.folder / "detections.json").read_text())
    try:
        save_trial_figures(
            state.folder / "analysis",
            state.trial.label,
            found.tables,
            maps=found.maps,
            examples=found.examples,
            history=state.progress.history,
            dataset=state.val_data,
            detections=detections,
        )
    except Exception as error:  # noqa: BLE001 - as in run_analysis
        message = f"figures of the analysis failed: {type(error).__name__}: {error}"
        trial = state.trial
        state.report({"kind": "warning", "trial_id": trial.trial_id, "label": trial.label, "message": message})


def run_analysis(
    state: TrialState, loss: float | None, should_stop: Callable[[], bool] = lambda: False
) -> Analysed | None:
    """Analyse the detector as it is; None where nothing is asked for, or where it fails.

    A training is worth more than its analysis: what goes wrong becomes a warning and a note in the record, and
    `codetr analyse` can be tried later. Neither the training nor its costs notice.
    """
    trial, progress, settings = state.trial, state.progress, state.trial.analyse
    if not settings.metrics:
        return None
    state.analysis = {**settings.as_dict(), "epoch": progress.epoch, "error": None}
    _update_clock(state)
    tell = _share_reporter(state, "analyse", loss)

    def on_batch(done: int, count: int) -> None:
        if should_stop():
            raise Interrupted("stopped while analysing; the training is done")
        tell(done, count)

    try:
        return analyse(
            state.detector,
            state.val_data,
            trial.config.data,
            settings,
            state.device,
            batch_size=2 * state.val_loader.batch_size,  # without the backbone's and the encoder's graph
            num_workers=trial.runtime.num_workers,
            epoch=progress.epoch,
            on_batch=on_batch,
        )
    except Interrupted:
        raise
    except Exception as error:
        state.analysis["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        write_atomic(state.folder / "analysis" / "error.txt", traceback.format_exc())
        message = f"the analysis failed: {state.analysis['error']}; see analysis/error.txt"
        state.report({"kind": "warning", "trial_id": trial.trial_id, "label": trial.label, "message": message})
        return None
    finally:
        reset_peak_memory(state.device)


# ---- record -------------------------------------------------------------------------------------------------------


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
    state.store.check_lease(state.trial.trial_id)
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
        "analysis": state.analysis,
        "error": None,
        "started": state.started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds") if status == "finished" else None,
    }
    state.store.write_result(trial.trial_id, record)
    return record
