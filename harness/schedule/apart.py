"""One trial in a process of its own, and what is told of a process that died.

A signal (a fault in compiled code, the system's lack of memory) ends a process before it can say a word. Then whoever
started it leaves the reason in the record, under the trial's lease: the signal, how far the trial had come, and in
log.txt where each of its threads was.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.schedule.execute import RunTrial, execute_to_the_end, note_loss
from harness.store.lease import LeaseLost, identity
from harness.store.results import RunStore
from harness.system.endings import story
from harness.system.forkserver import PRELOAD, ForkServer, WorkerError, WorkerLost

if TYPE_CHECKING:
    from harness.spec.grid import Trial


def run_apart(
    forks: ForkServer, trial: Trial, store: RunStore, status: str, function: Callable[..., Any], *arguments: Any
) -> Any:
    """`function(*arguments)`, which runs a trial, in a fork; where that dies the record gets the reason.

    Args:
        forks: makes the fork.
        trial: what is run.
        store: where its record lives.
        status: of the trial when its process died.
        function: what the fork does.
        arguments: of the function.

    Raises:
        WorkerLost: the fork died; its text is the reason.
        WorkerError: the function raised.
    """
    try:
        return forks.run(function, *arguments)
    except WorkerLost as lost:
        reason = str(lost)
        if lost.code is not None:
            reason = f"its process {story(lost.code, _last_beat(store, trial.trial_id))}"
        with suppress(OSError, UserError, LeaseLost):
            note_loss(trial, store, status, reason, lost.output)
        raise WorkerLost(reason, lost.code, lost.output) from None


def _last_beat(store: RunStore, trial_id: str) -> dict[str, Any]:
    with suppress(OSError):
        return store.read_heartbeat(trial_id) or {}
    return {}


class Apart:
    """Runs trials one after the other, each in a fork of one process that has loaded torch. Use as a context manager.

    Args:
        store: where records live.
        launch: see `harness.schedule.execute.execute`.
        run_trial: instead of `harness.trial.trial.run_trial`; to be found under its module and name.
    """

    def __init__(self, store: RunStore, launch: str, run_trial: RunTrial | None = None) -> None:
        self._store, self._launch, self._run_trial = store, launch, run_trial
        self._preload = PRELOAD if run_trial is None else ()
        self._folder = TemporaryDirectory(prefix="codetr-local-")
        self._marker = Path(self._folder.name) / "stop"
        self._forks = ForkServer(self._preload, stdin=None)  # a debugger may want to be talked to
        self._at_work: Trial | None = None

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self._forks.close()
        self._folder.cleanup()
        if self._at_work is not None:  # stopped at once
            with suppress(OSError, UserError, LeaseLost):
                note_loss(self._at_work, self._store, "interrupted", None)

    def stop(self) -> None:
        """Let the trial at work leave a checkpoint and end."""
        self._marker.touch()

    def run(self, trial: Trial) -> tuple[str, str]:
        """Run a trial; returns its status, and what a person should know besides the record ("": nothing)."""
        process = self._forks.process
        if process is not None and process.poll() is not None:  # it was killed
            self._forks = ForkServer(self._preload, stdin=None)
        self._at_work = trial
        arguments = (trial, self._store, self._launch, self._run_trial, self._marker, identity())
        found: tuple[str, str]
        try:
            found = run_apart(self._forks, trial, self._store, "failed", _in_fork, *arguments)
        except WorkerLost:
            found = "failed", ""  # the record tells
        except WorkerError as error:
            found = "failed", f"could not be run: {error}"
        self._at_work = None
        return found


def _in_fork(
    trial: Trial, store: RunStore, launch: str, run_trial: RunTrial | None, marker: Path, driver: dict[str, Any]
) -> tuple[str, str]:
    return execute_to_the_end(trial, store, launch, run_trial, marker.exists, driver)
