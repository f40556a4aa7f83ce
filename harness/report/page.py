"""The report as one HTML page: verdicts, tables, figures and how each was made, in a file that needs no network.

The page's layout is `page.html`; what stands in it is gathered here. Everything is inside the file: figures as data, no
script, no font, no address that is loaded. Links lead to the runs in MLflow, to the records, and to the same tables in
other formats beside the page. The same records give the same bytes.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.report.bars import gain_bars
from harness.report.cells import PLAIN, Style, layout
from harness.report.figures import curve_name
from harness.report.notes import PAPER, WARNING, paper_place, plural
from harness.report.page_claims import CHANCE, RATES, claim_line, claim_rows, claims_tally
from harness.report.page_detections import detected_on
from harness.report.page_trials import trial_lines, trials_tally
from harness.report.pivot import Pivot, headings, lines
from harness.report.section import (
    Record,
    Section,
    anchor_of,
    asked_cells,
    figure_of,
    file_link,
    minus,
    status_of,
)
from harness.report.tables import Table, metric_of
from harness.report.templates import template
from harness.report.verdicts import q_values, rules_of
from harness.spec.spec import FIGURES

if TYPE_CHECKING:
    from harness.spec.grid import Grid

TITLE = "Ablations of Co-DETR"

CAPTIONS = {  # by the beginning of a figure's name, the longest that fits
    "ap": "AP against epochs",
    "instability": "Instability of the matching against epochs",
    "discriminability": "How well features tell objects from background",
    "conflict": "Distance between heads",
    "conflict_matrix": "Distance between each two heads",
    "queries": "Distance of customised queries",
    "influence": "Agreement of the heads' gradients with the decoder's, and what a step for a head is worth to it",
    "detections": "Detections on the worst images",
    "errors": "What each row removes of the baseline's errors (TIDE's dAP)",
    "axis": "against an axis, with 95 % intervals over seeds",
    "gains_on_data": "Gains on each data set",
}


def caption(grid: Grid, name: str) -> str:
    """What stands under the figure `name` of a grid; a number of the analysis is named as in tables."""
    curves = {curve_name(metric): metric for metric in grid.figures if metric not in FIGURES}
    if name in curves:
        return f"{grid.title}: {metric_of(curves[name]).heading} against epochs"
    fitting = [key for key in CAPTIONS if name.lower().startswith(key)]
    words = CAPTIONS[max(fitting, key=len)] if fitting else name.replace("_", " ")
    return f"{grid.title}: {words}"


def to_page(
    sections: Sequence[Section],
    command: str = "codetr report",
    making: Sequence[str] = (),
    links: Callable[[Record], list[tuple[str, str]]] = lambda record: [],
    claims_file: str = "",
) -> str:
    """Return the page.

    Args:
        sections: one per table, in the order shown.
        command: that made the page.
        making: further notes on how.
        links: address and words for what a record's trial can be looked up in.
        claims_file: all comparisons as CSV, beside the page.
    """
    verdicts = [(section, verdict) for section in sections for verdict in section.table.verdicts]
    return template("page.html").render(
        title=TITLE,
        lead=_lead(sections),
        claims=[
            claim_line(section, verdict, q)
            for (section, verdict), q in zip(verdicts, q_values([verdict for _, verdict in verdicts]), strict=True)
        ],
        claims_file=claims_file,
        tally=claims_tally([verdict for _, verdict in verdicts]),
        rules=rules_of([verdict for _, verdict in verdicts]) + ([CHANCE, RATES] if len(verdicts) > 1 else []),
        sections=[_section(section, links) for section in sections],
        report_command=command,
        making=[*making, f"the paper: {PAPER}"],
    )


def _lead(sections: Sequence[Section]) -> str:
    asked = [(key, section) for section in sections for _, _, key in asked_cells(section)]
    cells, trials = len(asked), dict(asked)
    states = [status_of(section.records.get(key)) for key, section in trials.items()]
    presets = sorted({section.grid.preset for section in sections})
    changed = sorted({section.grid.variant.words for section in sections} - {""})
    tables = "1 table asks" if len(sections) == 1 else f"{len(sections)} tables ask"
    text = f"{tables} for {cells} {plural('training', cells)}"
    if len(trials) < cells:
        text += f", {len(trials)} of them different: what tables share is trained once"
    scale = ", with ".join([" and ".join(presets), *([" and ".join(changed)] if changed else [])])
    return f"{text}. {states.count('finished')} have finished. Preset {scale}."


def _section(section: Section, links: Callable[[Record], list[tuple[str, str]]]) -> dict[str, Any]:
    grid, table = section.grid, section.table
    warnings = [note.removeprefix(WARNING) for note in table.notes if note.startswith(WARNING)]
    columns, rows = _cells(table, anchor_of(grid))
    return {
        "anchor": anchor_of(grid),
        "title": table.title or grid.name,
        "place": f"Paper, {paper_place(grid.paper)}" if grid.paper else "",
        "description": grid.description,
        "warnings": warnings,
        "columns": columns,
        "rows": rows,
        "pivot": _pivot(section.pivot, anchor_of(grid)) if section.pivot else None,
        "footnotes": table.footnotes,
        "notes": [note for note in table.notes if not note.startswith(WARNING)],
        "claims": [claim_rows(verdict) for verdict in table.verdicts],
        "figures": [figure_of(picture) for picture in section.pictures],
        "detected": [detected_on(found, section.sheets.get(found.data)) for found in section.detected],
        "files": [file_link(name) for name in section.files],
        "commands": section.commands,
        "metric": table.metrics[0].heading,
        "trials": trial_lines(section, links),
        "tally": trials_tally(section),
    }


def _cells(table: Table, anchor: str) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """Columns and rows of the table in HTML (escaped here), with a drawn interval below each gain."""
    columns = layout(table, _style(anchor))
    kinds = {"variant": "text", "gain": "text"}
    shown = []
    cells: list[Sequence[str]] = []
    for column in columns:
        paper = column.heading.startswith("paper ")
        ours = column.heading not in ("variant", "seeds", "gain", "p") and not paper
        kind = kinds.get(column.heading, "paper" if paper else "ours" if ours else "")
        shown.append({"heading": column.heading, "kind": kind})
        bars = gain_bars(table) if column.heading == "gain" else []
        cells.append([text + bar for text, bar in zip(column.cells, bars, strict=True)] if bars else column.cells)
    return shown, [
        {"is_baseline": row.is_baseline, "cells": [column[index] for column in cells]}
        for index, row in enumerate(table.rows)
    ]


def _pivot(pivot: Pivot, anchor: str) -> dict[str, Any]:
    style = _style(anchor)
    return {"title": pivot.title, "note": pivot.note, "columns": headings(pivot, style), "rows": lines(pivot, style)}


def _style(anchor: str) -> Style:
    def mark(letters: str) -> str:
        parts = [f'<a href="#{html.escape(anchor)}-{letter}">{letter}</a>' for letter in letters.split(",")]
        return f"<sup>{' '.join(parts)}</sup>"

    return replace(PLAIN, escape=html.escape, number=lambda text: minus(html.escape(text)), mark=mark)
