"""A grid as `codetr plan` lists it: a line for every row and seed, also where another row has the same trial."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.spec.labels import factors_label, short_names

if TYPE_CHECKING:
    from harness.spec.grid import Grid

WIDTH = 120  # columns of a terminal that a listing should fit


@dataclass(frozen=True)
class Listing:
    """Lines of a grid."""

    columns: dict[str, bool]  # heading -> whether long cells may be wrapped
    rows: list[list[str]]
    trials: list[str]  # by line, the trial that it is the first line of; "" where that stands above


def list_grid(grid: Grid, chosen: Collection[str], states: Mapping[str, str]) -> Listing:
    """The lines of the `chosen` trials of a grid.

    Args:
        grid: its rows.
        chosen: ids.
        states: by id, what became of the trial.
    """
    known = {trial.trial_id: trial for trial in grid.trials}
    short = short_names(dict.fromkeys(key for row in grid.rows for key in row.factors))
    labels = [  # a row with axes tells their values itself
        factors_label({key: value for key, value in row.factors.items() if key not in row.along}, short)
        for row in grid.rows
    ]
    tells = any(label not in row.label for label, row in zip(labels, grid.rows, strict=True))
    columns = {"trial": False, "row": True}
    several = len(grid.seeds) > 1
    columns |= {"label": True} if tells else {"seed": False} if several else {}
    lines: list[list[str]] = []
    first: dict[str, str] = {}  # by trial, the row of its first line
    trials = []
    for row, label in zip(grid.rows, labels, strict=True):
        for seed, trial_id in zip(grid.seeds, row.trial_ids, strict=True):
            if trial_id not in chosen:
                continue
            again = trial_id in first
            above = first.setdefault(trial_id, row.label)
            cells = [trial_id if known[trial_id].has_id else "-", row.label]
            if tells:
                cells.append(f"{label} seed={seed}" if several else label)
            elif several:
                cells.append(str(seed))
            lines.append([*cells, f"same trial as '{above}'" if again else states[trial_id]])
            trials.append("" if again else trial_id)
    if sum(max(map(len, column)) + 3 for column in zip(*lines, strict=True)) > WIDTH:
        for line, trial_id in zip(lines, trials, strict=True):
            line[-1] = line[-1] if trial_id else "same trial as above"  # its id tells which
    return Listing({**columns, "status": True}, lines, trials)
