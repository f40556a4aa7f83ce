"""Gains drawn below their numbers: a dot with its 95 % interval, and the paper's as a diamond, a row each.

Inline SVG in the colours of the page, so that light and dark, screen and print need one drawing.
"""

from __future__ import annotations

from collections.abc import Callable

from harness.report.tables import Table, TableRow

WIDTH, HEIGHT = 144, 20  # units of the drawing


def gain_bars(table: Table) -> list[str]:
    """Each row's gain as a dot with its interval, the paper's as a diamond, all on one axis; none without intervals."""
    name = table.metrics[0].name
    gains = [row.cells[name].gain for row in table.rows]
    if not any(gain and gain.low is not None for gain in gains):
        return []
    found = [value for gain in gains if gain for value in (gain.low, gain.mean, gain.high)]
    found += [row.cells[name].published_gain for row in table.rows]
    ends = [0.0, *(value for value in found if value is not None)]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0

    def place(value: float) -> str:
        return f"{6 + (value - low) / span * (WIDTH - 12):.1f}"

    return [_bar(row, name, place) for row in table.rows]


def _bar(row: TableRow, name: str, place: Callable[[float], str]) -> str:
    gain, paper = row.cells[name].gain, row.cells[name].published_gain
    middle = HEIGHT / 2
    zero = place(0.0)
    parts = [
        f'<line x1="{zero}" x2="{zero}" y1="0" y2="{HEIGHT}" stroke="var(--soft)" stroke-width="1" opacity="0.6"/>'
    ]
    words = []
    if gain is not None:
        if gain.low is not None and gain.high is not None:
            parts.append(
                f'<line x1="{place(gain.low)}" x2="{place(gain.high)}" y1="{middle:g}" y2="{middle:g}" '
                'stroke="var(--bar)" stroke-width="2"/>'
            )
        parts.append(f'<circle cx="{place(gain.mean)}" cy="{middle:g}" r="3.5" fill="var(--bar)"/>')
        words.append("dot and line: our gain and its 95 % interval")
    if paper is not None:
        x = float(place(paper))
        corners = f"{x - 4:.1f},{middle:g} {x:.1f},{middle - 4:g} {x + 4:.1f},{middle:g} {x:.1f},{middle + 4:g}"
        parts.append(f'<polygon points="{corners}" fill="none" stroke="var(--paper)" stroke-width="1.5"/>')
        words.append("diamond: the paper's gain")
    title = f"<title>{'; '.join(words)}</title>" if words else ""
    return f'<svg class="bar" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{title}{"".join(parts)}</svg>'
