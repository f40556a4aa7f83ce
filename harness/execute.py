"""One trial where it runs, in this process or in a worker: take the lease, run, leave a true record.

What goes wrong in a trial ends in its record, never in an exception: the grid goes on.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from harness.errors import RankLost
from harness.progress import Progress
from harness.results import RunStore, write_atomic

if TYPE_CHECKING:
    from harness.grid import Trial

RunTrial = Callable[..., Any]


def execute(
    trial: Trial, store: RunStore, launch: str, run_trial: RunTrial | None, should_stop: Callable[[], bool]
) -> str:
    """Run a trial under its lease; returns its status. What goes wrong ends in the record, not in an exception.

    Raises:
        RankLost: one of its processes was lost.
    """
    held = store.claim(trial.trial_id, owner=launch)
    if held is None:
        return "running"  # by somebody else
    with held:
        if store.status(trial.trial_id) == "finished":
            return "finished"
        before = store.read(trial.trial_id)

        def stopping() -> bool:
            return held.lost or should_stop()

        try:
            work = run_trial or _real_trial()
            _use_threads(trial.runtime.cpus_per_trial / trial.runtime.ranks)
            work(trial, store, report=_reporter(trial, store), should_stop=stopping)
        except RankLost:
            raise  # as if this process had been lost: whoever started it may start it again
        except Exception as error:
            after = store.read(trial.trial_id)
            if after is None or after == before or after.get("status") == "running":
                _settle(trial, store, error, stopped=stopping())
        except BaseException:
            store.mark(trial.trial_id, "interrupted")
            raise
    return store.status(trial.trial_id)


def _real_trial() -> RunTrial:
    from harness.trial import run_trial  # with torch, which takes seconds

    return run_trial


def _settle(trial: Trial, store: RunStore, error: Exception, stopped: bool) -> None:
    """Give the record a true status where the trial could not do it itself."""
    if stopped:
        store.mark(trial.trial_id, "interrupted", **known(trial))
        return
    write_atomic(store.dir(trial.trial_id) / "log.txt", traceback.format_exc())
    last = f"{type(error).__name__}: {error}".splitlines()[0]
    store.mark(trial.trial_id, "failed", error=last, **known(trial))


def known(trial: Trial) -> dict[str, Any]:
    """The part of a record that is known before anything ran."""
    return {"label": trial.label, "factors": dict(trial.factors), "fingerprint": trial.fingerprint}


def _reporter(trial: Trial, store: RunStore) -> Callable[[dict[str, Any]], None]:
    """Turns events of a trial into heartbeats. Each holds all that was told before it: a reader may miss some."""
    state: dict[str, Any] = {"warnings": []}

    def report(event: dict[str, Any]) -> None:
        if event.get("kind") == "warning":
            state["warnings"].append(str(event.get("message")))
        state.update((key, value) for key, value in event.items() if key not in ("losses", "message"))
        with suppress(OSError):  # a heartbeat may be lost, the trial may not
            store.heartbeat(trial.trial_id, state)

    return report


def _use_threads(cpus: float) -> None:
    """As many compute threads as whole CPUs, whatever the machine: the same results alone and beside other trials."""
    threads = max(1, math.floor(cpus))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def available_cpus() -> int:
    """CPUs this process may use, a container's quota included."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, math.ceil(float(quota) / float(period)))
    return max(count, 1)


def run_local(
    trials: Sequence[Trial],
    store: RunStore,
    run_trial: RunTrial | None,
    concurrent: int | None,
    progress: Progress,
    fail_fast: bool = False,
) -> None:
    """Run trials one after the other in this process; a signal lets the current one leave a checkpoint.

    Raises:
        KeyboardInterrupt: on SIGINT or SIGTERM, after the current trial has stopped.
    """
    kinds = {trial.runtime.accelerator_type for trial in trials} - {None}
    if kinds:
        progress.say(f"note: the local executor takes the GPU at hand; --accelerator-type {kinds.pop()} has no effect")
    if concurrent not in (None, 1):
        progress.say(f"note: the local executor runs one trial at a time; --concurrent {concurrent} has no effect")
    launch = uuid.uuid4().hex
    stop = threading.Event()

    def on_signal(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        progress.say("stopping after this step; once more stops at once")

    progress.phase("starting")
    with on_signals(on_signal):
        for trial in trials:
            try:
                outcome = execute(trial, store, launch, run_trial, stop.is_set)
            except RankLost as error:
                store.mark(trial.trial_id, "failed", error=str(error), **known(trial))
                outcome = "failed"
            _free_memory()
            if stop.is_set():
                raise KeyboardInterrupt
            if fail_fast and outcome == "failed":
                progress.say(f"stopping: {trial.trial_id} has failed (--fail-fast)")
                return


def _free_memory() -> None:
    """Give the GPU memory of a trial that has ended to the next one."""
    gc.collect()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()


def stop_now(*_: object) -> NoReturn:
    """A signal handler for what can be stopped anywhere."""
    raise KeyboardInterrupt


@contextmanager
def on_signals(
    handler: Callable[[int, FrameType | None], Any], numbers: Sequence[int] = (signal.SIGINT, signal.SIGTERM)
) -> Iterator[None]:
    """Handle SIGINT and SIGTERM (or others); outside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in kept.items():
            signal.signal(number, former)
