"""The last step of the story: a page, tables and figures from the records of trials, the paper's numbers beside ours.

`reading.py` fetches records, `ground.py` refuses those that do not compare, `tables.py` gathers them into rows,
`frames.py` gives them as data, `pivot.py` against an axis, `statistics.py` gives deviations and intervals
(`images.py` those of one seed, `tasks.py` over several data sets), `verdicts.py` says which claims held (`looks.py`
and `sequential.py` while seeds come in), `pairs.py` which heads help together, `notes.py` and `protocols.py` the
small print, `cells.py`, `formats.py` and `latex.py` write Markdown, CSV, plain text and LaTeX (with `letters.py`,
`widths.py`), `figures.py` and `trial_figures.py` gather what is drawn of a grid and of one trial, `detected.py` and
`by_class.py` what its detections tell by image and by class (of the trials that `shown_trials.py` chooses),
`gallery.py` with `shown_images.py` the images on which models differ, `published.py` and `released.py` hold numbers
of the paper that belong to no row and of released detectors. `page.py` puts all of it on one page (`section.py`
is what that says of one file, with `page_claims.py`, `page_detections.py` and `page_trials.py`), `trial_page.py` one
trial on its own, by `templates.py` and with gains drawn by `bars.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.files import write_atomic
from harness.report.by_class import write_classes
from harness.report.formats import claims_to_csv, pivot_to_markdown, pivot_to_text, to_csv, to_markdown, to_text
from harness.report.frames import write_frames
from harness.report.ground import check_ground
from harness.report.latex import pivot_to_latex, to_latex
from harness.report.pivot import Pivot, make_pivot, pivot_frame
from harness.report.reading import (
    AUTO,
    SOURCES,
    TRACKING,
    chosen_source,
    identified,
    links_from,
    making_notes,
    read_trials,
    trial_ids,
)
from harness.report.tables import Table, make_table
from harness.store.results import RunStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from harness.report.detected import Detected
    from harness.report.section import Picture, Section
    from harness.report.verdicts import Verdict
    from harness.spec.claims import Claim
    from harness.spec.grid import Grid

__all__ = [
    "DEFAULT_FORMATS",
    "FORMATS",
    "SOURCES",
    "TRACKING",
    "How",
    "Report",
    "chosen_source",
    "grid_text",
    "identified",
    "write_report",
]

TABLES = ("md", "tex", "csv")
FIGURES = ("png", "pdf")
PAGE = "html"
DATA = ("csv", "parquet")  # the trials and their epochs, as data
DEFAULT_FORMATS = (PAGE, *TABLES, *FIGURES)
FORMATS = (*DEFAULT_FORMATS, "parquet")
PAGE_NAME = "report.html"
CLAIMS_NAME = "claims.csv"


@dataclass(frozen=True)
class Report:
    """What `write_report` made."""

    paths: tuple[Path, ...]
    text: str  # all tables as plain text, for a terminal or a job log
    notes: tuple[str, ...] = ()  # where the numbers come from, when that is not what was to be expected


def grid_text(grid: Grid, records: Iterable[Mapping[str, Any]]) -> str:
    """Return the table of `grid` as plain text; `records` are shaped like result.json."""
    table = make_table(grid, records)
    return _text(table, make_pivot(grid, table))


def _text(table: Table, pivot: Pivot | None) -> str:
    return to_text(table) + (f"\n{pivot_to_text(pivot)}" if pivot else "")


@dataclass(frozen=True)
class How:
    """The commands that a page shows: for each grid by name those that made its trials, and the one that made it."""

    grids: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    report: str = "codetr report"


def write_report(
    grids: Sequence[Grid],
    out_dir: str | Path,
    formats: Sequence[str] = DEFAULT_FORMATS,
    uri: str | None = None,
    *,
    source: str = AUTO,
    records: Iterable[Mapping[str, Any]] | None = None,
    allow_mixed: bool = False,
    images: bool = False,
    wide: bool = False,
    score: float | None = None,
    how: How | None = None,
    settled: Callable[[Grid], Mapping[Claim, Verdict]] = lambda grid: {},
) -> Report:
    """Write each grid's table and the figures that it asks for into `out_dir`, and one page with all of them.

    Args:
        grids: their names become the files' names.
        out_dir: made if absent; files of the same name are replaced.
        formats: any of `FORMATS`; a figure is left out while no finished trial has what it shows. `csv` and `parquet`
            write the trials, their epochs and their classes too (see `frames.py` and `by_class.py`).
        uri: the tracking store; None takes the usual one.
        source: one of `SOURCES`: where records are read from.
        records: records to use instead of reading any.
        allow_mixed: write tables whose trials come from different code, data or operators, with a warning.
        images: give gains on one seed an interval over the validation images (see `images.py`).
        wide: LaTeX with every column, instead of the first metric with its gain.
        score: lowest score of a detection on the sheet of the worst images; None takes that with the best F1.
        how: commands for the page.
        settled: verdicts of a grid's claims whose seeds were looked at one look after the other.

    Raises:
        UserError: an unknown format, two grids of one name, mixed trials, or a tracking store that cannot be reached.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UserError(f"--format: unknown format '{unknown[0]}'; known: {', '.join(FORMATS)}")
    stems = [re.sub(r"[^\w.-]+", "_", grid.name) for grid in grids]
    twice = [stem for stem in stems if stems.count(stem) > 1]
    if twice:
        raise UserError(f"report: two ablation files are named '{twice[0]}' and would write the same files; rename one")
    if Path(CLAIMS_NAME).stem in stems:
        raise UserError(f"report: an ablation file is named '{Path(CLAIMS_NAME).stem}', as {CLAIMS_NAME} is; rename it")
    notes: list[str] = []
    if records is None:
        from harness.report import figures as drawn

        pictured = {PAGE, *FIGURES} & set(formats)
        asked = {name for grid in grids for name in grid.figures} if pictured else set()
        history: Sequence[str] | None = ("loss", *drawn.over_epochs(sorted(asked)))
        if set(DATA) & set(formats):
            history = None  # all of it
        analysis = bool(asked & set(drawn.TABLES))
        records = read_trials(trial_ids(grids), source, uri, notes=notes, history=history, analysis=analysis)
    known = list(records)
    if not allow_mixed:
        check_ground(grids, known)
    tables = [make_table(grid, known, settled(grid)) for grid in grids]
    if images:
        from harness.report.images import over_images

        tables = [over_images(table, grid) for table, grid in zip(tables, grids, strict=True)]
    how = how or How()
    sections: list[Section] = []
    paths: list[Path] = []
    for grid, table, stem in zip(grids, tables, stems, strict=True):
        written, section = _write_grid(grid, table, known, Path(out_dir) / stem, formats, how, wide, score, notes)
        paths += written
        sections.append(section)
    claims_file = CLAIMS_NAME if "csv" in formats and any(table.verdicts for table in tables) else ""
    if claims_file:
        paths.append(Path(out_dir) / claims_file)
        write_atomic(paths[-1], claims_to_csv(tables))
    if PAGE in formats:
        from harness.report.page import to_page

        page = Path(out_dir) / PAGE_NAME
        links = links_from(page.parent, uri)
        write_atomic(page, to_page(sections, how.report, [*making_notes(known, uri), *notes], links, claims_file))
        paths.insert(0, page)
    text = "\n".join(_text(section.table, section.pivot) for section in sections)
    return Report(tuple(paths), text, tuple(notes))


def _write_grid(
    grid: Grid,
    table: Table,
    records: Sequence[Mapping[str, Any]],
    base: Path,
    formats: Sequence[str],
    how: How,
    wide: bool,
    score: float | None,
    notes: list[str],
) -> tuple[list[Path], Section]:
    """Write the files of one grid beside `base`, and return its part of the page; what figures lack goes to `notes`."""
    from harness.report.section import Section

    figures, pictures = _figures(grid, records, base, formats, notes)
    found, sheets, sheet_files = _detected(grid, records, base, formats, score, notes)
    figures += sheet_files
    shown = [path.name for path in figures if path.suffix == ".png"]
    texts = {"md": to_markdown(table, shown), "tex": to_latex(table, wide), "csv": to_csv(table)}
    if pivot := make_pivot(grid, table):
        texts |= {"md": f"{texts['md']}\n{pivot_to_markdown(pivot)}"}
        texts |= {"tex": f"{texts['tex']}\n{pivot_to_latex(pivot, table.name)}"}
    paths = []
    for ending in (ending for ending in TABLES if ending in formats):
        paths.append(base.with_name(f"{base.name}.{ending}"))
        write_atomic(paths[-1], texts[ending])
    if pivot and "csv" in formats:
        paths.append(base.with_name(f"{base.name}_pivot.csv"))
        write_atomic(paths[-1], pivot_frame(pivot).to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    endings = [ending for ending in DATA if ending in formats]
    paths += write_frames(grid, records, base, endings) + write_classes(grid, records, base, endings, RunStore())
    by_id = {str(record["trial_id"]): record for record in records}
    files = tuple(path.name for path in paths)
    commands = how.grids.get(grid.name, ())
    return paths + figures, Section(grid, table, by_id, pictures, files, commands, found, sheets, pivot)


def _figures(
    grid: Grid, records: Sequence[Mapping[str, Any]], base: Path, formats: Sequence[str], notes: list[str]
) -> tuple[list[Path], tuple[Picture, ...]]:
    """Write the figures of one grid; the page needs each as PNG, wanted as a file or not."""
    from harness.report.page import caption

    if not {PAGE, *FIGURES} & set(formats):
        return [], ()
    from harness.report.figures import analysis_figures

    paths: list[Path] = []
    pictures = []
    figures = analysis_figures(grid, records, notes)
    for name in figures:
        if drawn := _drawn(grid, name, partial(figures.__getitem__, name), formats, notes):
            files, picture = _picture(drawn, base.with_name(f"{base.name}_{name}"), caption(grid, name), formats)
            paths += files
            pictures.append(picture)
    return paths, tuple(pictures)


def _detected(
    grid: Grid,
    records: Sequence[Mapping[str, Any]],
    base: Path,
    formats: Sequence[str],
    score: float | None,
    notes: list[str],
) -> tuple[tuple[Detected, ...], dict[str, Picture], list[Path]]:
    """What the detectors of one grid find on each data set, with the sheets of the worst images and their files."""
    if not {PAGE, *FIGURES} & set(formats):
        return (), {}, []
    from harness.report.detected import detected
    from harness.report.page import caption
    from harness.report.shown_trials import plain

    found = detected(grid, records, RunStore(), score)
    sheets: dict[str, Picture] = {}
    paths: list[Path] = []
    for one in found:
        if one.sheet is not None and (drawn := _drawn(grid, "detections", one.sheet.draw, formats, notes)):
            ending, words = (f"_{plain(one.data)}", f", {one.data}") if one.data else ("", "")
            target = base.with_name(f"{base.name}_detections{ending}")
            files, sheets[one.data] = _picture(drawn, target, caption(grid, "detections") + words, formats)
            paths += files
    return found, sheets, paths


def _drawn(
    grid: Grid, name: str, draw: Callable[[], Figure], formats: Sequence[str], notes: list[str]
) -> dict[str, bytes]:
    """A figure's files by their endings, PNG always; none where it cannot be drawn, which a note says.

    PNG comes first, whatever is wanted: a second drawing lays out anew.
    """
    from harness.figures.style import figure_bytes
    from harness.report.figures import attempt

    def files() -> dict[str, bytes]:
        figure = draw()
        return {ending: figure_bytes(figure, ending) for ending in FIGURES if ending == "png" or ending in formats}

    return attempt(name, files, lambda text: notes.append(f"{grid.name}: {text}"))


def _picture(
    drawn: Mapping[str, bytes], target: Path, title: str, formats: Sequence[str]
) -> tuple[list[Path], Picture]:
    """Write the files of a figure that are wanted, and return it for the page."""
    from harness.report.section import Picture

    files = [target.with_name(f"{target.name}.{ending}") for ending in FIGURES if ending in formats]
    for file in files:
        write_atomic(file, drawn[file.suffix[1:]])
    return files, Picture(title, drawn["png"], tuple(file.name for file in files))
