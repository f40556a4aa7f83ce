"""Keeps the tracking store equal to the records.

The records are the truth; the mirror replays from them what MLflow does not have yet (one trial: replay.py). It
works in one process (the driver), so training neither waits for nor fails with a tracking server. While a grid runs,
after it, and after an outage it is one and the same call.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from harness.errors import ReadError, StorageError, UserError, one_line
from harness.files import is_folder
from harness.passwords import shown
from harness.spec.identity import config_from_dict, config_to_dict
from harness.spec.space import values_text
from harness.store.agreement import short
from harness.store.housekeeping import marks
from harness.store.lease import file_lock, identity, is_alive, read_holder
from harness.store.results import METRICS, RECORD, RunStore
from harness.tracking import tracking, views
from harness.tracking.failures import AWAY, DELETED, failure_of
from harness.tracking.mlflow_runs import (
    MAX_TAG,
    create_run,
    delete_runs,
    delete_tag,
    save_view,
    set_params,
    set_status,
    set_tags,
)
from harness.tracking.replay import Replayer
from model.backbones.configs import without_weights

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from harness.config import TrialConfig
    from harness.spec.grid import Grid, Trial

SYNC_SECONDS = 3.0  # between two replays
RETRY_SECONDS = 30.0  # between attempts to reach a store that is away


class Mirror:
    """Keeps MLflow equal to the records of a grid's trials.

    Args:
        store: the records.
        grid: name, title and trials.
        uri: the tracking store; None takes `tracking_uri()`.
        warn: takes the one line that says what is wrong with the store, the one that says it is back, and one for
            each metric that MLflow refuses.
    """

    def __init__(
        self, store: RunStore, grid: Grid, uri: str | None = None, warn: Callable[[str], None] = print
    ) -> None:
        self.store = store
        self.grid = grid
        self.uri = uri or tracking.tracking_uri(store.root)
        self.warn = warn
        self._client: MlflowClient  # these four from `open` on
        self._replayer: Replayer
        self._experiment = ""
        self._parent = ""  # the grid's run
        self._varied: dict[int, tuple[str, ...]] = {}  # parameters that tell the trials apart, by how many there are
        self._seen: dict[str, tuple[Any, ...]] = {}  # state of a record's files when it was last mirrored
        self._next_attempt = 0.0
        self._warned = False
        self._refused: set[str] = set()  # parameters
        self._at_work = threading.Lock()  # a signal can end the wait for the thread of `repeated` while it replays

    def open(self) -> None:
        """Make store, experiment and the grid's run; set right what killed processes left as RUNNING.

        Raises:
            UserError: the tracking store cannot be reached.
        """
        self._experiment = tracking.ensure_store(self.uri, self.warn)
        delete_removed(self.store, self.uri)
        with tracking.reaching(self.uri):
            self._client = tracking.connect(self.uri)
            self._replayer = Replayer(self.store, self._client, self._experiment, self.warn)
            self._parent = self._grid_run()
            self._reconcile()

    def sync(self, trials: Iterable[Trial] | None = None) -> bool:
        """Replay what MLflow lacks of these trials (default: all of the grid). False while the store is away.

        Never raises: the first failure gives one warning, and what was missed is replayed by the next call that
        gets through.
        """
        if time.monotonic() < self._next_attempt:
            return False
        try:
            self.replay_all(trials)
        except StorageError as error:  # the records are away, not the tracking store
            self._next_attempt = time.monotonic() + RETRY_SECONDS
            self.warn(f"warning: {error}")
            return False
        except Exception as error:  # whatever happens on the tracking side, training goes on
            self._next_attempt = time.monotonic() + RETRY_SECONDS
            self._fail(error)
            return False
        if self._warned:
            self._warned = False
            self.warn(f"tracking store {shown(self.uri)} is back and has everything")
        return True

    def _fail(self, error: Exception) -> None:
        """Tell of a failure, once; restore the experiment, if that is what is missing."""
        failure = failure_of(self.uri, error)
        if failure.kind == DELETED:
            with suppress(Exception):
                self._experiment = tracking.ensure_store(self.uri, self.warn)
                self._next_attempt = 0.0
                return
        if not self._warned:
            self._warned = True
            what = f"is away ({one_line(error)})" if failure.kind == AWAY else str(failure)
            self.warn(
                f"warning: tracking store {shown(self.uri)} {what}; training goes on, and it gets what it misses from "
                "the records when it is back"
            )

    def replay_all(self, trials: Iterable[Trial] | None = None) -> None:
        """As `sync`, but what goes wrong is raised."""
        with self._at_work:
            for trial in self.grid.trials if trials is None else trials:
                self._sync_trial(trial)

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Replay every few seconds from a thread, so that nothing waits for it."""
        ended = threading.Event()

        def replay() -> None:
            while not ended.wait(SYNC_SECONDS):
                self.sync()

        thread = threading.Thread(target=replay, name="mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def close(self) -> bool:
        """Replay the rest and give the grid's run its status. False when the store is away."""
        self._next_attempt = 0.0
        if not self.sync():
            return False
        try:
            found = {self.store.status(trial.trial_id) for trial in self.grid.trials}
        except ReadError as error:
            self.warn(f"warning: {error}")
            return False
        status = "failed" if "failed" in found else "finished" if found <= {"finished"} else "interrupted"
        try:
            self._show_grid()
        except Exception as error:  # the records are there; only the way they are shown is not up to date
            self.warn(f"warning: MLflow does not show {self.grid.name} as it should ({one_line(error)})")
        with suppress(Exception):
            set_status(self._client, self._parent, "running" if self._driven_by_another() else status)
        return True

    def _driven_by_another(self) -> bool:
        path = self.store.grid_lease(self.grid.key, self.grid.preset)
        return is_alive(path) and not identity().items() <= (read_holder(path) or {}).items()

    # ---- runs

    def _find(self, condition: str) -> list[Run]:
        return tracking.find_runs(self._client, self._experiment, condition)

    def _grid_run(self) -> str:
        grid = self.grid
        note = views.note(grid, self._experiment)[:MAX_TAG]
        tags = {"codetr.grid": grid.key, "codetr.preset": grid.preset, "mlflow.note.content": note}
        same = (f"tags.`{name}` = {views.quoted(tags[name])}" for name in ("codetr.grid", "codetr.preset"))
        with file_lock(self.store.root / ".mirror.lock"):
            found = self._find(" AND ".join(same))
            name = views.view_name(grid)
            run = found[0] if found else create_run(self._client, self._experiment, name, tags)
        set_status(self._client, run.info.run_id, "running")
        return str(run.info.run_id)

    def _show_grid(self) -> None:
        """What a person finds in MLflow: comparable parameters, a view of the grid, and where to compare its trials."""
        self._part_from_others()
        self._complete_params()
        grid, runs = self.grid, self._find(views.grid_filter(self.grid))
        metrics = {name for run in runs for name in run.data.metrics}
        state = views.view_state(grid, self._names(), metrics)
        save_view(self._client, self._experiment, views.view_id(grid), views.view_name(grid), state)
        order = [trial.trial_id for trial in grid.trials]
        ids = {run.data.tags["trial_id"]: run.info.run_id for run in runs}
        shown_ids = [ids[trial_id] for trial_id in order if trial_id in ids]
        code = views.code_words(record for trial_id in order if (record := self.store.read(trial_id)))
        note = views.note(grid, self._experiment, shown_ids, code)
        tracking.set_tag(self._client, self._parent, "mlflow.note.content", note[:MAX_TAG])

    def _part_from_others(self) -> None:
        """Take the grid's tag from trials of other settings or data, which its rows would average with its own.

        They have it from an earlier form of the file, or from before data and settings were part of a grid's key.
        Other seeds of its rows keep it, and so does what the records do not know.
        """
        if self.grid.search is not None:
            return  # its rows are what was suggested, each once
        own = {trial.trial_id for trial in self.grid.trials}
        cells = {(trial.fingerprint, trial.weights_hash, _unseeded(trial.config)) for trial in self.grid.trials}
        for run in self._find(views.grid_filter(self.grid)):
            record = self.store.read(run.data.tags["trial_id"]) or {}
            if run.data.tags["trial_id"] in own or not record.get("config"):
                continue
            with suppress(UserError, KeyError, TypeError, ValueError):  # a configuration of another version
                contents = (record.get("fingerprint"), record.get("weights_hash"))
                if (*contents, _unseeded(config_from_dict(record["config"]))) not in cells:
                    delete_tag(self._client, run.info.run_id, views.grid_tag(self.grid))

    def _names(self) -> tuple[str, ...]:
        trials = self.grid.trials
        if len(trials) not in self._varied:
            self._varied[len(trials)] = views.varied(config_to_dict(trial.config) for trial in trials)
        return self._varied[len(trials)]

    def _complete_params(self) -> None:
        """Where a trial belongs to several grids, the others of each grid get the parameters that it has of another.

        Otherwise MLflow would compare them as unknown.
        """
        own = self._find(views.grid_filter(self.grid))
        shared = {tag for run in own for tag in run.data.tags if tag.startswith("grid.")}
        for tag in sorted(shared):
            runs = self._find(f"tags.`{tag}` LIKE '%'")
            names = {name for run in runs for name in run.data.params}
            for run in runs:
                if names - run.data.params.keys():
                    config = (self.store.read(run.data.tags["trial_id"]) or {}).get("config")
                    params = views.params_of(config) if config else {}
                    self._set_params(run, {name: params[name] for name in names & params.keys()})

    def _set_params(self, run: Run, params: Mapping[str, Any]) -> None:
        for name, why in set_params(self._client, run, params).items():
            if name not in self._refused:
                self._refused.add(name)
                self.warn(f"warning: MLflow does not take the parameter {name!r} ({why}); everything else is recorded")

    def _trial_run(self, trial: Trial) -> Run:
        with file_lock(self.store.root / ".mirror.lock"):  # two drivers must not make two runs of one trial
            found = self._find(f"tags.trial_id = '{trial.trial_id}'")
            tags = {"trial_id": trial.trial_id, "mlflow.parentRunId": self._parent}
            record = self.store.read(trial.trial_id) or {}
            new = (self._client, self._experiment, trial.label, tags, record.get("started"))
            run = found[0] if found else create_run(*new)
        tags = {views.grid_tag(self.grid): trial.row or trial.label}
        if not self.grid.variant.digest or "codetr.preset" not in run.data.tags:
            tags["codetr.preset"] = self.grid.preset  # a plain grid is found by it
        if code := short((record.get("provenance") or {}).get("code")):
            tags[views.CODE_TAG] = code
        if self.grid.search is not None:
            tags[f"search.{self.grid.search.key}"] = values_text(self.grid.search.values[trial.trial_id])
        set_tags(self._client, run, tags)
        params = views.params_of(config_to_dict(trial.config))
        told = dict.fromkeys((*views.ALWAYS, *self._names()))
        self._set_params(run, {name: params[name] for name in told if name in params})
        return run

    def _reconcile(self) -> None:
        """A killed process leaves its run RUNNING for ever: give it the status that the record has."""
        for run in self._find("attributes.status = 'RUNNING'"):
            tags = run.data.tags
            trial_id, grid, preset = (tags.get(name, "") for name in ("trial_id", "codetr.grid", "codetr.preset"))
            own = (grid, preset) == (self.grid.key, self.grid.preset)
            if trial_id and is_folder(self.store.dir(trial_id)):
                self._replayer.replay(run, trial_id)
            elif grid and not own and is_folder(self.store.grid_dir(grid)):
                driven = is_alive(self.store.grid_lease(grid, preset))
                set_status(self._client, run.info.run_id, "running" if driven else "interrupted")

    # ---- one trial

    def _state(self, trial_id: str) -> tuple[Any, ...]:
        stamps = []
        for name in (RECORD, METRICS):
            with suppress(OSError):
                found = (self.store.dir(trial_id) / name).stat()
                stamps.append((name, found.st_mtime_ns, found.st_ino))
        return (self.store.status(trial_id), *stamps)

    def _sync_trial(self, trial: Trial) -> None:
        state = self._state(trial.trial_id)
        if state[0] == "pending" or self._seen.get(trial.trial_id) == state:
            return
        self._replayer.replay(self._trial_run(trial), trial.trial_id)
        self._seen[trial.trial_id] = state


def _unseeded(config: TrialConfig) -> TrialConfig:
    """A configuration without its seed, and without where its data and weights lie."""
    backbone, data = without_weights(config.model.backbone), dataclasses.replace(config.data, path=None)
    model = dataclasses.replace(config.model, backbone=backbone)
    return dataclasses.replace(config, seed=0, model=model, data=data)


def sync_trials(
    store: RunStore, trial_ids: Iterable[str], uri: str | None = None, say: Callable[[str], None] | None = None
) -> int:
    """Bring the runs that these trials already have in the tracking store up to date; returns how many there are.

    `say` takes remarks.

    Raises:
        UserError: the tracking store cannot be reached.
    """
    uri = uri or tracking.tracking_uri(store.root)
    experiment = tracking.ensure_store(uri, say)
    count = 0
    with tracking.reaching(uri):
        client = tracking.connect(uri)
        replayer = Replayer(store, client, experiment, say or (lambda line: None))
        for trial_id in trial_ids:
            for run in tracking.find_runs(client, experiment, f"tags.trial_id = '{trial_id}'")[:1]:
                replayer.replay(run, trial_id)
                count += 1
    return count


def sync(store: RunStore, grid: Grid, uri: str | None = None, say: Callable[[str], None] = lambda line: None) -> None:
    """Replay everything of a grid that MLflow lacks. `say` takes remarks.

    Raises:
        UserError: the tracking store cannot be reached.
    """
    uri = uri or tracking.tracking_uri(store.root)
    mirror = Mirror(store, grid, uri, warn=say)
    mirror.open()
    with tracking.reaching(uri):
        mirror.replay_all()
    if not mirror.close():
        raise UserError(f"tracking store {shown(uri)}: not everything came through; the same command goes on there")


def delete_removed(store: RunStore, uri: str | None = None) -> int:
    """Delete the runs of trials that were removed from the store; returns how many there were.

    Raises:
        UserError: the tracking store cannot be reached; the marks stay.
    """
    found = marks(store)
    gone = delete_runs(list(found), uri or tracking.tracking_uri(store.root)) if found else 0
    for path in found.values():
        path.unlink(missing_ok=True)
    return gone
