"""How far the maps of the heads lie apart, pair by pair: the matrices of S_ij (paper Figures 8 and 9)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from harness.figures.series import Estimate, estimate, grouped
from harness.figures.style import NOTE_COLOUR, PAGE, head_name, new_figure, plain, styled, wrapped

Table = Mapping[str, Any]
CELL = 0.4  # inches: a number of four decimals fits
LETTER = 0.053  # inches: width of a letter of a head's name
LINE = 0.14  # inches: height of a line of a title
GAP = 0.12  # inches
ANGLE = 40  # degrees of the names of the columns
MUTED, MUTED_INK = "#f0f0f0", "#999999"  # the diagonal
NARROWEST = 1.5  # inches of a panel, for its title
LONGEST_NAME = 24  # letters of a head's name
BAR_ROOM, BAR_LENGTH = 0.4, 1.6  # inches of the bar with its numbers; how long it is at most
DEEPEST = 0.62  # of the palette: black numbers stay readable on it


@dataclass
class Panel:
    """One matrix and its place: `left` and `top` in inches from the figure's upper left corner."""

    title: str
    heads: tuple[str, ...]
    cells: list[list[Estimate | None]]  # of a pair alone a single one, the mean of both directions
    has_names: bool = True  # of the rows; False beside a panel with the same heads
    left: float = 0.0
    top: float = 0.0

    @property
    def is_pair(self) -> bool:
        """Whether there are but two heads (K = 1), whose distance is one number."""
        return len(self.heads) == 2

    @property
    def side(self) -> float:
        """Inches of the matrix."""
        return CELL * len(self.cells)

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """The heads of the rows and of the columns, as they are written."""
        names = [_shortened(plain(head_name(head))) for head in self.heads]
        return (names[:1], names[1:]) if self.is_pair else (names, names)

    @property
    def margin(self) -> float:
        """Inches left of the matrix."""
        return 0.36 + LETTER * max(map(len, self.names[0])) if self.has_names else GAP

    @property
    def foot(self) -> float:
        """Inches below the matrix: slanted names and the name of the axis."""
        return 0.33 + math.sin(math.radians(ANGLE)) * LETTER * max(map(len, self.names[1]))

    @property
    def caption(self) -> str:
        """The title in lines that stay within the panel."""
        title = f"{self.title}: mean of both directions" if self.is_pair else self.title
        return wrapped(title, max(8, int((self.width - GAP - (0 if self.has_names else self.margin)) / 0.063)))

    @property
    def head(self) -> float:
        """Inches above the matrix."""
        return LINE * (self.caption.count("\n") + 1) + 0.08

    @property
    def width(self) -> float:
        """Inches of all of it."""
        return max(self.margin + self.side + GAP, NARROWEST)


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


@styled()
def draw_conflict_matrices(tables: Iterable[tuple[str, Table]]) -> Figure:
    """Matrices of S_ij, row i against column j, with their numbers (paper Figures 8 and 9).

    One panel a label, side by side as far as they fit, all on one scale of shades from zero to the largest number,
    which a bar shows. Over several seeds a cell holds the mean and below it the sample deviation. A missing number is
    a dash. Two heads alone have one number, the mean of both directions (the paper's rule for K = 1).

    Args:
        tables: (label, table of kind `conflict`), of which `heads` and `matrix` are used.

    Raises:
        ValueError: no table, or seeds of one label with different heads.
    """
    groups = grouped(tables)
    if not groups:
        raise ValueError("draw_conflict_matrices needs at least one table")
    panels = [_panel(label, seeds) for label, seeds in groups.items()]
    numbers = [cell.mean for panel in panels for row in panel.cells for cell in row if cell]
    largest = max(numbers, default=0.0)
    width, height = _place(panels)
    has_bar = largest > 0 and len(numbers) > 1  # of one number it would say the same again
    height += BAR_ROOM if has_bar else 0.0
    figure = new_figure(width, height)
    figure.set_layout_engine("none")  # every inch is accounted for
    for panel in panels:
        side = panel.side
        bottom = height - panel.top - side
        axes = figure.add_axes(((panel.left + panel.margin) / width, bottom / height, side / width, side / height))
        _draw_matrix(axes, panel, largest)
        caption_left = panel.left + (0.03 if panel.has_names else panel.margin)
        figure.text(caption_left / width, (bottom + side + 0.06) / height, panel.caption, fontsize=8, va="bottom")
    if has_bar:
        left = panels[0].margin
        long = min(BAR_LENGTH, width - left - 0.3)
        bar = figure.add_axes((left / width, 0.17 / height, long / width, 0.09 / height))
        _draw_bar(bar, largest)
    return figure


def _panel(label: str, seeds: Sequence[Table]) -> Panel:
    if len({tuple(table["heads"]) for table in seeds}) > 1:
        raise ValueError(f"draw_conflict_matrices: the seeds of '{label}' have different heads")
    heads = tuple(seeds[0]["heads"])
    if len(heads) == 2:
        pairs = [(table["matrix"][0][1], table["matrix"][1][0]) for table in seeds]
        return Panel(label, heads, [[estimate([None if None in pair else sum(pair) / 2 for pair in pairs])]])
    size = range(len(heads))
    cells = [[None if i == j else estimate([table["matrix"][i][j] for table in seeds]) for j in size] for i in size]
    return Panel(label, heads, cells)


def _place(panels: Sequence[Panel]) -> tuple[float, float]:
    """Set the panels in rows no wider than a page; returns the width and height that they take."""
    rows: list[list[Panel]] = [[]]
    for panel in panels:
        row = rows[-1]
        panel.has_names = not (row and row[-1].heads == panel.heads)
        if row and sum(other.width for other in row) + panel.width > PAGE:
            panel.has_names = True
            row = []
            rows.append(row)
        row.append(panel)
    top = 0.0
    for row in rows:
        left, head = 0.0, max(panel.head for panel in row)
        for panel in row:
            panel.left, panel.top = left, top + head
            left += panel.width
        top += head + max(panel.side + panel.foot for panel in row)
    return max(sum(panel.width for panel in row) for row in rows), top


def _draw_matrix(axes: Axes, panel: Panel, largest: float) -> None:
    size = len(panel.cells)
    decimals = decimals_for(largest)
    for i in range(size):
        for j in range(size):
            cell = panel.cells[i][j]
            face: Any
            if i == j and not panel.is_pair:
                face, text, ink = MUTED, "0", MUTED_INK
            elif cell is None:
                face, text, ink = "white", "–", NOTE_COLOUR
            else:
                face, ink = _shade(cell.mean / largest if largest > 0 else 0.0), "black"
                text = f"{cell.mean:.{decimals}f}" + (f"\n±{cell.std:.{decimals}f}" if cell.std is not None else "")
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=face, edgecolor="white", linewidth=0.8))
            axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=5.8 if "\n" in text else 6.8)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    rows, columns = panel.names
    axes.set_xticks(range(size), columns, rotation=ANGLE, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), rows if panel.has_names else [""] * size)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("" if panel.is_pair else "head j")
    if panel.has_names and not panel.is_pair:
        axes.set_ylabel("head i")


def _shade(share: float) -> Any:
    return colormaps["Blues"](DEEPEST * max(share, 0.0))


def _draw_bar(axes: Axes, largest: float) -> None:
    """The shades from zero to the largest number, from left to right."""
    steps = 64
    for step in range(steps):
        low = step / steps * largest
        axes.add_patch(Rectangle((low, 0), largest / steps, 1, facecolor=_shade((step + 0.5) / steps), linewidth=0))
    axes.set(xlim=(0, largest), ylim=(0, 1), yticks=())
    axes.set_xticks([0.0, largest], ["0", f"{largest:.{decimals_for(largest)}f}"], fontsize=6.5)
    axes.set_ylabel("S (nats)", rotation=0, ha="right", va="center", fontsize=6.5)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def decimals_for(largest: float) -> int:
    """Decimals that give the largest number three digits, but four at most unless it is below 0.001."""
    if largest <= 0:
        return 2
    digits = 2 - math.floor(math.log10(largest))
    return max(2, min(digits, 4) if largest >= 0.001 else digits - 1)
