"""Runs trials one after the other on this machine, with neither Ray nor MLflow."""

from __future__ import annotations

import gc
import sys
import threading
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.schedule.apart import Apart
from harness.schedule.execute import RunTrial, abandoned, execute_to_the_end, on_signals
from harness.schedule.progress import Progress
from harness.store.results import RunStore

if TYPE_CHECKING:
    from harness.spec.grid import Trial


def run_local(
    trials: Sequence[Trial],
    store: RunStore,
    run_trial: RunTrial | None,
    concurrent: int | None,
    progress: Progress,
    fail_fast: bool = False,
) -> None:
    """Run trials one after the other, each in a process of its own; a signal lets the current one leave a checkpoint.

    Another `run_trial` than the real one runs in this process.

    Raises:
        KeyboardInterrupt: on SIGINT or SIGTERM, after the current trial has stopped.
    """
    kinds = {trial.runtime.accelerator_type for trial in trials} - {None}
    if kinds:
        progress.say(f"note: the local executor takes the GPU at hand; --accelerator-type {kinds.pop()} has no effect")
    if concurrent not in (None, 1):
        progress.say(f"note: the local executor runs one trial at a time; --concurrent {concurrent} has no effect")
    launch = uuid.uuid4().hex
    place = Apart(store, launch) if run_trial is None else Here(store, launch, run_trial)
    stop = threading.Event()

    def on_signal(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        place.stop()
        progress.say("stopping after this step; once more stops at once")

    progress.phase("starting")
    with on_signals(on_signal), place:
        while trials:
            held_elsewhere = []
            for trial in trials:
                outcome, remark = place.run(trial)
                if remark:
                    progress.say(f"{trial.trial_id} {remark}")
                if outcome == "running":
                    held_elsewhere.append(trial)
                if stop.is_set():
                    raise KeyboardInterrupt
                if fail_fast and outcome == "failed":
                    progress.say(f"stopping: {trial.trial_id} has failed (--fail-fast)")
                    return
            trials = abandoned(held_elsewhere, store, progress)


class Here:
    """Runs trials in this process, as `harness.schedule.apart.Apart` runs them in others. Use as a context manager."""

    def __init__(self, store: RunStore, launch: str, run_trial: RunTrial) -> None:
        self._store, self._launch, self._run_trial = store, launch, run_trial
        self._stop = threading.Event()

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def stop(self) -> None:
        """Let the trial at work leave a checkpoint and end."""
        self._stop.set()

    def run(self, trial: Trial) -> tuple[str, str]:
        """Run a trial; returns its status, and what a person should know besides the record ("": nothing)."""
        try:
            return execute_to_the_end(trial, self._store, self._launch, self._run_trial, self._stop.is_set)
        finally:
            _free_memory()


def _free_memory() -> None:
    """Give the GPU memory of a trial that has ended to the next one."""
    gc.collect()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()
