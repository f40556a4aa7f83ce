"""One trial: build → train → evaluate → record, in that order.

`run_trial` continues from the trial's own checkpoint if there is one, writes the record after every epoch, and leaves
a true status behind whatever happens: finished, failed with the reason, or interrupted.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from harness.evaluate import evaluate, evaluator_version
from harness.results import RunStore, provenance, write_atomic
from harness.session import Report, Session, build_session, peak_memory_mb
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
    """Train, evaluate and record one trial, from its checkpoint if there is one.

    Args:
        trial: what to run.
        store: where its record and checkpoint live.
        report: called with progress events (dicts with `kind` "step", "epoch" or "done").
        should_stop: asked between steps; when true the trial leaves a checkpoint and ends as interrupted.

    Returns:
        The record (see `harness.results`).

    Raises:
        Interrupted: after leaving a checkpoint.
        Exception: what went wrong; the record says `failed` and why, log.txt holds the traceback.
    """
    try:
        session = build_session(trial, store, report, should_stop or (lambda: False))
        _write_record(session, "running")
        while session.progress.epoch < session.epochs:
            train_epoch(session)
            finish_epoch(session)
        return finish(session)
    except (Interrupted, KeyboardInterrupt):
        _mark(trial, store, "interrupted")
        raise
    except Exception as error:
        last = f"{type(error).__name__}: {error}".splitlines()[0]
        write_atomic(store.dir(trial.trial_id) / "log.txt", traceback.format_exc())
        _mark(trial, store, "failed", last)
        raise


def _mark(trial: Trial, store: RunStore, status: str, error: str | None = None) -> None:
    fields = {name: value for name, value in _identity(trial).items() if name != "trial_id"}
    store.mark(trial.trial_id, status, error, **fields)


# ---- train --------------------------------------------------------------------------------------------------------


def train_epoch(session: Session) -> None:
    """The steps of the current epoch that are not done yet."""
    progress, config = session.progress, session.trial.config.train
    session.detector.train()
    first_step = progress.epoch * session.steps_per_epoch
    done = progress.step - first_step
    batches = session.train_loader.epoch(progress.epoch, start_batch=done * config.accumulate_steps)
    reported = saved = mark = time.monotonic()
    mark_step = progress.step
    for count, parts in enumerate(_in_groups(batches, config.accumulate_steps)):
        losses = train_step(
            session.detector,
            [part.to(session.device) for part in parts],
            session.optimizer,
            config,
            step=progress.step,
            total_steps=session.total_steps,
            steps_per_epoch=session.steps_per_epoch,
        )
        progress.step += 1
        for name, value in losses.items():
            progress.loss_sums[name] = progress.loss_sums.get(name, 0.0) + value
        now = time.monotonic()
        if now - reported >= REPORT_SECONDS or count == 0:
            seconds_per_step = (now - mark) / (progress.step - mark_step)
            session.report(_step_event(session, losses["total"], seconds_per_step))
            reported = now
        last = progress.step == first_step + session.steps_per_epoch
        if session.should_stop() or (now - saved >= CHECKPOINT_SECONDS and not last):
            progress.train_seconds += now - mark
            mark, mark_step = now, progress.step
            _save(session)
            saved = time.monotonic()
            if session.should_stop():
                raise Interrupted(f"stopped at step {progress.step} of {session.total_steps}")
    progress.train_seconds += time.monotonic() - mark


def _in_groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while group := list(islice(batches, size)):
        yield group


def _step_event(session: Session, loss: float, seconds_per_step: float) -> dict[str, Any]:
    progress, trial = session.progress, session.trial
    left = session.total_steps - progress.step
    epochs_left = session.epochs - progress.epoch
    seconds_per_evaluation = progress.eval_seconds / progress.epoch if progress.epoch else 0.0
    return {
        "kind": "step",
        "trial_id": trial.trial_id,
        "label": trial.label,
        "epoch": progress.epoch + 1,
        "epochs": session.epochs,
        "step": progress.step,
        "total_steps": session.total_steps,
        "loss": loss,
        "seconds_per_step": seconds_per_step,
        "eta_seconds": left * seconds_per_step + epochs_left * seconds_per_evaluation,
    }


# ---- evaluate and record ------------------------------------------------------------------------------------------


def finish_epoch(session: Session) -> None:
    """Evaluate, write the epoch's metrics and the record, and leave a checkpoint."""
    progress, config = session.progress, session.trial.config
    steps = progress.step - progress.epoch * session.steps_per_epoch
    means = {name: value / max(steps, 1) for name, value in progress.loss_sums.items()}
    progress.epoch += 1
    entry: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step, "loss": means.pop("total", None)}
    if progress.epoch % config.evaluate.every_epochs == 0 or progress.epoch == session.epochs:
        started = time.monotonic()
        metrics, per_class, detections = evaluate(
            session.detector,
            session.val_loader,
            session.val_data,
            config.evaluate,
            session.device,
            on_batch=_evaluation_reporter(session, entry["loss"] or 0.0),
        )
        progress.eval_seconds += time.monotonic() - started
        entry |= metrics
        write_atomic(session.folder / "detections.json", json.dumps(detections))
        write_atomic(session.folder / "per_class.json", json.dumps(per_class))
    entry |= {"seconds": progress.train_seconds + progress.eval_seconds, "losses": means}
    progress.loss_sums = {}
    progress.history.append(entry)
    session.store.append_metrics(session.trial.trial_id, entry)
    _write_record(session, "running")
    _save(session)
    event = _step_event(session, entry["loss"] or 0.0, progress.train_seconds / max(progress.step, 1))
    session.report({**event, **entry, "kind": "epoch", "epoch": progress.epoch})
    if session.should_stop() and progress.epoch < session.epochs:
        raise Interrupted(f"stopped after epoch {progress.epoch}")


def _evaluation_reporter(session: Session, loss: float) -> Callable[[int, int], None]:
    """Signs of life during a long evaluation."""
    seconds_per_step = session.progress.train_seconds / max(session.progress.step, 1)
    reported = time.monotonic()

    def on_batch(done: int, count: int) -> None:
        nonlocal reported
        if time.monotonic() - reported >= REPORT_SECONDS:
            reported = time.monotonic()
            event = _step_event(session, loss, seconds_per_step)
            session.report({**event, "kind": "evaluate", "epoch": session.progress.epoch, "evaluated": done / count})

    return on_batch


def finish(session: Session) -> dict[str, Any]:
    """Keep the weights, write the final record, drop what only a continuation would need."""
    save_weights(session.folder / "checkpoint", session.detector)
    record = _write_record(session, "finished")
    drop_checkpoints(session.folder / "checkpoint")
    session.report({**record["history"][-1], "kind": "done", "trial_id": record["trial_id"], "label": record["label"]})
    return record


def _save(session: Session) -> None:
    _update_clock(session)
    save_checkpoint(session.folder / "checkpoint", session.detector, session.optimizer, session.progress)


def _update_clock(session: Session) -> None:
    progress, now = session.progress, time.monotonic()
    progress.wall_seconds += now - session.clock
    session.clock = now
    progress.peak_memory_mb = max(progress.peak_memory_mb, peak_memory_mb(session.device))


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


def _write_record(session: Session, status: str) -> dict[str, Any]:
    _update_clock(session)
    trial, progress = session.trial, session.progress
    evaluated = [entry for entry in progress.history if "AP" in entry]
    bookkeeping = ("epoch", "step", "loss", "losses", "seconds")
    metrics = {k: v for k, v in evaluated[-1].items() if k not in bookkeeping} if evaluated else {}
    per_class = session.folder / "per_class.json"
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
            "num_parameters": sum(p.numel() for p in session.detector.parameters()),
            "device_hours": seconds / 3600 * max(trial.runtime.gpus_per_trial, 1.0),
        },
        "provenance": provenance()
        | {
            "device": torch.cuda.get_device_name() if session.device.type == "cuda" else "cpu",
            "ops": implementation(session.device),
            "evaluator": evaluator_version(trial.config.evaluate.evaluator),
            "area_bounds": list(session.val_data.area_bounds),
            "threads": torch.get_num_threads(),
        },
        "error": None,
        "started": session.started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds") if status == "finished" else None,
    }
    session.store.write_result(trial.trial_id, record)
    return record
