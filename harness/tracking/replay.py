"""What MLflow lacks of one trial, replayed from its record: epochs, and when it has ended, all the rest.

A run that has everything already costs a look; what was logged before is never logged twice.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ReadError
from harness.files import exists, listed, to_json
from harness.spec.spec import ANALYSIS_METRIC
from harness.store.agreement import packed
from harness.store.lease import file_lock
from harness.store.renamed import renamed_numbers
from harness.store.results import ANALYSIS, CONFIG, LOG, RECORD, RunStore
from harness.tracking.metric_names import GROUPS, flat_metrics, renamed
from harness.tracking.mlflow_runs import MAX_TAG, create_run, log_metrics, set_params, set_status, set_tags
from harness.tracking.tracking import IN_RECORD, MLFLOW_STATUS, NAMES_TAG, parsed, remove_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ARTIFACTS = (CONFIG, RECORD)


class Replayer:
    """Brings runs up to date with their trials' records.

    Args:
        store: the records.
        client: of the tracking store.
        experiment_id: where runs are made.
        say: takes a line for each metric that MLflow refuses, once; everything else is logged nevertheless.
    """

    def __init__(
        self,
        store: RunStore,
        client: MlflowClient,
        experiment_id: str,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._store, self._client, self._experiment = store, client, experiment_id
        self._say = say
        self._refused: set[str] = set()
        self._logged: dict[str, dict[int, int]] = {}  # run id -> step -> time stamp (ms) of the epochs that it has

    def replay(self, run: Run, trial_id: str) -> None:
        """Log the epochs that the run lacks and, for a trial that has ended, the rest of its record."""
        status = self._store.status(trial_id)
        entries = self._store.metrics(trial_id)
        logged = self._epochs_of(run)
        trained_again = not logged.items() <= {_step(entry): _stamp(entry) for entry in entries}.items()
        if trained_again or (status == "finished" and self._holds_withdrawn(run, trial_id, entries)):
            run, logged = self._renewed(run, trial_id), {}
        self._keep_names(run, renamed(entries[-1]) if entries else {})
        for entry in entries:
            metrics = flat_metrics(entry)
            if _step(entry) not in logged:
                self._log(run, metrics, entry)
            elif entry is entries[-1]:
                self._log_changes(run, metrics, entry)  # analysed since
            logged[_step(entry)] = _stamp(entry)
        if status not in ("running", "pending"):
            self._replay_end(run, trial_id, status, entries)
        if run.info.status != MLFLOW_STATUS.get(status):
            ended = (self._store.read(trial_id) or {}).get("finished")
            set_status(self._client, run.info.run_id, "interrupted" if status == "pending" else status, ended)

    def _epochs_of(self, run: Run) -> dict[int, int]:
        if run.info.run_id not in self._logged:
            found = self._client.get_metric_history(run.info.run_id, "epoch") if "epoch" in run.data.metrics else []
            self._logged[run.info.run_id] = {metric.step: metric.timestamp for metric in found}
        return self._logged[run.info.run_id]

    def _holds_withdrawn(self, run: Run, trial_id: str, entries: list[dict[str, Any]]) -> bool:
        """Whether the run has a number of an analysis that the trial has no more, after the epoch that it is of."""
        record = self._store.read(trial_id) or {}
        known = {**(record.get("metrics") or {}), **(entries[-1] if entries else {})}
        names = parsed(run.data.tags.get(NAMES_TAG, "{}"))
        of_run = {names.get(safe, safe) if isinstance(names, dict) else safe: safe for safe in run.data.metrics}
        for name, safe in renamed_numbers(of_run).items():
            if known.get(name) is None and ANALYSIS_METRIC.fullmatch(name):
                had = {_step(entry) for entry in entries if entry.get(name) is not None}
                logged = self._client.get_metric_history(run.info.run_id, safe)
                if any(metric.step not in had for metric in logged):
                    return True
        return False

    def _renewed(self, run: Run, trial_id: str) -> Run:
        """A run cannot forget numbers, as of epochs that were trained again since: another run takes its place."""
        run = self._client.get_run(run.info.run_id)  # with what was set since it was found
        of_mlflow = ("mlflow.user", "mlflow.source.name", "mlflow.runName")
        tags = {k: v for k, v in run.data.tags.items() if k not in of_mlflow and k != "codetr.record"}
        started = (self._store.read(trial_id) or {}).get("started")
        with file_lock(self._store.root / ".mirror.lock"):
            remove_run(self._client, run.info.run_id)
            new = create_run(self._client, self._experiment, str(run.info.run_name), tags, started)
        set_params(self._client, new, run.data.params)
        self._logged[new.info.run_id] = {}
        return new

    def _replay_end(self, run: Run, trial_id: str, status: str, entries: list[dict[str, Any]]) -> None:
        record = self._store.read(trial_id) or {}
        whole = {group: record.get(group) or {} for group in GROUPS if group != "losses"}
        names = renamed(record.get("metrics") or {}) | renamed(whole)
        text = " ".join([status, to_json(record), *([to_json(names)] if names else [])])
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        if run.data.tags.get("codetr.record") == digest:
            return
        of_epochs = {name for entry in entries for name in flat_metrics(entry)}  # they know them better
        last = entries[-1] if entries else {}
        self._keep_names(run, names)
        # A number of the whole trial has step 0: MLflow then draws bars.
        for part, entry in (record.get("metrics") or {}, last), (whole, {**last, "step": 0, "epoch": 0}):
            final = flat_metrics(part)
            self._log_changes(run, {k: v for k, v in final.items() if k not in of_epochs}, entry)
        for name in (*ARTIFACTS, LOG) if status == "failed" else ARTIFACTS:
            if exists(self._store.dir(trial_id) / name):
                self._log_file(run, self._store.dir(trial_id) / name)
        for path in (path for path in listed(self._store.dir(trial_id) / ANALYSIS) if path.name[0] != "."):
            self._log_file(run, path, ANALYSIS)
        provenance = record.get("provenance") or {}
        tags = {
            key: str(record.get(key) or "") for key in ("error", "started", "finished", "fingerprint", "weights_hash")
        }
        told = {key: packed(value) if key == "code" else value for key, value in provenance.items()}
        tags |= {"status": status, "provenance": to_json(told)}
        tags = {f"codetr.{key}": value for key, value in tags.items()}
        if provenance.get("commit"):
            tags["mlflow.source.git.commit"] = str(provenance["commit"])
        # The digest last: when something before it fails, all of it is repeated.
        set_tags(self._client, run, {**tags, "codetr.record": digest})

    def _log_file(self, run: Run, path: Path, folder: str | None = None) -> None:
        try:
            self._client.log_artifact(run.info.run_id, str(path), folder)
        except OSError as error:
            if error.filename is not None and Path(error.filename) == path:
                raise ReadError(path, error) from error  # the tracking store is not to blame
            raise

    def _keep_names(self, run: Run, names: Mapping[str, str]) -> None:
        """Note what metrics are called here, where MLflow has other names for them."""
        known = parsed(run.data.tags.get(NAMES_TAG, "{}"))
        if not names or not isinstance(known, dict):
            return
        text = to_json({**known, **names})
        set_tags(self._client, run, {NAMES_TAG: text if len(text) <= MAX_TAG else IN_RECORD})
        run.data.tags[NAMES_TAG] = text

    def _log_changes(self, run: Run, metrics: dict[str, float], entry: dict[str, Any]) -> None:
        """Log what the run has not or has otherwise.

        Another number than before gets the time of now: of two of the same step and time MLflow shows the larger.
        """
        known = run.data.metrics
        self._log(run, {k: v for k, v in metrics.items() if k not in known}, entry)
        changed = {k: v for k, v in metrics.items() if k in known and known[k] != v and math.isfinite(v)}
        self._log(run, changed, {**entry, "time": max(time.time(), entry.get("time", 0) + 0.001)})

    def _log(self, run: Run, metrics: dict[str, float], entry: dict[str, Any]) -> None:
        if not metrics:
            return
        seconds = entry.get("time") or time.time()
        refused = log_metrics(self._client, run.info.run_id, metrics, _step(entry), seconds)
        for name, why in refused.items():
            if name not in self._refused:
                self._refused.add(name)
                self._say(f"warning: MLflow does not take the metric {name!r} ({why}); everything else is recorded")


def _step(entry: dict[str, Any]) -> int:
    return int(entry.get("step") or entry.get("epoch") or 0)


def _stamp(entry: dict[str, Any]) -> int:
    return int(1000 * entry.get("time", 0))
