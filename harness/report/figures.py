"""Figures of a grid: AP against epochs, a line per row, as PNG and PDF.

The only room that knows matplotlib, and only inside functions: a table needs none of it. One style for all figures:
colours that colour-blind readers tell apart, dashes and marks so that they survive black-and-white print, names at the
lines instead of a legend, and files that are the same bytes for the same numbers.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.results import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.grid import Grid

Record = Mapping[str, Any]

# Okabe and Ito's palette without its yellow, which vanishes on white paper; black first, for the baseline.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#808080")
DASHES = ("solid", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "<", ">")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib brings it: the same letters everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # text stays text
    "svg.hashsalt": "codetr",
}
WIDTH, HEIGHT = 6.4, 3.4  # inches
DOTS_PER_INCH = 200
LABEL_WIDTH = 30  # letters
LABEL_SIZE = 8.5  # points


@dataclass(frozen=True)
class Curve:
    """One row of the table over epochs: `values[e]` holds a number per seed at `epochs[e]`."""

    label: str
    epochs: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]

    @property
    def means(self) -> list[float]:
        """Mean over seeds at each epoch."""
        return [math.fsum(seeds) / len(seeds) for seeds in self.values]

    @property
    def num_seeds(self) -> int:
        """Seeds behind every point."""
        return len(self.values[0])


def curves(grid: Grid, records: Iterable[Record], metric: str = "AP") -> list[Curve]:
    """Return a curve for each row with finished trials, over the epochs that all of them evaluated.

    Only finished trials count: a mean over fewer seeds from some epoch on would show a step that nobody trained.
    """
    by_id = {record["trial_id"]: record for record in records if record["status"] == "finished"}
    found = []
    for row in grid.rows:
        histories = [
            {
                entry["epoch"]: entry[metric]
                for entry in by_id[key].get("history") or ()
                if entry.get(metric) is not None
            }
            for key in row.trial_ids
            if key in by_id
        ]
        epochs = sorted(set.intersection(*map(set, histories))) if histories else []
        if epochs:
            values = tuple(tuple(float(history[epoch]) for history in histories) for epoch in epochs)
            found.append(Curve(row.label, tuple(epochs), values))
    return found


def draw_curves(title: str, lines: Sequence[Curve], metric: str = "AP") -> Figure:
    """Return the figure of `metric` against epochs: the mean over seeds as a line, all seeds within the band.

    Raises:
        ValueError: there is no curve to draw.
    """
    if not lines:
        raise ValueError("draw_curves needs at least one curve")
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = [textwrap.fill(line.label, LABEL_WIDTH) for line in lines]
    room = sum(map(_label_points, names)) / 72  # inches that the names need above each other
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"}):
        figure = Figure(figsize=(WIDTH, max(HEIGHT, room + 1)), dpi=DOTS_PER_INCH, layout="constrained")
        axes = figure.add_subplot()
        for index, line in enumerate(lines):
            _draw_line(axes, line, index)
        first, last = min(line.epochs[0] for line in lines), max(line.epochs[-1] for line in lines)
        axes.set_xlim(first - (0.03 * (last - first) or 1), last)
        axes.set_ylim(*_value_range(lines))
        axes.set_xlabel("epoch")
        axes.set_ylabel(metric)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        axes.set_title(title, pad=18, parse_math=False)
        axes.annotate(
            _seed_note(lines),
            xy=(0, 1),
            xycoords="axes fraction",
            xytext=(0, 6),
            textcoords="offset points",
            color="#555555",
            fontsize=LABEL_SIZE,
        )
        figure.draw_without_rendering()  # lays out, so that the height of the axes is known
        _label_lines(axes, lines, names, axes.bbox.height / DOTS_PER_INCH * 72)
    return figure


def _value_range(lines: Sequence[Curve]) -> tuple[float, float]:
    """Room for all seeds of all lines, and a whole unit where nothing changes; below zero only for what is there."""
    values = [value for line in lines for seeds in line.values for value in seeds]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.5
    return (max(low - margin, 0.0) if low >= 0 else low - margin), high + margin


def _seed_note(lines: Sequence[Curve]) -> str:
    fewest, most = min(line.num_seeds for line in lines), max(line.num_seeds for line in lines)
    if most == 1:
        return "one seed a row"
    seeds = str(most) if fewest == most else f"{fewest} to {most}"
    return f"line: mean of {seeds} seeds; band: lowest to highest"


def _draw_line(axes: Axes, line: Curve, index: int) -> None:
    colour = COLOURS[index % len(COLOURS)]
    if line.num_seeds > 1:
        low, high = [min(seeds) for seeds in line.values], [max(seeds) for seeds in line.values]
        axes.fill_between(line.epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    step = max(1, len(line.epochs) // 8)
    axes.plot(
        line.epochs,
        line.means,
        color=colour,
        linestyle=DASHES[(index + index // len(COLOURS)) % len(DASHES)],  # a colour comes back with other dashes
        marker=MARKERS[index % len(MARKERS)],
        markevery=((len(line.epochs) - 1) % step, step),
        markeredgecolor="white",
        markeredgewidth=0.6,
        clip_on=False,
        zorder=3,
    )


def _label_points(name: str) -> float:
    """Height of a wrapped name in typographic points, with a little air."""
    return (name.count("\n") + 1) * 1.2 * LABEL_SIZE + 2


def _label_lines(axes: Axes, lines: Sequence[Curve], names: Sequence[str], axes_points: float) -> None:
    """Write each row's name to the right of its last point, moved apart where they would touch."""
    from matplotlib.colors import to_rgb

    low, high = axes.get_ylim()
    heights = [_label_points(name) * (high - low) / axes_points for name in names]
    places = spread([line.means[-1] for line in lines], heights, low, high)
    for index, (line, name, place) in enumerate(zip(lines, names, places, strict=True)):
        colour = tuple(0.8 * part for part in to_rgb(COLOURS[index % len(COLOURS)]))  # letters need more contrast
        axes.annotate(
            name,
            xy=(line.epochs[-1], line.means[-1]),
            xytext=(1.05, place),
            textcoords=axes.get_yaxis_transform(),
            color=colour,
            fontsize=LABEL_SIZE,
            verticalalignment="center",
            arrowprops={
                **{"arrowstyle": "-", "relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 4},
                **{"color": colour, "linewidth": 0.6, "alpha": 0.6},
            },
            annotation_clip=False,
            parse_math=False,
        )


def spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Return centres near `wanted` such that boxes of `heights` do not overlap and stay within [low, high].

    Order is kept. Boxes that touch move as one block around the mean of what its members want; where all
    together are taller than the range, they start at its lower end.
    """
    blocks: list[tuple[list[int], float]] = []  # members from below, lower edge

    def edge(members: list[int]) -> float:
        below, total = 0.0, 0.0
        for member in members:
            total += wanted[member] - below - heights[member] / 2
            below += heights[member]
        return max(low, min(total / len(members), high - below))

    order = sorted(range(len(wanted)), key=lambda index: (wanted[index], -index))  # of equals, the first is on top
    for index in order:
        members = [index]
        while blocks and blocks[-1][1] + sum(heights[member] for member in blocks[-1][0]) > edge(members):
            members = blocks.pop()[0] + members
        blocks.append((members, edge(members)))
    places = [0.0] * len(wanted)
    for members, start in blocks:
        for member in members:
            places[member] = start + heights[member] / 2
            start += heights[member]
    return places


def write_figure(figure: Figure, path: Path, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Write `figure` to `path` with each ending of `formats`; the same figure gives the same bytes."""
    import matplotlib

    nothing = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None, "Creator": None}}
    paths = []
    with matplotlib.rc_context(STYLE):
        for ending in formats:
            stream = io.BytesIO()
            figure.savefig(stream, format=ending, metadata=nothing[ending])
            paths.append(path.with_name(f"{path.name}.{ending}"))
            write_atomic(paths[-1], stream.getvalue())
    return paths
