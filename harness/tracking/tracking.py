"""The tracking store: reach it, find runs in it, read records back for a report.

Everything goes through `MlflowClient` and run ids; the fluent active run is state of the process and never used.
There is one experiment. A grid is a run (tag `codetr.grid`), a trial is a run below it, found by its tag `trial_id`
and tagged `grid.<name>` with its row for every grid it belongs to. Metrics of an epoch have the optimiser step as their
step, those of the whole trial step 0. Runs are written by mlflow_runs.py; only these two rooms import mlflow.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ReadError, UserError
from harness.files import store_dir
from harness.passwords import basic_login, shown, without_login
from harness.spec.detection_metrics import is_detection_metric
from harness.store.agreement import unpacked
from harness.store.lease import file_lock
from harness.store.renamed import VERSION, renamed_record
from harness.store.results import RECORD
from harness.tracking.failures import ELSEWHERE, ExperimentDeleted, user_error
from harness.tracking.metric_names import GROUPS, renamed
from harness.tracking.sqlite import check_database, database_file, is_missing

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "codetr"
ABOUT = "Ablations of Co-DETR. A run is a grid (an ablation file under a preset), the runs below it are its trials; "
ABOUT += "**Views** shows a grid as table, curves and parallel coordinates."
MLFLOW_STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
STATUS = {mlflow_status: status for status, mlflow_status in MLFLOW_STATUS.items()}
MLFLOW_STATUS["pruned"] = "KILLED"  # MLflow has no word for it: the tag `codetr.status` tells
NAMES_TAG = "codetr.names"  # MLflow's names of metrics that have another one here, or where that is told:
IN_RECORD = RECORD
REMOVED_TAG = "codetr.removed"  # of runs that were deleted for good: restoring the experiment would bring them back
COLLISIONS = ("IntegrityError", "UniqueViolation", "UNIQUE constraint", "Duplicate entry")  # sqlite, PostgreSQL, MySQL
NOT_IN_ADDRESSES = re.compile(r"\?|%[0-9A-Fa-f]{2}")  # SQLAlchemy ends a path there, or (from 2.1 on) decodes it
FEW = 60  # up to this many trials are looked up one by one, more by reading all runs


def tracking_uri(root: Path | None = None) -> str:
    """$MLFLOW_TRACKING_URI, else a sqlite file in the store `root` (default: `store_dir()`).

    Raises:
        UserError: the store's path cannot stand in an address: the file would lie elsewhere.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    root = root or store_dir()
    if odd := NOT_IN_ADDRESSES.search(str(root)):
        raise UserError(
            f"store {root}: MLflow's database cannot lie there, as its address cannot hold {odd[0]}; "
            "take a folder of another name, or set MLFLOW_TRACKING_URI"
        )
    return f"sqlite:///{root / 'mlflow.db'}"


def available() -> bool:
    """Whether mlflow is installed; asked without importing it."""
    from importlib.util import find_spec

    return find_spec("mlflow") is not None


def is_server(uri: str) -> bool:
    """Whether the tracking store is reached through a server, not as a file or database."""
    return uri.startswith(("http://", "https://"))


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn whatever goes wrong with the tracking store into a `UserError` of one line: what, and what helps."""
    try:
        yield
    except (UserError, ReadError):  # the latter of the records
        raise
    except Exception as error:
        raise user_error(uri, error) from error


def connect(uri: str) -> MlflowClient:
    """A client that gives up within seconds and keeps quiet.

    Raises:
        UserError: no server answers at `uri`.
    """
    if is_server(uri):
        with reaching(uri):
            _ask_for_a_sign_of_life(uri)
    for name, value in (("MAX_RETRIES", "1"), ("TIMEOUT", "20")):
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"):
        os.environ.setdefault(name, "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with reaching(uri):
        return MlflowClient(tracking_uri=uri)


def _ask_for_a_sign_of_life(uri: str) -> None:
    request = urllib.request.Request(f"{without_login(uri).rstrip('/')}/health")
    if login := basic_login(uri):
        request.add_header("Authorization", login)
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except urllib.error.HTTPError as error:
        if error.code in (502, 503, 504):  # of a proxy before it; any other error is an answer of its own
            raise


def ensure_store(uri: str | None = None, say: Callable[[str], None] | None = None) -> str:
    """Create database and experiment where they are missing, one process at a time; returns the experiment's id.

    An experiment that was deleted in MLflow's pages is restored: runs can be made nowhere else, and the records have
    all of them. `say` takes the line that tells it.

    Raises:
        UserError: the store cannot be reached or made.
    """
    uri = uri or tracking_uri()
    database = database_file(uri)
    folder = database.parent if database else store_dir()
    with reaching(uri), file_lock(folder / ".tracking.lock"):
        client = connect(uri)
        known = client.get_experiment_by_name(EXPERIMENT)
        if known is not None and known.lifecycle_stage != "active":
            _restore(client, str(known.experiment_id))
            if say is not None:
                say(f"note: tracking store {shown(uri)}: the experiment '{EXPERIMENT}' was deleted; it is restored")
        if known is not None:
            return str(known.experiment_id)
        # A server decides itself where artifacts go; a plain database needs to be told.
        location = None if is_server(uri) else (folder / "mlartifacts").as_uri()
        tags = {"mlflow.note.content": ABOUT, "mlflow.experimentKind": "custom_model_development"}
        return str(client.create_experiment(EXPERIMENT, artifact_location=location, tags=tags))


def _restore(client: MlflowClient, experiment_id: str) -> None:
    """Restore the experiment, and delete again what MLflow brings back with it: runs that others have replaced."""
    client.restore_experiment(experiment_id)
    known: set[str] = set()
    for run in find_runs(client, experiment_id, "tags.trial_id LIKE '%'"):  # the newest first
        trial_id = run.data.tags["trial_id"]
        if trial_id in known or REMOVED_TAG in run.data.tags:
            client.delete_run(run.info.run_id)
        else:
            known.add(trial_id)


def remove_run(client: MlflowClient, run_id: str) -> None:
    """Delete a run so that it stays deleted when its experiment is deleted and restored."""
    set_tag(client, run_id, REMOVED_TAG, "true")
    client.delete_run(run_id)


def set_tag(client: MlflowClient, run_id: str, key: str, value: str) -> None:
    """Set a tag of a run that others may be writing to as well."""
    insert(client.set_tag, run_id, key, value)


def insert(write: Callable[..., object], *values: str) -> None:
    """Write; once more where another process put the same row in between MLflow's look and its insertion.

    MLflow makes no upsert of tags: two drivers that tell the same for the first time collide, and one fails. The row
    is there then, and the second attempt finds it.
    """
    try:
        write(*values)
    except Exception as error:
        if not any(name in str(error) for name in COLLISIONS):
            raise
        write(*values)


def find_experiment(client: MlflowClient) -> str | None:
    """The id of the experiment; None where nothing was ever recorded.

    Raises:
        ExperimentDeleted: it was deleted in MLflow.
    """
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None and found.lifecycle_stage != "active":
        raise ExperimentDeleted(
            f"the experiment '{EXPERIMENT}' of the tracking store was deleted; `codetr sync FILES` restores it, as "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}` does"
        )
    return str(found.experiment_id) if found else None


def find_runs(client: MlflowClient, experiment_id: str, condition: str) -> list[Run]:
    """All runs that are not deleted and meet MLflow's filter `condition`."""
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], condition, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def trial_of_run(run_id: str) -> str | None:
    """The trial that a run is of; None where there is no such run, or no tracking store.

    Raises:
        UserError: the tracking store cannot be reached.
    """
    uri = tracking_uri()
    if is_missing(uri):
        return None
    with reaching(uri):
        client = connect(uri)
        from mlflow.exceptions import MlflowException

        try:
            tags = client.get_run(run_id).data.tags
        except MlflowException:
            check_database(uri)
            return None
    return tags.get("trial_id")


def read_records(
    trial_ids: Sequence[str],
    uri: str | None = None,
    *,
    history: Sequence[str] | None = ("loss", "AP"),
    analysis: bool = False,
) -> list[dict[str, Any]]:
    """Records of these trials from MLflow alone, in the given order; trials it does not know are left out.

    Args:
        trial_ids: ids.
        uri: the tracking store; None takes `tracking_uri()`.
        history: metrics whose course over the epochs is read (a look-up each); None: all, by each run's own record.
        analysis: fetch each finished trial's record, for the tables that its analysis left there.

    Returns:
        dicts shaped like result.json: trial_id, label, status, metrics, history, cost, per_class, fingerprint,
        weights_hash, provenance, error, started, finished; besides `params` (see views.py), `grids` (grid name
        -> row there), `run_id` and `experiment_id`.

    Raises:
        UserError: the tracking store cannot be reached, or nothing was ever recorded in it.
    """
    uri = uri or tracking_uri()
    check_exists(uri)
    with reaching(uri):
        client = connect(uri)
        if (experiment := find_experiment(client)) is None:
            return []
        runs = _runs_of(client, experiment, trial_ids)
        records = [_record(client, runs[trial_id], history or ()) for trial_id in trial_ids if trial_id in runs]
        if history is None:
            for record in records:
                record["history"] = _whole_history(client, runs[record["trial_id"]])
        if analysis:
            for record in records:
                record["analysis"] = _analysis(client, record["run_id"]) if record["status"] == "finished" else {}
        versioned = {trial_id for trial_id, run in runs.items() if VERSION in run.data.metrics}
        return [record if record["trial_id"] in versioned else renamed_record(record) for record in records]


def read_suggestions(key: str) -> list[dict[str, Any]]:
    """What the search of this key has suggested, as its trials' tags tell, oldest first.

    Raises:
        UserError: the tracking store cannot be reached.
    """
    uri = tracking_uri()
    with reaching(uri):
        client = connect(uri)
        if (experiment := find_experiment(client)) is None:
            return []
        runs = find_runs(client, experiment, f"tags.`search.{key}` LIKE '%'")
        return [json.loads(run.data.tags[f"search.{key}"]) for run in reversed(runs)]


def check_exists(uri: str) -> None:
    """Raise `UserError` for a sqlite file that is not there."""
    if is_missing(uri):
        raise UserError(f"tracking store {shown(uri)}: there is no such file; run a grid first, {ELSEWHERE}")


def _runs_of(client: MlflowClient, experiment_id: str, trial_ids: Sequence[str]) -> dict[str, Run]:
    if len(trial_ids) > FEW:
        found = find_runs(client, experiment_id, "tags.trial_id LIKE '%'")
    else:
        found = [run for key in trial_ids for run in find_runs(client, experiment_id, f"tags.trial_id = '{key}'")]
    return {run.data.tags["trial_id"]: run for run in reversed(found)}  # newest first: the newest stays


def parsed(text: str) -> Any:
    """What a text says as JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _record(client: MlflowClient, run: Run, history: Sequence[str]) -> dict[str, Any]:
    tags = run.data.tags
    names = _names(client, run)
    groups: dict[str, dict[str, float]] = {group: {} for group in GROUPS}
    latest = {metric.key: metric for metric in run.data.to_proto().metrics}  # with the step of each
    evaluated = max((one.step for safe, one in latest.items() if is_detection_metric(names.get(safe, safe))), default=0)
    metrics: dict[str, float] = {}
    for safe, value in run.data.metrics.items():
        group, name = safe.partition("/")[0], names.get(safe, safe)
        if group in groups:
            groups[group][name.partition("/")[2]] = value
        elif name not in ("epoch", "step") and not 0 < latest[safe].step < evaluated:  # those are an earlier epoch's
            metrics[name] = value
    return {
        "trial_id": tags["trial_id"],
        "run_id": run.info.run_id,
        "experiment_id": run.info.experiment_id,
        "label": run.info.run_name,
        "status": _status(run),
        "metrics": metrics,
        "history": _history(client, run, history, names),
        "cost": groups["cost"],
        "per_class": groups["per_class"],
        "params": {key: parsed(value) for key, value in run.data.params.items()},
        "grids": {key.removeprefix("grid."): value for key, value in tags.items() if key.startswith("grid.")},
        "fingerprint": tags.get("codetr.fingerprint", ""),
        "weights_hash": tags.get("codetr.weights_hash") or None,
        "provenance": _provenance(tags),
        "error": tags.get("codetr.error") or None,
        "started": tags.get("codetr.started"),
        "finished": tags.get("codetr.finished"),
    }


def _provenance(tags: Mapping[str, str]) -> Any:
    """What a record says under `provenance`: its code is packed in the tag."""
    found = parsed(tags.get("codetr.provenance", "{}"))
    return {**found, "code": unpacked(found["code"])} if isinstance(found, dict) and "code" in found else found


def _names(client: MlflowClient, run: Run) -> Mapping[str, str]:
    """What metrics are called here, by MLflow's name, as far as that is another one."""
    told = run.data.tags.get(NAMES_TAG, "{}")
    if told != IN_RECORD:
        names = parsed(told)
        return names if isinstance(names, dict) else {}
    record = _kept_record(client, run.info.run_id)
    return renamed(record.get("metrics") or {}) | renamed({"per_class": record.get("per_class") or {}})


def _whole_history(client: MlflowClient, run: Run) -> list[dict[str, Any]]:
    """Every number of every epoch: from the record that the run keeps, or while it has none, by a look-up each."""
    kept = _kept_record(client, run.info.run_id).get("history")
    names = _names(client, run)
    wanted = [names.get(safe, safe) for safe in run.data.metrics if safe.partition("/")[0] not in ("cost", "per_class")]
    return list(kept or _history(client, run, wanted, names))


def _analysis(client: MlflowClient, run_id: str) -> dict[str, Any]:
    """The tables of the analysis by name, from the record that the run keeps."""
    return _kept_record(client, run_id).get("analysis") or {}


def _kept_record(client: MlflowClient, run_id: str) -> dict[str, Any]:
    """The record among a run's artifacts; empty where it has none."""
    if IN_RECORD not in {file.path for file in client.list_artifacts(run_id)}:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        return dict(json.loads(Path(client.download_artifacts(run_id, IN_RECORD, folder)).read_text(encoding="utf-8")))


def _status(run: Run) -> str:
    if run.info.status == "KILLED" and run.data.tags.get("codetr.status") == "pruned":
        return "pruned"
    return STATUS.get(run.info.status, "running")


def _history(client: MlflowClient, run: Run, wanted: Sequence[str], names: Mapping[str, str]) -> list[dict[str, Any]]:
    if not wanted or "epoch" not in run.data.metrics:
        return []
    safe_names = {name: safe for safe, name in names.items()}
    entries: dict[int, dict[str, Any]] = {}
    for name in ("epoch", *wanted):
        safe = safe_names.get(name, name)
        found = client.get_metric_history(run.info.run_id, safe) if safe in run.data.metrics else ()
        for metric in sorted(found, key=lambda one: (one.step, one.timestamp, one.value)):  # the newest counts
            if name == "epoch":
                entries[metric.step] = {"epoch": int(metric.value), "step": metric.step}
            elif metric.step in entries:
                entries[metric.step][name] = metric.value
    return [entries[step] for step in sorted(entries)]
