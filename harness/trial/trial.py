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
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import Interrupted, OutOfMemory, RankLost
from harness.spec.pretrained import check_start, with_file_here
from harness.spec.trials import identity_fields
from harness.store.lease import LeaseLost
from harness.store.results import CLASSES, DETECTIONS, LOG, PER_CLASS, RunStore
from harness.system.launch import run_ranks
from harness.system.memory import explain_out_of_memory
from harness.trial.analysis import analyse_trial, run_analysis
from harness.trial.build import Report, TrialState, build_trial, check_ranks, choose_device
from harness.trial.ema import ema_momentum
from harness.trial.evaluate import Evaluation, evaluate
from harness.trial.instability import instabilities
from harness.trial.ranks import ALONE, Ranks, join
from harness.trial.record import (
    REPORT_SECONDS,
    finish,
    save,
    settle,
    share_reporter,
    step_event,
    write_record,
)
from harness.trial.train import train_step
from model.types import Batch

if TYPE_CHECKING:
    from harness.spec.grid import Trial


def run_trial(
    trial: Trial, store: RunStore, *, report: Report, should_stop: Callable[[], bool] | None = None
) -> dict[str, Any]:
    """Train, evaluate and record one trial, from its checkpoint if there is one; by `trial.runtime.ranks` processes.

    Args:
        trial: what to run.
        store: where its record and checkpoint live.
        report: called with events, dicts with `kind`: "step", "evaluate", "epoch", "analyse" and "done" are progress;
            "warning" and "data" (on what the trial starts from) bring a `message`.
        should_stop: asked between steps; when true the trial leaves a checkpoint and ends as interrupted.

    Returns:
        The record (see `harness.store.results`).

    Raises:
        Interrupted: after leaving a checkpoint.
        RankLost: one of its processes was killed; the trial can be run again.
        LeaseLost: another process has taken the trial over; the record is its own now.
        Exception: what went wrong; the record says `failed` and why, log.txt holds the traceback.
    """
    should_stop = should_stop or (lambda: False)
    try:
        trial = with_file_here(trial)
        check_start(trial, _teller(trial, report))
        if trial.runtime.ranks == 1:
            return _work(trial, store, report, should_stop)
        check_ranks(trial)
        job = trial, store  # with its fence
        return run_ranks(trial.runtime.ranks, _work_as_rank, job, report=report, should_stop=should_stop)
    except (Interrupted, KeyboardInterrupt):
        _mark(trial, store, "interrupted")
        raise
    except RankLost as error:
        with suppress(OSError):
            store.write(trial.trial_id, LOG, traceback.format_exc())
        _mark(trial, store, "interrupted", str(error))
        raise
    except LeaseLost:
        raise
    except Exception as error:
        plain = isinstance(error, OutOfMemory)  # its text says all
        last = (str(error) if plain else f"{type(error).__name__}: {error}").splitlines()[0]
        with suppress(OSError):  # what went wrong may be the storage: then say as much as it takes
            store.write(trial.trial_id, LOG, traceback.format_exc())
        with suppress(OSError):
            _mark(trial, store, "failed", last)
        raise


def _teller(trial: Trial, report: Report) -> Callable[[str], None]:
    """Lines about what the trial starts from become events."""
    event = {"kind": "data", "trial_id": trial.trial_id, "label": trial.label}
    return lambda line: report({**event, "message": line})


def _work(
    trial: Trial, store: RunStore, report: Report, should_stop: Callable[[], bool], ranks: Ranks = ALONE
) -> dict[str, Any]:
    """The trial, or one rank's part in it. The first rank leaves records; what goes wrong is marked by the caller."""
    state = None
    try:
        state = build_trial(trial, store, report, should_stop, ranks)
        write_record(state, "running")
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
    finally:
        if state is not None:
            state.writer.close()  # whoever runs the trial next finds nobody writing


def _work_as_rank(
    rank: int,
    size: int,
    meeting_file: str,
    trial: Trial,
    store: RunStore,
    *,
    report: Report,
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    """What a process of several does (see `harness.system.launch`)."""
    torch.set_num_threads(max(1, math.floor(trial.runtime.cpus_per_trial / size)))
    ranks = join(rank, size, meeting_file, choose_device(trial.runtime.device, rank))
    return _work(trial, store, report, lambda: ranks.any(should_stop()), ranks)


def _mark(trial: Trial, store: RunStore, status: str, error: str | None = None) -> None:
    store.mark(trial.trial_id, status, error, **identity_fields(trial))


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
        if state.average is not None:
            state.average.update(ema_momentum(progress.step, config))
        progress.step += 1
        for name, value in losses.items():
            progress.loss_sums[name] = progress.loss_sums.get(name, 0.0) + value
        now = time.monotonic()
        if now - reported >= REPORT_SECONDS or count == 0:
            seconds_per_step = (now - mark) / (progress.step - mark_step)
            state.report(step_event(state, losses["total"], seconds_per_step))
            reported = now
        last = progress.step == first_step + state.steps_per_epoch
        stopping = state.should_stop()
        state.writer.check()
        if stopping or (now - saved >= state.writer.interval and not last and not state.writer.is_busy):
            progress.train_seconds += now - mark
            save(state, wait=stopping)
            saved = mark = time.monotonic()  # a checkpoint is no training
            mark_step = progress.step
            if stopping:
                write_record(state, "running")  # with what the checkpoint itself took
                state.ranks.wait()  # until the first has saved
                raise Interrupted(f"stopped at step {progress.step} of {state.total_steps}")
    progress.train_seconds += time.monotonic() - mark


def _in_groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while group := list(islice(batches, size)):
        yield group


# ---- evaluate -----------------------------------------------------------------------------------------------------


def finish_epoch(state: TrialState) -> None:
    """Evaluate, leave a checkpoint, and from then on the epoch's metrics and the record.

    The checkpoint comes first: what a killed process had told of an epoch is never undone by its continuation.
    """
    settle(state)  # also because no process is forked beside a thread that writes
    progress, config = state.progress, state.trial.config
    epoch, steps = progress.epoch + 1, progress.step - progress.epoch * state.steps_per_epoch
    means = {name: value / max(steps, 1) for name, value in progress.loss_sums.items()}
    entry: dict[str, Any] = {"epoch": epoch, "step": progress.step, "loss": means.pop("total", None)}
    if epoch % config.evaluate.every_epochs == 0 or epoch == state.epochs:
        started = time.monotonic()
        found = _evaluate(state, entry["loss"], errors=epoch == state.epochs)
        progress.eval_seconds += time.monotonic() - started
        entry |= found.metrics
        if state.ranks.is_first:
            entry |= instabilities(progress.matching, found.matching)
            progress.matching = found.matching
            state.store.write(state.trial.trial_id, DETECTIONS, found.detections.to_json())
            state.store.write(state.trial.trial_id, PER_CLASS, json.dumps(found.per_class))
            state.store.write(state.trial.trial_id, CLASSES, json.dumps(found.classes))
    progress.epoch, progress.loss_sums = epoch, {}
    every = state.trial.analyse.every_epochs
    if state.ranks.is_first and every and epoch % every == 0 and epoch < state.epochs:
        analysed = run_analysis(state, entry["loss"])
        entry |= analysed.scalars if analysed else {}
    entry |= {"seconds": progress.train_seconds + progress.eval_seconds, "losses": means}
    progress.history.append(entry)
    save(state)
    if state.ranks.is_first:
        state.store.append_metrics(state.trial.trial_id, entry)
    write_record(state, "running")
    event = step_event(state, entry["loss"] or 0.0, progress.train_seconds / max(progress.step, 1))
    state.report({**event, **entry, "kind": "epoch", "epoch": progress.epoch})
    if state.should_stop() and progress.epoch < state.epochs:
        state.ranks.wait()
        raise Interrupted(f"stopped after epoch {progress.epoch}")


def _evaluate(state: TrialState, loss: float | None, *, errors: bool) -> Evaluation:
    """Evaluate without moving the random state; when asked to stop, give up and leave the epoch's last step."""
    tell = share_reporter(state, "evaluate", loss)

    def on_batch(done: int, count: int) -> None:
        if state.ranks.size == 1 and state.should_stop():  # ranks have different numbers of batches to ask after
            raise Interrupted(f"stopped while epoch {state.progress.epoch + 1} was evaluated")
        tell(done, count)

    devices = [state.device] if state.device.type == "cuda" else []
    config = state.trial.config
    try:
        with state.as_evaluated(), torch.random.fork_rng(devices):
            return evaluate(
                state.detector,
                state.val_loader,
                state.val_data,
                config.evaluate,
                state.device,
                precision=config.evaluate.computes_in(config.train),
                on_batch=on_batch,
                ranks=state.ranks,
                errors=errors,
            )
    except Interrupted:
        save(state)
        write_record(state, "running")
        raise
