"""What is written to a run of MLflow: status, tags, parameters, metrics; and the view of a grid.

What is written when is decided in mirror.py (of a grid) and replay.py (of a trial); how it looks in views.py.
"""

from __future__ import annotations

import base64
import getpass
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from harness.errors import one_line
from harness.tracking.sqlite import is_missing
from harness.tracking.tracking import (
    EXPERIMENT,
    MLFLOW_STATUS,
    connect,
    find_experiment,
    find_runs,
    insert,
    parsed,
    reaching,
    remove_run,
    set_tag,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_BATCH = 1000  # metrics per call; MLflow's own limit
MAX_TAG = 5000  # characters
VIEW_TAG = "mlflow.sharedViewState."


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
    if is_missing(uri):
        return 0
    with reaching(uri):
        client = connect(uri)
        if (experiment := find_experiment(client)) is None:
            return 0
        found = [run for name in trial_ids for run in find_runs(client, experiment, f"tags.trial_id = '{name}'")]
        for run in found:
            remove_run(client, run.info.run_id)
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
            set_tag(client, run.info.run_id, key, value[:MAX_TAG])


def delete_tag(client: MlflowClient, run_id: str, key: str) -> None:
    """Delete a tag of a run; none is there any more where another driver was faster."""
    try:
        client.delete_tag(run_id, key)
    except Exception:
        if key in client.get_run(run_id).data.tags:
            raise


def set_params(client: MlflowClient, run: Run, params: Mapping[str, Any]) -> dict[str, str]:
    """Log the parameters that the run has not yet; MLflow lets none change. Returns those that it refuses, and why."""
    refused = {}
    for key, value in params.items():
        if key not in run.data.params:
            try:
                client.log_param(run.info.run_id, key, value if isinstance(value, str) else json.dumps(value))
            except Exception as error:
                if not is_refusal(error):
                    raise
                refused[key] = one_line(error)
    return refused


def is_refusal(error: BaseException) -> bool:
    """Whether MLflow does not take what it was given, and will not take it the next time either."""
    code = getattr(error, "error_code", "")
    return code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST") and "Current state is deleted" not in str(error)


def save_view(client: MlflowClient, experiment_id: str, key: str, name: str, state: Mapping[str, Any]) -> None:
    """Put a view in the experiment's list of views, or replace it. One that a person has changed since is left alone.

    The format is MLflow's own and not documented: an entry of the experiment's tags.
    """
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    known = parsed(client.get_experiment(experiment_id).tags.get(VIEW_TAG + key) or "{}")
    changed = known.get("updatedAt") != known.get("createdAt")
    if not changed and known.get("state") != packed:
        now = int(1000 * time.time())
        view = {"name": name, "createdAt": now, "updatedAt": now, "state": packed}
        insert(client.set_experiment_tag, experiment_id, VIEW_TAG + key, json.dumps(view))


def log_metrics(
    client: MlflowClient, run_id: str, metrics: Mapping[str, float], step: int, seconds: float
) -> dict[str, str]:
    """Log numbers at a step and a time (since 1970). The same numbers logged there twice are stored once.

    Returns those that MLflow refuses, and why; all others are logged.
    """
    from mlflow.entities import Metric

    # `epoch` tells how far logging got: it goes last. What is logged first is what MLflow compares first.
    ordered = sorted(metrics.items(), key=lambda item: (item[0] == "epoch", item[0] == "loss", "/" in item[0]))
    batch = [Metric(key, value, int(1000 * seconds), step) for key, value in ordered]
    refused: dict[str, str] = {}
    for start in range(0, len(batch), MAX_BATCH):
        refused |= _log_batch(client, run_id, batch[start : start + MAX_BATCH])
    return refused


def _log_batch(client: MlflowClient, run_id: str, batch: list[Any]) -> dict[str, str]:
    """Log a batch without those that are refused: MLflow refuses a whole batch for the sake of one."""
    try:
        client.log_batch(run_id, metrics=batch)
    except Exception as error:
        if not is_refusal(error):
            raise
        if len(batch) == 1:
            return {batch[0].key: one_line(error)}
        middle = len(batch) // 2
        return _log_batch(client, run_id, batch[:middle]) | _log_batch(client, run_id, batch[middle:])
    return {}
