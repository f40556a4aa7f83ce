"""A table as Markdown, LaTeX (booktabs), CSV, and plain text for a terminal or a job log.

All but CSV share one layout: per metric ours, for the first metric also the gain and its p-value, and the paper's
number and gain beside them where the paper has any; below it stands what became of the file's claims. CSV holds every
number of every metric, unrounded.
"""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from harness.report.statistics import Difference
from harness.report.tables import Cell, Metric, Table, TableRow
from harness.report.verdicts import Verdict, rules_of


@dataclass(frozen=True)
class Style:
    """How the pieces of a cell are written in one format."""

    escape: Callable[[str], str]
    number: Callable[[str], str]  # wraps digits and signs
    plus_minus: str
    dash: str
    arrows: dict[str, str]
    mark: Callable[[str], str]  # wraps the letters of footnotes


@dataclass(frozen=True)
class Column:
    """A heading and what each row has under it."""

    heading: str
    cells: tuple[str, ...]


def layout(table: Table, style: Style) -> list[Column]:
    """Return the columns of `table` that have something to say."""
    rows = table.rows
    columns = [Column("variant", tuple(_label(row, style) for row in rows))]
    columns.append(Column("seeds", tuple(_seeds(row, style) for row in rows)))
    for index, metric in enumerate(table.metrics):
        cells = [row.cells[metric.name] for row in rows]
        heading = " ".join(filter(None, (style.escape(metric.heading), style.arrows[metric.better])))
        columns.append(Column(heading, tuple(_ours(cell, metric, style) for cell in cells)))
        published = any(cell.published is not None for cell in cells)
        if index == 0 and any(row.is_baseline for row in rows) and len(rows) > 1:
            columns.append(Column("gain", tuple(_gain(row, row.cells[metric.name], metric, style) for row in rows)))
            if any(cell.gain and cell.gain.p_value is not None for cell in cells):
                columns.append(Column("p", tuple(_p_value(cell, style) for cell in cells)))
        if published:
            heading = style.escape(f"paper {metric.heading}")
            columns.append(Column(heading, tuple(_number(cell.published, metric, style) for cell in cells)))
        if published and index == 0 and any(cell.published_gain is not None for cell in cells):
            gains = tuple(_number(cell.published_gain, metric, style, signed=True) for cell in cells)
            columns.append(Column("paper gain", gains))
    return columns


def _label(row: TableRow, style: Style) -> str:
    return style.escape(row.label) + (style.mark(row.label_marks) if row.label_marks else "")


def _seeds(row: TableRow, style: Style) -> str:
    if row.num_finished == row.num_trials:
        return style.number(str(row.num_finished))
    return f"{row.num_finished} of {row.num_trials}" + (style.mark(row.marks) if row.marks else "")


def _ours(cell: Cell, metric: Metric, style: Style) -> str:
    if cell.summary is None:
        return style.dash + (style.mark(cell.marks) if cell.marks else "")
    text = written(cell.summary.mean, metric)
    if cell.summary.std is not None and metric.varies:
        text += style.plus_minus + written(cell.summary.std, metric)
    return style.number(text)


def _gain(row: TableRow, cell: Cell, metric: Metric, style: Style) -> str:
    if row.is_baseline:
        return "baseline"
    if cell.gain is None:
        return style.dash + (style.mark(cell.marks) if cell.summary and cell.marks else "")
    return interval_words(cell.gain, metric, style)


def _p_value(cell: Cell, style: Style) -> str:
    if cell.gain is None or cell.gain.p_value is None:
        return ""
    return style.number(f"{cell.gain.p_value:.3f}" if cell.gain.p_value >= 0.001 else "<0.001")


def _number(value: float | None, metric: Metric, style: Style, signed: bool = False) -> str:
    return "" if value is None else style.number(written(value, metric, signed))


def written(value: float, metric: Metric, signed: bool = False) -> str:
    """Return `value` scaled and rounded as the metric wants it; zero has no sign."""
    text = f"{value * metric.scale:{'+' if signed else ''}.{metric.decimals}f}"
    return text.lstrip("+-") if not any(digit in text for digit in "123456789") else text


def verdict_words(verdict: Verdict, style: Style) -> str:
    """Return what became of a claim, and the numbers that decide it: of several rows the one that says least for it."""
    claim, metric, found = verdict.claim, verdict.metric, verdict.deciding
    parts = []
    if found.difference is None:
        parts.append(style.escape(f"no finished seed shared by '{found.row}' and '{claim.reference}'"))
    else:
        parts.append(f"{style.escape(metric.heading)} {difference_words(found.difference, metric, style)}")
        if claim.within is not None:
            parts[-1] += f", margin {style.number(written(claim.within, metric))}"
    if found.published is not None:
        parts.append(f"paper {style.number(written(found.published, metric, signed=True))}")
    if len(claim.rows) > 1:
        parts.insert(0, style.escape(f"of {len(claim.rows)} rows '{found.row}' decides"))
    return f"{style.escape(claim.text)}: {verdict.verdict} ({'; '.join(parts)})"


def difference_words(difference: Difference, metric: Metric, style: Style) -> str:
    """Return `+8.1 [+7.2, +9.0], n = 3`; on one pair `+3.3, n = 1`."""
    return f"{interval_words(difference, metric, style)}, n = {difference.n}"


def interval_words(difference: Difference, metric: Metric, style: Style) -> str:
    """Return `+8.1 [+7.2, +9.0]`; on one pair `+3.3`."""
    text = style.number(written(difference.mean, metric, signed=True))
    if difference.low is None or difference.high is None:
        return text
    low, high = (written(bound, metric, signed=True) for bound in (difference.low, difference.high))
    return f"{text} {style.number(f'[{low}, {high}]')}"


PLAIN = Style(
    escape=lambda text: " ".join(text.split()),
    number=str,
    plus_minus=" ± ",
    dash="–",
    arrows={"higher": "↑", "lower": "↓", "": ""},
    mark=lambda letters: f" [{letters}]",
)


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


def to_markdown(table: Table, picture: str | None = None) -> str:
    """Return the table as GitHub Markdown, with its footnotes and notes, and below it a picture given by its path."""
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
    if picture:
        lines += ["", f"![{escape_markdown(table.title or table.name)}]({quote(picture)})"]
    return "\n".join(lines) + "\n"


LATEX_CHARACTERS = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"±": r"$\pm$", "×": r"$\times$", "–": "--", "—": "---", "…": r"\dots{}", "²": "$^2$", "→": r"$\rightarrow$"},
    **{"λ": r"$\lambda$", "α": r"$\alpha$", "β": r"$\beta$", "Δ": r"$\Delta$", "≤": r"$\le$", "≥": r"$\ge$"},
    **{"₁": "$_1$", "₂": "$_2$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "’": "'"},
    **{"[": "{[}", "*": "{*}"},  # at the start of a row these would be arguments of the line break before
}


def escape_latex(text: str) -> str:
    """Escape `text` for LaTeX; other characters than these are left to UTF-8 input."""
    return "".join(LATEX_CHARACTERS.get(character, character) for character in " ".join(text.split()))


WIDE = 6  # columns; wider tables span both columns of a two-column page

LATEX = Style(
    escape=escape_latex,
    number=lambda text: f"${text}$",
    plus_minus=r" \pm ",
    dash="--",
    arrows={"higher": r"$\uparrow$", "lower": r"$\downarrow$", "": ""},
    mark=lambda letters: rf"\textsuperscript{{{letters}}}",
)


def to_latex(table: Table) -> str:
    """Return the table as a LaTeX float; it needs the package booktabs alone."""
    columns = layout(table, LATEX)
    float_name = "table*" if len(columns) > WIDE else "table"
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{{float_name}}}[t]",
        r"\centering\small\setlength{\tabcolsep}{4pt}",
    ]
    lines.append(rf"\caption{{{escape_latex(table.title or table.name)}}}")
    lines.append(rf"\label{{tab:{re.sub('[^A-Za-z0-9-]+', '-', table.name)}}}")
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"\toprule"]
    lines += [" & ".join(column.heading for column in columns) + r" \\", r"\midrule"]
    for index in range(len(table.rows)):
        lines.append(" & ".join(column.cells[index] for column in columns) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    small = [rf"\textsuperscript{{{letter}}} {escape_latex(reason)}" for letter, reason in table.footnotes]
    small += [escape_latex(note) for note in table.notes]
    small += [f"Claim: {verdict_words(verdict, LATEX)}" for verdict in table.verdicts]
    small += [escape_latex(rule) for rule in rules_of(table.verdicts)]
    # Each note is a paragraph of its own, below the table and in small type.
    lines += [r"\par\smallskip", r"{\footnotesize\raggedright", *(rf"{text}\par" for text in small), "}"]
    return "\n".join([*lines, rf"\end{{{float_name}}}"]) + "\n"


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


def _plain(numbers: Sequence[float | None]) -> list[str]:
    """Return each number with up to 6 decimals and no trailing zeros; None is an empty field."""
    return ["" if number is None else f"{number:.6f}".rstrip("0").rstrip(".") for number in numbers]
