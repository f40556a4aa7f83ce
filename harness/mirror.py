"""Keeps the tracking store equal to the records.

The records are the truth; the mirror replays from them what MLflow does not have yet. It works in one process (the
driver), so training neither waits for nor fails with a tracking server. While a grid runs, after it, and after
an outage it is one and the same call.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from harness import tracking, views
from harness.errors import UserError
from harness.housekeeping import marks
from harness.identity import config_to_dict
from harness.lease import file_lock, identity, is_alive, read_holder
from harness.results import RunStore, to_json
from harness.space import values_text

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from harness.grid import Grid, Trial

ARTIFACTS = ("config.yaml", "result.json")
SYNC_SECONDS = 3.0  # between two replays
RETRY_SECONDS = 30.0  # between attempts to reach a store that is away


class Mirror:
    """Keeps MLflow equal to the records of a grid's trials.

    Args:
        store: the records.
        grid: name, title and trials.
        uri: the tracking store; None takes `tracking_uri()`.
        warn: takes the one line that says the store is away, and the one that says it is back.
    """

    def __init__(
        self, store: RunStore, grid: Grid, uri: str | None = None, warn: Callable[[str], None] = print
    ) -> None:
        self.store = store
        self.grid = grid
        self.uri = uri or tracking.tracking_uri(store.root)
        self.warn = warn
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._parent = ""
        self._varied: dict[int, tuple[str, ...]] = {}  # parameters that tell the trials apart, by how many there are
        self._seen: dict[str, tuple[Any, ...]] = {}  # state of a record's files when it was last mirrored
        self._logged: dict[str, dict[int, int]] = {}  # run id -> step -> time stamp (ms) of the epochs that it has
        self._next_attempt = 0.0
        self._warned = False

    @property
    def _mlflow(self) -> MlflowClient:
        if self._client is None:
            self._client = tracking.connect(self.uri)
        return self._client

    def open(self) -> None:
        """Make store, experiment and the grid's run; set right what killed processes left as RUNNING.

        Raises:
            UserError: the tracking store cannot be reached.
        """
        self._experiment = tracking.ensure_store(self.uri)
        delete_removed(self.store, self.uri)
        with tracking.reaching(self.uri):
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
            for trial in self.grid.trials if trials is None else trials:
                self._sync_trial(trial)
        except Exception as error:  # whatever happens on the tracking side, training goes on
            self._next_attempt = time.monotonic() + RETRY_SECONDS
            if not self._warned:
                self._warned = True
                self.warn(
                    f"warning: tracking store {self.uri} is away ({tracking.one_line(error)}); training goes on, "
                    "and it gets what it misses from the records when it is back"
                )
            return False
        if self._warned:
            self._warned = False
            self.warn(f"tracking store {self.uri} is back and has everything")
        return True

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
        found = {self.store.status(trial.trial_id) for trial in self.grid.trials}
        status = "failed" if "failed" in found else "finished" if found <= {"finished"} else "interrupted"
        try:
            self._show_grid()
        except Exception as error:  # the records are there; only the way they are shown is not up to date
            self.warn(f"warning: MLflow does not show {self.grid.name} as it should ({tracking.one_line(error)})")
        with suppress(Exception):
            tracking.set_status(self._mlflow, self._parent, "running" if self._driven_by_another() else status)
        return True

    def _driven_by_another(self) -> bool:
        path = self.store.grid_dir(self.grid.name) / "lease.json"
        return is_alive(path) and not identity().items() <= (read_holder(path) or {}).items()

    # ---- runs

    def _find(self, condition: str) -> list[Run]:
        return tracking.find_runs(self._mlflow, self._experiment, condition)

    def _grid_run(self) -> str:
        grid = self.grid
        note = views.note(grid, self._experiment)
        tags = {"codetr.grid": grid.name, "codetr.preset": grid.preset, "mlflow.note.content": note}
        with file_lock(self.store.root / ".mirror.lock"):
            found = self._find(f"tags.`codetr.grid` = '{grid.name}' AND tags.`codetr.preset` = '{grid.preset}'")
            name = views.view_name(grid)
            run = found[0] if found else tracking.create_run(self._mlflow, self._experiment, name, tags)
        tracking.set_status(self._mlflow, run.info.run_id, "running")
        return str(run.info.run_id)

    def _show_grid(self) -> None:
        """What a person finds in MLflow: comparable parameters, a view of the grid, and where to compare its trials."""
        self._complete_params()
        grid, runs = self.grid, self._find(views.grid_filter(self.grid))
        metrics = {name for run in runs for name in run.data.metrics}
        state = views.view_state(grid, self._names(), metrics)
        tracking.save_view(self._mlflow, self._experiment, views.view_id(grid), views.view_name(grid), state)
        order = [trial.trial_id for trial in grid.trials]
        ids = {run.data.tags["trial_id"]: run.info.run_id for run in runs}
        note = views.note(grid, self._experiment, [ids[trial_id] for trial_id in order if trial_id in ids])
        self._mlflow.set_tag(self._parent, "mlflow.note.content", note[: tracking.MAX_TAG])

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
                    tracking.set_params(self._mlflow, run, {name: params[name] for name in names & params.keys()})

    def _trial_run(self, trial: Trial) -> Run:
        with file_lock(self.store.root / ".mirror.lock"):  # two drivers must not make two runs of one trial
            found = self._find(f"tags.trial_id = '{trial.trial_id}'")
            tags = {"trial_id": trial.trial_id, "mlflow.parentRunId": self._parent}
            started = (self.store.read(trial.trial_id) or {}).get("started")
            create = tracking.create_run
            run = found[0] if found else create(self._mlflow, self._experiment, trial.label, tags, started)
        tags = {f"grid.{self.grid.name}": trial.row or trial.label, "codetr.preset": self.grid.preset}
        if self.grid.search is not None:
            tags[f"search.{self.grid.search.key}"] = values_text(self.grid.search.values[trial.trial_id])
        tracking.set_tags(self._mlflow, run, tags)
        params = views.params_of(config_to_dict(trial.config))
        shown = dict.fromkeys((*views.ALWAYS, *self._names()))
        tracking.set_params(self._mlflow, run, {name: params[name] for name in shown if name in params})
        return run

    def _reconcile(self) -> None:
        """A killed process leaves its run RUNNING for ever: give it the status that the record has."""
        for run in self._find("attributes.status = 'RUNNING'"):
            trial_id, grid = run.data.tags.get("trial_id"), run.data.tags.get("codetr.grid")
            if trial_id and self.store.dir(trial_id).is_dir():
                self._replay(run, trial_id)
            elif grid and grid != self.grid.name and self.store.grid_dir(grid).is_dir():
                driven = is_alive(self.store.grid_dir(grid) / "lease.json")
                tracking.set_status(self._mlflow, run.info.run_id, "running" if driven else "interrupted")

    # ---- one trial

    def _state(self, trial_id: str) -> tuple[Any, ...]:
        stamps = []
        for name in ("result.json", "metrics.jsonl"):
            with suppress(OSError):
                found = (self.store.dir(trial_id) / name).stat()
                stamps.append((name, found.st_mtime_ns, found.st_ino))
        return (self.store.status(trial_id), *stamps)

    def _sync_trial(self, trial: Trial) -> None:
        state = self._state(trial.trial_id)
        if state[0] == "pending" or self._seen.get(trial.trial_id) == state:
            return
        self._replay(self._trial_run(trial), trial.trial_id)
        self._seen[trial.trial_id] = state

    def _replay(self, run: Run, trial_id: str) -> None:
        """Log the epochs that the run lacks and, for a trial that has ended, the rest of its record."""
        status = self.store.status(trial_id)
        entries = self.store.metrics(trial_id)
        logged = self._epochs_of(run)
        if not logged.items() <= {_step(entry): _stamp(entry) for entry in entries}.items():
            run, logged = self._renewed(run), {}
        for entry in entries:
            metrics = tracking.flat_metrics(entry)
            if _step(entry) in logged:
                if entry is not entries[-1]:
                    continue
                metrics = {k: v for k, v in metrics.items() if run.data.metrics.get(k) != v}  # analysed since
            self._log(run, metrics, entry)
            logged[_step(entry)] = _stamp(entry)
        if status not in ("running", "pending"):
            self._replay_end(run, trial_id, status, entries)
        if run.info.status != tracking.MLFLOW_STATUS.get(status):
            ended = (self.store.read(trial_id) or {}).get("finished")
            tracking.set_status(self._mlflow, run.info.run_id, "interrupted" if status == "pending" else status, ended)

    def _epochs_of(self, run: Run) -> dict[int, int]:
        if run.info.run_id not in self._logged:
            found = self._mlflow.get_metric_history(run.info.run_id, "epoch") if "epoch" in run.data.metrics else []
            self._logged[run.info.run_id] = {metric.step: metric.timestamp for metric in found}
        return self._logged[run.info.run_id]

    def _renewed(self, run: Run) -> Run:
        """A run cannot forget epochs that were trained again since: another run takes its place."""
        run = self._mlflow.get_run(run.info.run_id)  # with what was set since it was found
        of_mlflow = ("mlflow.user", "mlflow.source.name", "mlflow.runName")
        tags = {k: v for k, v in run.data.tags.items() if k not in of_mlflow and k != "codetr.record"}
        with file_lock(self.store.root / ".mirror.lock"):
            self._mlflow.delete_run(run.info.run_id)
            new = tracking.create_run(self._mlflow, self._experiment, str(run.info.run_name), tags)
        for key, value in run.data.params.items():
            self._mlflow.log_param(new.info.run_id, key, value)
        self._logged[new.info.run_id] = {}
        return new

    def _replay_end(self, run: Run, trial_id: str, status: str, entries: list[dict[str, Any]]) -> None:
        record = self.store.read(trial_id) or {}
        digest = hashlib.sha256(f"{status} {to_json(record)}".encode()).hexdigest()[:16]
        if run.data.tags.get("codetr.record") == digest:
            return
        told = {name for entry in entries for name in tracking.flat_metrics(entry)}  # the epochs know them better
        last = entries[-1] if entries else {}
        whole = {group: record.get(group) or {} for group in tracking.GROUPS if group != "losses"}
        # A number of the whole trial has step 0: MLflow then draws bars.
        for part, entry in (record.get("metrics") or {}, last), (whole, {**last, "step": 0, "epoch": 0}):
            final = tracking.flat_metrics(part)
            fresh = {k: v for k, v in final.items() if k not in told and run.data.metrics.get(k) != v}
            self._log(run, fresh, entry)
        for name in (*ARTIFACTS, "log.txt") if status == "failed" else ARTIFACTS:
            if (self.store.dir(trial_id) / name).exists():
                self._mlflow.log_artifact(run.info.run_id, str(self.store.dir(trial_id) / name))
        for path in sorted((self.store.dir(trial_id) / "analysis").glob("[!.]*")):
            self._mlflow.log_artifact(run.info.run_id, str(path), "analysis")
        provenance = record.get("provenance") or {}
        tags = {key: str(record.get(key) or "") for key in ("error", "started", "finished", "fingerprint")}
        tags |= {"status": status, "provenance": to_json(provenance)}
        tags = {f"codetr.{key}": value for key, value in tags.items()}
        if provenance.get("commit"):
            tags["mlflow.source.git.commit"] = str(provenance["commit"])
        # The digest last: when something before it fails, all of it is repeated.
        tracking.set_tags(self._mlflow, run, {**tags, "codetr.record": digest})

    def _log(self, run: Run, metrics: dict[str, float], entry: dict[str, Any]) -> None:
        if metrics:
            seconds = entry.get("time") or time.time()
            tracking.log_metrics(self._mlflow, run.info.run_id, metrics, _step(entry), seconds)


def _step(entry: dict[str, Any]) -> int:
    return int(entry.get("step") or entry.get("epoch") or 0)


def _stamp(entry: dict[str, Any]) -> int:
    return int(1000 * entry.get("time", 0))


def sync_trials(store: RunStore, trial_ids: Iterable[str], uri: str | None = None) -> int:
    """Bring the runs that these trials already have in the tracking store up to date; returns how many there are.

    Raises:
        UserError: the tracking store cannot be reached.
    """
    from harness.grid import Grid

    mirror = Mirror(store, Grid("", "", "", "", (), (), ()), uri)
    mirror._experiment = tracking.ensure_store(mirror.uri)
    count = 0
    with tracking.reaching(mirror.uri):
        for trial_id in trial_ids:
            for run in mirror._find(f"tags.trial_id = '{trial_id}'")[:1]:
                mirror._replay(run, trial_id)
                count += 1
    return count


def sync(store: RunStore, grid: Grid, uri: str | None = None) -> None:
    """Replay everything of a grid that MLflow lacks.

    Raises:
        UserError: the tracking store cannot be reached.
    """
    warnings: list[str] = []
    mirror = Mirror(store, grid, uri, warn=warnings.append)
    mirror.open()
    if not mirror.close():
        raise UserError(warnings[0])


def delete_removed(store: RunStore, uri: str | None = None) -> int:
    """Delete the runs of trials that were removed from the store; returns how many there were.

    Raises:
        UserError: the tracking store cannot be reached; the marks stay.
    """
    found = marks(store)
    gone = tracking.delete_runs(list(found), uri or tracking.tracking_uri(store.root)) if found else 0
    for path in found.values():
        path.unlink(missing_ok=True)
    return gone
