"""Runs what is missing of a grid. The only room that imports ray.

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
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
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
from harness.forkserver import ForkServer
from harness.lease import identity
from harness.mirror import Mirror
from harness.progress import Progress, print_line
from harness.results import RunStore, cache_dir, code_version, write_atomic

if TYPE_CHECKING:
    from harness.config import DataConfig
    from harness.grid import Grid, Trial

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


def run_grid(
    grid: Grid,
    store: RunStore,
    *,
    executor: Literal["ray", "local"] = "ray",
    concurrent: int | None = None,
    limit: int | None = None,
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
        max_failures: how often a trial whose worker or node was lost is started again. A trial that fails by itself
            is not.
        run_trial: instead of `harness.trial.run_trial`.
        check_data: instead of `check_datasets`.
        out: takes each line of progress.

    Raises:
        UserError: store, tracking store or data cannot be used; nothing was started.
        KeyboardInterrupt: on SIGINT or SIGTERM, after the trials were stopped and their statuses told.
    """
    store.prepare()
    code_version()  # now, before anybody commits what does not run
    skipped = tuple(trial.trial_id for trial in grid.trials if store.status(trial.trial_id) == "finished")
    pending = [trial for trial in grid.trials if trial.trial_id not in skipped][:limit]
    try:
        with ExitStack() as stack:
            stack.enter_context(on_signals(stop_now))
            progress = stack.enter_context(Progress(grid, store, out))
            if (driver := store.claim_grid(grid.name)) is not None:
                stack.enter_context(driver)
            mirror = _open_mirror(grid, store, progress)
            if mirror is not None:
                stack.callback(mirror.close)
            if pending:
                progress.say(f"{len(pending)} of {len(grid.trials)} trials to run")
                progress.phase("checking the data")
                (check_data or check_datasets)(pending, progress.say)
                progress.watch(pending)
                stack.enter_context(mirror.repeated() if mirror is not None else nullcontext())
                if executor == "local":
                    run_local(pending, store, run_trial, concurrent, progress)
                else:
                    _run_ray(pending, store, run_trial, concurrent, max_failures, progress, mirror)
    except KeyboardInterrupt:
        out(f"{grid.name}  stopped: {_conclusion(grid, store, summarise(grid, store, skipped))}")
        raise
    summary = summarise(grid, store, skipped)
    out(f"{grid.name}  {_conclusion(grid, store, summary)}")
    return summary


def summarise(grid: Grid, store: RunStore, skipped: tuple[str, ...] = ()) -> Summary:
    """What became of a grid's trials, as the store tells; `skipped` were finished before."""
    found = {trial.trial_id: store.status(trial.trial_id) for trial in grid.trials if trial.trial_id not in skipped}

    def ids(*statuses: str) -> tuple[str, ...]:
        return tuple(key for key, status in found.items() if status in statuses)

    return Summary(ids("finished"), ids("failed"), ids("interrupted", "pending"), skipped, ids("running"))


def _conclusion(grid: Grid, store: RunStore, summary: Summary) -> str:
    if len(summary.skipped) == len(grid.trials):
        return f"nothing is left to do: all {len(grid.trials)} trials are finished"
    names = {
        "finished": summary.finished,
        "failed": summary.failed,
        "not finished": summary.interrupted,
        "run by another process": summary.elsewhere,
        "finished before": summary.skipped,
    }
    text = ", ".join(f"{len(ids)} {name}" for name, ids in names.items() if ids)
    for key in summary.failed:
        log = store.dir(key) / "log.txt"
        text += f"\n{grid.name}  failed: {key}  {(store.read(key) or {}).get('error')}"
        text += f"  (log: {log})" if log.exists() else ""
    return text


def check_datasets(trials: Sequence[Trial], say: Callable[[str], None]) -> None:
    """Generate and check every data set once, before anything is trained on it.

    Raises:
        UserError: listing every problem of the first data set that has any.
    """
    from harness.data import open_splits

    configs: dict[Any, DataConfig] = {}
    with_masks: dict[Any, bool] = {}
    for trial in trials:
        data, heads = trial.config.data, trial.config.model.heads
        key = (data.path, data.digits)
        configs[key] = data
        with_masks[key] = with_masks.get(key, False) or _need_masks(heads)
    for key, config in configs.items():
        open_splits(config, progress=say, with_masks=with_masks[key])


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


def _run_ray(
    trials: Sequence[Trial],
    store: RunStore,
    run_trial: RunTrial | None,
    concurrent: int | None,
    max_failures: int,
    progress: Progress,
    mirror: Mirror | None,
) -> None:
    asked = threading.Event()

    def stop(*_: object) -> NoReturn:
        asked.set()  # Ray may take the exception for itself
        raise KeyboardInterrupt

    launch = f"{progress.grid.name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
    folder = store.root / "launches" / launch

    ray = _start_ray(trials, concurrent, progress)
    with on_signals(stop):  # again: Ray has put its own handler
        try:
            progress.phase("waiting for workers")
            left = trials
            while left:
                try:
                    errors, held_elsewhere = _tune(left, store, launch, run_trial, concurrent, max_failures)
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
                _mark_lost(left, store, errors, progress)
                left = abandoned([trial for trial in left if trial.trial_id in held_elsewhere], store, progress)
            progress.phase("closing", quiet=True)
        except KeyboardInterrupt:
            progress.say("stopping the trials")
            with suppress(OSError):  # a full disk: the trials end with their workers
                write_atomic(folder / "stop", "")
            deadline = time.monotonic() + STOP_GRACE_SECONDS
            while time.monotonic() < deadline and "running" in {store.status(t.trial_id) for t in trials}:
                time.sleep(0.05)
            if mirror is not None and "running" not in {store.status(t.trial_id) for t in trials}:
                mirror.close()  # before Ray, which takes a while to end: a job is killed three seconds after this began
            raise
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


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
    gpus = max(trial.runtime.gpus_per_trial for trial in trials)
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
    there = ray.cluster_resources()
    if cpus > there.get("CPU", 0) or gpus > there.get("GPU", 0):
        found = f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs"
        if not given:
            ray.shutdown()
            raise UserError(f"a trial asks for {cpus:g} CPUs and {gpus:g} GPUs, this machine has {found}")
        progress.say(f"note: a trial asks for {cpus:g} CPUs and {gpus:g} GPUs; the cluster has {found} now")
    if there.get("GPU") and not gpus:
        progress.say("note: there are GPUs, but no trial asks for one; see --gpus-per-trial")
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
    trials: Sequence[Trial],
    store: RunStore,
    launch: str,
    run_trial: RunTrial | None,
    concurrent: int | None,
    max_failures: int,
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
        runtime = by_id[config["trial"]].runtime
        return tune.PlacementGroupFactory([{"CPU": runtime.cpus_per_trial, "GPU": runtime.gpus_per_trial}])

    common = {"root": str(store.root), "launch": launch, "driver": identity(), "environment": _environment(store)}
    work = tune.with_parameters(_work, trials=by_id, run_trial=run_trial, **common)

    def name_of(ray_trial: Any) -> str:
        return str(ray_trial.config["trial"])

    tuner = tune.Tuner(
        tune.with_resources(work, resources),
        param_space={"trial": tune.grid_search(list(by_id))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=concurrent,
            reuse_actors=True,  # each trial has a process of its own all the same
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
        ),
        run_config=tune.RunConfig(
            name=launch,
            storage_path=str(store.root / "launches"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=max_failures),
        ),
    )
    results = tuner.fit()
    ended = {(results[index].config or {})["trial"]: results[index] for index in range(len(results))}
    errors = {key: _reason(result.error) for key, result in ended.items() if result.error is not None}
    return errors, {key for key, result in ended.items() if (result.metrics or {}).get("outcome") == "running"}


def _reason(error: BaseException) -> str:
    if any(name in type(error).__name__ for name in LOST):
        return f"its worker was lost again and again ({type(error).__name__}): killed, or out of memory?"
    return f"its worker could not run it: {str(error).strip().splitlines()[-1]}"


def _environment(store: RunStore) -> dict[str, str]:
    """What workers on any node must know of the driver's environment."""
    commit, dirty = code_version()
    found = {"CODETR_STORE": str(store.root), "CODETR_CACHE": str(cache_dir())}
    if commit:
        found |= {"CODETR_COMMIT": commit, "CODETR_DIRTY": "" if dirty is None else str(int(dirty))}
    return found


def _work(
    config: dict[str, Any],
    trials: dict[str, Trial],
    root: str,
    launch: str,
    run_trial: RunTrial | None,
    driver: dict[str, Any],
    environment: dict[str, str],
) -> dict[str, Any]:
    """What a worker does. It raises only where it is killed or cannot write: then Tune starts the trial again."""
    global _forks
    os.environ.update(environment)
    trial = trials[config["trial"]]
    if trial.runtime.gpus_per_trial == 0 and trial.runtime.device != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a GPU that was not asked for belongs to others
    _forks = _forks or (ForkServer() if run_trial is None else ForkServer(preload=()))
    return {"outcome": _forks.run(_run_one, trial, root, launch, run_trial, driver)}


_forks: ForkServer | None = None  # of this worker


def _run_one(trial: Trial, root: str, launch: str, run_trial: RunTrial | None, driver: dict[str, Any]) -> str:
    """One trial, in a process of its own."""
    store = RunStore(root)
    marker = store.root / "launches" / launch / "stop"
    looked = [0.0, False]

    def should_stop() -> bool:
        if time.monotonic() - looked[0] > STOP_POLL_SECONDS:
            looked[:] = [time.monotonic(), marker.exists()]
        return bool(looked[1])

    return execute(trial, store, launch, run_trial, should_stop, driver)


def _mark_lost(trials: Sequence[Trial], store: RunStore, errors: dict[str, str], progress: Progress) -> None:
    """A trial that Tune gave up on has failed, even though it could not say so itself."""
    for trial in trials:
        if trial.trial_id in errors and store.status(trial.trial_id) not in ("finished", "failed", "running"):
            try:
                store.mark(trial.trial_id, "failed", error=errors[trial.trial_id], **known(trial))
            except OSError:
                progress.say(f"{trial.trial_id}: {errors[trial.trial_id]}")
