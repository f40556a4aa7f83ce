"""A grid with one or two axes as a table in two directions: rows against the values of an axis.

A cell is what the row of the long table says of the first metric: mean, deviation, and in brackets the gain over the
baseline at the same other settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.report.cells import Style, cell_words, written
from harness.report.tables import Metric, Table, TableRow
from harness.spec.labels import short_names, show_value

if TYPE_CHECKING:
    import pandas as pd

    from harness.spec.grid import Grid

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


def across(grid: Grid) -> str:
    """The axis that lies across: the one of most numbers, else the last; "" where a grid has no axis or too many."""
    if not 1 <= len(grid.axes) <= MOST_AXES:
        return ""
    values = {key: axis_values(grid, key) for key in grid.axes}
    if max(map(len, values.values())) < 2:
        return ""
    return max(reversed(grid.axes), key=lambda key: (is_numeric(values[key]), len(values[key])))


def axis_values(grid: Grid, key: str) -> list[Any]:
    """The values of an axis in the order of the file, each once."""
    return list({show_value(row.along[key]): row.along[key] for row in grid.rows}.values())


def is_numeric(values: list[Any]) -> bool:
    """Whether there are several values, all numbers."""
    return len(values) > 1 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def line_label(grid: Grid, number: int, axis: str) -> str:
    """What tells the row `number` of a grid from others at the same value of `axis`; "" where nothing does."""
    row, short = grid.rows[number], short_names(grid.axes)
    others = " ".join(f"{short[key]}={show_value(value)}" for key, value in row.along.items() if key != axis)
    return ", ".join(filter(None, (row.own, others)))


def make_pivot(grid: Grid, table: Table) -> Pivot | None:
    """The pivot of a grid with one or two axes; None for any other."""
    axis = across(grid)
    if not axis:
        return None
    by_label = {row.label: row for row in table.rows}
    columns = [show_value(value) for value in axis_values(grid, axis)]
    found: dict[str, dict[str, TableRow]] = {}
    for number, row in enumerate(grid.rows):
        place = found.setdefault(line_label(grid, number, axis), {})
        place[show_value(row.along[axis])] = by_label[row.label]
    metric, short = table.metrics[0], short_names(grid.axes)
    others = [short[key] for key in grid.axes if key != axis]
    corner = "variant" if any(row.own for row in grid.rows) else others[0] if others else ""
    prefix = f"{corner}=" if corner in others else ""
    cells = [row.cells[metric.name] for row in table.rows]
    spread = any(cell.summary and cell.summary.std is not None for cell in cells)
    told = [
        f"{metric.heading}, mean ± sample standard deviation over seeds" if spread else f"{metric.heading} of one seed"
    ]
    told += [f"in brackets the gain over {grid.baseline_words}"] if any(cell.gain for cell in cells) else []
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
        note="; ".join(told),
    )


def headings(pivot: Pivot, style: Style) -> list[str]:
    """The headings in a format's letters: the corner, then a value of the axis each."""
    return [style.escape(pivot.corner), *(style.escape(f"{pivot.across} = {column}") for column in pivot.columns)]


def lines(pivot: Pivot, style: Style) -> list[list[str]]:
    """The cells in a format's letters, a list per row, its label first."""
    return [[style.escape(label), *(_words(row, pivot.metric, style) for row in rows)] for label, rows in pivot.rows]


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
    return pd.DataFrame(frame)
