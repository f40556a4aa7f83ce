"""Kills a trial (SIGKILL) before each of its durable changes to the storage, and runs it again after each kill.

    python -m tests.support.kill_points FOLDER all    or new: without those of the second epoch that the first has too

This process only forks: everything is loaded once, and no child inherits a thread. What the trials left lies in
`FOLDER/whole` (never killed) and in `FOLDER/1`, `FOLDER/2` and so on; printed is what each of them was killed before.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from harness.schedule.execute import execute
from harness.spec.grid import Trial, open_grid
from harness.spec.identity import named_parts
from harness.store.results import RunStore
from harness.store.source import provenance
from harness.system.forkserver import PRELOAD
from harness.trial import writer
from model.detector import Detector

QUICKSTART = Path(__file__).parents[2] / "ablations" / "quickstart.yaml"
SMALL = (
    "data.digits.num_train=4",
    "data.digits.num_val=2",
    "train.batch_size=2",
    "model.transformer.dropout=0.1",  # so that the random state matters
)


def small_trial() -> Trial:
    """Two epochs of two steps each, one batch to evaluate; an ATSS head and its randomly filled positive queries."""
    return open_grid(QUICKSTART, "digits_fast", SMALL).trials[2]


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a process of its own; returns its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def before_changes(folder: Path, act: Callable[[str], None]) -> None:
    """Call `act` with a name before this process replaces or removes a file below `folder`, signs of life apart."""

    def acting(real: Callable[..., None]) -> Callable[..., None]:
        def change(*paths: str | os.PathLike[str], **options: object) -> None:
            path = Path(paths[-1])
            if path.is_relative_to(folder) and not path.name.startswith((".now-", "heartbeat")):
                act(f"{real.__name__} {path.name}")
            real(*paths, **options)

        return change

    os.replace, os.unlink = acting(os.replace), acting(os.unlink)


def kill_before(folder: Path, change: str, time: int) -> None:
    """Let this process die before it makes this change for the `time`-th time."""
    left = iter(range(time - 1, -1, -1))

    def act(name: str) -> None:
        if name == change and next(left) == 0:
            print(name, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    before_changes(folder, act)


def points(changes: list[str], which: str) -> Iterator[tuple[str, int]]:
    """Of a trial's changes, those to die before, each with how many of its name there were by then."""
    begun, first, second, _ = [place for place, name in enumerate(changes) if name == "replace result.json"]
    for place, name in enumerate(changes):
        if which == "all" or not first < place <= second or name not in changes[begun:first]:
            yield name, changes[: place + 1].count(name)


def main(folder: Path, which: str) -> None:
    """Kill at every point, or at the new ones, and run again."""
    for module in PRELOAD:
        import_module(module)
    writer.CHECKPOINT_SECONDS, writer.CHECKPOINT_SHARE = 0.0, math.inf  # one inside each epoch, by the thread
    trial = small_trial()
    Detector(trial.config.model, num_classes=10)  # loads its parts
    provenance(named_parts(trial.config.model))  # asks git and reads the source, once

    def run(name: str, prepare: Callable[[], None] = lambda: None) -> int:
        def work() -> None:
            prepare()
            assert execute(trial, RunStore(folder / name), name, None, lambda: False) == "finished"

        return forked(work)

    noted = folder / "changes"

    def note(name: str) -> None:
        with open(noted, "a") as handle:
            handle.write(f"{name}\n")

    assert run("whole", lambda: before_changes(folder, note)) == 0
    for number, point in enumerate(points(noted.read_text().splitlines(), which), 1):
        assert os.WIFSIGNALED(run(str(number), lambda point=point: kill_before(folder, *point))), point
        assert run(str(number)) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
