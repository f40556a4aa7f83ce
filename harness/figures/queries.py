"""Where customised positive queries lie (paper Figure 7): on an image, and how far from the original queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from harness.figures.images import box_outline, draw_image
from harness.figures.series import Estimate, estimate, grouped, seed_note
from harness.figures.style import (
    COLUMN,
    HATCHES,
    colour_of,
    head_name,
    head_style,
    legend_below,
    new_figure,
    plain,
    styled,
    wrapped,
)

Table = Mapping[str, Any]
DECODER = "decoder"
NOT_HEADS = ("image_id", "width", "height", "objects")  # keys of an example
SIDES = {  # key of a distance -> words, index of its colour
    "to_positives": ("to original positive queries", 1),
    "to_negatives": ("to original negative queries", 5),
}
ROOM = 0.34  # inches of a pair of bars


@styled()
def draw_query_positions(image: np.ndarray, example: Table) -> Figure:
    """Matched original queries and every head's customised positive queries on one image (paper Figure 7a).

    Args:
        image: [H, W, 3] uint8.
        example: an entry of `examples` of a table of kind `queries`: `objects` (cx, cy, w, h) and, by head, points
            (cx, cy), all as shares of width and height.
    """
    height, width = image.shape[:2]
    size = np.array([width, height], float)
    scale = min(COLUMN / width, COLUMN / height)
    figure = new_figure(max(width * scale, COLUMN / 2), height * scale + 0.06)
    axes = figure.add_subplot()
    draw_image(axes, image)
    objects = np.asarray(example["objects"], float).reshape(-1, 4) * np.tile(size, 2)
    for cx, cy, w, h in objects:
        box_outline(axes, (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
    heads = [key for key in example if key not in NOT_HEADS and key != DECODER]
    handles: dict[str, Line2D] = {}
    for index, head in enumerate(heads):
        style = head_style(head, index + 1)
        words = f"{head_name(head)}, customised"
        handles[words] = _points(
            axes, example[head], size, color=style["color"], marker=style["marker"], markersize=4.2
        )
    if DECODER in example:  # above the others, for they are few
        words = f"{head_name(DECODER)}, matched"
        handles = {words: _points(axes, example[DECODER], size, color="black", marker="*", markersize=8)} | handles
    axes.set(xlim=(0, width), ylim=(height, 0))
    legend_below(figure, list(handles.values()), list(handles))
    return figure


def _points(axes: Axes, points: Sequence[Sequence[float]], size: np.ndarray, **style: Any) -> Line2D:
    x, y = (np.asarray(points, float).reshape(-1, 2) * size).T
    edge: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.6, "linestyle": ""}
    return axes.plot(x, y, **edge, **style, clip_on=False, zorder=4 if style["marker"] == "*" else 3)[0]


@styled()
def draw_query_distances(tables: Iterable[tuple[str, Table]]) -> Figure:
    """Mean distance of customised positive queries to original positive and negative ones (paper Figure 7b).

    A pair of bars for each head of each label, with the numbers at their ends; over several seeds the mean, and a
    line from the lowest to the highest.

    Args:
        tables: (label, table of kind `queries`); models without heads are left out.

    Raises:
        ValueError: no table has a distance.
    """
    groups = {label: seeds for label, seeds in grouped(tables).items() if any(t.get("distances") for t in seeds)}
    bars = [(label, head) for label, seeds in groups.items() for head in _heads(seeds)]
    if not bars:
        raise ValueError("draw_query_distances: no table has a distance")
    names = [
        wrapped(head_name(head), 26)
        if len(groups) == 1 or label == head_name(head)
        else f"{wrapped(label, 26)}\n{wrapped(head_name(head), 26)}"
        for label, head in bars
    ]
    room = max(ROOM, 0.12 + 0.125 * (1 + max(name.count("\n") for name in names)))
    height = 0.36 * ROOM / room  # of a bar, as a share of the room
    figure = new_figure(COLUMN, 0.55 + room * len(bars))
    axes = figure.add_subplot()
    longest = 0.0
    for side, (key, (_, colour)) in enumerate(SIDES.items()):
        for place, (label, head) in enumerate(bars):
            one = estimate([((t.get("distances") or {}).get(head) or {}).get(key) for t in groups[label]])
            y = place + height * (side - 0.5)
            longest = max(longest, _draw_bar(axes, y, height, one, color=colour_of(colour), hatch=HATCHES[side]))
    axes.set_yticks(range(len(bars)), [plain(name) for name in names])
    axes.set(xlim=(0, 1.18 * longest or 1.0), ylim=(len(bars) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlabel("mean distance (image diagonals)", loc="right")  # wider than the axis where names are long
    handles = [
        Patch(facecolor=colour_of(colour), edgecolor="white", hatch=HATCHES[side])
        for side, (_, colour) in enumerate(SIDES.values())
    ]
    note = seed_note([len(seeds) for seeds in groups.values()], "bar", "line")
    legend_below(figure, handles, [words for words, _ in SIDES.values()], note)
    return figure


def _heads(seeds: Sequence[Table]) -> list[str]:
    return list(dict.fromkeys(head for table in seeds for head in table.get("distances") or {}))


def _draw_bar(axes: Axes, y: float, height: float, one: Estimate | None, **style: Any) -> float:
    """Draw a bar with its number; returns how far it reaches."""
    at_its_end: dict[str, Any] = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 6.5}
    if one is None:
        axes.annotate("–", (0, y), **at_its_end)
        return 0.0
    axes.barh(y, one.mean, height=height, edgecolor="white", linewidth=0.5, **style)
    end = one.mean
    if one.low is not None and one.high is not None:
        axes.plot([one.low, one.high], [y, y], color="black", linewidth=0.8)
        end = max(end, one.high)
    axes.annotate(f"{one.mean:.3f}", (end, y), **at_its_end)
    return end
