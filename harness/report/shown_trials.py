"""Which trials' detections a page shows: on each data set those of the best row, beside those of its baseline."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from harness.report.frames import recorded
from harness.report.tables import metric_of
from harness.spec.labels import DATA, shown_at
from harness.store.results import DETECTIONS, RunStore

if TYPE_CHECKING:
    from harness.spec.grid import Grid
    from harness.spec.trials import Row, Trial

Record = Mapping[str, Any]
Seeds = Sequence[tuple[int, Record]]  # the finished records of a row


@dataclass(frozen=True)
class OnData:
    """The finished trials of a grid on one data set."""

    content: Any  # what tells the data set from others
    name: str  # "" where the grid has this one alone
    rows: Mapping[str, Seeds]  # by label, in the grid's order


@dataclass(frozen=True)
class Chosen:
    """A trial whose images are shown."""

    label: str
    seed: int
    trial: str
    baseline: tuple[str, str] | None = None  # label and id of the trial that its row's gain is over, of the same seed
    why_alone: str = ""  # where its row has a baseline that is not beside it


def by_data_set(grid: Grid, records: Sequence[Record]) -> list[OnData]:
    """The finished trials of `grid`, of each data set on their own: numbers of two are no comparison."""
    finished = {record["trial_id"]: record for record in records if record.get("status") == "finished"}
    trials = {trial.trial_id: trial for trial in grid.trials}
    found: dict[Any, dict[str, list[tuple[int, Record]]]] = {}
    names: dict[Any, str] = {}
    for row in grid.rows:
        for seed, key in zip(grid.seeds, row.trial_ids, strict=True):
            if key in finished:
                content = content_of(trials[key])
                found.setdefault(content, {}).setdefault(row.label, []).append((seed, finished[key]))
                names.setdefault(content, shown_at(DATA, trials[key].config.data.path))
    several = len(found) > 1 or len({_source(trial) for trial in grid.trials}) > 1
    told = _distinct(list(names.values())) if several else [""] * len(found)
    return [OnData(content, name, rows) for (content, rows), name in zip(found.items(), told, strict=True)]


def _source(trial: Trial) -> Any:
    """A path, or the settings of generated scenes: those to validate are the same however many there are to train."""
    return trial.config.data.path or replace(trial.config.data.digits, num_train=1)


def content_of(trial: Trial) -> Any:
    """What tells its validation images from others'; their place, where nobody can look into it."""
    return (trial.config.data.path and trial.fingerprint) or _source(trial)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, a number behind what is there already: scenes of other settings, or folders that differ in a sign."""
    told: list[str] = []
    for name in names:
        tries = chain([name], (f"{name} {number}" for number in count(2)))
        told.append(next(one for one in tries if plain(one) not in map(plain, told)))
    return told


def plain(name: str) -> str:
    """A name as files and anchors can have it."""
    return re.sub(r"[^\w-]+", "_", name)


def best_first(grid: Grid, rows: Mapping[str, Seeds]) -> list[tuple[str, Seeds]]:
    """Rows with numbers of the first metric, the best mean first; equal ones in the grid's order."""
    metric = metric_of(grid.metrics[0])
    sign = 1.0 if metric.better == "lower" else -1.0
    means = {}
    for label, own in rows.items():
        values = [value for _, record in own if (value := recorded(record, metric.name)) is not None]
        if values:
            means[label] = sign * statistics.fmean(values)
    return [(label, rows[label]) for label in sorted(means, key=lambda label: means[label])]


def chosen_trial(grid: Grid, here: OnData, store: RunStore) -> Chosen | None:
    """Of the best row whose detections are in the store the first seed of which the baseline's are there too.

    Where there is no such seed, the row's first. None: no row left any.
    """
    by_label = {row.label: row for row in grid.rows}
    for label, own in best_first(grid, here.rows):
        left = [(seed, str(record["trial_id"])) for seed, record in own if _has_detections(store, record)]
        if left:
            found = [_beside_baseline(grid, here, by_label[label], Chosen(label, *one), store) for one in left]
            return next((one for one in found if one.baseline), found[0])
    return None


def _has_detections(store: RunStore, record: Record) -> bool:
    return (store.dir(str(record["trial_id"])) / DETECTIONS).exists()


def _beside_baseline(grid: Grid, here: OnData, row: Row, chosen: Chosen, store: RunStore) -> Chosen:
    """The trial with that of its baseline, or with why it stands alone; as it is where its row has no baseline."""
    other = grid.baseline_of(row)
    if other is None:
        return chosen
    record = dict(here.rows.get(other.label, ())).get(chosen.seed)
    if other.trial_ids == row.trial_ids:
        reason = "these are its own detections"
    elif other.needs:
        reason = f"it needs {other.needs}, which is not here yet"
    elif content_of(grid.trial(other.trial_ids[grid.seeds.index(chosen.seed)])) != here.content:
        reason = "it is on other data"
    elif record is None:
        reason = f"it has not finished with seed {chosen.seed}"
    elif not _has_detections(store, record):
        reason = f"the detections of {record['trial_id']} are not in the store, only its record"
    else:
        return replace(chosen, baseline=(other.label, str(record["trial_id"])))
    return replace(chosen, why_alone=alone(other.label, reason))


def alone(baseline: str, reason: str) -> str:
    """Why detections stand there without the baseline's."""
    return f"no comparison with the baseline '{baseline}': {reason}"
