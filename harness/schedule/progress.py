"""What a person sees while a grid runs: plain lines, one per trial and epoch, and a sign of life in between.

    table09 2/6  heads=atss  a1b2c3d4e5f6  epoch 3/12  step 375/1500  loss 8.41  AP 21.3  0.11 s/step  eta 2.1 min

The lines are made from the records and heartbeats in the store, which a thread of the driver looks at every second.
So they read the same whether trials run in this process or on other nodes, in a terminal and in a job's log.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.spec.detection_metrics import ap_of
from harness.store.results import HEARTBEAT, METRICS, RECORD, RunStore

if TYPE_CHECKING:
    from harness.spec.grid import Grid, Trial

BEAT_SECONDS = 10.0  # nobody waits longer for a line
POLL_SECONDS = 1.0
ENDED = ("finished", "failed", "interrupted", "pruned")


def print_line(line: str) -> None:
    """Print one line at once, also into a pipe or a job's log; where nobody reads any more, the work goes on."""
    with suppress(OSError):
        print(line, file=sys.stdout, flush=True)


def duration(seconds: float) -> str:
    """`45 s`, `3.2 min` or `1.5 h`."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"


def describe(state: dict[str, Any]) -> str:
    """The middle of a line, from a heartbeat or an epoch's entry: what is known of epoch, step, loss, AP and speed."""
    parts = []
    for name, total in (("epoch", "epochs"), ("step", "total_steps")):
        if state.get(name) is not None:
            parts.append(f"{name} {state[name]}" + (f"/{state[total]}" if state.get(total) else ""))
    if isinstance(state.get("loss"), int | float):
        parts.append(f"loss {state['loss']:.2f}")
    parts += [f"{name} {ap:.1f}" for name, ap in ap_of(state).items()]
    if isinstance(state.get("seconds_per_step"), int | float):
        parts.append(f"{state['seconds_per_step']:.2g} s/step")
    if state.get("kind") == "evaluate":
        parts.append(f"evaluated {state['evaluated']:.0%}")
    if state.get("kind") == "analyse":
        parts.append(f"analysed {state['analysed']:.0%}" + (", drawing" if state["analysed"] >= 1 else ""))
    return "  ".join(parts)


@dataclass
class Watched:
    """What was last seen of one trial."""

    trial: Trial
    number: int  # place among the chosen trials, from 1
    stamps: dict[str, Any] = field(default_factory=dict)  # file name -> what tells that it changed
    epochs: set[tuple[int, Any]] = field(default_factory=set)  # printed
    process: Any = None  # that gave the last sign of life
    warnings: int = 0  # printed
    beat: dict[str, Any] = field(default_factory=dict)
    beat_at: float = 0.0
    step: int = 0  # of the last epoch printed
    last_ap: dict[str, float] = field(default_factory=dict)  # by its name, see `ap_of`
    seconds: float | None = None  # the whole trial takes, estimated or measured
    status: str = "pending"


class Progress:
    """Prints lines about a grid until closed. Use as a context manager.

    Args:
        grid: its name and trials make the head of each line.
        store: the records.
        out: takes a line.
        beat_seconds: longest silence.
        poll_seconds: between two looks at the store.
        chosen: those of the grid's trials that count; None: all.
    """

    def __init__(
        self,
        grid: Grid,
        store: RunStore,
        out: Callable[[str], None] = print_line,
        beat_seconds: float = BEAT_SECONDS,
        poll_seconds: float = POLL_SECONDS,
        chosen: Sequence[Trial] | None = None,
    ) -> None:
        self.grid = grid
        self._chosen = list(grid.trials if chosen is None else chosen)
        self.store = store
        self._out = out
        self._beat_seconds = beat_seconds
        self._poll_seconds = poll_seconds
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._spoke = self._phase_since = time.monotonic()
        self._phase = ""
        self._watched: list[Watched] = []
        self._turn = 0
        self._slots = 1  # most trials seen running at once
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def say(self, text: str) -> None:
        """Print a line headed by the grid's name."""
        with self._lock:
            self._out(f"{self.grid.name}  {text}")
            self._spoke = time.monotonic()

    def phase(self, text: str, quiet: bool = False) -> None:
        """Name what goes on while no trial runs; it is said at once (unless `quiet`) and repeated while it lasts."""
        with self._lock:
            self._phase, self._phase_since = text, time.monotonic()
            if not quiet:
                self.say(text)

    def watch(self, trials: Iterable[Trial]) -> None:
        """Follow these trials from now on; what the store already holds of them is not news."""
        wanted = {trial.trial_id for trial in trials}
        with self._lock:
            self._watched = [
                Watched(trial, number) for number, trial in enumerate(self._chosen, 1) if trial.trial_id in wanted
            ]
            for watched in self._watched:
                self._changed(watched, RECORD), self._changed(watched, HEARTBEAT)
                if self._changed(watched, METRICS):
                    for entry in self.store.metrics(watched.trial.trial_id):
                        watched.epochs.add((entry["epoch"], entry.get("time")))
                        watched.last_ap = ap_of(entry) or watched.last_ap

    def join(self, grid: Grid) -> None:
        """Follow the trials that a search has added to the grid."""
        with self._lock:
            for trial in grid.trials[len(self.grid.trials) :]:
                self._chosen.append(trial)
                self._watched.append(Watched(trial, len(self._chosen)))
            self.grid = grid

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        self._look()

    # ---- the thread

    def _run(self) -> None:
        while not self._closed.wait(self._poll_seconds):
            self._look()

    def _look(self) -> None:
        """Print what is new in the store, or a sign of life when nothing was printed for long."""
        with self._lock:
            for watched in self._watched:
                seen = dict(watched.stamps)
                try:
                    self._look_at(watched)
                except OSError:  # storage hiccup: the next look tells
                    watched.stamps = seen
            running = [watched for watched in self._watched if watched.status == "running"]
            self._slots = max(self._slots, len(running))
            if running:
                self._phase_since = time.monotonic()
            if time.monotonic() - self._spoke < self._beat_seconds or self._closed.is_set():
                return
            if running:
                self._turn += 1
                self._tell(running[self._turn % len(running)])
            elif self._phase:
                self.say(f"{self._phase}, {duration(time.monotonic() - self._phase_since)}")

    def _changed(self, watched: Watched, name: str) -> bool:
        path: Path = self.store.dir(watched.trial.trial_id) / name
        try:
            found = path.stat()
        except FileNotFoundError:
            return False
        stamp = (found.st_mtime_ns, found.st_ino)
        changed = watched.stamps.get(name) != stamp
        watched.stamps[name] = stamp
        return changed

    def _look_at(self, watched: Watched) -> None:
        trial_id = watched.trial.trial_id
        started, record = False, None
        if self._changed(watched, RECORD):  # first: what a trial leaves before its record is there by then
            record = self.store.read(trial_id)
        if self._changed(watched, HEARTBEAT):
            started = self._take_beat(watched, self.store.read_heartbeat(trial_id) or {})
        if self._changed(watched, METRICS):
            for entry in self.store.metrics(trial_id):
                key = (entry["epoch"], entry.get("time"))
                if key not in watched.epochs:
                    watched.epochs.add(key)
                    watched.step, watched.last_ap = entry.get("step", 0), ap_of(entry) or watched.last_ap
                    self._tell(watched, entry)
        if started and watched.beat.get("step", 0) > watched.step:
            self._tell(watched)
        if record is not None:
            told = watched.status == record.get("status") == "finished"  # an analysis may have been added since
            if record.get("status") in ENDED and not told:
                self._end(watched, record)
            elif watched.status in ENDED and not told:  # started again
                watched.status = "running"

    def _take_beat(self, watched: Watched, beat: dict[str, Any]) -> bool:
        """Take over a heartbeat's state; true when it is the first of a process that works on the trial."""
        for warning in beat.get("warnings", [])[watched.warnings :]:
            self._line(watched, f"warning: {warning}")
            watched.warnings += 1
        process = tuple(beat.get(key) for key in ("machine", "pid", "process_start"))
        if beat.get("kind") == "done" or watched.status == "finished":
            return False
        if watched.status in ENDED and process == watched.process:
            return False  # the last words of a process whose trial has ended
        started = process != watched.process or watched.status != "running"
        watched.process = process
        watched.beat, watched.beat_at = {**watched.beat, **beat}, time.monotonic()
        watched.status = "running"
        eta, step, total = (beat.get(key) for key in ("eta_seconds", "step", "total_steps"))
        if eta is not None and step and total and total > step:
            watched.seconds = eta * total / (total - step)
        return started

    # ---- lines

    def _line(self, watched: Watched, text: str) -> None:
        with self._lock:
            head = f"{self.grid.name} {watched.number}/{len(self._chosen) + self.grid.num_unknown}"
            label = watched.trial.label or watched.trial.row
            self._out("  ".join(part for part in (head, label, watched.trial.trial_id, text) if part))
            self._spoke = time.monotonic()

    def _tell(self, watched: Watched, entry: dict[str, Any] | None = None) -> None:
        planned = watched.trial.config.train.epochs  # until the trial says how many its data set takes
        state = {
            "epochs": planned,
            **watched.beat,
            **watched.last_ap,
            **({**entry, "kind": "epoch"} if entry else {}),
        }
        text = describe(state)
        age = time.monotonic() - watched.beat_at
        eta = watched.beat.get("eta_seconds")
        if eta is not None and state.get("step") != state.get("total_steps"):
            text += f"  eta {duration(eta - age)}{self._grid_eta()}"
        if age > 2 * self._beat_seconds and entry is None:
            text += f"  (no news for {duration(age)})"
        self._line(watched, text)

    def _end(self, watched: Watched, record: dict[str, Any]) -> None:
        watched.status = str(record["status"])
        cost = record.get("cost") or {}
        watched.seconds = cost.get("wall_seconds") or watched.seconds
        text = watched.status
        if watched.status == "finished":
            text += "".join(f"  {name} {ap:.1f}" for name, ap in ap_of(record.get("metrics") or {}).items())
            text += f"  in {duration(cost['wall_seconds'])}" if cost.get("wall_seconds") else ""
        elif watched.status == "failed":
            text += f"  {record.get('error') or 'no message was recorded'}"
        elif watched.status == "pruned":
            text += f"  after epoch {len(record.get('history') or ())}"
        self._line(watched, text + self._grid_eta())

    def _grid_eta(self) -> str:
        """Time until all watched trials have ended: those without an estimate take as long as the mean of the rest."""
        left = [watched for watched in self._watched if watched.status not in ENDED]
        known = [watched.seconds for watched in self._watched if watched.seconds]
        if len(self._watched) < 2 or not left or not known:
            return ""
        now, mean = time.monotonic(), sum(known) / len(known)
        each = []
        for watched in left:
            eta = watched.beat.get("eta_seconds") if watched.status == "running" else None
            each.append(mean if eta is None else max(0.0, eta - (now - watched.beat_at)))
        return f"  (grid {duration(max(max(each), sum(each) / self._slots))})"
