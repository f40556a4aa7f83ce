"""Runs what is missing of a grid: on Ray Tune (on_ray.py), or one trial after the other on this machine.

The store is the truth and an executor only executes: plan, leave out what is finished, hand the rest over, and
afterwards ask the store what became of it. Every trial takes its lease and continues from its own folder, so a killed
worker, node or driver, and a second grid with the same trial, are one code path. Trials write records; the driver alone
prints lines (progress.py) and talks to MLflow (harness/tracking/mirror.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import astuple, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import UserError, install_hint
from harness.files import exists
from harness.schedule.cluster import RayStart, is_given
from harness.schedule.execute import RunTrial, on_signals, stop_now
from harness.schedule.local import run_local
from harness.schedule.on_ray import PLACE, Launch, run_on_ray
from harness.schedule.order import longest_first
from harness.schedule.preloaded import Preloaded
from harness.schedule.progress import Progress, print_line
from harness.schedule.small_images import notes_on_small_images
from harness.spec.detection_metrics import beyond_limit, evaluator_trouble, limit_asked, limit_words
from harness.spec.pretrained import check_backbones
from harness.spec.space import corners
from harness.spec.training_length import TrainingLength, training_length
from harness.store.housekeeping import take_up
from harness.store.ledger import remember
from harness.store.results import LOG, RunStore
from harness.store.source import code_version
from harness.store.suggestions import suggested
from harness.tracking import tracking
from harness.tracking.mirror import Mirror

if TYPE_CHECKING:
    from harness.config import DataConfig, TrialConfig
    from harness.data.coco import CocoDataset
    from harness.spec.grid import Grid, Trial


@dataclass(frozen=True)
class Summary:
    """Ids of the chosen trials of a grid by what became of them."""

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
        executor: "local" runs one trial after the other on this machine and needs neither ray nor mlflow.
        concurrent: trials at a time; None: as many as the resources allow.
        limit: run at most this many now.
        only: ids of the trials that may run; None: all.
        fail_fast: after the first failure start nothing more and let what runs leave its checkpoint.
        max_failures: how often a trial whose worker or node was lost is started again. A trial that fails by itself
            is not.
        run_trial: instead of `harness.trial.trial.run_trial`; the local executor runs it in this process.
        check_data: instead of `check_inputs`.
        out: takes each line of progress.

    Raises:
        UserError: store, tracking store or data cannot be used; nothing was started.
        KeyboardInterrupt: on SIGINT or SIGTERM, after the trials were stopped and their statuses told.
    """
    _check_search(grid, executor)
    store.prepare()
    grid = suggested(grid, store)
    code_version()  # now, before anybody commits what does not run
    wanted = [trial for trial in grid.trials if only is None or trial.trial_id in only]
    skipped = tuple(trial.trial_id for trial in wanted if store.status(trial.trial_id) == "finished")
    given_up = summarise(grid, store).pruned if grid.search and grid.search.spec.scheduler == "asha" else ()
    pending = [trial for trial in wanted if trial.trial_id not in (*skipped, *given_up)][:limit]
    if grid.search is None:  # which has an order of its own
        pending = longest_first(pending, store)
    more = grid.num_unknown if limit is None else min(grid.num_unknown, limit - len(pending))
    more = more if only is None else 0
    try:
        with ExitStack() as stack:
            stack.enter_context(on_signals(stop_now))
            progress = stack.enter_context(Progress(grid, store, out, chosen=wanted))
            if (driver := store.claim_grid(grid.key, grid.preset)) is not None:
                stack.enter_context(driver)
            launch = Launch(store, run_trial, concurrent, max_failures, fail_fast)
            ray = None
            if pending or more:
                suggestions = f", {more} to be suggested" if more else ""
                progress.say(f"{len(pending)} of {len(wanted)} trials to run{suggestions}")
                if executor == "ray" and run_trial is None and grid.search is None and not is_given():
                    loaded = stack.enter_context(Preloaded())  # it loads torch meanwhile
                    os.environ[PLACE] = loaded.place
                progress.phase("checking the data")
                (check_data or check_inputs)(_examples(grid, pending, more), progress.say)
                if executor == "ray":  # it starts while the tracking store opens
                    ray = stack.enter_context(RayStart(pending or grid.trials[:1], concurrent))
            remember(store, grid)  # what is refused leaves nothing behind
            mirror = _open_mirror(grid, store, progress)
            if mirror is not None:
                stack.callback(mirror.close)
            if pending or more:
                for line in take_up(store, [trial.trial_id for trial in pending]):
                    progress.say(line)
                progress.watch(pending)
                stack.enter_context(mirror.repeated() if mirror is not None else nullcontext())
                if ray is None:
                    run_local(pending, store, run_trial, concurrent, progress, fail_fast)
                else:
                    run_on_ray(pending, more, launch, ray, progress, mirror)
    except KeyboardInterrupt:
        grid = suggested(grid, store)
        out(f"{grid.name}  stopped: {_conclusion(grid, store, summarise(grid, store, skipped, only))}")
        raise
    grid = suggested(grid, store)
    summary = summarise(grid, store, skipped, only)
    out(f"{grid.name}  {_conclusion(grid, store, summary)}")
    return summary


def summarise(
    grid: Grid, store: RunStore, skipped: tuple[str, ...] = (), only: Collection[str] | None = None
) -> Summary:
    """What became of a grid's trials, or of those in `only`, as the store tells; `skipped` were finished before."""
    known = [trial.trial_id for trial in grid.trials if only is None or trial.trial_id in only]
    found = {trial_id: store.status(trial_id) for trial_id in known if trial_id not in skipped}

    def ids(*statuses: str) -> tuple[str, ...]:
        return tuple(key for key, status in found.items() if status in statuses)

    left = ids("interrupted", "pending")
    return Summary(ids("finished"), ids("failed"), left, skipped, ids("running"), ids("pruned"))


def _conclusion(grid: Grid, store: RunStore, summary: Summary) -> str:
    if len(summary.skipped) == sum(len(ids) for ids in astuple(summary)):
        return f"nothing is left to do: all {len(summary.skipped)} trials are finished"
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
        log = store.dir(key) / LOG
        text += f"\n{grid.name}  failed: {key}  {(store.read(key) or {}).get('error')}"
        text += f"  (log: {log})" if exists(log) else ""
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
        raise UserError(f"{grid.name}: algorithm: optuna needs optuna; {install_hint('search')}")


def _examples(grid: Grid, pending: list[Trial], more: int) -> list[Trial]:
    """Trials that show what is wrong with any of those to run: also with those that a search may still suggest."""
    if grid.search is None or not more:
        return pending or list(grid.trials[:1])
    return [*pending, *(grid.search.make(values)[0] for values in corners(grid.search.spec))]


def check_inputs(trials: Sequence[Trial], say: Callable[[str], None]) -> None:
    """Check what the trials start from, their backbones and data sets, before anything is trained.

    Raises:
        UserError: all that is wrong, a line each.
    """
    problems = []
    for check in (lambda: check_backbones(trials), lambda: check_datasets(trials, say)):
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def check_datasets(trials: Sequence[Trial], say: Callable[[str], None]) -> None:
    """Generate and check every data set once, before anything is trained on it.

    Raises:
        UserError: listing every problem of the first data set that has any.
    """
    from harness.data import open_splits

    configs: dict[Any, DataConfig] = {}
    with_masks: dict[Any, bool] = {}
    queries: dict[Any, int] = {}
    limits: dict[Any, int] = {}
    for trial in trials:
        data, heads = trial.config.data, trial.config.model.heads
        key = _data_key(data)
        if key not in configs or data.learns_from_masks:
            configs[key] = data
        with_masks[key] = with_masks.get(key, False) or _need_masks(heads)
        queries[key] = min(trial.config.model.num_queries, queries.get(key, trial.config.model.num_queries))
        limit = trial.config.evaluate.max_detections
        limits[key] = min(limit, limits.get(key, limit))
    for key, config in configs.items():
        splits = open_splits(config, progress=say, with_masks=with_masks[key])
        protocol = splits[1].protocol
        limit = limit_asked(protocol, limits[key])
        crowded = beyond_limit(splits[1].objects_of_images, protocol)
        if crowded and crowded["most"] > limit:
            say(f"note: {limit_words(crowded, limit)}")
        most = max(data.most_objects for data in splits)
        asked = [trial.config for trial in trials if _data_key(trial.config.data) == key]
        if trouble := next(filter(None, (evaluator_trouble(protocol, own.evaluate.evaluator) for own in asked)), ""):
            raise UserError(f"{splits[1].annotation_file}: {trouble}")
        small = (line for own in asked for line in notes_on_small_images(own, *(data.image_hw for data in splits)))
        for line in dict.fromkeys(small):
            say(f"note: {line}")
        lengths = (_length(trial, splits[0]) for trial in asked if trial.train.min_steps)
        for length in dict.fromkeys(lengths):
            say(f"training: {length}")
        if most > queries[key]:
            say(f"note: an image has {most} objects, and model.num_queries={queries[key]} can find no more than that")


def _data_key(data: DataConfig) -> tuple[Any, ...]:
    """What decides which annotations are read."""
    return data.path, data.digits, data.outside_boxes


def _length(config: TrialConfig, data: CocoDataset) -> TrainingLength:
    from harness.data.order import repeat_factors, samples_of_epoch

    factors = repeat_factors(*data.classes_of_images(), data.image_hw, config.data)
    batch_size = config.train.batch_size
    return training_length(config.train, samples_of_epoch(data.image_hw, config.data, batch_size, factors))


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
