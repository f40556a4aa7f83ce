"""Maps beside their images: the discriminability of several models (paper Figure 3), Grad-CAM of several heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from harness.figures.images import box_outline, draw_image, panel_ratio, without_axes
from harness.figures.style import NOTE_COLOUR, PAGE, new_figure, styled, wrapped

MAP_SIDE = 1.05  # inches: width of a map


@styled()
def draw_maps(
    images: Sequence[tuple[np.ndarray, np.ndarray]],
    maps: Sequence[tuple[str, Sequence[np.ndarray | None]]],
    scale: str = "D(F)",
) -> Figure:
    """Each image beside its map of every model (paper Figure 3), all maps on one colour scale.

    Args:
        images: (image [H, W, 3] uint8, ground-truth boxes [G, 4] xyxy in its pixels).
        maps: (label, one map [h, w] per image); any resolution, spread over the image; None leaves the place empty.
        scale: what the maps show, beside the colour bar.

    Raises:
        ValueError: no image, no model, or not one map for each image.
    """
    if not images or not maps or any(len(own) != len(images) for _, own in maps):
        raise ValueError("draw_maps needs images, and of every model one map (or None) for each of them")
    known = [np.asarray(one, float) for _, own in maps for one in own if one is not None]
    low = min((float(np.nanmin(one)) for one in known), default=0.0)
    high = max((float(np.nanmax(one)) for one in known), default=1.0)
    width = min(PAGE, MAP_SIDE * (len(maps) + 1) + 0.55)
    side = (width - 0.55) / (len(maps) + 1) - 0.05
    ratios = [panel_ratio(image) for image, _ in images]
    titles = [wrapped(title, int(side * 16)) for title in ("image", *(label for label, _ in maps))]
    head = 0.08 + 0.13 * (1 + max(title.count("\n") for title in titles))
    figure = new_figure(width, side * sum(ratios) + 0.04 * len(images) + head)
    grid = figure.subplots(len(images), len(maps) + 1, squeeze=False, gridspec_kw={"height_ratios": ratios})
    shown = None
    for row, (image, boxes) in enumerate(images):
        draw_image(grid[row][0], image)
        for box in np.asarray(boxes, float).reshape(-1, 4):
            box_outline(grid[row][0], box)
        for axes, (_, own) in zip(grid[row][1:], maps, strict=True):
            one = own[row]
            without_axes(axes)
            if one is None:
                axes.set(xlim=(0, 1), ylim=(0, 1), box_aspect=ratios[row])
                axes.text(0.5, 0.5, "no map", ha="center", va="center", color=NOTE_COLOUR)
                continue
            extent = (0, image.shape[1], image.shape[0], 0)
            shown = axes.imshow(np.asarray(one, float), vmin=low, vmax=high or 1.0, extent=extent)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=7.5, loc="center")
    if shown is not None:
        bar = figure.colorbar(shown, ax=grid, label=scale, fraction=0.04, aspect=25 * len(images) ** 0.5, pad=0.01)
        bar.outline.set_linewidth(0.5)
    return figure
