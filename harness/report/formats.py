"""A table as Markdown, CSV, and plain text for a terminal or a job log; `latex.py` writes LaTeX.

All but CSV share one layout (`cells.py`): per metric ours, for the first metric also the gain and its p-value, and the
paper's number and gain beside them where the paper has any; below it stands what became of the file's claims. CSV holds
every number of every metric, unrounded.
"""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Sequence
from urllib.parse import quote

from harness.report.cells import PLAIN, Style, layout, verdict_words
from harness.report.tables import Table
from harness.report.verdicts import rules_of


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


def to_csv(table: Table) -> str:
    """Return every number of the table, a line per row; an empty field is a number that is not there."""
    reasons = dict(table.footnotes)
    keys = sorted({key for row in table.rows for key in row.factors if key != "seed"})
    parts = ("", "_std", "_n", "_gain", "_gain_low", "_gain_high", "_gain_p", "_paper", "_paper_gain")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["variant", *keys, "seeds", *(metric.name + part for metric in table.metrics for part in parts), "notes"]
    )
    for row in table.rows:
        line = [row.label, *(row.factors.get(key, "") for key in keys), row.num_finished]
        letters = [row.label_marks, row.marks]
        for metric in table.metrics:
            cell = row.cells[metric.name]
            ours, gain = cell.summary, cell.gain
            line += _plain([ours.mean, ours.std, ours.n] if ours else [None] * 3)
            line += _plain([gain.mean, gain.low, gain.high, gain.p_value] if gain else [None] * 4)
            line += _plain([cell.published, cell.published_gain])
            letters.append(cell.marks)
        used = dict.fromkeys(letter for marks in letters for letter in marks.split(",") if letter)
        writer.writerow([*line, "; ".join(reasons[letter] for letter in used)])
    return stream.getvalue()


def claims_to_csv(tables: Sequence[Table]) -> str:
    """Return what became of every claim, a line per comparison; a claim's worst line decides it (see `verdicts.py`)."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    numbers = ["difference", "low", "high", "p", "n", "margin", "paper_difference"]
    writer.writerow(["table", "claim", "verdict", "metric", "row", "than", *numbers, "row_verdict"])
    for table in tables:
        for verdict in table.verdicts:
            claim = verdict.claim
            for found in verdict.comparisons:
                gap = found.difference
                line = [table.name, claim.text, verdict.verdict, claim.metric, found.row, claim.reference]
                line += _plain([gap.mean, gap.low, gap.high, gap.p_value, gap.n] if gap else [None] * 5)
                writer.writerow([*line, *_plain([claim.within, found.published]), found.verdict])
    return stream.getvalue()


def _plain(numbers: Sequence[float | None]) -> list[str]:
    """Return each number with up to 6 decimals and no trailing zeros; None is an empty field."""
    return ["" if number is None else f"{number:.6f}".rstrip("0").rstrip(".") for number in numbers]
