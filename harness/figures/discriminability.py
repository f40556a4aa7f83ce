"""How well features tell objects from background: IoF-IoB curves with their areas (paper Figure 2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.figures.series import Estimate, estimate, grouped, seed_note
from harness.figures.style import BAND, COLUMN, NO_BREAK, legend_below, line_style, new_figure, styled

Table = Mapping[str, Any]
PANELS = {"encoder": "encoder features", "attention": "decoder cross-attention"}
CROWDED = 5  # models; bands of more would cover each other
GRID = np.linspace(0.0, 1.0, 201)  # of IoB, where seeds are averaged


@styled()
def draw_discriminability(tables: Iterable[tuple[str, Table]]) -> Figure:
    """IoF against IoB over all thresholds (paper Figure 2), with the area below each curve in the legend.

    A curve further up and to the left tells objects better from background; random maps lie on the dotted diagonal.
    Seeds are averaged at equal IoB; the band of one of a few models goes from the lowest to the highest. The area is
    given with the sample deviation over seeds or, of one seed, with its own interval.

    Args:
        tables: (label, table of kind `discriminability`); `attention` may be missing or null.

    Raises:
        ValueError: no table has a curve.
    """
    groups = grouped(tables)
    present = {
        key: {
            label: there for label, seeds in groups.items() if (there := [t[key] for t in seeds if _has_curve(t, key)])
        }
        for key in PANELS
    }
    keys = [key for key in PANELS if present[key]]
    if not keys:
        raise ValueError("draw_discriminability: no table has a curve")
    figure = new_figure(COLUMN if len(keys) > 1 else 2.6, 1.9 if len(keys) > 1 else 2.5)
    handles: dict[str, Line2D] = {}
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        _draw_random(axes)
        for place, label in enumerate(groups):
            if label in present[key]:
                handles[label] = _draw_curve(axes, present[key][label], place, len(groups) <= CROWDED)
        axes.set(xlabel="IoB (share of background)", title=PANELS[key])
    figure.axes[0].set_ylabel("IoF (share of foreground)")
    shown = [label for label in groups if label in handles]
    areas = [" | ".join(area_text(_area(present[key].get(label))) for key in keys) for label in shown]
    texts = [f"{label}: {area.replace(' ', NO_BREAK)}" for label, area in zip(shown, areas, strict=True)]
    first = any(table.get("reading") == "discriminability.v1" for seeds in groups.values() for table in seeds)
    note = _note(present, keys, len(groups) <= CROWDED, "version 1 of the definition" if first else "")
    legend_below(figure, [handles[label] for label in shown], texts, note)
    return figure


def _has_curve(table: Table, key: str) -> bool:
    return (table.get(key) or {}).get("auc") is not None


def _draw_random(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.7, linestyle=(0, (1, 2)), zorder=1)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    for set_ticks in (axes.set_xticks, axes.set_yticks):
        set_ticks((0, 0.5, 1), ("0", "0.5", "1"))


def _draw_curve(axes: Axes, seeds: Sequence[Table], place: int, has_band: bool) -> Line2D:
    style = line_style(place)
    if len(seeds) == 1:
        iob, iof = np.asarray(seeds[0]["iob"], float), np.asarray(seeds[0]["iof"], float)
    else:
        iob, all_iof = GRID, np.stack([resampled(table["iob"], table["iof"]) for table in seeds])
        if has_band:
            axes.fill_between(iob, all_iof.min(0), all_iof.max(0), color=style["color"], alpha=BAND, linewidth=0)
        iof = all_iof.mean(0)
    # Marks at even distances along the curve, shifted so that those of different curves do not meet.
    (line,) = axes.plot(iob, iof, **style, markevery=(0.05 + 0.03 * (place % 5), 0.22), clip_on=False, zorder=3)
    return line


def resampled(iob: Sequence[float], iof: Sequence[float]) -> np.ndarray:
    """IoF at the IoB of `GRID`, linear between the thresholds; where IoB stands still, the highest IoF holds."""
    x, y = np.asarray(iob, float), np.asarray(iof, float)
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    last = np.append(x[1:] > x[:-1], True)
    return np.interp(GRID, x[last], y[last], left=y[0])


def _area(seeds: Sequence[Table] | None) -> Estimate | None:
    return estimate([t.get("auc") for t in seeds], [t.get("interval") for t in seeds]) if seeds else None


def area_text(area: Estimate | None) -> str:
    """`0.713 ± 0.004` over seeds, `0.713 [0.709, 0.717]` of one seed with an interval, a dash where there is none."""
    if area is None:
        return "–"
    if area.std is not None:
        return f"{area.mean:.3f} ± {area.std:.3f}"
    return f"{area.mean:.3f}" + ("" if area.low is None else f" [{area.low:.3f}, {area.high:.3f}]")


def _note(
    present: Mapping[str, Mapping[str, Sequence[Table]]], keys: Sequence[str], has_bands: bool, reading: str
) -> str:
    counts = [len(seeds) for key in keys for seeds in present[key].values()]
    seeds = seed_note(counts) if has_bands else seed_note(counts).partition(";")[0]
    single = any(t.get("interval") for key in keys for s in present[key].values() if len(s) == 1 for t in s)
    spread = [*(["± sample deviation"] if seeds else []), *(["[95 % interval over images]"] if single else [])]
    area = f"area below the curve, {' | '.join(keys)}" if len(keys) > 1 else "area below the curve"
    return "\n".join(filter(None, (seeds, ", ".join([area, *spread]), reading)))
