"""Results as data: a grid as pandas data frames, one line per trial and one per trial and epoch.

A report's tables, pivots and CSV files are made from the first of them, so what a person computes from it is what the
report says. A column holds values of one kind, whatever the rows set: numbers stay numbers (missing ones are NA), lists
such as the heads are the text that labels show. So both frames survive a way through Parquet. No torch is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import UserError
from harness.files import write_atomic
from harness.spec.detection_metrics import METRICS
from harness.spec.error_metrics import ERROR_METRICS
from harness.spec.labels import factor_of, show_value
from harness.spec.spec import COST_METRICS, DEFAULT_PRESET
from harness.store.agreement import short
from harness.store.results import RunStore

if TYPE_CHECKING:
    import pandas as pd

    from harness.report.tables import Cell, Table
    from harness.spec.grid import Grid, Row

Record = Mapping[str, Any]
PROVENANCE = ("commit", "dirty", "code", "ops", "device", "torch")
NOT_MEASURED = ("epoch", "step", "seconds")  # numbers of an epoch that say where it is
ORDER = (*METRICS, *ERROR_METRICS, *COST_METRICS)  # of columns; others follow by name


class Frames(NamedTuple):
    """A grid as data."""

    trials: pd.DataFrame  # a line per row of the table and seed
    epochs: pd.DataFrame  # a line for each of their epochs


def read_frames(
    file: str | Path,
    preset: str = DEFAULT_PRESET,
    overrides: Sequence[str] = (),
    *,
    data: str | Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    store: str | Path | None = None,
    source: str = "auto",
    uri: str | None = None,
) -> Frames:
    """The results of an ablation file, as far as they are there.

    Args:
        file: the ablation file; this and the next four as in `harness.spec.grid.open_grid`.
        preset: a preset's name, or the path of its YAML file.
        overrides: `key=value` texts.
        data: folder of a data set instead of the preset's, or several; they need not be here if records are.
        seeds: instead of the file's, and of those that looks of `codetr decide` have seen.
        store: folder of the records; None takes $CODETR_STORE, or ~/codetr.
        source: `tracking` (MLflow), `records`, or `auto`: MLflow, or the records where there is none.
        uri: the tracking store; None takes $MLFLOW_TRACKING_URI, or the one in the usual store.

    Raises:
        UserError: the file is mistaken, or the tracking store cannot be reached.
    """
    from harness.report.reading import TRACKING, chosen_source, identified, read_trials, trial_ids, with_looks
    from harness.spec.grid import open_grid
    from harness.store.suggestions import suggested
    from harness.tracking.tracking import tracking_uri

    place = RunStore(store)

    def opened(seeds: Sequence[int] | None) -> Grid:
        return open_grid(file, preset, overrides, data=data, seeds=seeds, require_data=False)

    grid = opened(seeds)
    grid = with_looks(grid, opened, place) if seeds is None else grid
    grid = suggested(identified(grid, place), place)
    source = chosen_source(source, uri, place)
    if source == TRACKING and uri is None:
        uri = tracking_uri(place.root)
    records = read_trials(trial_ids([grid]), source, uri, place, history=None)
    return Frames(trials_frame(grid, records), epochs_frame(grid, records))


def trials_frame(grid: Grid, records: Iterable[Record]) -> pd.DataFrame:
    """One line per row of the table and seed, in the table's order.

    Columns: `table`, `row` (its label), `base_row` (its label in the file, where that is crossed with axes); each
    setting that varies by its dotted key; `seed`, `trial_id`, `same_as` (the first row that has this trial, where it
    is another), `status` (`pending` where there is no record); `epochs` and `steps` done; every metric and cost that
    any record has, as in result.json (AP and its like in percent, times in seconds), and `loss`, the last epoch's;
    these are NA unless the trial has finished. Then the data's `fingerprint`, provenance, `started`, `finished`
    (UTC), `error`.

    Args:
        grid: what was asked for.
        records: shaped like result.json; those of other trials are left aside.
    """
    import pandas as pd

    by_id = {record["trial_id"]: record for record in records}
    lines = _lines(grid)
    own = [by_id.get(line["trial_id"]) or {} for line in lines]
    finished = [record if record.get("status") == "finished" else {} for record in own]
    last = [(record.get("history") or [{}])[-1] for record in own]
    there = {name for record in finished for name in _measured(record)}
    names = dict.fromkeys([*grid.metrics, *(name for name in ORDER if name in there), *sorted(there)])
    columns = {
        **_columns(lines),
        "status": _column([record.get("status", "failed" if record else "pending") for record in own]),
        "epochs": _column([len(record.get("history") or ()) for record in own]),
        "steps": _column([_whole(entry.get("step")) for entry in last]),
        **{name: pd.Series([recorded(record, name) for record in finished], dtype="float64") for name in names},
        "fingerprint": _column([record.get("fingerprint") or None for record in own]),
        **{name: _column([_made(record, name) for record in own]) for name in PROVENANCE},
        **{name: _times([record.get(name) for record in own]) for name in ("started", "finished")},
        "error": _column([record.get("error") or None for record in own]),
    }
    return pd.DataFrame(columns)


def epochs_frame(grid: Grid, records: Iterable[Record]) -> pd.DataFrame:
    """One line per row of the table, seed and epoch, in this order; trials that have not finished are there too.

    Columns: those that name the trial, as in `trials_frame`, `status`, `epoch` (from 1), `step`, and every number that
    any epoch has: `loss`, metrics, `seconds` since the start, and the parts of the loss as `losses/<part>`.

    Args:
        grid: what was asked for.
        records: shaped like result.json.
    """
    import pandas as pd

    by_id = {record["trial_id"]: record for record in records}
    lines: list[dict[str, Any]] = []
    numbers: list[dict[str, float | None]] = []
    for line in _lines(grid):
        record = by_id.get(line["trial_id"]) or {}
        for entry in record.get("history") or ():
            place = {name: _whole(entry.get(name)) for name in ("epoch", "step")}
            lines.append({**line, "status": record.get("status", "failed"), **place})
            numbers.append(_numbers(entry))
    there = [name for entry in numbers for name, number in entry.items() if number is not None]
    names = dict.fromkeys(name for name in there if name not in ("epoch", "step"))
    measured = {name: pd.Series([entry.get(name) for entry in numbers], dtype="float64") for name in names}
    return pd.DataFrame({**_columns(lines), **measured})


def write_frames(grid: Grid, records: Sequence[Record], base: Path, endings: Sequence[str]) -> list[Path]:
    """Write both frames of a grid beside `base`, as `<base>_trials` and `<base>_epochs`; returns the files.

    Args:
        grid: what was asked for.
        records: shaped like result.json.
        base: the path that files of this grid begin with.
        endings: `csv` (numbers to 10 digits) and `parquet` (as they are).

    Raises:
        UserError: nothing can write Parquet here.
    """
    paths = []
    if endings:
        frames = {"trials": trials_frame(grid, records), "epochs": epochs_frame(grid, records)}
        for name, frame in frames.items():
            for ending in endings:
                paths.append(base.with_name(f"{base.name}_{name}.{ending}"))
                write_atomic(paths[-1], written(frame, ending))
    return paths


def written(frame: pd.DataFrame, ending: str) -> bytes:
    """A frame as a file of one of the endings of `write_frames`."""
    if ending == "csv":
        return str(frame.to_csv(index=False, lineterminator="\n", float_format="%.10g")).encode()
    try:
        return bytes(frame.to_parquet(index=False))
    except ImportError as error:
        raise UserError("--format parquet: pyarrow is missing; pip install -c constraints.txt pyarrow") from error


def recorded(record: Record, name: str) -> float | None:
    """The number `name` of a record, from its metrics, its cost or its last epoch; None where absent."""
    for place in (record.get("metrics"), record.get("cost"), (record.get("history") or [None])[-1]):
        value = (place or {}).get(name)
        if value is not None and math.isfinite(value):
            return float(value)
    return None


def summary_frame(table: Table) -> pd.DataFrame:
    """A table's numbers, a line per row: of each metric mean, deviation and count over seeds, gain and the paper's.

    Columns: `variant`, each setting that varies, `seeds` (finished), and of each metric its name and the name with
    `_std`, `_n`, `_gain`, `_gain_low`, `_gain_high`, `_gain_p`, `_paper`, `_paper_gain`; `notes` says why a number is
    missing.
    """
    import pandas as pd

    reasons = dict(table.footnotes)
    keys = sorted({key for row in table.rows for key in row.factors if key != "seed"})
    lines, numbers = [], []
    for row in table.rows:
        lines.append({"variant": row.label, **{key: row.factors.get(key) for key in keys}, "seeds": row.num_finished})
        numbers.append(
            {f"{name}{part}": value for name in row.cells for part, value in _parts(row.cells[name]).items()}
        )
    measured = {
        metric.name + part: pd.Series([own[metric.name + part] for own in numbers], dtype="float64")
        for metric in table.metrics
        for part in PARTS
    }
    letters = [[row.label_marks, row.marks, *(row.cells[m.name].marks for m in table.metrics)] for row in table.rows]
    notes = [
        "; ".join(reasons[letter] for letter in dict.fromkeys(",".join(filter(None, marks)).split(",")) if letter)
        for marks in letters
    ]
    return pd.DataFrame({**_columns(lines), **measured, "notes": _column(notes)})


PARTS = ("", "_std", "_n", "_gain", "_gain_low", "_gain_high", "_gain_p", "_paper", "_paper_gain")  # of a metric


def _parts(cell: Cell) -> dict[str, float | None]:
    """The numbers of a cell by what follows the metric's name."""
    ours, gain = cell.summary, cell.gain
    first = (ours.mean, ours.std, ours.n) if ours else (None,) * 3
    second = (gain.mean, gain.low, gain.high, gain.p_value) if gain else (None,) * 4
    return dict(zip(PARTS, (*first, *second, cell.published, cell.published_gain), strict=True))


# ---- columns


def _lines(grid: Grid) -> list[dict[str, Any]]:
    """What names each line: the row, its settings, and the trial."""
    keys = dict.fromkeys([*grid.axes, *(key for row in grid.rows for key in row.factors)])
    crossed = bool(grid.axes) and any(row.own for row in grid.rows)
    by_id = {trial.trial_id: trial for trial in grid.trials}
    lines = []
    for row in grid.rows:
        for seed, trial_id in zip(grid.seeds, row.trial_ids, strict=True):
            config = by_id[trial_id].config
            line = {"table": grid.name, "row": row.label}
            line |= {"base_row": row.own} if crossed else {}
            line |= {key: _setting(row, key, config) for key in keys}
            lines.append({**line, "seed": seed, "trial_id": trial_id, "same_as": row.same_as or None})
    return lines


def _setting(row: Row, key: str, config: Any) -> Any:
    """The value of a setting in a row: a plain one as it is, any other as its text; None where it has no effect."""
    if key in row.along:
        value = row.along[key]
        return None if value is None else factor_of(value)
    if key not in row.factors:
        return None
    value = row.factors[key]
    return None if value == "none" and attrgetter(key)(config) is None else value


def _columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, pd.Series]:
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: _column([line.get(name) for line in lines]) for name in names}


def _column(values: Sequence[Any]) -> pd.Series:
    """A column of one kind: of whole numbers, numbers, truth values or texts; a mixture is text, as labels show it."""
    import pandas as pd

    kinds = {type(value) for value in values if value is not None}
    missing = any(value is None for value in values)
    if kinds == {bool}:
        return pd.Series(values, dtype="boolean" if missing else "bool")
    if kinds == {int}:
        return pd.Series(values, dtype="Int64" if missing else "int64")
    if kinds and kinds <= {int, float}:
        return pd.Series(values, dtype="Float64" if missing else "float64")
    texts = [value if value is None or isinstance(value, str) else show_value(value) for value in values]
    return pd.Series(texts, dtype="string")


def _times(values: Sequence[Any]) -> pd.Series:
    import pandas as pd

    times = pd.to_datetime(pd.Series(values, dtype="object"), utc=True, errors="coerce", format="ISO8601")
    return times.dt.as_unit("ms")  # Parquet has no whole seconds


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _made(record: Record, name: str) -> Any:
    """An entry of a record's provenance; of its code the short digest."""
    value = (record.get("provenance") or {}).get(name)
    if name == "code":
        return short(value) or None
    return str(value) in ("True", "true") if name == "dirty" and value is not None else value


def _measured(record: Record) -> list[str]:
    """Names of what a finished record has numbers of, but for the parts of its loss."""
    last = (record.get("history") or [{}])[-1]
    names = [*(record.get("metrics") or ()), *(record.get("cost") or ()), *(["loss"] if "loss" in last else [])]
    return [name for name in names if name not in NOT_MEASURED and recorded(record, name) is not None]


def _numbers(entry: Mapping[str, Any], path: str = "") -> dict[str, float | None]:
    """The numbers of an epoch, flat; what is not finite is None."""
    found: dict[str, float | None] = {}
    for key, value in entry.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{path}{key}/")
        elif value is None or isinstance(value, int | float):
            found[f"{path}{key}"] = None if value is None or not math.isfinite(value) else float(value)
    return found
