"""The only room that imports mlflow: reach a tracking store, write runs to it, read records back for a report.

Everything goes through `MlflowClient` and run ids; the fluent active run is state of the process and never used.
There is one experiment. A grid is a run (tag `codetr.grid`), a trial is a run below it, found by its tag `trial_id`
and tagged `grid.<name>` with its row for every grid it belongs to. Metrics of an epoch have the optimiser step as their
step, those of the whole trial step 0. What is written when is decided in harness/mirror.py, how it looks in
harness/views.py.
"""

from __future__ import annotations

import base64
import getpass
import json
import logging
import os
import re
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.lease import file_lock
from harness.results import store_dir
from harness.sqlite import check_database, database_file
from harness.views import TRAINING_PAGES

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "codetr"
ABOUT = "Ablations of Co-DETR. A run is a grid (an ablation file under a preset), the runs below it are its trials; "
ABOUT += "**Views** shows a grid as table, curves and parallel coordinates."
MLFLOW_STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
STATUS = {mlflow_status: status for status, mlflow_status in MLFLOW_STATUS.items()}
MLFLOW_STATUS["pruned"] = "KILLED"  # MLflow has no word for it: the tag `codetr.status` tells
GROUPS = ("losses", "cost", "per_class")  # parts of a record that become metrics `<group>/<name>`
MAX_BATCH = 1000  # metrics per call; MLflow's own limit
MAX_TAG = 5000  # characters
BY_LAYER = re.compile(r"(decoder|queries\.[^/]+)\.(\d+)/(.+)")  # decoder.0/giou: layers of a loss stand side by side
VIEW_TAG = "mlflow.sharedViewState."
FEW = 60  # up to this many trials are looked up one by one, more by reading all runs


def tracking_uri(root: Path | None = None) -> str:
    """$MLFLOW_TRACKING_URI, else a sqlite file in the store `root` (default: `store_dir()`)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root or store_dir()) / 'mlflow.db'}"


def available() -> bool:
    """Whether mlflow is installed; asked without importing it."""
    from importlib.util import find_spec

    return find_spec("mlflow") is not None


def is_server(uri: str) -> bool:
    """Whether the tracking store is reached through a server, not as a file or database."""
    return uri.startswith(("http://", "https://"))


def one_line(error: BaseException) -> str:
    """The first line of an error's text; of a broken connection, what the system says of it."""
    root = error
    while (below := root.__cause__ or root.__context__) is not None:
        root = below
    if isinstance(root, OSError) and root.strerror:
        return root.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn whatever goes wrong with the tracking store into a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        check_database(uri)
        raise UserError(
            f"tracking store {uri} cannot be reached: {one_line(error)}; start it, or set MLFLOW_TRACKING_URI"
        ) from error


def connect(uri: str) -> MlflowClient:
    """A client that gives up within seconds and keeps quiet.

    Raises:
        UserError: no server answers at `uri`.
    """
    if is_server(uri):
        with reaching(uri), suppress(urllib.error.HTTPError):  # an HTTP error is an answer too
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()
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


def ensure_store(uri: str | None = None) -> str:
    """Create database and experiment where they are missing, one process at a time; returns the experiment's id.

    Raises:
        UserError: the store cannot be reached or made.
    """
    uri = uri or tracking_uri()
    database = database_file(uri)
    folder = database.parent if database else store_dir()
    with reaching(uri), file_lock(folder / ".tracking.lock"):
        client = connect(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return str(experiment.experiment_id)
        # A server decides itself where artifacts go; a plain database needs to be told.
        location = None if is_server(uri) else (folder / "mlartifacts").as_uri()
        tags = {"mlflow.note.content": ABOUT, "mlflow.experimentKind": "custom_model_development"}
        return str(client.create_experiment(EXPERIMENT, artifact_location=location, tags=tags))


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


def trial_of_run(run_id: str, uri: str | None = None) -> str | None:
    """The trial that a run is of; None where there is no such run, or no tracking store.

    Raises:
        UserError: the tracking store cannot be reached.
    """
    uri = uri or tracking_uri()
    database = database_file(uri)
    if database is not None and not database.exists():
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


def create_run(
    client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str], started: str | None = None
) -> Run:
    """A new run of this user, RUNNING since `started` (ISO time; None: now)."""
    tags = {"mlflow.source.name": EXPERIMENT, **tags}
    with suppress(Exception):  # a container may have no user name
        tags["mlflow.user"] = getpass.getuser()
    return client.create_run(experiment_id, start_time=_milliseconds(started), run_name=name, tags=tags)


def delete_runs(trial_ids: Sequence[str], uri: str) -> int:
    """Delete the runs of these trials (MLflow can restore them for a while); returns how many there were.

    Raises:
        UserError: the tracking store cannot be reached.
    """
    database = database_file(uri)
    if database is not None and not database.exists():
        return 0
    with reaching(uri):
        client = connect(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return 0
        key = str(experiment.experiment_id)
        found = [run for name in trial_ids for run in find_runs(client, key, f"tags.trial_id = '{name}'")]
        for run in found:
            client.delete_run(run.info.run_id)
        return len(found)


def set_status(client: MlflowClient, run_id: str, status: str, ended: str | None = None) -> None:
    """Give a run the status that a record has, and the time at which it came to that (ISO time; None: now)."""
    if status == "running":
        client.update_run(run_id, status="RUNNING")
    else:
        client.set_terminated(run_id, MLFLOW_STATUS[status], end_time=_milliseconds(ended))


def _milliseconds(moment: str | None) -> int | None:
    with suppress(ValueError):
        return int(1000 * datetime.fromisoformat(moment).timestamp()) if moment else None
    return None


def set_tags(client: MlflowClient, run: Run, tags: Mapping[str, str]) -> None:
    """Set the tags that are not yet so."""
    for key, value in tags.items():
        if run.data.tags.get(key) != value[:MAX_TAG]:
            client.set_tag(run.info.run_id, key, value[:MAX_TAG])


def set_params(client: MlflowClient, run: Run, params: Mapping[str, Any]) -> None:
    """Log the parameters that the run has not yet; MLflow lets none change."""
    for key, value in params.items():
        if key not in run.data.params:
            client.log_param(run.info.run_id, key, value if isinstance(value, str) else json.dumps(value))


def save_view(client: MlflowClient, experiment_id: str, key: str, name: str, state: Mapping[str, Any]) -> None:
    """Put a view in the experiment's list of views, or replace it. One that a person has changed since is left alone.

    The format is MLflow's own and not documented: an entry of the experiment's tags.
    """
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    known = _parsed(client.get_experiment(experiment_id).tags.get(VIEW_TAG + key) or "{}")
    changed = known.get("updatedAt") != known.get("createdAt")
    if not changed and known.get("state") != packed:
        now = int(1000 * time.time())
        view = {"name": name, "createdAt": now, "updatedAt": now, "state": packed}
        client.set_experiment_tag(experiment_id, VIEW_TAG + key, json.dumps(view))


def log_metrics(client: MlflowClient, run_id: str, metrics: Mapping[str, float], step: int, seconds: float) -> None:
    """Log numbers at a step and a time (since 1970). The same numbers logged there twice are stored once."""
    from mlflow.entities import Metric

    # `epoch` tells how far logging got: it goes last. What is logged first is what MLflow compares first.
    ordered = sorted(metrics.items(), key=lambda item: (item[0] == "epoch", item[0] == "loss", "/" in item[0]))
    batch = [Metric(key, value, int(1000 * seconds), step) for key, value in ordered]
    for start in range(0, len(batch), MAX_BATCH):
        client.log_batch(run_id, metrics=batch[start : start + MAX_BATCH])


def flat_metrics(entry: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of an epoch's entry or of a record by metric name; undefined ones, time and step are left out.

    MLflow draws a section for whatever stands before the last slash: `losses/decoder/giou.0`, not one for each layer.
    """
    flat: dict[str, float] = {}
    for key, value in entry.items():
        grouped = key in GROUPS and isinstance(value, Mapping)
        parts = {f"{key}/{name}": number for name, number in value.items()} if grouped else {key: value}
        for name, number in parts.items():
            if isinstance(number, int | float) and not isinstance(number, bool) and name not in ("time", "step"):
                name = BY_LAYER.sub(r"\1/\3.\2", name)
                flat[re.sub(r"[^\w./: -]", "_", name)] = float(number)
    return flat


def read_records(
    trial_ids: Sequence[str],
    uri: str | None = None,
    *,
    history: Sequence[str] = ("loss", "AP"),
    analysis: bool = False,
) -> list[dict[str, Any]]:
    """Records of these trials from MLflow alone, in the given order; trials it does not know are left out.

    Args:
        trial_ids: ids.
        uri: the tracking store; None takes `tracking_uri()`.
        history: metrics whose course over the epochs is read (a look-up each).
        analysis: fetch each finished trial's record, for the tables that its analysis left there.

    Returns:
        dicts shaped like result.json: trial_id, label, status, metrics, history, cost, per_class, fingerprint,
        provenance, error, started, finished; besides `params` (see `harness.views`), `grids` (grid name -> row there),
        `run_id` and `experiment_id`.

    Raises:
        UserError: the tracking store cannot be reached, or nothing was ever recorded in it.
    """
    uri = uri or tracking_uri()
    database = database_file(uri)
    if database is not None and not database.exists():
        raise UserError(f"tracking store {uri}: there is no such file; run a grid first, or set MLFLOW_TRACKING_URI")
    with reaching(uri):
        client = connect(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return []
        runs = _runs_of(client, str(experiment.experiment_id), trial_ids)
        records = [_record(client, runs[trial_id], history) for trial_id in trial_ids if trial_id in runs]
        if analysis:
            for record in records:
                record["analysis"] = _analysis(client, record["run_id"]) if record["status"] == "finished" else {}
        return records


def read_suggestions(key: str, uri: str | None = None) -> list[dict[str, Any]]:
    """What the search of this key has suggested, as its trials' tags tell, oldest first.

    Raises:
        UserError: the tracking store cannot be reached.
    """
    uri = uri or tracking_uri()
    with reaching(uri):
        client = connect(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return []
        runs = find_runs(client, str(experiment.experiment_id), f"tags.`search.{key}` LIKE '%'")
        return [json.loads(run.data.tags[f"search.{key}"]) for run in reversed(runs)]


def _runs_of(client: MlflowClient, experiment_id: str, trial_ids: Sequence[str]) -> dict[str, Run]:
    if len(trial_ids) > FEW:
        found = find_runs(client, experiment_id, "tags.trial_id LIKE '%'")
    else:
        found = [run for key in trial_ids for run in find_runs(client, experiment_id, f"tags.trial_id = '{key}'")]
    return {run.data.tags["trial_id"]: run for run in reversed(found)}  # newest first: the newest stays


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _record(client: MlflowClient, run: Run, history: Sequence[str]) -> dict[str, Any]:
    tags, numbers = run.data.tags, run.data.metrics
    groups: dict[str, dict[str, float]] = {group: {} for group in GROUPS}
    metrics: dict[str, float] = {}
    for name, value in numbers.items():
        group, _, rest = name.partition("/")
        if group in groups:
            groups[group][rest] = value
        elif name not in ("epoch", "step"):
            metrics[name] = value
    return {
        "trial_id": tags["trial_id"],
        "run_id": run.info.run_id,
        "experiment_id": run.info.experiment_id,
        "label": run.info.run_name,
        "status": _status(run),
        "metrics": metrics,
        "history": _history(client, run, history),
        "cost": groups["cost"],
        "per_class": groups["per_class"],
        "params": {key: _parsed(value) for key, value in run.data.params.items()},
        "grids": {key.removeprefix("grid."): value for key, value in tags.items() if key.startswith("grid.")},
        "fingerprint": tags.get("codetr.fingerprint", ""),
        "provenance": _parsed(tags.get("codetr.provenance", "{}")),
        "error": tags.get("codetr.error") or None,
        "started": tags.get("codetr.started"),
        "finished": tags.get("codetr.finished"),
    }


def _analysis(client: MlflowClient, run_id: str) -> dict[str, Any]:
    """The tables of the analysis by name, from the record that the run keeps; none where it has no record."""
    if "result.json" not in {file.path for file in client.list_artifacts(run_id)}:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        record = json.loads(Path(client.download_artifacts(run_id, "result.json", folder)).read_text())
    return record.get("analysis") or {}


def _status(run: Run) -> str:
    if run.info.status == "KILLED" and run.data.tags.get("codetr.status") == "pruned":
        return "pruned"
    return STATUS.get(run.info.status, "running")


def _history(client: MlflowClient, run: Run, names: Sequence[str]) -> list[dict[str, Any]]:
    if not names or "epoch" not in run.data.metrics:
        return []
    entries: dict[int, dict[str, Any]] = {}
    for name in ("epoch", *names):
        for metric in client.get_metric_history(run.info.run_id, name) if name in run.data.metrics else ():
            if name == "epoch":
                entries[metric.step] = {"epoch": int(metric.value), "step": metric.step}
            elif metric.step in entries:
                entries[metric.step][name] = metric.value
    return [entries[step] for step in sorted(entries)]


def runs_page(uri: str | None = None) -> str:
    """The address, below that of the server, of the page that lists all runs."""
    uri = uri or tracking_uri()
    with reaching(uri):
        found = connect(uri).get_experiment_by_name(EXPERIMENT)
    return f"#/experiments/{found.experiment_id}/runs?{TRAINING_PAGES}" if found else "#/experiments"


def ui_command(uri: str | None = None, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
    """The command that shows the tracking store in a browser.

    Raises:
        UserError: the store is a server already, or nothing was recorded yet.
    """
    uri = uri or tracking_uri()
    if is_server(uri):
        raise UserError(f"the tracking store is a server: open {uri} in a browser")
    database = database_file(uri)
    if database is not None and not database.exists():
        raise UserError(f"tracking store {uri}: there is no such file; run a grid first, or set MLFLOW_TRACKING_URI")
    check_database(uri)
    folder = database.parent if database else store_dir()
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    return [*command, "--artifacts-destination", str(folder / "mlartifacts"), "--host", host, "--port", str(port)]
