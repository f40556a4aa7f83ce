"""What stands in a table's cells, in words that every format shares: numbers, gains, intervals, and verdicts on claims.

A format brings a `Style` (how it escapes letters, wraps numbers and marks footnotes) and gets columns of texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from harness.report.statistics import CONFIDENCE, Difference
from harness.report.tables import Cell, Metric, Table, TableRow
from harness.report.verdicts import Verdict


@dataclass(frozen=True)
class Style:
    """How the pieces of a cell are written in one format."""

    escape: Callable[[str], str]
    number: Callable[[str], str]  # wraps digits and signs
    plus_minus: str
    dash: str
    arrows: dict[str, str]
    mark: Callable[[str], str]  # wraps the letters of footnotes


@dataclass(frozen=True)
class Column:
    """A heading and what each row has under it."""

    heading: str
    cells: tuple[str, ...]


def layout(table: Table, style: Style) -> list[Column]:
    """Return the columns of `table` that have something to say."""
    rows = table.rows
    columns = [Column("variant", tuple(_label(row, style) for row in rows))]
    columns.append(Column("seeds", tuple(_seeds(row, style) for row in rows)))
    for index, metric in enumerate(table.metrics):
        cells = [row.cells[metric.name] for row in rows]
        heading = " ".join(filter(None, (style.escape(metric.heading), style.arrows[metric.better])))
        columns.append(Column(heading, tuple(cell_words(cell, metric, style) for cell in cells)))
        published = any(cell.published is not None for cell in cells)
        if index == 0 and any(row.is_baseline for row in rows) and len(rows) > 1:
            columns.append(Column("gain", tuple(_gain(row, row.cells[metric.name], metric, style) for row in rows)))
            if any(cell.gain and cell.gain.p_value is not None for cell in cells):
                columns.append(Column("p", tuple(_p_value(cell, style) for cell in cells)))
        if published:
            heading = style.escape(f"paper {metric.heading}")
            columns.append(Column(heading, tuple(_number(cell.published, metric, style) for cell in cells)))
        if published and index == 0 and any(cell.published_gain is not None for cell in cells):
            gains = tuple(_number(cell.published_gain, metric, style, signed=True) for cell in cells)
            columns.append(Column("paper gain", gains))
    return columns


def _label(row: TableRow, style: Style) -> str:
    return style.escape(row.label) + (style.mark(row.label_marks) if row.label_marks else "")


def _seeds(row: TableRow, style: Style) -> str:
    if row.num_finished == row.num_trials:
        return style.number(str(row.num_finished))
    return f"{row.num_finished} of {row.num_trials}" + (style.mark(row.marks) if row.marks else "")


def cell_words(cell: Cell, metric: Metric, style: Style) -> str:
    """Return `41.2 ± 1.3`; where there is no number a dash with the letters of the footnotes that say why."""
    if cell.summary is None:
        return style.dash + (style.mark(cell.marks) if cell.marks else "")
    text = written(cell.summary.mean, metric)
    if cell.summary.std is not None and metric.varies:
        text += style.plus_minus + written(cell.summary.std, metric)
    return style.number(text)


def _gain(row: TableRow, cell: Cell, metric: Metric, style: Style) -> str:
    if row.is_baseline:
        return "baseline"
    if row.is_baselines:
        return "same trial"
    if cell.gain is None:
        return style.dash + (style.mark(cell.marks) if cell.summary and cell.marks else "")
    return interval_words(cell.gain, metric, style)


def _p_value(cell: Cell, style: Style) -> str:
    if cell.gain is None or cell.gain.p_value is None:
        return ""
    return style.number(f"{cell.gain.p_value:.3f}" if cell.gain.p_value >= 0.001 else "<0.001")


def _number(value: float | None, metric: Metric, style: Style, signed: bool = False) -> str:
    return "" if value is None else style.number(written(value, metric, signed))


def written(value: float, metric: Metric, signed: bool = False) -> str:
    """Return `value` scaled and rounded as the metric wants it; zero has no sign."""
    decimals = metric.decimals if abs(value * metric.scale) < metric.whole_from else 0
    text = f"{value * metric.scale:{'+' if signed else ''}.{decimals}f}"
    return text.lstrip("+-") if not any(digit in text for digit in "123456789") else text


def verdict_words(verdict: Verdict, style: Style) -> str:
    """Return what became of a claim, and the numbers that decide it: of several rows the one that says least for it."""
    claim, metric, found = verdict.claim, verdict.metric, verdict.deciding
    parts = []
    if found.difference is None:
        parts.append(style.escape(f"no finished seed shared by '{found.row}' and '{claim.reference}'"))
    else:
        parts.append(f"{style.escape(metric.heading)} {difference_words(found.difference, metric, style)}")
        if claim.within is not None:
            parts[-1] += f", margin {style.number(written(claim.within, metric))}"
        if found.detectable is not None:
            parts.append(f"could show {style.number(written(found.detectable, metric))}")
    if found.published is not None:
        parts.append(f"paper {style.number(written(found.published, metric, signed=True))}")
    if len(claim.rows) > 1:
        parts.insert(0, style.escape(f"of {len(claim.rows)} rows '{found.row}' decides"))
    if verdict.seeds is not None:
        parts.append(f"looked at {verdict.seeds} seeds")
    if verdict.reason:
        parts.append(style.escape(verdict.reason))
    return f"{style.escape(claim.text)}: {verdict.verdict} ({'; '.join(parts)})"


def difference_words(difference: Difference, metric: Metric, style: Style) -> str:
    """Return `+8.1 [+7.2, +9.0], n = 3`; on one pair `+3.3, n = 1`."""
    return f"{interval_words(difference, metric, style)}, n = {difference.n}"


def interval_words(difference: Difference, metric: Metric, style: Style) -> str:
    """Return `+8.1 [+7.2, +9.0]`; on one pair `+3.3`."""
    text = style.number(written(difference.mean, metric, signed=True))
    if difference.low is None or difference.high is None:
        return text
    low, high = (_bound(bound, metric) for bound in (difference.low, difference.high))
    sure = "" if difference.confidence == CONFIDENCE else f" at {style.escape(percent(difference.confidence))}"
    return f"{text} {style.number(f'[{low}, {high}]')}{sure}"


def percent(confidence: float) -> str:
    """`95 %`, `99.9 %` or `99.967 %`: with two digits of what is missing, so that none reads as certain."""
    return f"{100 - float(f'{100 * (1 - confidence):.2g}'):.10g} %"


def _bound(value: float, metric: Metric) -> str:
    """An end of an interval; one near zero gets the decimals that tell on which side of it."""
    text = written(value, metric, signed=True)
    for more in (1, 2):
        if value and not re.search("[1-9]", text):
            text = written(value, replace(metric, decimals=metric.decimals + more), signed=True)
    return text


PLAIN = Style(
    escape=lambda text: " ".join(text.split()),
    number=str,
    plus_minus=" ± ",
    dash="–",
    arrows={"higher": "↑", "lower": "↓", "": ""},
    mark=lambda letters: f" [{letters}]",
)
