"""The last step of the story: tables and figures from the tracking store, the paper's numbers beside ours.

`tables.py` gathers records into rows, `statistics.py` gives deviations and intervals, `notes.py` the small print,
`formats.py` writes Markdown, LaTeX, CSV and plain text, `figures.py` and `trial_figures.py` gather what is drawn of
a grid and of one trial, and `published.py` holds numbers of the paper that belong to no row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.report.formats import to_csv, to_latex, to_markdown, to_text
from harness.report.tables import make_table
from harness.results import write_atomic

if TYPE_CHECKING:
    from harness.grid import Grid

__all__ = ["FORMATS", "Report", "grid_text", "write_report"]

TABLES = ("md", "tex", "csv")
FIGURES = ("png", "pdf")
FORMATS = (*TABLES, *FIGURES)


@dataclass(frozen=True)
class Report:
    """What `write_report` made."""

    paths: tuple[Path, ...]
    text: str  # all tables as plain text, for a terminal or a job log


def grid_text(grid: Grid, records: Iterable[Mapping[str, Any]]) -> str:
    """Return the table of `grid` as plain text; `records` are shaped like result.json."""
    return to_text(make_table(grid, records))


def write_report(
    grids: Sequence[Grid],
    out_dir: str | Path,
    formats: Sequence[str] = FORMATS,
    uri: str | None = None,
    *,
    records: Iterable[Mapping[str, Any]] | None = None,
) -> Report:
    """Write each grid's table and the figures that it asks for into `out_dir`.

    Args:
        grids: their names become the files' names.
        out_dir: made if absent; files of the same name are replaced.
        formats: any of `FORMATS`; a figure is left out while no finished trial has what it shows.
        uri: the tracking store; None takes the usual one.
        records: records to use instead of asking the tracking store.

    Raises:
        UserError: an unknown format, two grids of one name, or a tracking store that cannot be reached.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UserError(f"--format: unknown format '{unknown[0]}'; known: {', '.join(FORMATS)}")
    stems = [re.sub(r"[^\w.-]+", "_", grid.name) for grid in grids]
    twice = [stem for stem in stems if stems.count(stem) > 1]
    if twice:
        raise UserError(f"report: two ablation files are named '{twice[0]}' and would write the same files; rename one")
    if records is None:
        from harness.report.figures import HISTORY, TABLES
        from harness.tracking import read_records

        ids = list(dict.fromkeys(key for grid in grids for row in grid.rows for key in row.trial_ids))
        asked = {name for grid in grids for name in grid.figures} if set(formats) & set(FIGURES) else set()
        history = ("loss", *(metric for name in HISTORY if name in asked for metric in HISTORY[name]))
        records = read_records(ids, uri, history=history, analysis=bool(asked & set(TABLES)))
    known = list(records)
    paths: list[Path] = []
    texts = []
    for grid, stem in zip(grids, stems, strict=True):
        paths += _write_grid(grid, known, Path(out_dir) / stem, formats)
        texts.append(grid_text(grid, known))
    return Report(tuple(paths), "\n".join(texts))


def _write_grid(grid: Grid, records: Sequence[Mapping[str, Any]], base: Path, formats: Sequence[str]) -> list[Path]:
    """Write the files of one grid beside `base`, figures first, for the Markdown shows one."""
    table = make_table(grid, records)
    paths: list[Path] = []
    endings = [ending for ending in FIGURES if ending in formats]
    if endings:
        from harness.figures.style import save_figure
        from harness.report.figures import analysis_figures

        for name, figure in analysis_figures(grid, records).items():
            paths += save_figure(figure, base.with_name(f"{base.name}_{name}"), endings)
    pictures = [path.name for path in paths if path.suffix == ".png"]
    texts = {"md": to_markdown(table, pictures), "tex": to_latex(table), "csv": to_csv(table)}
    tables = [base.with_name(f"{base.name}.{ending}") for ending in TABLES if ending in formats]
    for path in tables:
        write_atomic(path, texts[path.suffix[1:]])
    return tables + paths
