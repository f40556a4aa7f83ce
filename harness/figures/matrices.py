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
DEEPEST = 0.62  # of the palette: black numbers stay readable on it


@dataclass
class Panel:
    """One matrix and its place: `left` and `top` in inches from the figure's upper left corner."""

    title: str
    heads: tuple[str, ...]
    cells: list[list[Estimate | None]]
    has_names: bool = True  # of the rows; False beside a panel with the same heads
    left: float = 0.0
    top: float = 0.0

    @property
    def side(self) -> float:
        """Inches of the matrix."""
        return CELL * len(self.heads)

    @property
    def names(self) -> list[str]:
        """The heads as they are written."""
        return [plain(head_name(head)) for head in self.heads]

    @property
    def margin(self) -> float:
        """Inches left of the matrix."""
        return 0.36 + LETTER * max(map(len, self.names)) if self.has_names else GAP

    @property
    def foot(self) -> float:
        """Inches below the matrix: slanted names and the name of the axis."""
        return 0.33 + math.sin(math.radians(ANGLE)) * LETTER * max(map(len, self.names))

    @property
    def caption(self) -> str:
        """The title in lines that stay within the panel."""
        return wrapped(self.title, max(8, int((self.side if not self.has_names else self.side + self.margin) / 0.063)))

    @property
    def head(self) -> float:
        """Inches above the matrix."""
        return LINE * (self.caption.count("\n") + 1) + 0.08

    @property
    def width(self) -> float:
        """Inches of all of it."""
        return self.margin + self.side + GAP


@styled()
def draw_conflict_matrices(tables: Iterable[tuple[str, Table]]) -> Figure:
    """Matrices of S_ij, row i against column j, with their numbers (paper Figures 8 and 9).

    One panel a label, side by side as far as they fit; the shades of each go from zero to its own largest number.
    Over several seeds a cell holds the mean and below it the sample deviation. A missing number is a dash.

    Args:
        tables: (label, table of kind `conflict`), of which `heads` and `matrix` are used.

    Raises:
        ValueError: no table, or seeds of one label with different heads.
    """
    groups = grouped(tables)
    if not groups:
        raise ValueError("draw_conflict_matrices needs at least one table")
    panels = [_panel(label, seeds) for label, seeds in groups.items()]
    width, height = _place(panels)
    figure = new_figure(width, height)
    figure.set_layout_engine("none")  # every inch is accounted for
    for panel in panels:
        side = panel.side
        bottom = height - panel.top - side
        axes = figure.add_axes(((panel.left + panel.margin) / width, bottom / height, side / width, side / height))
        _draw_matrix(axes, panel)
        caption_left = panel.left + (0.03 if panel.has_names else panel.margin)
        figure.text(caption_left / width, (bottom + side + 0.06) / height, panel.caption, fontsize=8, va="bottom")
    return figure


def _panel(label: str, seeds: Sequence[Table]) -> Panel:
    if len({tuple(table["heads"]) for table in seeds}) > 1:
        raise ValueError(f"draw_conflict_matrices: the seeds of '{label}' have different heads")
    heads = tuple(seeds[0]["heads"])
    size = range(len(heads))
    return Panel(label, heads, [[estimate([table["matrix"][i][j] for table in seeds]) for j in size] for i in size])


def _place(panels: Sequence[Panel]) -> tuple[float, float]:
    """Set the panels in rows no wider than a page; returns width and height of the figure."""
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


def _draw_matrix(axes: Axes, panel: Panel) -> None:
    size = len(panel.heads)
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
    top = max((cell.mean for i, j in pairs if (cell := panel.cells[i][j])), default=0.0)
    decimals = decimals_for(top)
    for i in range(size):
        for j in range(size):
            cell = panel.cells[i][j]
            face: Any
            if i == j:
                face, text, ink = MUTED, "0", MUTED_INK
            elif cell is None:
                face, text, ink = "white", "–", NOTE_COLOUR
            else:
                face, ink = colormaps["Blues"](DEEPEST * max(cell.mean, 0.0) / top if top > 0 else 0.0), "black"
                text = f"{cell.mean:.{decimals}f}" + (f"\n±{cell.std:.{decimals}f}" if cell.std is not None else "")
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=face, edgecolor="white", linewidth=0.8))
            axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=5.8 if "\n" in text else 6.8)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    axes.set_xticks(range(size), panel.names, rotation=ANGLE, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), panel.names if panel.has_names else [""] * size)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("head j")
    if panel.has_names:
        axes.set_ylabel("head i")


def decimals_for(largest: float) -> int:
    """Decimals that give the largest number three digits, but four at most unless it is below 0.001."""
    if largest <= 0:
        return 2
    digits = 2 - math.floor(math.log10(largest))
    return max(2, min(digits, 4) if largest >= 0.001 else digits - 1)
