"""Ray Tune's part in a search: Optuna suggests, ASHA stops early.

Both are fed from the store, so that a search that was killed goes on with all that was found out before. ASHA does
not kill workers: what it gives up gets a marker file, and the trial itself stops, with a checkpoint, under its lease,
and its record says `pruned`.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeGuard

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from harness.files import write_atomic
from harness.store.results import RunStore
from harness.store.suggestions import note_suggestion

if TYPE_CHECKING:
    from harness.schedule.execute import RunTrial
    from harness.spec.grid import Grid, Trial
    from harness.spec.space import Dimension, SearchSpec

VALUE = "value"  # the search's metric in what workers report: the name of a branch's metric holds a slash
LONGEST = 100_000  # epochs; rungs that no trial reaches change nothing
TRIES = 20  # suggestions in a row that were made before, until a space counts as exhausted

Joined = Callable[["Grid"], None]  # takes the grid after a search has suggested one more trial


def search_order(
    grid: Grid,
    trials: Sequence[Trial],
    more: int,
    store: RunStore,
    folder: Path,
    run_trial: RunTrial | None,
    joined: Joined,
) -> tuple[RunTrial | None, dict[str, Any]]:
    """What a search changes for Tune: how a trial is run, and options of `TuneConfig`.

    Args:
        grid: the search, with what was suggested so far.
        trials: those to run first.
        more: how many may be suggested after them.
        store: the records.
        folder: of this launch.
        run_trial: what runs a trial; None: `harness.trial.trial.run_trial`.
        joined: told of the grid after each suggestion.
    """
    assert grid.search is not None
    spec = grid.search.spec
    options: dict[str, Any] = {}
    if spec.scheduler == "asha":
        options["scheduler"] = Pruning(grid, store, folder)
        run_trial = partial(run_until_pruned, work=run_trial, folder=folder, metric=spec.metric)
    if spec.algorithm == "optuna":
        options["search_alg"] = Suggestions(grid, trials, more, store, joined)
        options["num_samples"] = len(trials) + more
    return run_trial, options


def course(store: RunStore, trial_id: str, metric: str) -> list[tuple[int, float]]:
    """(epoch, value) of the metric as far as a trial has come."""
    entries = [(entry["epoch"], entry.get(metric)) for entry in store.metrics(trial_id)]
    return [(int(epoch), float(value)) for epoch, value in entries if _is_number(value)]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def marker(folder: Path, trial_id: str) -> Path:
    """The file that tells a trial of this launch to stop early."""
    return folder / f"pruned-{trial_id}"


class Pruning(ASHAScheduler):
    """Asynchronous successive halving (arXiv 1810.05934) over all trials of a search, also those of earlier launches.

    Args:
        grid: the search.
        store: where its trials' metrics lie.
        folder: of this launch; takes the markers.
    """

    def __init__(self, grid: Grid, store: RunStore, folder: Path) -> None:
        assert grid.search is not None
        spec = grid.search.spec
        super().__init__(
            time_attr="epoch",
            metric=VALUE,
            mode=spec.mode,
            max_t=max(LONGEST, spec.grace_epochs),
            grace_period=spec.grace_epochs,
            reduction_factor=spec.reduction_factor,
            stop_last_trials=False,  # the last epoch ends a trial by itself
        )
        self._folder = folder
        for trial in grid.trials:
            self._judge(trial.trial_id, course(store, trial.trial_id, spec.metric))

    def _judge(self, trial_id: str, values: Sequence[tuple[int, float]]) -> bool:
        """Note values of a trial; whether it is to stop after the last of them."""
        nobody: Any = None
        named: Any = SimpleNamespace(trial_id=trial_id)  # by our id: Ray's own differs in every launch
        super().on_trial_add(nobody, named)
        results = [{"epoch": epoch, VALUE: value} for epoch, value in values]
        decisions = [super(Pruning, self).on_trial_result(nobody, named, result) for result in results]
        return bool(decisions) and decisions[-1] == self.STOP

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Mark a trial that lags behind; for Tune it goes on until it has stopped itself."""
        key = trial.config["trial"]
        if VALUE in result and self._judge(key, [(result["epoch"], result[VALUE])]):
            write_atomic(marker(self._folder, key), "")
        return str(self.CONTINUE)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Nothing: a trial counts from its first value on."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Nothing: the last value came with its epoch."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Nothing is kept by Ray's trials."""


def run_until_pruned(
    trial: Trial,
    store: RunStore,
    *,
    report: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], bool] | None = None,
    work: RunTrial | None,
    folder: Path,
    metric: str,
) -> Any:
    """`run_trial` for a search: Tune hears of every epoch, and a trial that was given up ends as `pruned`."""
    pruned = False

    def tell(event: dict[str, Any]) -> None:
        nonlocal pruned
        report(event)
        if event.get("kind") == "epoch" and _is_number(event.get(metric)):
            tune.report({"epoch": event["epoch"], VALUE: float(event[metric])})  # returns after it was judged
            pruned = marker(folder, trial.trial_id).exists()

    def stopping() -> bool:
        return pruned or (should_stop is not None and should_stop())

    try:
        return _real(work)(trial, store, report=tell, should_stop=stopping)
    except Exception:
        if pruned and (store.read(trial.trial_id) or {}).get("status") == "interrupted":
            store.mark(trial.trial_id, "pruned")
        raise


def _real(work: RunTrial | None) -> RunTrial:
    if work is not None:
        return work
    from harness.trial.trial import run_trial  # with torch, which takes seconds

    return run_trial


class Suggestions(Searcher):
    """Gives Tune the trials of a search that are left, and then those that Optuna suggests.

    Args:
        grid: the search, with what was suggested so far.
        pending: trials to run before anything is suggested.
        more: how many may be suggested in this launch.
        store: records are read there, and suggestions noted.
        joined: told of the grid after each suggestion.
    """

    def __init__(self, grid: Grid, pending: Sequence[Trial], more: int, store: RunStore, joined: Joined) -> None:
        assert grid.search is not None
        spec = grid.search.spec
        super().__init__(metric=VALUE, mode=spec.mode)
        self._grid, self._store, self._joined = grid, store, joined
        self._dimensions, self._metric_name = spec.dimensions, spec.metric
        self._pending, self._more = list(pending), more
        self._running: dict[str, tuple[str, str | None]] = {}  # Tune's id -> trial id, Optuna's key if it suggested it
        # A seed of its own for each continuation: the same one would suggest the same again.
        seed = spec.seed + len(grid.trials)
        from ray.tune.search.optuna import OptunaSearch

        logging.getLogger("optuna").setLevel(logging.WARNING)
        self._optuna = OptunaSearch(_optuna_space(spec), metric=VALUE, mode=spec.mode, seed=seed)
        self._random = random.Random(seed)
        waiting = {trial.trial_id for trial in pending}
        for trial in grid.trials:
            if trial.trial_id not in waiting:
                self._learn(trial.trial_id)

    def suggest(self, trial_id: str) -> Any:
        """The next trial as Tune's configuration."""
        if self._pending:
            trial = self._pending.pop(0)
            self._running[trial_id] = (trial.trial_id, None)
            return self._config(trial)
        for attempt in range(2 * TRIES if self._more else 0):
            # In a small space Optuna may insist on what it suggested before: then a draw at random.
            key = f"{trial_id}.{attempt}" if attempt < TRIES else None
            values = self._draw(key)
            before = self._grid
            self._grid = note_suggestion(before, self._store, values)
            trial = self._grid.trials[-1]
            assert self._grid.search is not None
            if self._grid is before or self._grid.search.values[trial.trial_id] != values:
                if key is not None:
                    self._tell(key, None)  # known already, or nothing more is wanted
                continue
            self._more -= 1
            self._running[trial_id] = (trial.trial_id, key)
            self._joined(self._grid)
            return self._config(trial)
        return Searcher.FINISHED

    def _draw(self, key: str | None) -> dict[str, Any]:
        """Values that Optuna suggests under `key`, or without one at random."""
        if key is None:
            return {dimension.key: dimension.at(self._random.random()) for dimension in self._dimensions}
        raw = self._optuna.suggest(key) or {}
        return {dimension.key: _value(dimension, raw[dimension.key]) for dimension in self._dimensions}

    def _config(self, trial: Trial) -> dict[str, Any]:
        assert self._grid.search is not None
        return {"trial": trial.trial_id, "values": self._grid.search.values[trial.trial_id]}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: Optuna hears of a trial when it has ended."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna what the store says of the trial."""
        ours, key = self._running.pop(trial_id, ("", None))
        if key is not None:
            self._tell(key, ours)
        elif ours:
            self._learn(ours)

    def _outcome(self, trial_id: str) -> tuple[str, list[float], float | None]:
        """Status, values by epoch, and the value that stands for the trial."""
        record = self._store.read(trial_id) or {}
        values = [value for _, value in course(self._store, trial_id, self._metric_name)]
        last = values[-1] if values else None
        final = (record.get("metrics") or {}).get(self._metric_name, last)
        return str(record.get("status")), values, float(final) if _is_number(final) else None

    def _tell(self, key: str, trial_id: str | None) -> None:
        """What became of a trial that Optuna suggested in this launch."""
        status, values, final = self._outcome(trial_id) if trial_id else ("", [], None)
        for index, value in enumerate(values):
            self._optuna.on_trial_result(key, {VALUE: value, "training_iteration": index})
        if status == "finished" and final is not None:
            self._optuna.on_trial_complete(key, {VALUE: final})
        else:
            self._optuna.on_trial_complete(key, None, error=not (status == "pruned" and values))

    def _learn(self, trial_id: str) -> None:
        """What became of any other trial of the search."""
        assert self._grid.search is not None
        status, values, final = self._outcome(trial_id)
        if status not in ("finished", "pruned") or final is None:
            return
        point = {d.key: _raw(d, self._grid.search.values[trial_id][d.key]) for d in self._dimensions}
        self._optuna.add_evaluated_point(point, final, pruned=status == "pruned", intermediate_values=values)

    def __reduce__(self) -> tuple[Any, ...]:
        return Searcher, ()  # Tune writes its settings down; nobody reads them

    def __deepcopy__(self, memo: object) -> Suggestions:
        return self

    def save(self, checkpoint_path: str) -> None:
        """Tune wants a file; what matters is in the store."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is read back."""


def _optuna_space(spec: SearchSpec) -> dict[str, Any]:
    """The space in Optuna's terms; a choice is the number of its value, which may be anything."""
    from ray.tune.search.optuna import OptunaSearch

    kinds = {
        "uniform": tune.uniform,
        "log_uniform": tune.loguniform,
        "integer": lambda low, high: tune.randint(low, high + 1),
        "choice": lambda *values: tune.choice(list(range(len(values)))),
    }
    return OptunaSearch.convert_search_space({d.key: kinds[d.kind](*d.range) for d in spec.dimensions})


def _value(dimension: Dimension, raw: Any) -> Any:
    """What Optuna suggests as the value of a setting."""
    if dimension.kind == "choice":
        return dimension.range[int(raw)]
    return int(raw) if dimension.kind == "integer" else dimension.rounded(float(raw))


def _raw(dimension: Dimension, value: Any) -> Any:
    """The value of a setting in Optuna's terms."""
    return list(dimension.range).index(value) if dimension.kind == "choice" else value
