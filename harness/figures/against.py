"""A metric against an axis of the grid: means over seeds with their 95 % intervals, a line for each other setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from harness.figures.series import AxisPoint
from harness.figures.style import COLUMN, legend_below, line_style, new_figure, plain, styled, wrapped
from harness.spec.labels import show_value

DECADE = 10.0  # numbers that span more stand on a logarithmic axis
MANY = 8  # numbers on an axis that are no longer written one by one
APART = 0.012  # of the axis, between the bars of two lines at one value


@styled()
def draw_against(
    lines: Mapping[str, Sequence[AxisPoint]],
    values: Sequence[Any],
    numeric: bool,
    axis: str,
    metric: str,
    title: str = "",
    joined: bool = True,
    note: str = "95 % t intervals of the mean over seeds",
) -> Figure:
    """Draw each line through its means, with a bar for each interval.

    Args:
        lines: points by label; the label may be empty where there is one line.
        values: of the axis, all of them, in the file's order.
        numeric: numbers, which stand at their place; others stand side by side.
        axis: its name.
        metric: heading of what is drawn.
        title: above the panel.
        joined: False draws points alone, about a line at zero: gains on things that have no order.
        note: what the bars are.
    """
    figure = new_figure(COLUMN, 2.3)
    axes = figure.add_subplot()
    logarithmic = numeric and min(values) > 0 and max(values) > DECADE * min(values)
    handles = []
    for index, (label, points) in enumerate(lines.items()):
        style = line_style(index) | ({} if joined else {"linestyle": "none"})
        shift = (index - (len(lines) - 1) / 2) * APART
        xs = [_moved(_place(point.value, values, numeric), shift, values, numeric, logarithmic) for point in points]
        order = sorted(range(len(xs)), key=xs.__getitem__)
        (handle,) = axes.plot([xs[i] for i in order], [points[i].mean for i in order], **style, zorder=3, label=label)
        handles.append(handle)
        for x, point in zip(xs, points, strict=True):
            if point.interval is not None:
                axes.plot([x, x], point.interval, color=style["color"], linewidth=1.0, zorder=2)
    drawn = [value for points in lines.values() for point in points for value in (point.mean, *(point.interval or ()))]
    if not joined:
        axes.axhline(0.0, color="black", linewidth=0.8, zorder=1)
    if joined and drawn and min(drawn) >= 0:  # the margin alone does not go below zero: AP has no negative values
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    if logarithmic:
        axes.set_xscale("log")
    if not numeric:  # side by side, the first and the last as far from the border as from each other
        axes.set_xlim(-0.5, len(values) - 0.5)
    if not numeric or len(values) <= MANY:
        axes.xaxis.set_major_locator(FixedLocator([_place(value, values, numeric) for value in values]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticklabels([wrapped(show_value(value), 14) for value in values])
    axes.set_xlabel(plain(axis + (" (logarithmic)" if logarithmic else "")))
    percent = metric.rpartition(" ")[2].startswith(("AP", "AR"))
    unit = " (%)" if percent and joined else ""  # a gain is in points
    axes.set_ylabel(plain(f"{metric}{unit}"))
    if title:
        axes.set_title(wrapped(title, 52))
    several = any(point.interval is not None for points in lines.values() for point in points)
    note = f"bars: {note}" if several else ""
    if len(lines) > 1 or note:
        legend_below(figure, handles, [label or metric for label in lines], note)
    return figure


def _place(value: Any, values: Sequence[Any], numeric: bool) -> float:
    if numeric:
        return float(value)
    shown = [show_value(other) for other in values]
    return float(shown.index(show_value(value)))


def _moved(x: float, shift: float, values: Sequence[Any], numeric: bool, logarithmic: bool) -> float:
    """`x` a little to the side, so that the bars of several lines do not cover each other."""
    if logarithmic:
        return float(x * (max(values) / min(values)) ** shift)
    span = max(values) - min(values) if numeric else len(values)
    return x + shift * float(span)
