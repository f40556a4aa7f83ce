"""What changes while a model trains: AP against epochs (paper Figure 1) and matching instability (Figure 5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.figures.series import Curve, History, epoch_curves, lacking_note, seed_note
from harness.figures.style import (
    BAND,
    COLUMN,
    legend_below,
    line_style,
    new_figure,
    plain,
    styled,
    whole_epochs,
    wrapped,
)

CROWDED = 5  # lines; beyond that bands would cover each other
INSTABILITY = {"instability": "by query slot", "instability_gt": "by ground truth"}  # key of a history -> title


@styled()
def draw_curves(runs: Iterable[tuple[str, History]], metric: str = "AP", title: str = "") -> Figure:
    """AP, or another metric, against epochs (paper Figure 1).

    Args:
        runs: (label, `history` of a record); seeds of a model share the label. The note below names those that are not
            drawn (see `epoch_curves`).
        metric: key of the history's entries.
        title: above the panel.

    Raises:
        ValueError: no history has a number of `metric`.
    """
    known = list(runs)
    lines = epoch_curves(known, metric)
    if not lines:
        raise ValueError(f"draw_curves: no history has a number of {metric}")
    figure = new_figure(COLUMN, 2.3)
    axes = figure.add_subplot()
    handles = _draw_panel(axes, lines, {line.label: index for index, line in enumerate(lines)})
    axes.set_ylabel(plain(f"{metric} (%)" if metric.rpartition("/")[2].startswith(("AP", "AR")) else metric))
    if title:
        axes.set_title(wrapped(title, 46))
    legend_below(figure, list(handles.values()), list(handles), _note(known, {f"of {metric}": lines}))
    return figure


@styled()
def draw_instability(runs: Iterable[tuple[str, History]]) -> Figure:
    """Matching instability IS over epochs (paper Figure 5), by query slot and by ground truth.

    By slot: how many of an image's queries are matched to another object than at the epoch before (the paper's
    measure). By ground truth: how many of its objects are matched to another query slot. A panel without any number
    is left out.

    Args:
        runs: (label, `history` of a record) with `instability` and `instability_gt`, null where undefined; the note
            below names those that are not drawn.

    Raises:
        ValueError: no history has either number.
    """
    known = list(runs)
    panels = {title: lines for key, title in INSTABILITY.items() if (lines := epoch_curves(known, key))}
    if not panels:
        raise ValueError("draw_instability: no history has instability numbers")
    labels = list(dict.fromkeys(label for label, _ in known))
    places = {label: index for index, label in enumerate(labels)}
    figure = new_figure(COLUMN, 1.9)
    handles: dict[str, Line2D] = {}
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        handles |= _draw_panel(axes, lines, places)
        axes.set_title(title)
    figure.axes[0].set_ylabel("instability IS\n(changed matches per image)")
    shown = [label for label in labels if label in handles]
    legend_below(figure, [handles[label] for label in shown], shown, _note(known, panels))
    return figure


def _note(runs: Sequence[tuple[str, History]], panels: Mapping[str, Sequence[Curve]]) -> str:
    """What lines and bands are, and which rows or seeds of them have no number at the epochs that are drawn."""
    spread = "bar at the end" if max(map(len, panels.values())) > CROWDED else "band"
    asked = Counter(label for label, _ in runs)
    lacking = [
        lacking_note(f"a number {what} at these epochs", asked, {line.label: line.num_seeds for line in lines})
        for what, lines in panels.items()
    ]
    seeds = seed_note([line.num_seeds for lines in panels.values() for line in lines], spread=spread)
    return "\n".join(filter(None, (seeds, *lacking)))


def _draw_panel(axes: Axes, lines: Sequence[Curve], places: dict[str, int]) -> dict[str, Line2D]:
    """Draw each curve in the style of its label's place; returns what a legend shows.

    The range of the seeds is a band; where many bands would cover each other, a bar beside the last epoch instead.
    """
    first, last = min(line.epochs[0] for line in lines), max(line.epochs[-1] for line in lines)
    span = max(last - first, 1)
    crowded = len(lines) > CROWDED
    handles = {}
    for number, line in enumerate(lines):
        style = line_style(places[line.label])
        if line.num_seeds > 1:
            low, high = [min(seeds) for seeds in line.values], [max(seeds) for seeds in line.values]
            if crowded:
                place = last + span * (0.05 + 0.02 * number)
                axes.plot([place, place], [low[-1], high[-1]], color=style["color"], linewidth=1.6)
                axes.plot(place, line.means[-1], **{**style, "markersize": 3.2}, clip_on=False)
            else:
                axes.fill_between(line.epochs, low, high, color=style["color"], alpha=BAND, linewidth=0)
        step = max(1, len(line.epochs) // 8)
        style["linewidth"] = 1.0 if crowded else 1.3
        (handles[line.label],) = axes.plot(
            line.epochs, line.means, **style, markevery=((len(line.epochs) - 1) % step, step), clip_on=False, zorder=3
        )
    bars = crowded and any(line.num_seeds > 1 for line in lines)
    axes.set_xlim(first - 0.03 * span, last + span * (0.06 + 0.02 * len(lines) if bars else 0.03))
    axes.set_ylim(*_value_range(lines))
    axes.set_xlabel("epoch")
    whole_epochs(axes)
    return handles


def _value_range(lines: Sequence[Curve]) -> tuple[float, float]:
    """Room for all seeds of all lines, and a whole unit where nothing changes; below zero only for what is there."""
    values = [value for line in lines for seeds in line.values for value in seeds]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.5
    return (max(low - margin, 0.0) if low >= 0 else low - margin), high + margin
