"""A table as Markdown, CSV, and plain text for a terminal or a job log; `latex.py` writes LaTeX.

All but CSV share one layout (`cells.py`): per metric ours, for the first metric also the gain and its p-value, and the
paper's number and gain beside them where the paper has any; below it stands what became of the file's claims. CSV holds
every number of every metric, with 6 decimals or 6 significant digits, whichever says more.
"""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Sequence
from urllib.parse import quote

from harness.report.cells import PLAIN, Style, layout, verdict_words
from harness.report.frames import PARTS, summary_frame
from harness.report.pivot import Pivot, headings, lines
from harness.report.tables import Table
from harness.report.verdicts import q_values, rules_of

NOISE = 1e-12  # what differences of equal numbers leave of their last bits: no digits to write


def to_text(table: Table) -> str:
    """Return the table as aligned plain text, without colour, for a terminal or a log."""
    columns = layout(table, PLAIN)
    widths = [max(len(column.heading), *map(len, column.cells)) for column in columns]

    def line(parts: list[str]) -> str:
        pairs = zip(parts, widths, strict=True)
        aligned = [part.ljust(width) if index == 0 else part.rjust(width) for index, (part, width) in enumerate(pairs)]
        return "  ".join(aligned).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [table.title or table.name, rule, line([column.heading for column in columns]), rule]
    lines += [line([column.cells[index] for column in columns]) for index in range(len(table.rows))]
    lines.append(rule)
    small = [f"[{letter}] {PLAIN.escape(reason)}" for letter, reason in table.footnotes]
    claims = [f"claim: {verdict_words(verdict, PLAIN)}" for verdict in table.verdicts]
    for text in (*small, *table.notes, *claims, *rules_of(table.verdicts)):
        lines += textwrap.wrap(text, max(len(rule), 80), subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def escape_markdown(text: str) -> str:
    """Escape what GitHub's Markdown would read as markup within a table cell."""
    text = re.sub(r"([\\`*\[\]<>|~$])", r"\\\1", " ".join(text.split()))
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)  # inside a word it is no markup


MARKDOWN = Style(
    escape=escape_markdown,
    number=str,
    plus_minus=" ± ",
    dash="–",
    arrows={"higher": "↑", "lower": "↓", "": ""},
    mark=lambda letters: f"<sup>{letters}</sup>",
)


def to_markdown(table: Table, pictures: Sequence[str] = ()) -> str:
    """Return the table as GitHub Markdown, with its footnotes and notes, and below it pictures given by their paths."""
    columns = layout(table, MARKDOWN)
    lines = [f"### {escape_markdown(table.title or table.name)}", ""]
    lines.append("| " + " | ".join(column.heading for column in columns) + " |")
    lines.append("|" + "|".join([" :-- "] + [" --: "] * (len(columns) - 1)) + "|")
    for index in range(len(table.rows)):
        lines.append("| " + " | ".join(column.cells[index] for column in columns) + " |")
    lines.append("")
    small = [f"<sup>{letter}</sup> {escape_markdown(reason)}" for letter, reason in table.footnotes]
    small += [escape_markdown(note) for note in table.notes]
    lines += [f"- {text}" for text in small]
    if table.verdicts:
        lines += ["", "Claims:", ""]
        lines += [f"- {verdict_words(verdict, MARKDOWN)}" for verdict in table.verdicts]
        lines += [f"- {escape_markdown(rule)}" for rule in rules_of(table.verdicts)]
    for picture in pictures:
        lines += ["", f"![{escape_markdown(table.title or table.name)}]({quote(picture)})"]
    return "\n".join(lines) + "\n"


def pivot_to_text(pivot: Pivot) -> str:
    """Return the pivot as aligned plain text."""
    rows = [headings(pivot, PLAIN), *lines(pivot, PLAIN)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    texts = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    note = textwrap.wrap(pivot.note, max(len(rule), 80), subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join([pivot.title, rule, texts[0], rule, *texts[1:], rule, *note]) + "\n"


def pivot_to_markdown(pivot: Pivot) -> str:
    """Return the pivot as GitHub Markdown."""
    head, *body = [headings(pivot, MARKDOWN), *lines(pivot, MARKDOWN)]
    rule = "|" + "|".join([" :-- "] + [" --: "] * (len(head) - 1)) + "|"
    rows = ["| " + " | ".join(row) + " |" for row in body]
    above = [f"### {escape_markdown(pivot.title)}", "", "| " + " | ".join(head) + " |", rule]
    return "\n".join([*above, *rows, "", f"- {escape_markdown(pivot.note)}"]) + "\n"


def to_csv(table: Table) -> str:
    """Return every number of the table, a line per row; an empty field is a number that is not there."""
    frame = summary_frame(table)
    numbers = [metric.name + part for metric in table.metrics for part in PARTS]
    frame[numbers] = frame[numbers].map(lambda number: _plain([None if number != number else number])[0])
    return str(frame.to_csv(index=False, lineterminator="\n"))


def claims_to_csv(tables: Sequence[Table]) -> str:
    """Return what became of every claim, a line per comparison; a claim's worst line decides it (see `verdicts.py`)."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    numbers = ["difference", "low", "high", "confidence", "p", "n", "could_show", "margin", "paper_difference"]
    writer.writerow(["table", "claim", "verdict", "metric", "row", "than", *numbers, "row_verdict", "looks", "q"])
    every = [verdict for table in tables for verdict in table.verdicts]
    rates = dict(zip(map(id, every), q_values(every), strict=True))
    for table in tables:
        for verdict in table.verdicts:
            claim = verdict.claim
            for found in verdict.comparisons:
                gap = found.difference
                line = [table.name, claim.text, verdict.verdict, claim.metric, found.row, claim.reference]
                line += _plain([gap.mean, gap.low, gap.high, gap.confidence, found.p, gap.n] if gap else [None] * 6)
                line += _plain([found.detectable, claim.within, found.published])
                writer.writerow([*line, found.verdict, verdict.seeds or "", *_plain([rates[id(verdict)]])])
    return stream.getvalue()


def _plain(numbers: Sequence[float | None]) -> list[str]:
    """Return each number as `_digits` writes it; None is an empty field."""
    return ["" if number is None else _digits(number) for number in numbers]


def _digits(number: float) -> str:
    """A number with 6 decimals, or 6 significant digits where they say more, and no trailing zeros."""
    if NOISE < abs(number) < 0.1:
        return f"{number:.6g}"
    return f"{number:.6f}".rstrip("0").rstrip(".")
