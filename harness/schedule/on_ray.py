"""Runs trials on Ray Tune: hand them to a `Tuner` under a name of its own, and note what it gave up.

Here are both ends of it: the driver's, which starts trials and stops them, and what a worker does (`_work`). Tune knows
nothing of results; the store does. What a search adds is in tuner.py.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from harness.errors import UserError, one_line
from harness.files import cache_dir, write_atomic
from harness.schedule.apart import run_apart
from harness.schedule.cluster import RayStart, bundle, stop_ray
from harness.schedule.execute import RunTrial, abandoned, execute, note_loss, on_signals
from harness.schedule.failfast import StoppedByFailure, failure_stops
from harness.schedule.preloaded import connect
from harness.schedule.workers import NoWorkers, entrance, no_start, unimportable
from harness.store.lease import identity
from harness.store.results import RunStore
from harness.store.source import code_version
from harness.system.entrance import ROOT
from harness.system.forkserver import PRELOAD, ForkServer, WorkerUnfit
from harness.system.process import ALLOCATOR, GROWING, allocator, let_segments_grow

if TYPE_CHECKING:
    from harness.schedule.progress import Progress
    from harness.spec.grid import Grid, Trial
    from harness.spec.search import Search
    from harness.tracking.mirror import Mirror

STOP_POLL_SECONDS = 0.5  # between two looks for the request to stop
STOP_GRACE_SECONDS = 1.5  # for trials to leave a checkpoint; a stopped Ray job is killed after 3 s
LOST = ("ActorDied", "ActorUnavailable", "NodeDied", "OutOfMemory", "WorkerCrashed", "WorkerLost")  # errors of workers
PLACE = "CODETR_FORKS"  # where workers of this machine find the process that has loaded everything
UNFIT = "its worker could not run it"


@dataclass(frozen=True)
class Launch:
    """One go at a grid on Ray."""

    store: RunStore
    run_trial: RunTrial | None
    concurrent: int | None
    max_failures: int
    fail_fast: bool
    name: str = field(default_factory=lambda: f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}")

    @property
    def folder(self) -> Path:
        """Tune's notes and the request to stop; gone when the launch has ended."""
        return self.store.root / "launches" / self.name


def run_on_ray(
    trials: Sequence[Trial], more: int, launch: Launch, start: RayStart, progress: Progress, mirror: Mirror | None
) -> None:
    """Run `trials`, and `more` that the grid's search is to suggest meanwhile, on the Ray that `start` begins."""
    store, marker = launch.store, launch.folder / "stop"

    def joined(grid: Grid) -> None:
        progress.join(grid)
        if mirror is not None:
            mirror.grid = grid

    asked = threading.Event()

    def stop(*_: object) -> NoReturn:
        asked.set()  # Ray may take the exception for itself
        raise KeyboardInterrupt

    def changed() -> bool:
        return any(store.status(trial.trial_id) != before.get(trial.trial_id) for trial in progress.grid.trials)

    before = {trial.trial_id: store.status(trial.trial_id) for trial in progress.grid.trials}
    start.wait(progress)
    with on_signals(stop):  # again: Ray has put its own handler
        try:
            failing = failure_stops(trials, store, marker, progress) if launch.fail_fast else nullcontext()
            with failing, no_start(changed, start.log):
                _run_until_settled(trials, more, launch, progress, joined, asked)
            progress.phase("closing", quiet=True)
        except StoppedByFailure:
            pass  # the trials have stopped, and the store tells the rest
        except NoWorkers as error:
            if not trials:  # a search that has suggested nothing yet
                raise UserError(str(error)) from None
            _mark_lost(trials, store, {trial.trial_id: str(error) for trial in trials}, progress)
        except KeyboardInterrupt:
            progress.say("stopping the trials")
            with suppress(OSError):  # a full disk: the trials end with their workers
                write_atomic(marker, "")
            deadline = time.monotonic() + STOP_GRACE_SECONDS
            begun = progress.grid.trials
            while time.monotonic() < deadline and "running" in {store.status(t.trial_id) for t in begun}:
                time.sleep(0.05)
            if mirror is not None and "running" not in {store.status(t.trial_id) for t in trials}:
                mirror.close()  # before Ray, which takes a while to end: a job is killed three seconds after this began
            raise
        finally:
            stop_ray()
            shutil.rmtree(launch.folder, ignore_errors=True)


def _run_until_settled(
    trials: Sequence[Trial],
    more: int,
    launch: Launch,
    progress: Progress,
    joined: Callable[[Grid], None],
    asked: threading.Event,
) -> None:
    """Let Tune run the trials, and again those that another process was at and left; `asked` is the wish to stop."""
    left, store = trials, launch.store
    while left or more:
        try:
            errors, held_elsewhere = _tune(left, more, launch, progress.grid, joined)
        except Exception as error:  # Tune keeps notes of its own in the store
            if asked.is_set():
                raise KeyboardInterrupt from None
            if not (trouble := _trouble(error)):
                raise
            again = "The same command goes on where it stopped"
            raise UserError(
                f"store {store.root}: Ray Tune cannot go on ({one_line(error)}){trouble} {again}"
            ) from error
        if asked.is_set():
            raise KeyboardInterrupt
        _mark_lost(progress.grid.trials, store, errors, progress)
        left = abandoned([trial for trial in left if trial.trial_id in held_elsewhere], store, progress)
        more = 0


def _trouble(error: Exception) -> str:
    """What to ask whoever reads that Ray Tune cannot go on; empty where the error is one of ours."""
    from ray.exceptions import RayError

    if isinstance(error, OSError) or type(error).__name__ == "TuneError":
        return "; is there room?"
    return "." if isinstance(error.__cause__, RayError) else ""


def _tune(
    trials: Sequence[Trial], more: int, launch: Launch, grid: Grid, joined: Callable[[Grid], None]
) -> tuple[dict[str, str], set[str]]:
    """Let Ray Tune run the trials. Only the store knows what succeeded.

    Returns:
        Tune's errors by trial id, and the ids of the trials that another process was at.
    """
    from ray import cloudpickle, tune

    from harness.schedule.actors import count_as_lost

    count_as_lost()
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    by_id = {trial.trial_id: trial for trial in trials}

    def resources(config: dict[str, Any]) -> Any:
        runtime = (by_id.get(config["trial"]) or grid.trials[0]).runtime
        return tune.PlacementGroupFactory([bundle(runtime)])

    order: dict[str, Any] = {}
    if grid.search is not None:
        from harness.schedule.tuner import search_order

        run_trial, order = search_order(grid, trials, more, launch.store, launch.folder, launch.run_trial, joined)
        launch = replace(launch, run_trial=run_trial)
    common = {"launch": launch, "driver": identity(), "environment": _environment(launch.store)}
    task = cloudpickle.dumps((_work, {"trials": by_id, "search": grid.search, **common}))
    work = tune.with_parameters(entrance(ROOT, list(sys.path)), task=task)

    def name_of(ray_trial: Any) -> str:
        return str(ray_trial.config["trial"])

    tuner = tune.Tuner(
        tune.with_resources(work, resources),
        param_space={} if "search_alg" in order else {"trial": tune.grid_search(list(by_id))},
        tune_config=tune.TuneConfig(
            **order,
            max_concurrent_trials=launch.concurrent,
            reuse_actors=grid.search is None,  # each trial has a process of its own all the same, except in a search
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
        ),
        run_config=tune.RunConfig(
            name=launch.name,
            storage_path=str(launch.folder.parent),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=launch.max_failures),
        ),
    )
    results = tuner.fit()
    ended = {Path(results[index].path).name: results[index] for index in range(len(results))}  # of `name_of`
    told = {key: result.metrics or {} for key, result in ended.items()}
    errors = {key: f"{UNFIT}: {metrics['reason']}" for key, metrics in told.items() if metrics.get("reason")}
    errors |= {key: _reason(result.error) for key, result in ended.items() if result.error is not None}
    return errors, {key for key, metrics in told.items() if metrics.get("outcome") == "running"}


def _reason(error: BaseException) -> str:
    if "ActorDied" in type(error).__name__ and (cause := unimportable()):
        return f"{UNFIT}: {cause}"
    if "OutOfMemory" in type(error).__name__:  # Ray's memory monitor ended the worker
        return "out of memory on its node, again and again: try fewer trials at a time (--concurrent, --cpus-per-trial)"
    for name in ("RankLost: ", "WorkerLost: "):  # which know more
        if name in str(error):
            return str(error).rpartition(name)[2].splitlines()[0]
    if any(name in type(error).__name__ for name in LOST):
        return f"its worker was lost again and again ({type(error).__name__}): killed, or out of memory?"
    last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return f"{UNFIT}: {last}"


def _environment(store: RunStore) -> dict[str, str]:
    """What workers on any node must know of the driver's environment."""
    commit, dirty = code_version()
    found = {"CODETR_STORE": str(store.root), "CODETR_CACHE": str(cache_dir())}
    found |= {name: os.environ[name] for name in ("GOMP_SPINCOUNT", PLACE) if name in os.environ}
    if allocator() != GROWING:  # the user's own setting; else each node may have its own
        found |= {name: os.environ[name] for name in ALLOCATOR if os.environ.get(name)}
    if commit:
        found |= {"CODETR_COMMIT": commit, "CODETR_DIRTY": "" if dirty is None else str(int(dirty))}
    return found


def _work(
    config: dict[str, Any],
    trials: dict[str, Trial],
    search: Search | None,
    launch: Launch,
    driver: dict[str, Any],
    environment: dict[str, str],
) -> dict[str, Any]:
    """What a worker does. It raises only where it is killed or cannot write: then Tune starts the trial again."""
    global _forks
    os.environ.update(environment)
    let_segments_grow()
    trial = trials.get(config["trial"]) or (search.make(config["values"])[0] if search else None)
    assert trial is not None, config
    if trial.runtime.gpus_per_trial == 0 and trial.runtime.device != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a GPU that was not asked for belongs to others
    if search is not None:  # it tells Tune of every epoch, which only this process can
        return {"outcome": _run_one(trial, launch, driver)}
    if _forks is None:
        preload = PRELOAD if launch.run_trial is None else ()
        connection = connect(place) if (place := os.environ.get(PLACE)) else None
        _forks = ForkServer(preload, connection=connection)
    try:
        return {"outcome": run_apart(_forks, trial, launch.store, "interrupted", _run_one, trial, launch, driver)}
    except WorkerUnfit as error:  # and it would be the next time
        return {"outcome": "failed", "reason": str(error)}


_forks: ForkServer | None = None  # of this worker


def _run_one(trial: Trial, launch: Launch, driver: dict[str, Any]) -> str:
    """One trial, in a process of its own."""
    store, marker = launch.store, launch.folder / "stop"
    looked = [0.0, False]

    def should_stop() -> bool:
        if time.monotonic() - looked[0] > STOP_POLL_SECONDS:
            looked[:] = [time.monotonic(), marker.exists()]
        return bool(looked[1])

    if marker.exists():  # the grid stops: do not even begin
        return "pending"
    outcome = execute(trial, store, launch.name, launch.run_trial, should_stop, driver)
    if outcome == "failed" and launch.fail_fast:
        write_atomic(marker, "")  # before this worker takes another trial
    return outcome


def _mark_lost(trials: Sequence[Trial], store: RunStore, errors: dict[str, str], progress: Progress) -> None:
    """A trial that Tune gave up on has failed, even though it could not say so itself."""
    for trial in trials:
        if trial.trial_id in errors:
            try:
                if store.status(trial.trial_id) not in ("finished", "failed", "running"):
                    note_loss(trial, store, "failed", errors[trial.trial_id])
            except (OSError, UserError):
                progress.say(f"{trial.trial_id}: {errors[trial.trial_id]}")
