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
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness import tracking
from harness.errors import UserError
from harness.execute import RunTrial, available_cpus, execute, known, on_signals, run_local, stop_now
from harness.failfast import StoppedByFailure, failure_stops
from harness.housekeeping import take_up
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
LOST = ("ActorDiedError", "ActorUnavailableError", "NodeDiedError", "OutOfMemoryError", "WorkerCrashedError")
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
                    _run_ray(pending, more, store, run_trial, concurrent, max_failures, progress, mirror, fail_fast)
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
    more: int,
    store: RunStore,
    run_trial: RunTrial | None,
    concurrent: int | None,
    max_failures: int,
    progress: Progress,
    mirror: Mirror | None,
    fail_fast: bool = False,
) -> None:
    """Run `trials`, and `more` that the grid's search is to suggest meanwhile."""

    def joined(grid: Grid) -> None:
        progress.join(grid)
        if mirror is not None:
            mirror.grid = grid

    launch = f"{progress.grid.name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
    folder = store.root / "launches" / launch

    ray = _start_ray(trials or progress.grid.trials[:1], concurrent, progress)
    with on_signals(stop_now):  # again: Ray has put its own handler
        try:
            progress.phase("waiting for workers")
            with failure_stops(trials, store, folder / "stop", progress) if fail_fast else nullcontext():
                errors = _tune(
                    trials,
                    store,
                    launch,
                    run_trial,
                    concurrent,
                    max_failures,
                    grid=progress.grid,
                    more=more,
                    joined=joined,
                )
            progress.phase("closing", quiet=True)
            _mark_lost(progress.grid.trials, store, errors)
        except StoppedByFailure:
            pass  # the trials have stopped, and the store tells the rest
        except KeyboardInterrupt:
            progress.say("stopping the trials")
            write_atomic(folder / "stop", "")
            deadline = time.monotonic() + STOP_GRACE_SECONDS
            begun = progress.grid.trials
            while time.monotonic() < deadline and "running" in {store.status(t.trial_id) for t in begun}:
                time.sleep(0.05)
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
    if given:
        options["address"] = address
    else:
        num_cpus = max(available_cpus(), math.ceil(cpus * (concurrent or 1)))
        options |= {"address": "local", "include_dashboard": False, "num_cpus": num_cpus}
        options["object_store_memory"] = 128 * 2**20
    try:
        ray.init(**options)
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
    trials: Sequence[Trial],
    store: RunStore,
    launch: str,
    run_trial: RunTrial | None,
    concurrent: int | None,
    max_failures: int,
    *,
    grid: Grid,
    more: int,
    joined: Callable[[Grid], None],
) -> dict[str, str]:
    """Let Ray Tune run the trials; returns its errors by trial id. Only the store knows what succeeded."""
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

        folder = store.root / "launches" / launch
        run_trial, order = search_order(grid, trials, more, store, folder, run_trial, joined)
    work = tune.with_parameters(
        _work,
        trials=by_id,
        search=grid.search,
        root=str(store.root),
        launch=launch,
        run_trial=run_trial,
        environment=_environment(store),
    )

    def name_of(ray_trial: Any) -> str:
        return str(ray_trial.config["trial"])

    tuner = tune.Tuner(
        tune.with_resources(work, resources),
        param_space={} if "search_alg" in order else {"trial": tune.grid_search(list(by_id))},
        tune_config=tune.TuneConfig(
            **order,
            max_concurrent_trials=concurrent,
            reuse_actors=False,  # a fresh process for each trial: nothing leaks from one to the next
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
    ended = [results[index] for index in range(len(results))]
    return {Path(result.path).name: _reason(result.error) for result in ended if result.error is not None}


def _reason(error: BaseException) -> str:
    if type(error).__name__ == "OutOfMemoryError":  # Ray's memory monitor ended the worker
        return "out of memory on its node, again and again: try fewer trials at a time (--concurrent, --cpus-per-trial)"
    if "RankLost" in type(error).__name__:
        return str(error).rpartition("RankLost: ")[2].splitlines()[0]
    if type(error).__name__ in LOST:
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
    search: Search | None,
    root: str,
    launch: str,
    run_trial: RunTrial | None,
    environment: dict[str, str],
) -> dict[str, Any]:
    """What a worker does. It raises only when it is killed: then, and only then, Tune starts the trial again."""
    os.environ.update(environment)
    trial = trials.get(config["trial"]) or (search.make(config["values"])[0] if search else None)
    assert trial is not None, config
    runtime = trial.runtime
    if runtime.gpus_per_trial == 0 and runtime.device != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a GPU that was not asked for belongs to others
    store = RunStore(root)
    marker = store.root / "launches" / launch / "stop"
    looked = [0.0, False]

    def should_stop() -> bool:
        if time.monotonic() - looked[0] > STOP_POLL_SECONDS:
            looked[:] = [time.monotonic(), marker.exists()]
        return bool(looked[1])

    if marker.exists():  # the grid stops: do not even begin
        return {"outcome": "pending"}
    return {"outcome": execute(trial, store, launch, run_trial, should_stop)}


def _mark_lost(trials: Sequence[Trial], store: RunStore, errors: dict[str, str]) -> None:
    """A trial that Tune gave up on has failed, even though it could not say so itself."""
    for trial in trials:
        if trial.trial_id in errors and store.status(trial.trial_id) not in ("finished", "failed", "running"):
            store.mark(trial.trial_id, "failed", error=errors[trial.trial_id], **known(trial))
