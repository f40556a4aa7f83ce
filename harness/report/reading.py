"""Where a report's records come from: the tracking store, or the records themselves.

Both give the same tables. The records need neither mlflow nor a database, so a folder of them that travels with a paper
is enough to make its tables again. Where the tracking store has less than the records (runs or an experiment deleted
there, a server that was away), the records count, and a note says so.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from harness.errors import UserError
from harness.files import exists
from harness.passwords import without_login
from harness.spec.hub import title
from harness.spec.labels import DATA, shown_at
from harness.store.decisions import looked_at
from harness.store.results import RECORD, RunStore
from harness.tracking.sqlite import is_missing
from model.backbones.configs import asked

if TYPE_CHECKING:
    from harness.config import TrialConfig
    from harness.spec.grid import Grid, Trial

AUTO, TRACKING, RECORDS = "auto", "tracking", "records"
UI = "http://127.0.0.1:5000"  # where `codetr ui` serves a store that is no server itself
SOURCES = (AUTO, TRACKING, RECORDS)


def trial_ids(grids: Iterable[Grid]) -> list[str]:
    """All trials that the tables ask for, each once."""
    return list(dict.fromkeys(key for grid in grids for row in grid.rows for key in row.trial_ids))


def chosen_source(source: str = AUTO, uri: str | None = None, store: RunStore | None = None) -> str:
    """`tracking` or `records`. `auto` takes the tracking store, unless there is none where there are records."""
    from harness.tracking import tracking

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
    ids: Sequence[str],
    source: str = AUTO,
    uri: str | None = None,
    store: RunStore | None = None,
    *,
    notes: list[str] | None = None,
    **wanted: Any,
) -> list[dict[str, Any]]:
    """Records of these trials, in the given order; unknown ones are left out.

    Args:
        ids: of the trials.
        source: one of `SOURCES`. With `auto` a trial of which the tracking store has less than the records is taken
            from these.
        uri: the tracking store; None takes the usual one.
        store: the records; None takes the usual store.
        notes: takes a line where the tracking store has less.
        wanted: what the tracking store is asked for besides (see `harness.tracking.tracking.read_records`).

    Raises:
        UserError: the tracking store cannot be read, and the records know none of these trials (or `tracking` is asked
            for).
    """
    place, told = store or RunStore(), [] if notes is None else notes
    known = {record["trial_id"]: record for record in _from_records(ids, place)}
    if chosen_source(source, uri, store) == RECORDS:
        return list(known.values())
    from harness.tracking.tracking import read_records

    try:
        tracked = {record["trial_id"]: record for record in read_records(ids, uri, **wanted)}
    except UserError as error:
        if source != AUTO or not known:
            raise
        told.append(f"made from the records of the trials (result.json): {error}")
        return list(known.values())
    lacks = {key: lack for key in known if (lack := _lack(tracked.get(key), known[key], wanted))}
    if lacks:
        words = ", ".join(f"{number} {lack}" for lack, number in Counter(lacks.values()).items())
        told.append(f"the tracking store has less than the records ({words}); {_remedy(source)}")
    taken = {key: {**tracked.get(key, {}), **known[key]} for key in lacks} if source == AUTO else {}
    found = {key: _as_recorded(record, known.get(key, {})) for key, record in (tracked | taken).items()}
    return [found[key] for key in dict.fromkeys(ids) if key in found]


def _remedy(source: str) -> str:
    if source == AUTO:
        return "these numbers are those of the records; `codetr sync FILES` brings it up to date"
    return "`codetr sync FILES` brings it up to date, and without --from tracking the records count"


def _lack(tracked: Mapping[str, Any] | None, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What the tracking store lacks of a trial; empty when it has all that the record has.

    Args:
        tracked: what it has; None where it has no run of the trial.
        known: the record.
        wanted: what the tracking store was asked for besides.
    """
    if tracked is None:
        return "without a run"
    if known["status"] != "finished" or tracked["status"] != "finished":
        behind = known["status"] != tracked["status"] and tracked["status"] != "finished"
        return f"{tracked['status']} instead of {known['status']}" if behind else ""
    parts = ("metrics", "cost", "per_class")
    if any(_differ(known.get(part) or {}, tracked.get(part) or {}) for part in parts):
        return "without some metrics"
    history = wanted.get("history", ("AP",))  # None: all of it
    if (history is None or history) and len(tracked["history"]) < len(known.get("history") or ()):
        return "without some epochs"
    if wanted.get("analysis") and known.get("analysis") and not tracked.get("analysis"):
        return "without their analysis"
    return ""


def _as_recorded(tracked: dict[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """A run with the metrics that its record has: undefined ones too, of which MLflow keeps nothing, and no others.

    Where either has not finished, what the run has besides stays.
    """
    of_record, history = known.get("metrics") or {}, known.get("history") or [{}]
    undefined = {name: None for name, value in of_record.items() if value is None}
    metrics = tracked.get("metrics") or {}
    if known.get("status") != "finished" or tracked.get("status") != "finished":
        return {**tracked, "metrics": {**undefined, **metrics}}
    own = {name: value for name, value in metrics.items() if name in of_record or name in history[-1]}
    return {**tracked, "metrics": {**own, **undefined}}


def _differ(known: Mapping[str, Any], tracked: Mapping[str, Any]) -> bool:
    numbers = {name: value for name, value in known.items() if isinstance(value, int | float)}
    return any(
        not isinstance(value, bool) and not math.isclose(value, tracked.get(name, math.nan), rel_tol=1e-9)
        for name, value in numbers.items()
    )


def with_looks(grid: Grid, open_with: Callable[[list[int]], Grid], store: RunStore | None = None) -> Grid:
    """The grid with the seeds that the looks of `codetr decide` have seen besides its own, if any were taken.

    Args:
        grid: of an ablation file, with the seeds that it says.
        open_with: opens it with other seeds.
        store: of the records; None takes the usual one.
    """
    place = store or RunStore()
    if not grid.claims:
        return grid
    known = grid
    if not all(trial.has_id for trial in grid.trials):  # what is kept is found by the content of data and weights
        with suppress(UserError):  # told where the records are read
            known = identified(grid, place)
    number, seen = looked_at(known, place)
    if not number:
        return grid
    opened = open_with(sorted({*grid.seeds, *range(number)}))
    return replace(opened, looked=frozenset(range(number)) - {*grid.seeds}, seen=seen)


def identified(grid: Grid, store: RunStore | None = None) -> Grid:
    """The grid of a data set or pretrained weights that are not here, with the ids of records of the same settings.

    A trial's id holds the content of both, which nobody can know without them; records from elsewhere do. A file of
    weights that is not here is known by its name, and so is a data set where records of several fit, or the grid has
    several.

    Raises:
        UserError: records of several data sets, or of several files of weights of the same name, fit.
    """
    unknown: dict[str, list[Trial]] = {}
    for trial in grid.trials:
        if not trial.has_id:
            likeness = _likeness(trial.config, trial.fingerprint, trial.weights_hash)
            unknown.setdefault(likeness, []).append(trial)
    if not unknown:
        return grid
    fitting = _fitting(unknown, store or RunStore())
    several = len({trial.config.data.path for trial in grid.trials}) > 1  # one of them is not another
    known: dict[str, _Like] = {}
    for likeness, trials in unknown.items():
        for trial in trials:
            path = trial.config.data.path
            own = [like for like in fitting.get(likeness, []) if like.is_scenes == (path is None)]
            named = [like for like in own if like.data_set == shown_at(DATA, path)]
            known_by_rest = len(trials) == 1 and (bool(trial.fingerprint) or not several)
            if chosen := named or (own if known_by_rest else []):
                known[trial.trial_id] = _only(chosen, grid.name, trial)
    if not known:
        return grid

    def identify(trial: Trial) -> Trial:
        found = known.get(trial.trial_id)
        if found is None:
            return trial
        return replace(trial, trial_id=found.key, fingerprint=found.fingerprint, weights_hash=found.weights_hash)

    rows = tuple(
        replace(row, trial_ids=tuple(known[key].key if key in known else key for key in row.trial_ids))
        for row in grid.rows
    )
    made = tuple(map(identify, grid.trials))
    grid = replace(grid, notes=(*grid.notes, *_other_names(grid, known)))
    return replace(grid, trials=made, rows=rows) if grid.search else grid.known_as(made, rows)


def _other_names(grid: Grid, known: Mapping[str, _Like]) -> list[str]:
    """A line for each data set in whose place records of one of another name stand."""
    pairs = {
        (shown_at(DATA, trial.config.data.path), known[trial.trial_id].data_set): None
        for trial in grid.trials
        if not trial.fingerprint and trial.trial_id in known
    }
    return [
        f"the data set {asked} is not here: these are records of {found}, the only one that fits"
        for asked, found in pairs
        if asked != found
    ]


class _Like(NamedTuple):
    """A record that has the settings of a trial whose data set or weights are not here."""

    key: str
    fingerprint: str
    weights_hash: str | None
    data_set: str  # name of its folder
    is_scenes: bool  # generated, which are always here


def _fitting(unknown: Mapping[str, Sequence[Trial]], store: RunStore) -> dict[str, list[_Like]]:
    """By likeness the records that have it."""
    from harness.spec.identity import config_from_dict

    missing = {(not t.fingerprint, t.weights_hash == "") for trials in unknown.values() for t in trials}
    found: dict[str, list[_Like]] = {}
    for key in store.trials():
        record = store.read(key) or {}
        fingerprint, weights_hash = str(record.get("fingerprint") or ""), record.get("weights_hash")
        try:
            config = config_from_dict(record["config"])
        except (KeyError, TypeError, ValueError):  # no configuration, or one of another version
            continue
        if not fingerprint:
            continue
        like = _Like(key, fingerprint, weights_hash, shown_at(DATA, config.data.path), config.data.path is None)
        for no_data, no_weights in missing:
            if no_weights and weights_hash is None:
                continue  # made without, or by code that did not look into the file
            own = _likeness(config, "" if no_data else fingerprint, "" if no_weights else weights_hash)
            if own in unknown:
                found.setdefault(own, []).append(like)
    return found


def _only(found: Sequence[_Like], grid: str, trial: Trial) -> _Like:
    """The one record that a trial can be."""
    if len({like.fingerprint for like in found}) > 1:
        raise UserError(f"{grid}: records of several data sets fit it; name the data set with --data")
    if len({like.weights_hash for like in found}) > 1:
        name = title(str(asked(trial.config.model.backbone, "weights")))
        raise UserError(
            f"{grid}: records of several files {name} fit it; give the one that is meant (model.backbone.weights)"
        )
    return found[0]


def _likeness(config: TrialConfig, fingerprint: str, weights_hash: str | None) -> str:
    """The same for trials of the same settings: "" stands for data, and for weights of a name, that are not here."""
    from harness.spec.identity import trial_id

    name = title(str(asked(config.model.backbone, "weights")))
    return trial_id(config, fingerprint, f"some {name}" if weights_hash == "" else weights_hash)


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
    from harness.tracking import tracking

    place = store or RunStore()
    server = uri or tracking.tracking_uri(place.root)
    base = without_login(server).rstrip("/") if tracking.is_server(server) else UI

    def links(record: Mapping[str, Any]) -> list[tuple[str, str]]:
        found = []
        file = place.dir(str(record["trial_id"])) / RECORD
        if exists(file):
            found.append((quote(Path(os.path.relpath(file, folder.absolute())).as_posix()), "record"))
        if record.get("run_id") and record.get("experiment_id"):
            found.append((f"{base}/#/experiments/{record['experiment_id']}/runs/{record['run_id']}", "MLflow"))
        return found

    return links


def making_notes(records: Iterable[Mapping[str, Any]], uri: str | None = None) -> list[str]:
    """Where the records came from, for the foot of a page."""
    from harness.tracking import tracking

    if not any(record.get("run_id") for record in records):
        return ["made from the records of the trials (result.json) alone; the same records give the same page"]
    notes = ["made from the tracking store; the same runs give the same page"]
    if not tracking.is_server(uri or tracking.tracking_uri()):
        notes.append(f"links to MLflow open while `codetr ui` serves the store at {UI}")
    return notes
