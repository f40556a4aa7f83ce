"""One trial where it runs, in this process or in a worker: take the lease, run, leave a true record.

What goes wrong in a trial ends in its record, and only what the storage could not take in an exception: the grid
goes on.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from harness.errors import RankLost, UserError
from harness.schedule.progress import Progress
from harness.spec.trials import identity_fields
from harness.store.lease import LeaseLost
from harness.store.results import LOG, RunStore

if TYPE_CHECKING:
    from harness.spec.grid import Trial

RunTrial = Callable[..., Any]
LOSS_SECONDS = 2.0  # for what is left of a trial's processes to end


def execute(
    trial: Trial,
    store: RunStore,
    launch: str,
    run_trial: RunTrial | None,
    should_stop: Callable[[], bool],
    driver: dict[str, Any] | None = None,
) -> str:
    """Run a trial under its lease; returns its status, "running" when somebody else works on it.

    Args:
        trial: what to run.
        store: where its record lives.
        launch: a later attempt of the same launch takes the lease from an earlier one.
        run_trial: instead of `harness.trial.trial.run_trial`.
        should_stop: asked between steps.
        driver: who started this process and takes it along when it dies (`harness.store.lease.identity`).

    Raises:
        RankLost: one of its processes was lost.
        OSError: the storage takes neither lease nor record. Anything else that goes wrong ends in the record.
    """
    held = store.claim(trial.trial_id, launch, driver)
    if held is None:
        return "running"
    store = store.fenced(held.token)
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
        except LeaseLost:
            return "running"
        except Exception as error:
            after = store.read(trial.trial_id)
            if after is None or after == before or after.get("status") == "running":
                _settle(trial, store, error, stopped=stopping())
        except BaseException:
            with suppress(OSError, LeaseLost):
                store.mark(trial.trial_id, "interrupted")
            raise
    return store.status(trial.trial_id)


def _real_trial() -> RunTrial:
    from harness.trial.trial import run_trial  # with torch, which takes seconds

    return run_trial


def _settle(trial: Trial, store: RunStore, error: Exception, stopped: bool) -> None:
    """Give the record a true status where the trial could not do it itself."""
    last = f"{type(error).__name__}: {error}".splitlines()[0]
    try:
        if stopped:
            store.mark(trial.trial_id, "interrupted", **identity_fields(trial))
            return
        with suppress(OSError):
            store.write(trial.trial_id, LOG, traceback.format_exc())
        store.mark(trial.trial_id, "failed", error=last, **identity_fields(trial))
    except LeaseLost:
        pass  # the new holder writes it
    except OSError:
        if isinstance(error, OSError):
            raise error from None  # the first one tells best
        raise


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
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        count = min(count, math.ceil(float(quota) / float(period)))
    return max(count, 1)


def execute_to_the_end(
    trial: Trial,
    store: RunStore,
    launch: str,
    run_trial: RunTrial | None,
    should_stop: Callable[[], bool],
    driver: dict[str, Any] | None = None,
) -> tuple[str, str]:
    """`execute` where nobody starts the trial again: the others get their turn whatever becomes of this one.

    Returns:
        the trial's status, and what a person should know besides its record ("": nothing).
    """
    try:
        return execute(trial, store, launch, run_trial, should_stop, driver), ""
    except RankLost as error:
        note_loss(trial, store, "failed", str(error))
    except (OSError, UserError) as error:
        return "failed", f"could not be run: {error}"
    return "failed", ""


def note_loss(trial: Trial, store: RunStore, status: str, reason: str | None, log: str = "") -> None:
    """Leave in the record of a trial whose process died what is known of that.

    Nothing is written where the trial has finished, or where somebody is at it again.

    Args:
        trial: whose process died.
        store: where its record lives.
        status: for the record.
        reason: one line.
        log: what is known besides, for log.txt.

    Raises:
        OSError: the storage does not take it.
    """
    deadline = time.monotonic() + LOSS_SECONDS
    while (held := store.claim(trial.trial_id)) is None:
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)  # it may be about to die with whom it worked for
    with held, suppress(LeaseLost):
        store = store.fenced(held.token)
        if (store.read(trial.trial_id) or {}).get("status") == "finished":
            return
        if log:
            store.write(trial.trial_id, LOG, f"{reason}\n\n{log}")
        store.mark(trial.trial_id, status, reason, **identity_fields(trial))


def abandoned(trials: Sequence[Trial], store: RunStore, progress: Progress) -> list[Trial]:
    """Those of the trials that other processes worked on and left unfinished, as when their driver was killed.

    Waits where a process seems to be at work and may not be (`harness.store.lease.released`).
    """
    if trials:
        progress.phase("looking whether others are at the rest", quiet=True)
    free = store.released(trial.trial_id for trial in trials)
    left = {key for key in free if store.status(key) in ("interrupted", "pending")}
    return [trial for trial in trials if trial.trial_id in left]


def stop_now(*_: object) -> NoReturn:
    """A signal handler for what can be stopped anywhere."""
    raise KeyboardInterrupt


@contextmanager
def on_signals(
    handler: Callable[[int, FrameType | None], Any], numbers: Sequence[int] = (signal.SIGINT, signal.SIGTERM)
) -> Iterator[None]:
    """Handle SIGINT and SIGTERM (or others); outside the main thread nothing changes.

    A handler may raise, and Python drops what is raised while a destructor runs: then the signal comes again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.signal(number, handler) for number in numbers}
    told = sys.unraisablehook

    def dropped(unraisable: Any) -> None:
        if unraisable.exc_type in (KeyboardInterrupt, SystemExit):
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            told(unraisable)

    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = told
        for number, former in kept.items():
            signal.signal(number, former)
