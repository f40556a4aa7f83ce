"""What a trial leaves behind and tells: checkpoints, its record, and events of its progress.

Of several ranks only the first writes. A record is written whole after every epoch, so that it always tells how far the
trial has come.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch

from harness.data.categories import Categories
from harness.files import read_bytes
from harness.spec.detection_metrics import beyond_limit, was_evaluated
from harness.spec.identity import named_parts
from harness.spec.trials import identity_fields
from harness.store.results import CHECKPOINTS
from harness.store.source import provenance
from harness.system.precision import ran_in
from harness.system.process import allocator
from harness.trial.build import TrialState, peak_memory_mb
from harness.trial.checkpoint import Progress, drop_checkpoints, save_weights, snapshot, write_checkpoint
from harness.trial.evaluate import evaluator_version
from model.linear import matrix_products
from model.ops import implementation

REPORT_SECONDS = 2.0  # between progress events


# ---- tell ---------------------------------------------------------------------------------------------------------


def step_event(state: TrialState, loss: float, seconds_per_step: float) -> dict[str, Any]:
    """How far the trial has come, and when it will be done."""
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


def share_reporter(state: TrialState, kind: str, loss: float | None = None) -> Callable[[int, int], None]:
    """Signs of life during a long evaluation or analysis: events with the share that is `evaluated` or `analysed`."""
    seconds_per_step = state.progress.train_seconds / max(state.progress.step, 1)
    reported = time.monotonic()

    def on_batch(done: int, count: int) -> None:
        nonlocal reported
        if time.monotonic() - reported >= REPORT_SECONDS:
            reported = time.monotonic()
            event = step_event(state, loss or 0.0, seconds_per_step)
            at = event["epoch"] if kind == "evaluate" else state.progress.epoch  # an analysis follows on its epoch
            state.report({**event, "kind": kind, "epoch": at, f"{kind}d": done / count})

    return on_batch


def warn(state: TrialState, message: str) -> None:
    """Tell what went wrong without harm to the trial."""
    trial = state.trial
    state.report({"kind": "warning", "trial_id": trial.trial_id, "label": trial.label, "message": message})


# ---- leave --------------------------------------------------------------------------------------------------------


def save(state: TrialState, *, wait: bool = True) -> None:
    """Leave a checkpoint of the trial as it is.

    Args:
        state: the trial.
        wait: until it is whole, for what is told then must not be undone; else the training goes on meanwhile, and
            what goes wrong is raised by `state.writer`.

    Raises:
        LeaseLost: another process has taken the trial over; its checkpoint is untouched.
        StorageError: this checkpoint, or the one before, could not be written.
    """
    check_lease(state)
    update_clock(state)
    if not state.ranks.is_first:
        return
    with counted(state.progress):
        state.ranks.return_random_state()
        began = time.monotonic()
        taken = snapshot(state.detector, state.optimizer, state.progress, state.average)
        state.writer.start(
            partial(write_checkpoint, state.folder / CHECKPOINTS, taken, partial(check_lease, state)), began
        )
        if wait:
            state.writer.wait()


def settle(state: TrialState) -> None:
    """Wait for the checkpoint that is being written; raises as `save` does."""
    with counted(state.progress):
        state.writer.wait()


def check_lease(state: TrialState) -> None:
    """Make sure that the trial is still ours to write. Raises `LeaseLost` where another process has taken it over."""
    state.store.check_lease(state.trial.trial_id)


@contextmanager
def counted(progress: Progress) -> Iterator[None]:
    """Count the time inside as that of checkpoints."""
    started = time.monotonic()
    yield
    progress.checkpoint_seconds += time.monotonic() - started


def update_clock(state: TrialState) -> None:
    """Bring the costs up to now."""
    progress, now = state.progress, time.monotonic()
    progress.wall_seconds += now - state.clock
    state.clock = now
    progress.peak_memory_mb = max(progress.peak_memory_mb, peak_memory_mb(state.device))


def write_record(state: TrialState, status: str) -> dict[str, Any]:
    """Write the record as far as the trial has come; returns it, on the first rank."""
    update_clock(state)
    if not state.ranks.is_first:
        return {}
    trial, progress = state.trial, state.progress
    evaluated = [entry for entry in progress.history if was_evaluated(entry)]
    bookkeeping = ("epoch", "step", "loss", "losses", "seconds")
    metrics = {k: v for k, v in evaluated[-1].items() if k not in bookkeeping} if evaluated else {}
    names = ("per_class", "classes")
    kept = {name: read_bytes(state.folder / f"{name}.json") if evaluated else None for name in names}
    record = {
        **identity_fields(trial),
        "status": status,
        "metrics": metrics,
        "history": progress.history,
        **{name: json.loads(text) if text is not None else {} for name, text in kept.items()},
        "cost": _cost(state),
        "provenance": provenance(named_parts(trial.config.model)) | _circumstances(state),
        "analysis": state.analysis,
        "error": None,
        "started": state.started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds") if status == "finished" else None,
    }
    state.store.write_result(trial.trial_id, record)
    return record


def _cost(state: TrialState) -> dict[str, Any]:
    progress = state.progress
    seconds = progress.train_seconds + progress.eval_seconds
    return {
        "train_seconds": progress.train_seconds,
        "eval_seconds": progress.eval_seconds,
        "checkpoint_seconds": progress.checkpoint_seconds,
        "wall_seconds": progress.wall_seconds,
        "seconds_per_step": progress.train_seconds / progress.step if progress.step else None,
        "peak_memory_mb": progress.peak_memory_mb,
        "num_parameters": sum(p.numel() for p in state.detector.parameters()),
        "device_hours": seconds / 3600 * max(state.trial.runtime.gpus_per_trial, 1.0),
    }


def _circumstances(state: TrialState) -> dict[str, Any]:
    """What the numbers may depend on besides the code."""
    protocol = state.val_data.protocol
    crowded = beyond_limit(state.val_data.objects_of_images, protocol)
    config = state.trial.config
    return {
        **_device(state.device),
        "ops": implementation(state.device),
        "precision": ran_in(config.train.precision, state.device),
        "evaluation_precision": ran_in(config.evaluate.computes_in(config.train), state.device),
        "matrix_products": matrix_products(state.device),
        "evaluator": evaluator_version(config.evaluate.evaluator),
        **({} if protocol == "coco" else {"protocol": protocol}),
        "area_bounds": list(state.val_data.area_bounds),
        "threads": torch.get_num_threads(),
        "ranks": state.ranks.size,
        **({"beyond_limit": crowded} if crowded else {}),
    }


def _device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"device": "cpu"}
    return {"device": torch.cuda.get_device_name(), "allocator": allocator()}


def finish(state: TrialState) -> dict[str, Any]:
    """Keep the weights, write the final record, drop what only a continuation would need."""
    if not state.ranks.is_first:
        return {}
    check_lease(state)
    with counted(state.progress), state.as_evaluated():
        classes = Categories(state.val_data.category_ids, state.val_data.category_names)
        save_weights(state.folder / CHECKPOINTS, state.detector, partial(check_lease, state), classes)
    record = write_record(state, "finished")
    check_lease(state)
    drop_checkpoints(state.folder / CHECKPOINTS)
    state.report({**record["history"][-1], "kind": "done", "trial_id": record["trial_id"], "label": record["label"]})
    return record
