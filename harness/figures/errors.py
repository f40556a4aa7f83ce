"""Kinds of error: what they cost, side by side of branches, and what a row of a table removes of its baseline's.

Costs are TIDE's dAP, in points of AP. Colours and hatches belong to the kinds wherever they occur.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from harness.figures.series import Change, ErrorChanges
from harness.figures.style import (
    HATCHES,
    MARKERS,
    PAGE,
    colour_of,
    head_name,
    legend_below,
    new_figure,
    styled,
    wrapped,
)
from harness.spec.error_metrics import COSTS

ROW, EDGES = 0.36, 0.62  # inches: height of a row, and of what stands above and below all
LABEL_LETTERS = 26  # of a line of a row's name
MOST_LINES = 3  # of a row's name
ALL = "all six together"


@styled()
def draw_error_costs(branches: Sequence[tuple[str, Mapping[str, float]]]) -> Figure:
    """What each kind of error costs each branch of one detector: bars of the six, one after the other.

    Args:
        branches: (name, dAP by kind); from above to below.

    Raises:
        ValueError: there is no branch.
    """
    if not branches:
        raise ValueError("draw_error_costs needs at least one branch")
    figure = new_figure(PAGE * 0.6, EDGES + ROW * len(branches))
    axes = figure.add_subplot()
    for place, (_, costs) in enumerate(branches):
        _stack(axes, place, costs)
    _name_rows(axes, [_shortened(head_name(name)) for name, _ in branches])
    axes.set_xlim(left=0)
    axes.set_xlabel("dAP (points of AP)")
    legend_below(figure, _patches(), list(COSTS), "what AP would gain if errors of one kind alone were mended")
    return figure


@styled()
def draw_error_changes(rows: Sequence[ErrorChanges], baseline: str, title: str = "") -> Figure:
    """What rows of a table remove of their baseline's errors, or add: dAP less the baseline's, paired by seed.

    On the left the means of the six kinds, what is removed to the left of zero and what is added to its right, and a
    mark at their sum; on the right each kind for itself. Lines are 95 % t intervals over seeds.

    Args:
        rows: from above to below.
        baseline: in words.
        title: above the panels.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError("draw_error_changes needs at least one row")
    names = [_shortened(row.label) for row in rows]
    height = sum(max(ROW * 1.4, 0.13 * (1 + name.count("\n"))) for name in names)
    figure = new_figure(PAGE, EDGES + 0.2 + height)
    left, right = figure.subplots(1, 2, sharey=True)
    for place, row in enumerate(rows):
        _stack(left, place, {kind: change.mean for kind, change in row.kinds.items()})
        _interval(left, place, row.total, {"marker": "D", "color": "black", "markersize": 4.0})
        for number, kind in enumerate(COSTS):
            if kind in row.kinds:
                at = place + (number - (len(COSTS) - 1) / 2) * 0.8 / len(COSTS)
                _interval(right, at, row.kinds[kind], _mark(kind))
    _name_rows(left, names)
    for axes, words in ((left, "all kinds"), (right, "each kind")):
        axes.axvline(0, color="black", linewidth=0.8, zorder=2)
        axes.use_sticky_edges = False  # room beside the bars
        axes.margins(x=0.05)
        axes.grid(False, axis="y")
        axes.set_xlabel("dAP less the baseline's")
        axes.set_title(words, fontsize=7, loc="left")
    for edge in np.arange(0.5, len(rows) - 1):
        right.axhline(edge, color="#d9d9d9", linewidth=0.6, zorder=0)
    right.tick_params(axis="y", left=False)
    if title:
        figure.suptitle(wrapped(title, 90))
    _legend(figure, rows, baseline)
    return figure


def _shortened(label: str) -> str:
    """A row's name in a few lines."""
    lines = wrapped(label, LABEL_LETTERS).split("\n")
    return "\n".join(
        lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1][:-1]}…"]
    )


def _legend(figure: Figure, rows: Sequence[ErrorChanges], baseline: str) -> None:
    seeds = max(change.n for row in rows for change in (row.total, *row.kinds.values()))
    spread = "lines: 95 % t intervals over seeds" if seeds > 1 else "one seed: no interval can be given"
    sum_mark = Line2D([], [], linestyle="", marker="D", color="black", markersize=4.0)
    handles: list[Artist] = []
    for kind, patch in zip(COSTS, _patches(), strict=True):
        patch.set_label(kind)
        handles.append(patch)
    note = f"baseline: {baseline}; left of zero: errors that a row removes, in points of AP; {spread}"
    legend_below(figure, [*handles, sum_mark], [*COSTS, ALL], note)


def _patches() -> list[Patch]:
    return [Patch(**_fill(kind)) for kind in COSTS]


def _fill(kind: str) -> dict[str, Any]:
    place = COSTS.index(kind)
    return {
        "facecolor": colour_of(place + 1),
        "hatch": HATCHES[place % len(HATCHES)],
        "edgecolor": "white",
        "linewidth": 0.4,
    }


def _mark(kind: str) -> dict[str, Any]:
    place = COSTS.index(kind)
    return {"marker": MARKERS[place % len(MARKERS)], "color": colour_of(place + 1), "markersize": 3.4}


def _stack(axes: Axes, place: float, values: Mapping[str, float]) -> None:
    """Bars of the kinds, those below zero to the left and those above to the right, in the order of the kinds."""
    ends = {True: 0.0, False: 0.0}
    for kind in COSTS:
        value = values.get(kind, 0.0)
        axes.barh(place, value, left=ends[value < 0], height=0.62, zorder=1, **_fill(kind))
        ends[value < 0] += value


def _interval(axes: Axes, place: float, change: Change, mark: Mapping[str, Any]) -> None:
    if change.interval is not None:
        axes.plot(change.interval, [place, place], color=mark["color"], linewidth=1.0, zorder=3)
    axes.plot(change.mean, place, **mark, linestyle="", markeredgecolor="white", markeredgewidth=0.5, zorder=4)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first on top
    axes.grid(False, axis="y")
