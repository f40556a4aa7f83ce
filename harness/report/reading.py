"""Where a report's records come from: the tracking store, or the records themselves.

Both give the same tables. The records need neither mlflow nor a database, so a folder of them that travels with a paper
is enough to make its tables again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from harness.errors import UserError
from harness.files import exists
from harness.results import RunStore
from harness.sqlite import is_missing

if TYPE_CHECKING:
    from harness.grid import Grid

AUTO, TRACKING, RECORDS = "auto", "tracking", "records"
UI = "http://127.0.0.1:5000"  # where `codetr ui` serves a store that is no server itself
SOURCES = (AUTO, TRACKING, RECORDS)


def trial_ids(grids: Iterable[Grid]) -> list[str]:
    """All trials that the tables ask for, each once."""
    return list(dict.fromkeys(key for grid in grids for row in grid.rows for key in row.trial_ids))


def chosen_source(source: str = AUTO, uri: str | None = None, store: RunStore | None = None) -> str:
    """`tracking` or `records`. `auto` takes the tracking store, unless there is none where there are records."""
    from harness import tracking

    if source != AUTO:
        return source
    place = store or RunStore()
    if uri is None and place.trials():
        if not tracking.available():
            return RECORDS
        if is_missing(tracking.tracking_uri(place.root)):
            return RECORDS
    return TRACKING


def read_trials(
    ids: Sequence[str], source: str = AUTO, uri: str | None = None, store: RunStore | None = None, **wanted: Any
) -> list[dict[str, Any]]:
    """Records of these trials, in the given order; unknown ones are left out.

    Args:
        ids: of the trials.
        source: one of `SOURCES`.
        uri: the tracking store; None takes the usual one.
        store: the records; None takes the usual store.
        wanted: what the tracking store is asked for besides (see `harness.tracking.read_records`).

    Raises:
        UserError: the tracking store cannot be reached.
    """
    if chosen_source(source, uri, store) == TRACKING:
        from harness.tracking import read_records

        return read_records(ids, uri, **wanted)
    return _from_records(ids, store or RunStore())


def identified(grid: Grid, store: RunStore | None = None) -> Grid:
    """The grid of a data set that is not here, with the ids of those records that were made with the same settings.

    A trial's id holds its data's content, which nobody can know without the data; records from elsewhere do.

    Raises:
        UserError: records of several data sets fit.
    """
    from harness.identity import config_from_dict, trial_id

    unknown = {trial.trial_id for trial in grid.trials if not trial.fingerprint}  # ids without a data set
    place = store or RunStore()
    known: dict[str, tuple[str, str]] = {}
    for key in place.trials() if unknown else ():
        record = place.read(key) or {}
        fingerprint = str(record.get("fingerprint") or "")
        try:
            own = trial_id(config_from_dict(record["config"]), "")
        except (KeyError, TypeError, ValueError):  # no configuration, or one of another version
            continue
        fits = own in unknown and bool(fingerprint)
        if fits and known.setdefault(own, (key, fingerprint))[1] != fingerprint:
            raise UserError(f"{grid.name}: records of several data sets fit it; name the data set with --data")
    if not known:
        return grid
    trials = [
        replace(trial, trial_id=known[trial.trial_id][0], fingerprint=known[trial.trial_id][1])
        if trial.trial_id in known
        else trial
        for trial in grid.trials
    ]
    rows = [
        replace(row, trial_ids=tuple(known[key][0] if key in known else key for key in row.trial_ids))
        for row in grid.rows
    ]
    return replace(grid, trials=tuple(trials), rows=tuple(rows))


def _from_records(ids: Sequence[str], store: RunStore) -> list[dict[str, Any]]:
    found = []
    for trial_id in ids:
        record = store.read(trial_id)
        if record is not None:
            # what says it is running may have been killed long ago
            found.append({**record, "trial_id": trial_id, "status": store.status(trial_id)})
    return found


def links_from(
    folder: Path, uri: str | None = None, store: RunStore | None = None
) -> Callable[[Mapping[str, Any]], list[tuple[str, str]]]:
    """What finds, for a page in `folder`, the addresses of a trial's record and of its run in MLflow, with words."""
    from harness import tracking

    place = store or RunStore()
    server = uri or tracking.tracking_uri(place.root)
    base = server.rstrip("/") if tracking.is_server(server) else UI

    def links(record: Mapping[str, Any]) -> list[tuple[str, str]]:
        found = []
        file = place.dir(str(record["trial_id"])) / "result.json"
        if exists(file):
            found.append((quote(Path(os.path.relpath(file, folder.absolute())).as_posix()), "record"))
        if record.get("run_id") and record.get("experiment_id"):
            found.append((f"{base}/#/experiments/{record['experiment_id']}/runs/{record['run_id']}", "MLflow"))
        return found

    return links


def making_notes(records: Iterable[Mapping[str, Any]], uri: str | None = None) -> list[str]:
    """Where the records came from, for the foot of a page."""
    from harness import tracking

    if not any(record.get("run_id") for record in records):
        return ["made from the records of the trials (result.json) alone; the same records give the same page"]
    notes = ["made from the tracking store; the same runs give the same page"]
    if not tracking.is_server(uri or tracking.tracking_uri()):
        notes.append(f"links to MLflow open while `codetr ui` serves the store at {UI}")
    return notes
