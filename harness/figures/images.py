"""Images within figures: without axes, with outlines that are seen on any ground."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

TALLEST = 3.0  # of a panel: its height by its width


def panel_ratio(image: np.ndarray) -> float:
    """Height by width of the panel for an image [H, W, …]; one that is taller yet is fitted in and narrower than it."""
    height, width = image.shape[:2]
    return float(min(height / width, TALLEST))


def without_axes(axes: Axes) -> None:
    """Take away ticks, grid and frame."""
    axes.set(xticks=(), yticks=())
    axes.grid(False)
    axes.spines[:].set_visible(False)


def draw_image(axes: Axes, image: np.ndarray) -> None:
    """Show an image [H, W, 3] uint8 in its own pixels: (0, 0) is its upper left corner, (W, H) the lower right."""
    without_axes(axes)
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0))


def box_outline(
    axes: Axes,
    box_xyxy: Sequence[float] | np.ndarray,
    colour: str = "white",
    linewidth: float = 0.8,
    dashes: Any = "solid",
) -> None:
    """Outline a box in the image's pixels, with a dark rim so that it is seen on any ground."""
    x0, y0, x1, y1 = box_xyxy
    for ink, width, style in (("black", linewidth + 0.8, "solid"), (colour, linewidth, dashes)):
        axes.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=ink, linewidth=width, linestyle=style)
        )
