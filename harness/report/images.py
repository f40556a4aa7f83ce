"""Intervals on one seed: a paired bootstrap over the validation images, where detections and data are at hand.

It is asked for (`--images`), because it needs more than records. It shows how far a gain depends on the images; what
another seed would change it cannot know, and so it decides no claim.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.analyse.resample import NUM_RESAMPLES, interval, match_images, resampled_ap, thresholds
from harness.errors import UserError
from harness.files import read_bytes
from harness.report.shown_images import check_content
from harness.report.shown_trials import content_of
from harness.spec.detection_metrics import STANDARD_LIMITS, best_of_images, limit_of
from harness.store.results import DETECTIONS, RunStore

if TYPE_CHECKING:
    import numpy as np

    from harness.config import DataConfig
    from harness.data.coco import CocoDataset
    from harness.report.tables import Table
    from harness.spec.grid import Grid


def over_images(table: Table, grid: Grid, store: RunStore | None = None) -> Table:
    """Give gains over one shared seed an interval over images.

    Raises:
        UserError: a trial's detections or its validation images are not here, or these are others by now.
    """
    place = store or RunStore()
    names = [metric.name for metric in table.metrics if thresholds(metric.name)]
    alone = [
        (number, name)
        for number, row in enumerate(table.rows)
        for name in names
        if (gain := row.cells[name].gain) is not None and gain.n == 1
    ]
    shared = _shared_trials(table, grid, place) if alone else {}
    alone = [(number, name) for number, name in alone if number in shared]
    if not alone:
        return table
    known: dict[tuple[str, int | None], np.ndarray] = {}
    splits: dict[Any, CocoDataset] = {}  # by what they are read from, each opened once
    rows = list(table.rows)
    for number, name in alone:
        limit = limit_of(name)
        pair = [(key, limit) for key in shared[number]]
        for key in pair:
            if key not in known:
                known[key] = _resampled(grid, *key, place, splits)
        low, high = interval(known[pair[0]], known[pair[1]], name)
        cell = rows[number].cells[name]
        assert cell.gain is not None
        changed = replace(cell, gain=replace(cell.gain, low=low, high=high))
        rows[number] = replace(rows[number], cells={**rows[number].cells, name: changed})
    note = (
        "gain on one seed: 95 % interval of a paired bootstrap over the validation images "
        f"({NUM_RESAMPLES} resamples); it leaves out what another seed would change, and decides no claim"
    )
    notes = [text for text in table.notes if not text.startswith("one seed a row")]
    return replace(table, rows=tuple(rows), notes=(*notes[:-1], note, *notes[-1:]))


def _shared_trials(table: Table, grid: Grid, store: RunStore) -> dict[int, tuple[str, str]]:
    """For each row the finished trial of the one seed that it shares with the baseline, and the baseline's.

    Without those of which one is on other data: their images are no pairs.
    """
    labels = {row.label: row for row in grid.listed}
    found = {}
    for number, row in enumerate(table.rows):
        baseline = grid.baseline_of(labels[row.label])
        if baseline is None or baseline.needs or labels[row.label].needs:
            continue
        for own, other in zip(labels[row.label].trial_ids, baseline.trial_ids, strict=True):
            same = content_of(grid.trial(own)) == content_of(grid.trial(other))
            if same and store.status(own) == store.status(other) == "finished":
                found[number] = (own, other)
    return found


def _resampled(
    grid: Grid,
    trial_id: str,
    limit: int | None,
    store: RunStore,
    splits: dict[Any, CocoDataset],
) -> np.ndarray:
    path = store.dir(trial_id) / DETECTIONS
    data = read_bytes(path)
    if data is None:
        raise UserError(f"{path}: no such file; an interval over images needs the detections: leave out --images")
    try:
        detections = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); an interval over images needs it: leave out --images") from error
    record = store.read(trial_id) or {}
    dataset = _split(grid.trial(trial_id).config.data, str(record.get("fingerprint") or ""), splits)
    limit = limit or STANDARD_LIMITS[dataset.protocol]
    return resampled_ap(match_images(dataset, best_of_images(detections, limit), limit), len(dataset))


def _split(config: DataConfig, evaluated: str, known: dict[Any, CocoDataset]) -> CocoDataset:
    """The validation split that trials of this fingerprint were evaluated on."""
    from harness.data import open_dataset

    place = (config.path or config.digits, config.outside_boxes, evaluated)
    if place not in known:
        try:
            check_content(config, evaluated)
        except UserError as error:
            raise UserError(f"{error}; an interval over images needs it: leave out --images") from error
        known[place] = open_dataset(config, "val")
    return known[place]
