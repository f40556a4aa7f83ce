"""Runs what is missing of a grid. With harness/tuner.py, which does so for a search, the only room that imports ray.

The store is the truth and Ray Tune only executes: plan, leave out what is finished, hand the rest to one `Tuner`
under a name of its own, and afterwards ask the store what became of it. Every trial takes its lease and continues from
its own folder, so a killed worker, node or driver, and a second grid with the same trial, are one code path.
Trials write records; the driver alone prints lines (harness/progress.py) and talks to MLflow (harness/mirror.py).
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from harness import tracking
from harness.errors import UserError
from harness.execute import (
    RunTrial,
    abandoned,
    available_cpus,
    execute,
    interruptible,
    known,
    on_signals,
    run_local,
    stop_now,
)
from harness.failfast import StoppedByFailure, failure_stops
from harness.forkserver import ForkServer
from harness.housekeeping import take_up
from harness.lease import identity
from harness.ledger import remember
from harness.mirror import Mirror
from harness.progress import Progress, print_line
from harness.resources import bundle, resource_notes
from harness.results import RunStore, cache_dir, code_version, write_atomic
from harness.suggestions import suggested

if TYPE_CHECKING:
    from harness.config import DataConfig
    from harness.grid import Grid, Trial
    from harness.search import Search

STOP_POLL_SECONDS = 0.5  # between two looks for the request to stop
LOST = ("ActorDied", "ActorUnavailable", "NodeDied", "OutOfMemory", "WorkerCrashed", "WorkerLost")  # errors of workers
STOP_GRACE_SECONDS = 1.5  # for trials to leave a checkpoint; a stopped Ray job is killed after 3 s
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass(frozen=True)
class Summary:
    """Ids of a grid's trials by what became of them."""

    finished: tuple[str, ...]  # in this launch
    failed: tuple[str, ...]
    interrupted: tuple[str, ...]  # stopped, or never begun
    skipped: tuple[str, ...]  # were finished before
    elsewhere: tuple[str, ...]  # another process is at them
    pruned: tuple[str, ...] = ()  # given up by a search, before or now


def run_grid(
    grid: Grid,
    store: RunStore,
    *,
    executor: Literal["ray", "local"] = "ray",
    concurrent: int | None = None,
    limit: int | None = None,
    only: Collection[str] | None = None,
    fail_fast: bool = False,
    max_failures: int = 3,
    run_trial: RunTrial | None = None,
    check_data: Callable[[Sequence[Trial], Callable[[str], None]], None] | None = None,
    out: Callable[[str], None] = print_line,
) -> Summary:
    """Run the trials of a grid that are not finished, and mirror all of it to MLflow.

    Args:
        grid: what is wanted.
        store: where records are kept.
        executor: "local" runs one trial after the other in this process and needs neither ray nor mlflow.
        concurrent: trials at a time; None: as many as the resources allow.
        limit: run at most this many now.
        only: ids of the trials that may run; None: all.
        fail_fast: after the first failure start nothing more and let what runs leave its checkpoint.
        max_failures: how often a trial whose worker or node was lost is started again. A trial that fails by itself
            is not.
        run_trial: instead of `harness.trial.run_trial`.
        check_data: instead of `check_datasets`.
        out: takes each line of progress.

    Raises:
        UserError: store, tracking store or data cannot be used; nothing was started.
        KeyboardInterrupt: on SIGINT or SIGTERM, after the trials were stopped and their statuses told.
    """
    _check_search(grid, executor)
    store.prepare()
    grid = suggested(grid, store)
    code_version()  # now, before anybody commits what does not run
    skipped = tuple(trial.trial_id for trial in grid.trials if store.status(trial.trial_id) == "finished")
    given_up = summarise(grid, store).pruned if grid.search and grid.search.spec.scheduler == "asha" else ()
    wanted = [trial for trial in grid.trials if only is None or trial.trial_id in only]
    pending = [trial for trial in wanted if trial.trial_id not in (*skipped, *given_up)][:limit]
    more = grid.num_unknown if limit is None else min(grid.num_unknown, limit - len(pending))
    more = more if only is None else 0
    remember(store, grid)
    try:
        with ExitStack() as stack:
            stack.enter_context(on_signals(stop_now))
            progress = stack.enter_context(Progress(grid, store, out))
            if (driver := store.claim_grid(grid.name)) is not None:
                stack.enter_context(driver)
            mirror = _open_mirror(grid, store, progress)
            if mirror is not None:
                stack.callback(mirror.close)
            if pending or more:
                suggestions = f", {more} to be suggested" if more else ""
                progress.say(f"{len(pending)} of {len(grid.trials)} trials to run{suggestions}")
                progress.phase("checking the data")
                (check_data or check_datasets)(pending or grid.trials[:1], progress.say)
                for line in take_up(store, [trial.trial_id for trial in pending]):
                    progress.say(line)
                progress.watch(pending)
                stack.enter_context(mirror.repeated() if mirror is not None else nullcontext())
                if executor == "local":
                    run_local(pending, store, run_trial, concurrent, progress, fail_fast)
                else:
                    launch = Launch(store, run_trial, concurrent, max_failures, fail_fast)
                    _run_ray(pending, more, launch, progress, mirror)
    except KeyboardInterrupt:
        grid = suggested(grid, store)
        out(f"{grid.name}  stopped: {_conclusion(grid, store, summarise(grid, store, skipped))}")
        raise
    grid = suggested(grid, store)
    summary = summarise(grid, store, skipped)
    out(f"{grid.name}  {_conclusion(grid, store, summary)}")
    return summary


def summarise(grid: Grid, store: RunStore, skipped: tuple[str, ...] = ()) -> Summary:
    """What became of a grid's trials, as the store tells; `skipped` were finished before."""
    found = {trial.trial_id: store.status(trial.trial_id) for trial in grid.trials if trial.trial_id not in skipped}

    def ids(*statuses: str) -> tuple[str, ...]:
        return tuple(key for key, status in found.items() if status in statuses)

    left = ids("interrupted", "pending")
    return Summary(ids("finished"), ids("failed"), left, skipped, ids("running"), ids("pruned"))


def _conclusion(grid: Grid, store: RunStore, summary: Summary) -> str:
    if len(summary.skipped) == len(grid.trials):
        return f"nothing is left to do: all {len(grid.trials)} trials are finished"
    names = {
        "finished": summary.finished,
        "failed": summary.failed,
        "not finished": summary.interrupted,
        "run by another process": summary.elsewhere,
        "finished before": summary.skipped,
        "pruned": summary.pruned,
    }
    text = ", ".join(f"{len(ids)} {name}" for name, ids in names.items() if ids)
    text += f", {grid.num_unknown} not suggested" if grid.num_unknown else ""
    for key in summary.failed:
        log = store.dir(key) / "log.txt"
        text += f"\n{grid.name}  failed: {key}  {(store.read(key) or {}).get('error')}"
        text += f"  (log: {log})" if log.exists() else ""
    return text


def _check_search(grid: Grid, executor: str) -> None:
    """Raise `UserError` where a search needs what is not there."""
    if grid.search is None:
        return
    spec = grid.search.spec
    if executor == "local" and (spec.scheduler == "asha" or spec.algorithm == "optuna"):
        what = "scheduler: asha" if spec.scheduler == "asha" else "algorithm: optuna"
        raise UserError(f"{grid.name}: search with {what} needs Ray; leave --executor local out")
    if spec.algorithm == "optuna" and find_spec("optuna") is None:
        raise UserError(f"{grid.name}: algorithm: optuna needs optuna; pip install -c constraints.txt -e '.[search]'")


def check_datasets(trials: Sequence[Trial], say: Callable[[str], None]) -> None:
    """Generate and check every data set once, before anything is trained on it.

    Raises:
        UserError: listing every problem of the first data set that has any.
    """
    from harness.data import open_splits

    configs: dict[Any, DataConfig] = {}
    with_masks: dict[Any, bool] = {}
    queries: dict[Any, int] = {}
    for trial in trials:
        data, heads = trial.config.data, trial.config.model.heads
        key = (data.path, data.digits)
        configs[key] = data
        with_masks[key] = with_masks.get(key, False) or _need_masks(heads)
        queries[key] = min(trial.config.model.num_queries, queries.get(key, trial.config.model.num_queries))
    for key, config in configs.items():
        most = max(data.most_objects for data in open_splits(config, progress=say, with_masks=with_masks[key]))
        if most > queries[key]:
            say(f"note: an image has {most} objects, and model.num_queries={queries[key]} can find no more than that")


def _need_masks(heads: tuple[Any, ...]) -> bool:
    if not heads:
        return False  # and torch need not be loaded
    from model.heads import needs_masks

    return needs_masks(heads)


def _open_mirror(grid: Grid, store: RunStore, progress: Progress) -> Mirror | None:
    if not tracking.available():
        progress.say("mlflow is not installed: results stay in the records")
        return None
    progress.phase("opening the tracking store")
    mirror = Mirror(store, grid, warn=progress.say)
    mirror.open()
    return mirror


# ---- on Ray -----------------------------------------------------------------------------------------------------


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


def _run_ray(trials: Sequence[Trial], more: int, launch: Launch, progress: Progress, mirror: Mirror | None) -> None:
    """Run `trials`, and `more` that the grid's search is to suggest meanwhile."""
    store, marker = launch.store, launch.folder / "stop"

    def joined(grid: Grid) -> None:
        progress.join(grid)
        if mirror is not None:
            mirror.grid = grid

    asked = threading.Event()

    def stop(*_: object) -> NoReturn:
        asked.set()  # Ray may take the exception for itself
        raise KeyboardInterrupt

    ray = _start_ray(trials or progress.grid.trials[:1], launch.concurrent, progress)
    with on_signals(stop):  # again: Ray has put its own handler
        try:
            progress.phase("waiting for workers")
            with failure_stops(trials, store, marker, progress) if launch.fail_fast else nullcontext():
                _run_until_settled(trials, more, launch, progress, joined, asked)
            progress.phase("closing", quiet=True)
        except StoppedByFailure:
            pass  # the trials have stopped, and the store tells the rest
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
            ray.shutdown()
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
            if not isinstance(error, OSError) and type(error).__name__ != "TuneError":
                raise
            raise UserError(
                f"store {store.root}: Ray Tune cannot go on ({tracking.one_line(error)}); is there room? "
                "The same command goes on where it stopped"
            ) from error
        if asked.is_set():
            raise KeyboardInterrupt
        _mark_lost(progress.grid.trials, store, errors, progress)
        left = abandoned([trial for trial in left if trial.trial_id in held_elsewhere], store, progress)
        more = 0


def _start_ray(trials: Sequence[Trial], concurrent: int | None, progress: Progress) -> Any:
    """Connect to the cluster that the environment names (always so inside a Ray job), else start one on this machine.

    Raises:
        UserError: the cluster does not answer, or this machine cannot hold a trial.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    given = bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))
    if not given and "RAY_AUTH_MODE" not in os.environ:
        # A token of this process alone: nobody else can use the cluster, and no file is left in the home folder.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    address = os.environ.get("RAY_ADDRESS") or "auto"
    progress.phase(f"connecting to Ray ({address})" if given else "starting Ray")
    if given:
        _check_answers(address)
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    cpus = max(trial.runtime.cpus_per_trial for trial in trials)
    if given:
        options["address"] = address
    else:
        num_cpus = max(available_cpus(), math.ceil(cpus * (concurrent or 1)))
        options |= {"address": "local", "include_dashboard": False, "num_cpus": num_cpus}
        options["object_store_memory"] = 128 * 2**20
    try:
        interruptible(lambda: ray.init(**options), ray.shutdown)
    except Exception as error:
        where = options["address"]
        raise UserError(
            f"Ray cluster {where}: {tracking.one_line(error)}; check RAY_ADDRESS and RAY_AUTH_MODE"
        ) from error
    try:
        for note in resource_notes([trial.runtime for trial in trials], ray.cluster_resources(), may_grow=given):
            progress.say(f"note: {note}")
    except UserError:
        ray.shutdown()
        raise
    return ray


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto": looked up on this machine
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"Ray cluster {address} does not answer ({error}); check RAY_ADDRESS") from error


def _tune(
    trials: Sequence[Trial], more: int, launch: Launch, grid: Grid, joined: Callable[[Grid], None]
) -> tuple[dict[str, str], set[str]]:
    """Let Ray Tune run the trials. Only the store knows what succeeded.

    Returns:
        Tune's errors by trial id, and the ids of the trials that another process was at.
    """
    from ray import tune

    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    by_id = {trial.trial_id: trial for trial in trials}

    def resources(config: dict[str, Any]) -> Any:
        runtime = (by_id.get(config["trial"]) or grid.trials[0]).runtime
        return tune.PlacementGroupFactory([bundle(runtime)])

    order: dict[str, Any] = {}
    if grid.search is not None:
        from harness.tuner import search_order

        run_trial, order = search_order(grid, trials, more, launch.store, launch.folder, launch.run_trial, joined)
        launch = replace(launch, run_trial=run_trial)
    common = {"launch": launch, "driver": identity(), "environment": _environment(launch.store)}
    work = tune.with_parameters(_work, trials=by_id, search=grid.search, **common)

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
    ended = {(results[index].config or {})["trial"]: results[index] for index in range(len(results))}
    errors = {key: _reason(result.error) for key, result in ended.items() if result.error is not None}
    return errors, {key for key, result in ended.items() if (result.metrics or {}).get("outcome") == "running"}


def _reason(error: BaseException) -> str:
    if "OutOfMemory" in type(error).__name__:  # Ray's memory monitor ended the worker
        return "out of memory on its node, again and again: try fewer trials at a time (--concurrent, --cpus-per-trial)"
    if "RankLost: " in str(error):
        return str(error).rpartition("RankLost: ")[2].splitlines()[0]
    if any(name in type(error).__name__ for name in LOST):
        return f"its worker was lost again and again ({type(error).__name__}): killed, or out of memory?"
    return f"its worker could not run it: {str(error).strip().splitlines()[-1]}"


def _environment(store: RunStore) -> dict[str, str]:
    """What workers on any node must know of the driver's environment."""
    commit, dirty = code_version()
    found = {"CODETR_STORE": str(store.root), "CODETR_CACHE": str(cache_dir())}
    found |= {name: os.environ[name] for name in ("GOMP_SPINCOUNT",) if name in os.environ}
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
    trial = trials.get(config["trial"]) or (search.make(config["values"])[0] if search else None)
    assert trial is not None, config
    if trial.runtime.gpus_per_trial == 0 and trial.runtime.device != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a GPU that was not asked for belongs to others
    if search is not None:  # it tells Tune of every epoch, which only this process can
        return {"outcome": _run_one(trial, launch, driver)}
    _forks = _forks or (ForkServer() if launch.run_trial is None else ForkServer(preload=()))
    return {"outcome": _forks.run(_run_one, trial, launch, driver)}


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
        if trial.trial_id in errors and store.status(trial.trial_id) not in ("finished", "failed", "running"):
            try:
                store.mark(trial.trial_id, "failed", error=errors[trial.trial_id], **known(trial))
            except OSError:
                progress.say(f"{trial.trial_id}: {errors[trial.trial_id]}")
