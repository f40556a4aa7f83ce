"""Numbers by class of a grid's trials: where a record has them, and as data. Loads no torch and reads no data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.files import write_atomic
from harness.report.frames import trials_frame, written
from harness.store.results import RunStore

if TYPE_CHECKING:
    import pandas as pd

    from harness.spec.grid import Grid

Record = Mapping[str, Any]
NUMBERS = ("threshold", "precision", "recall")  # at the best F1 of a class; shares in percent


def per_class_of(record: Record, store: RunStore) -> Mapping[str, float | None]:
    """AP by class. The trial's own file has the names as they are; MLflow may have had to change them."""
    kept = store.read(str(record["trial_id"])) or {}
    return kept.get("per_class") or record.get("per_class") or {}


def class_columns(record: Record, store: RunStore) -> Mapping[str, Sequence[Any]]:
    """The classes of a trial's main branch in columns; empty where its errors were not measured."""
    kept = store.read(str(record["trial_id"])) or {}
    branches = kept.get("classes") or record.get("classes") or {}
    return branches.get("decoder") or next(iter(branches.values()), {})


def object_counts(record: Record, store: RunStore) -> dict[str, int]:
    """Objects of each class of the validation split, crowd regions left out; empty where errors were not measured."""
    columns = class_columns(record, store)
    return dict(zip(columns["class"], columns["objects"], strict=True)) if "objects" in columns else {}


def classes_frame(grid: Grid, records: Sequence[Record], store: RunStore) -> pd.DataFrame:
    """One line per row of the table, seed and class, of finished trials.

    Columns: those that name the trial, as in `trials_frame`, `class`, `objects` (of the validation split, crowd
    regions left out) and `AP`; `threshold`, the score with the best F1, `precision` and `recall` there. NA where a
    trial has not measured it.

    Args:
        grid: what was asked for.
        records: shaped like result.json.
        store: whose records have the classes' own names.
    """
    import pandas as pd

    trials = trials_frame(grid, records)
    finished = {record["trial_id"]: record for record in records if record.get("status") == "finished"}
    places: list[int] = []
    lines: list[tuple[Any, ...]] = []
    for place, key in enumerate(trials["trial_id"]):
        if key not in finished:
            continue
        columns = class_columns(finished[key], store)
        measured = zip(*(columns[name] for name in ("class", "objects", *NUMBERS)), strict=True) if columns else ()
        known = {name: own for name, *own in measured}
        for name, value in per_class_of(finished[key], store).items():
            places.append(place)
            lines.append((name, *known.get(name, (None,) * 4), value))
    whose = trials.iloc[places, : list(trials.columns).index("status")].reset_index(drop=True)
    names, objects, *best, values = zip(*lines, strict=True) if lines else ((),) * 6
    found = {"class": pd.Series(names, dtype="string"), "objects": pd.Series(objects, dtype="Int64")}
    numbers = zip(("AP", *NUMBERS), (values, *best), strict=True)
    return whose.assign(**found, **{name: pd.Series(own, dtype="float64") for name, own in numbers})


def write_classes(
    grid: Grid, records: Sequence[Record], base: Path, endings: Sequence[str], store: RunStore
) -> list[Path]:
    """Write `<base>_classes` as `harness.report.frames.write_frames` does its files; nothing where no trial has any."""
    frame = classes_frame(grid, records, store) if endings else None
    if frame is None or frame.empty:
        return []
    paths = [base.with_name(f"{base.name}_classes.{ending}") for ending in endings]
    for path, ending in zip(paths, endings, strict=True):
        write_atomic(path, written(frame, ending))
    return paths
