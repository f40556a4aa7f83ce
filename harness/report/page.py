"""The report as one HTML page: verdicts, tables, figures and how each was made, in a file that needs no network.

The page's layout is `page.html`; what stands in it is gathered here. Everything is inside the file: figures as data, no
script, no font, no address that is loaded. Links lead to the runs in MLflow, to the records, and to the same tables in
other formats beside the page. The same records give the same bytes.
"""

from __future__ import annotations

import base64
import html
import re
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from harness.report.bars import gain_bars
from harness.report.cells import PLAIN, Style, interval_words, layout, written
from harness.report.figures import curve_name
from harness.report.frames import recorded
from harness.report.notes import PAPER, WARNING, paper_place, plural
from harness.report.pivot import Pivot, headings, lines
from harness.report.tables import Table, metric_of
from harness.report.templates import template
from harness.report.verdicts import VERDICTS, Comparison, Verdict, q_values, rules_of
from harness.spec.detection_metrics import is_detection_metric
from harness.spec.spec import FIGURES
from harness.store.agreement import short

if TYPE_CHECKING:
    from harness.report.detected import Detected, Sheet
    from harness.spec.grid import Grid

Record = Mapping[str, Any]
Href = dict[str, str]  # `href` and `ending`, what the link says
SIGNS = {"reproduced": "✓", "not reproduced": "✗", "undecided": "?"}
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


@dataclass(frozen=True)
class Picture:
    """A figure to show: PNG bytes and the files of it beside the page."""

    title: str
    png: bytes
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """What the page says of one ablation file."""

    grid: Grid
    table: Table
    records: Mapping[str, Record]  # by trial id; those of other grids are left aside
    pictures: tuple[Picture, ...] = ()
    files: tuple[str, ...] = ()  # the table in other formats, beside the page
    commands: tuple[str, ...] = ()
    detected: tuple[Detected, ...] = ()  # on each data set
    sheets: Mapping[str, Picture] = field(default_factory=dict)  # of the worst images, by the name of the data set
    pivot: Pivot | None = None


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
            _claim(section, verdict, q)
            for (section, verdict), q in zip(verdicts, q_values([verdict for _, verdict in verdicts]), strict=True)
        ],
        claims_file=claims_file,
        tally=_tally([verdict for _, verdict in verdicts]),
        rules=rules_of([verdict for _, verdict in verdicts]) + ([CHANCE, RATES] if len(verdicts) > 1 else []),
        sections=[_section(section, links) for section in sections],
        report_command=command,
        making=[*making, f"the paper: {PAPER}"],
    )


CHANCE = "of twenty such intervals, one misses the truth by chance: read many verdicts together, not the best one alone"


RATES = (
    "q: of the claims with a q no larger, so many are expected to have no effect (Benjamini-Hochberg on Student's p of "
    "the weakest row, or of the row that refutes times their number; approximate, as claims share rows and looks share "
    "seeds)"
)


def _lead(sections: Sequence[Section]) -> str:
    asked = [(key, section) for section in sections for _, _, key in _asked(section)]
    cells, trials = len(asked), dict(asked)
    states = [_status(section.records.get(key)) for key, section in trials.items()]
    presets = sorted({section.grid.preset for section in sections})
    changed = sorted({section.grid.variant.words for section in sections} - {""})
    tables = "1 table asks" if len(sections) == 1 else f"{len(sections)} tables ask"
    text = f"{tables} for {cells} {plural('training', cells)}"
    if len(trials) < cells:
        text += f", {len(trials)} of them different: what tables share is trained once"
    scale = ", with ".join([" and ".join(presets), *([" and ".join(changed)] if changed else [])])
    return f"{text}. {states.count('finished')} have finished. Preset {scale}."


def _status(record: Record | None) -> str:
    return "not run yet" if record is None else str(record.get("status", "failed"))


# ---- claims


def _tally(verdicts: Sequence[Verdict]) -> str:
    counts = Counter(verdict.verdict for verdict in verdicts)
    told = [f"{counts[name]} {name}" for name in reversed(VERDICTS) if counts[name]]
    return f"{len(verdicts)} {plural('claim', len(verdicts))}: {', '.join(told)}."


def _claim(section: Section, verdict: Verdict, q: float | None) -> dict[str, Any]:
    """A claim's line in the list of all: the comparison that decides it."""
    claim = verdict.claim
    return {
        **_comparison(verdict, verdict.deciding),
        **_verdict(verdict.verdict),
        "text": claim.text,
        "anchor": _anchor(section.grid),
        "table": paper_place(section.grid.paper) or section.table.title,
        "reference": claim.reference,
        "others": len(claim.rows) if len(claim.rows) > 1 else 0,
        "metric": verdict.metric.heading,
        "margin": "" if claim.within is None else f"±{written(claim.within, verdict.metric)}",
        "q": "" if q is None else f"{q:.3f}" if q >= 0.001 else "<0.001",
        "looks": "" if verdict.seeds is None else f"looked at {verdict.seeds} seeds",
        "reason": verdict.reason,
    }


def _claim_rows(verdict: Verdict) -> dict[str, Any]:
    """A claim below its own table: every comparison."""
    claim, heading = verdict.claim, verdict.metric.heading
    kind = f"better {heading} than {claim.reference}"
    if claim.within is not None:
        kind = f"{heading} within {written(claim.within, verdict.metric)} of {claim.reference}"
    rows = [{**_comparison(verdict, found), **_verdict(found.verdict)} for found in verdict.comparisons]
    return {**_verdict(verdict.verdict), "text": claim.text, "kind": kind, "comparisons": rows}


def _verdict(words: str) -> dict[str, str]:
    return {"verdict": words, "style": words.replace(" ", "-"), "sign": SIGNS[words]}


def _comparison(verdict: Verdict, found: Comparison) -> dict[str, str]:
    difference, metric = found.difference, verdict.metric
    return {
        "row": found.row,
        "difference": "no shared seed" if difference is None else _minus(interval_words(difference, metric, PLAIN)),
        "n": "0" if difference is None else str(difference.n),
        "paper": "" if found.published is None else _minus(written(found.published, metric, signed=True)),
        "shows": "" if found.detectable is None else written(found.detectable, metric),
        "size": _size(verdict, found),
    }


AP_MARGIN = 0.5  # of metrics in points of AP: less does not matter, where a claim does not say otherwise


def _size(verdict: Verdict, found: Comparison) -> str:
    """How a difference stands to the claim's margin, for its colour: it stops nothing."""
    margin, gap = verdict.claim.margin, found.difference
    if margin is None and is_detection_metric(verdict.metric.name):
        margin = AP_MARGIN
    if margin is None or gap is None or gap.low is None or gap.high is None or verdict.claim.within is not None:
        return ""
    if -margin < gap.low and gap.high < margin:
        return "small"
    return "large" if gap.low > margin or gap.high < -margin else ""


# ---- sections


def _anchor(grid: Grid) -> str:
    return re.sub(r"[^\w.-]+", "_", grid.name)


def _section(section: Section, links: Callable[[Record], list[tuple[str, str]]]) -> dict[str, Any]:
    grid, table = section.grid, section.table
    warnings = [note.removeprefix(WARNING) for note in table.notes if note.startswith(WARNING)]
    columns, rows = _cells(table, _anchor(grid))
    return {
        "anchor": _anchor(grid),
        "title": table.title or grid.name,
        "place": f"Paper, {paper_place(grid.paper)}" if grid.paper else "",
        "description": grid.description,
        "warnings": warnings,
        "columns": columns,
        "rows": rows,
        "pivot": _pivot(section.pivot, _anchor(grid)) if section.pivot else None,
        "footnotes": table.footnotes,
        "notes": [note for note in table.notes if not note.startswith(WARNING)],
        "claims": [_claim_rows(verdict) for verdict in table.verdicts],
        "figures": [figure_of(picture) for picture in section.pictures],
        "detected": [_detected(found, section.sheets.get(found.data)) for found in section.detected],
        "files": [_file(name) for name in section.files],
        "commands": section.commands,
        "metric": table.metrics[0].heading,
        "trials": _trials(section, links),
        "tally": _trial_tally(section),
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


def _minus(text: str) -> str:
    """A hyphen before a digit as the sign it stands for."""
    return text.replace("-", "−")


def _style(anchor: str) -> Style:
    def mark(letters: str) -> str:
        parts = [f'<a href="#{html.escape(anchor)}-{letter}">{letter}</a>' for letter in letters.split(",")]
        return f"<sup>{' '.join(parts)}</sup>"

    return replace(PLAIN, escape=html.escape, number=lambda text: _minus(html.escape(text)), mark=mark)


COLUMN_PIXELS = 900  # a wider figure was made for a whole page


def figure_of(picture: Picture) -> dict[str, Any]:
    """What a template needs to show a picture."""
    width, height = struct.unpack(">II", picture.png[16:24])  # of the header that every PNG begins with
    return {
        "data": base64.b64encode(picture.png).decode(),
        "width": width,
        "height": height,
        "kind": "page" if width > COLUMN_PIXELS else "column",
        "alt": picture.title,
        "files": [_file(name) for name in picture.files],
    }


def _file(name: str) -> Href:
    stem, _, ending = name.rpartition(".")
    words = {"md": "Markdown", "tex": "LaTeX", "parquet": "Parquet"}.get(ending, ending.upper())
    part = next((part for part in ("trials", "epochs", "classes", "pivot") if stem.endswith(f"_{part}")), "")
    return {"href": quote(name), "ending": f"{part} ({words})" if part else words}


# ---- detections

MOST_CLASSES = 100  # lines of a page's table; the record has all


def _detected(found: Detected, sheet: Picture | None) -> dict[str, Any]:
    """AP by class, the worst images and their sheet, or why they are not there."""
    lines = found.classes.lines
    if len(lines) > MOST_CLASSES and lines[0][1] is not None:
        lines = tuple(sorted(lines, key=lambda line: -(line[1] or 0)))
    shown = lines[:MOST_CLASSES]
    which = "" if len(lines) <= MOST_CLASSES else f": {len(shown)} of {len(lines)}, {_chosen_classes(shown)}"
    return {
        "data": found.data,
        "words": _sheet_words(found) if found.sheet else "",
        "missing": found.missing,
        "title": f"AP of each class{which}",
        "rows": found.classes.rows,
        "has_counts": bool(shown) and shown[0][1] is not None,
        "best_words": _best_words(found),
        "classes": [
            {
                "name": name,
                "count": "" if count is None else f"{count:,}",
                "best": _best_cells(found, name),
                "values": ["–" if value is None else f"{value:.1f}" for value in values],
            }
            for name, count, values in shown
        ],
        "worst": _worst(found.sheet) if found.sheet else [],
        "figure": figure_of(sheet) if sheet else None,
        "gallery": found.images.gallery if found.images else None,
        "gallery_words": found.images.words if found.images else "",
        "gallery_missing": found.images.missing if found.images else "",
    }


def _best_words(found: Detected) -> str:
    """What the columns of thresholds are; empty where there are none."""
    if found.best is None:
        return ""
    of = f"trial {found.best.trial} ({found.best.row}, seed {found.best.seed})"
    return f"Threshold, precision and recall: at the score with the best F1 of each class, at IoU 0.5, of {of}."


def _best_cells(found: Detected, name: str) -> list[str]:
    """Threshold, precision and recall of a class; dashes where nothing of it is right."""
    if found.best is None:
        return []
    if name not in found.best.classes:
        return ["–"] * 3
    score, precision, recall = found.best.classes[name]
    return [f"{score:g}", f"{precision:.1f}", f"{recall:.1f}"]


def _chosen_classes(shown: Sequence[tuple[str, int | None, Any]]) -> str:
    return "those with most objects" if shown[0][1] is not None else "the first"


def _sheet_words(found: Detected) -> str:
    assert found.sheet is not None
    text = f"Images of trial {found.trial} ({found.row}, seed {found.seed}), of the best row that left its detections. "
    return text + f"A detection counts from a score of {found.sheet.score:g} on ({found.sheet.why})."


def _worst(sheet: Sheet) -> list[dict[str, Any]]:
    return [
        {
            "file": own.file_name,
            "objects": own.num_objects,
            "found": len(own.matches.true_positives),
            "missed": len(own.matches.false_negatives),
            "false": len(own.matches.false_positives),
            "f1": f"{own.matches.f1:.2f}",
        }
        for own in sheet.worst
        if own.matches.num_errors
    ]


# ---- trials


def _trial_tally(section: Section) -> str:
    ids = {key for _, _, key in _asked(section)}
    counts = Counter(_status(section.records.get(key)) for key in ids)
    return f"{len(ids)} {plural('trial', len(ids))}: " + ", ".join(f"{counts[name]} {name}" for name in sorted(counts))


def _trials(section: Section, links: Callable[[Record], list[tuple[str, str]]]) -> list[dict[str, Any]]:
    """A line for each trial of each row."""
    metric = metric_of(section.table.metrics[0].name)
    lines = []
    for label, seed, key in _asked(section):
        record = section.records.get(key)
        made = (record or {}).get("provenance") or {}
        finished = record if record is not None and record.get("status") == "finished" else None
        value = recorded(finished, metric.name) if finished else None
        seconds = recorded(finished, "wall_seconds") if finished else None
        lines.append(
            {
                "id": key,
                "row": label,
                "seed": seed,
                "status": _status(record),
                "value": "" if value is None else written(value, metric),
                "minutes": "" if seconds is None else f"{seconds / 60:.1f}",
                "code": short(made.get("code")) or str(made.get("commit") or "")[:10],
                "links": [{"href": href, "ending": words} for href, words in (links(record) if record else [])],
            }
        )
    return lines


def _asked(section: Section) -> list[tuple[str, int, str]]:
    """Row, seed and trial of each cell that something asked for."""
    grid = section.grid
    cells = [(row.label, seed, key) for row in grid.rows for seed, key in zip(grid.seeds, row.trial_ids, strict=True)]
    return [cell for cell in cells if cell[:2] not in section.table.unasked]
