"""A grid with one or two axes as a table in two directions: rows against the values of an axis.

A cell is what the row of the long table says of the first metric: mean, deviation, and in brackets the gain over the
baseline at the same other settings. Where data sets lie across, what a row gains over all of them stands at its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.report.cells import Style, cell_words, written
from harness.report.tables import Metric, Table, TableRow
from harness.report.tasks import OverTasks, over_tasks, why_not
from harness.spec.labels import DATA, short_names, shown_at

if TYPE_CHECKING:
    import pandas as pd

    from harness.spec.grid import Grid
    from harness.spec.trials import Row

MOST_AXES = 2


@dataclass(frozen=True)
class Pivot:
    """The first metric of a table, an axis across."""

    title: str
    metric: Metric
    corner: str  # heading of the first column
    across: str  # the axis whose values are the other headings, as labels show it
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[TableRow | None, ...]], ...]  # (label, its row of the long table by column)
    note: str
    over_tasks: tuple[OverTasks | None, ...] = ()  # by row, where data sets lie across


def across(grid: Grid) -> str:
    """The axis that lies across: data sets, the one of most numbers, else the last; "" with no axis or too many."""
    if DATA in grid.axes and len(axis_values(grid, DATA)) > 1:
        return DATA
    if not 1 <= len(grid.axes) <= MOST_AXES:
        return ""
    values = {key: axis_values(grid, key) for key in grid.axes}
    if max(map(len, values.values())) < 2:
        return ""
    return max(reversed(grid.axes), key=lambda key: (is_numeric(values[key]), len(values[key])))


def axis_values(grid: Grid, key: str) -> list[Any]:
    """The values of an axis in the order of the file, each once."""
    return list({shown_at(key, row.along[key]): row.along[key] for row in grid.rows}.values())


def is_numeric(values: list[Any]) -> bool:
    """Whether there are several values, all numbers."""
    return len(values) > 1 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def line_label(grid: Grid, number: int, axis: str) -> str:
    """What tells the row `number` of a grid from others at the same value of `axis`; "" where nothing does."""
    row, short = grid.rows[number], short_names(grid.axes)
    others = " ".join(f"{short[key]}={shown_at(key, value)}" for key, value in row.along.items() if key != axis)
    return ", ".join(filter(None, (row.own, others)))


def make_pivot(grid: Grid, table: Table) -> Pivot | None:
    """The pivot of a grid with one or two axes; None for any other."""
    axis = across(grid)
    if not axis:
        return None
    by_label = {row.label: row for row in table.rows}
    columns = [shown_at(axis, value) for value in axis_values(grid, axis)]
    found: dict[str, dict[str, TableRow]] = {}
    for number, row in enumerate(grid.rows):
        place = found.setdefault(line_label(grid, number, axis), {})
        place[shown_at(axis, row.along[axis])] = by_label[row.label]
    metric, short = table.metrics[0], short_names(grid.axes)
    others = [short[key] for key in grid.axes if key != axis]
    corner = "variant" if len(others) > 1 or any(row.own for row in grid.rows) else "".join(others)
    prefix = f"{corner}=" if corner in others else ""
    cells = [row.cells[metric.name] for row in table.rows]
    spread = any(cell.summary and cell.summary.std is not None for cell in cells)
    told = [
        f"{metric.heading}, mean ± sample standard deviation over seeds" if spread else f"{metric.heading} of one seed"
    ]
    told += [f"in brackets the gain over {grid.baseline_words}"] if any(cell.gain for cell in cells) else []
    summaries, words = _over_tasks(grid, list(found.values()), metric) if axis == DATA else ((), [])
    return Pivot(
        title=f"{table.title or table.name}: {metric.heading} against {short[axis]}",
        metric=metric,
        corner=corner,
        across=short[axis],
        columns=tuple(columns),
        rows=tuple(
            (label.removeprefix(prefix) or metric.heading, tuple(place.get(column) for column in columns))
            for label, place in found.items()
        ),
        note="; ".join(told + words),
        over_tasks=summaries,
    )


TASKS_TOLD = (
    "IQM of gains: the interquartile mean of the gains of all data sets and seeds together; P(better): the chance that "
    "a training is better than one of the baseline, in the mean over data sets; both with a 95 % bootstrap interval, "
    "seeds drawn anew within each data set (of three data sets with five seeds it covers 92 of 100, simulated)"
)


def baseline_there(grid: Grid, row: Row) -> Row | None:
    """What a row gains over on the same data set; None where that is elsewhere, cannot run yet, or is itself."""
    other = grid.baseline_of(row)
    if other is None or other.needs or other.trial_ids == row.trial_ids:
        return None
    same = shown_at(DATA, other.along.get(DATA)) == shown_at(DATA, row.along.get(DATA))
    return other if same else None


def _over_tasks(
    grid: Grid, rows: list[dict[str, TableRow]], metric: Metric
) -> tuple[tuple[OverTasks | None, ...], list[str]]:
    """A summary of each row that has a baseline on the same data set, or None, and words for the note."""
    by_label = {row.label: row for place in rows for row in place.values()}
    if not metric.better:
        return (), []
    baselines = {row.label: baseline_there(grid, row) for row in grid.rows}
    summaries: list[OverTasks | None] = []
    reasons: list[str] = []
    for place in rows:
        pairs = [(row, baselines[row.label]) for row in place.values()]
        tasks = [(row.values, by_label[other.label].values) for row, other in pairs if other is not None]
        reason = why_not(tasks) if tasks else ""
        reasons += [reason] if reason else []
        enough = tasks and not reason
        summaries.append(over_tasks(tasks, -1.0 if metric.better == "lower" else 1.0) if enough else None)
    if not any(summaries):
        return (), reasons[:1]
    return tuple(summaries), [TASKS_TOLD, *reasons[:1]]


def headings(pivot: Pivot, style: Style) -> list[str]:
    """The headings in a format's letters: the corner, then a value of the axis each."""
    ends = ["IQM of gains", "P(better)"] if pivot.over_tasks else []
    return [style.escape(text) for text in (pivot.corner, *(f"{pivot.across} = {c}" for c in pivot.columns), *ends)]


def lines(pivot: Pivot, style: Style) -> list[list[str]]:
    """The cells in a format's letters, a list per row, its label first."""
    ends = [_summary(found, pivot.metric, style) for found in pivot.over_tasks] or [[] for _ in pivot.rows]
    return [
        [style.escape(label), *(_words(row, pivot.metric, style) for row in rows), *end]
        for (label, rows), end in zip(pivot.rows, ends, strict=True)
    ]


def _summary(found: OverTasks | None, metric: Metric, style: Style) -> list[str]:
    if found is None:
        return ["", ""]
    gain, better = found.gain, found.better
    low, high = (written(bound, metric, signed=True) for bound in (gain.low, gain.high))
    texts = (
        f"{written(gain.value, metric, signed=True)} [{low}, {high}]",
        f"{better.value:.2f} [{better.low:.2f}, {better.high:.2f}]",
    )
    return [style.number(text) for text in texts]


def _words(row: TableRow | None, metric: Metric, style: Style) -> str:
    if row is None:
        return ""
    cell = row.cells[metric.name]
    text = cell_words(cell, metric, style)
    if cell.summary is None or cell.gain is None or row.is_baseline:
        return text
    return f"{text} ({style.number(written(cell.gain.mean, metric, signed=True))})"


def pivot_frame(pivot: Pivot) -> pd.DataFrame:
    """The means of a pivot as data: a line per row, a column per value of the axis, and one for each gain."""
    import pandas as pd

    frame: dict[str, Any] = {pivot.corner or "metric": [label for label, _ in pivot.rows]}
    for place, column in enumerate(pivot.columns):
        below = [rows[place] for _, rows in pivot.rows]
        cells = [None if row is None else row.cells[pivot.metric.name] for row in below]
        name = f"{pivot.across}={column}"
        means = [cell.summary.mean if cell and cell.summary else None for cell in cells]
        gains = [cell.gain.mean if cell and cell.gain else None for cell in cells]
        frame[name] = pd.Series(means, dtype="float64")
        if any(gain is not None for gain in gains):
            frame[f"{name} gain"] = pd.Series(gains, dtype="float64")
    for name, own in (("iqm_gain", "gain"), ("p_better", "better")) if pivot.over_tasks else ():
        found = [None if own_row is None else getattr(own_row, own) for own_row in pivot.over_tasks]
        for part, ending in (("value", ""), ("low", "_low"), ("high", "_high")):
            numbers = [None if estimate is None else getattr(estimate, part) for estimate in found]
            frame[name + ending] = pd.Series(numbers, dtype="float64")
    return pd.DataFrame(frame)
