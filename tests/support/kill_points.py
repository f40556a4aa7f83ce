"""Kills a trial (SIGKILL) before each of its durable changes to the storage, and runs it again after each kill.

    python -m tests.support.kill_points FOLDER

This process only forks: everything is loaded once, and no child inherits a thread. What the trials left lies in
`FOLDER/whole` (never killed) and in `FOLDER/1`, `FOLDER/2` and so on; printed is what each of them was killed before.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable
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


def kill_before(number: int) -> None:
    """Let this process die before it replaces or removes a file for the `number`-th time, signs of life apart."""
    count = 0

    def counting(real: Callable[..., None]) -> Callable[..., None]:
        def change(*paths: str | os.PathLike[str], **options: object) -> None:
            nonlocal count
            name = os.path.basename(paths[-1])
            if not name.startswith((".now-", "heartbeat")):
                count += 1
                if count == number:
                    print(f"{real.__name__} {name}", flush=True)
                    os.kill(os.getpid(), signal.SIGKILL)
            real(*paths, **options)

        return change

    os.replace, os.unlink = counting(os.replace), counting(os.unlink)


def main(folder: Path) -> None:
    """Kill at every point, until a run is through before its turn to be killed comes."""
    for module in PRELOAD:
        import_module(module)
    writer.CHECKPOINT_SECONDS, writer.CHECKPOINT_SHARE = 0.0, math.inf  # one inside each epoch, by the thread
    trial = small_trial()
    Detector(trial.config.model, num_classes=10)  # loads its parts
    provenance(named_parts(trial.config.model))  # asks git and reads the source, once

    def run(name: str, kill: int = 0) -> int:
        def work() -> None:
            if kill:
                kill_before(kill)
            assert execute(trial, RunStore(folder / name), name, None, lambda: False) == "finished"

        return forked(work)

    assert run("whole") == 0
    number = 1
    while os.WIFSIGNALED(run(str(number), kill=number)):
        assert run(str(number)) == 0
        number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
