"""A table as LaTeX (booktabs) that stays within its column, whatever its labels.

The compact form has the first metric with its gain, and the paper's numbers where they fit into one column of a page
of two; the wide one has every column, in blocks below each other where one line is too narrow for them. Notes and
claims stand below the float, so that it stays as short as its rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.report.cells import PLAIN, Column, Style, layout, verdict_words
from harness.report.letters import DEFINITION, OTHER, escape_latex
from harness.report.pivot import Pivot, headings, lines
from harness.report.tables import Table
from harness.report.verdicts import rules_of
from harness.report.widths import fits, pieces, text_width, wrap

COLUMN_WIDTH = 219.0  # points: a column of `article` at 10 pt with two columns on A4, the narrowest of the usual ones
PAGE_WIDTH = 342.0  # points: a line of `article` at 10 pt with one column
BETWEEN = 8.0  # points between two columns: twice \tabcolsep
MOST_LINES = 44  # of one float, at 9.5 points each: a page holds them with a caption
LABELS = 100.0  # points that labels may take of a wide table before they get more lines
INDENT = 4.5  # points of every line of a label but its first: \enspace
HEADING = 48.0  # points that a heading may take before its words are broken
LONG_WORD = 16  # letters; longer ones may be broken in a paragraph

LATEX = Style(
    escape=escape_latex,
    number=lambda text: f"${text}$" if text else "",
    plus_minus=r" \pm ",
    dash="--",
    arrows={"higher": r"$\uparrow$", "lower": r"$\downarrow$", "": ""},
    mark=lambda letters: rf"\textsuperscript{{{letters}}}",
)


def to_latex(table: Table, wide: bool = False) -> str:
    """Return the table as LaTeX floats, with its notes below them; it needs the package booktabs alone.

    Args:
        table: any number of rows; more than a page holds go on in a second float.
        wide: every column, over both columns of a page of two, instead of the compact form.
    """
    blocks = _wide_blocks(table) if wide else [_compact_block(table)]
    panels = [panel for block in blocks for panel in _panels(block)]
    floats = _floats(panels)
    used = _letters_in(line for panel in panels for line in panel.lines)
    footnotes = [LATEX.mark(letter) + f" {_paragraph(reason)}" for letter, reason in table.footnotes if letter in used]
    if sum(panel.height for panel in floats[-1]) + 2 * len(footnotes) <= MOST_LINES:
        inside, outside = footnotes, []
    else:
        inside, outside = [], footnotes
    label = f"tab:{re.sub('[^A-Za-z0-9-]+', '-', table.name)}"
    lines = [r"% needs \usepackage{booktabs}"]
    lines += [] if wide else ["% the other columns: codetr report --wide"]
    lines += _float_lines(floats, "table*" if wide else "table", _paragraph(table.title or table.name), label, inside)
    prose = replace(LATEX, escape=_paragraph)
    small = outside + [_paragraph(note) for note in (table.notes if wide else _without_p(table.notes))]
    small += [f"Claim: {verdict_words(verdict, prose)}" for verdict in table.verdicts]
    small += [_paragraph(rule) for rule in rules_of(table.verdicts)]
    if small:
        lines += ["", rf"\begingroup\footnotesize\raggedright Notes on Table~\ref{{{label}}}:\par"]
        lines += [rf"{text}\par" for text in small] + [r"\endgroup"]
    text = "\n".join(lines) + "\n"
    return f"{DEFINITION}\n{text}" if OTHER in text else text


def pivot_to_latex(pivot: Pivot, name: str) -> str:
    """Return the pivot of the table `name` as a LaTeX float, columns that do not fit in blocks below each other."""
    plain, latex = (_pivot_columns(pivot, style) for style in (PLAIN, LATEX))
    shown = [label for label, _ in pivot.rows]
    width = min(max(map(text_width, [*shown, pivot.corner])), LABELS)
    stacked = width + max(_room([column]) for column in plain) > COLUMN_WIDTH
    groups: list[list[int]] = [[]]
    for index in range(len(plain)):
        if groups[-1] and width + _room([plain[i] for i in (*groups[-1], index)], stacked) > COLUMN_WIDTH:
            groups.append([])
        groups[-1].append(index)
    labels = tuple(_label_lines(label, "", width) for label in shown)
    corner = _stack([escape_latex(line) for line in wrap(pivot.corner, width)], "l", "b")
    blocks = []
    for group in groups:
        tops = (_stack([escape_latex(line) for line in _heading(plain[i], stacked)], "r", "b") for i in group)
        blocks.append(Block(labels, tuple(latex[i] for i in group), tuple(tops), stacked, corner))
    floats = _floats([panel for block in blocks for panel in _panels(block)])
    title = f"{_paragraph(pivot.title)}. {_paragraph(pivot.note)}."
    label = f"tab:{re.sub('[^A-Za-z0-9-]+', '-', name)}-pivot"
    return "\n".join(_float_lines(floats, "table", title, label)) + "\n"


def _pivot_columns(pivot: Pivot, style: Style) -> list[Column]:
    head, *body = [headings(pivot, style), *lines(pivot, style)]
    return [Column(heading, tuple(row[place] for row in body)) for place, heading in enumerate(head) if place]


# ---- which columns


@dataclass(frozen=True)
class Block:
    """Columns beside each other, with the rows' labels at their left."""

    labels: tuple[list[str], ...]  # of each row its lines, as LaTeX
    columns: tuple[Column, ...]  # as LaTeX, without the labels
    headings: tuple[str, ...]
    stacked: bool = False  # an interval, or the gain of a pivot, stands below its number
    corner: str = "variant"  # the heading of the labels, as LaTeX


def _compact_block(table: Table) -> Block:
    """The first metric, its gain and, where they fit, the paper's numbers: the form that loses least."""
    columns = layout(table, PLAIN)[1:]
    ours = [metric.heading for metric in table.metrics[:1]]
    core = [i for i, c in enumerate(columns) if c.heading == "gain" or c.heading.rstrip(" ↑↓") in ours]
    paper = [i for i, c in enumerate(columns) if c.heading == "paper gain" or c.heading.removeprefix("paper ") in ours]
    full = sorted({*core, *paper})
    marks = [",".join(filter(None, (row.label_marks, row.marks))) for row in table.rows]
    forms = [(full, False, 1), (full, False, 2), (full, True, 2), (full, True, 3), (core, False, 2), (core, False, 3)]
    for chosen, stacked, most in forms:
        room = COLUMN_WIDTH - _room([columns[index] for index in chosen], stacked)
        if fits(_marked(table, marks), most, room, INDENT):
            return _block(table, marks, COLUMN_WIDTH, chosen, stacked)
    return _block(table, marks, COLUMN_WIDTH, core, True)


def _wide_blocks(table: Table) -> list[Block]:
    """Every column, in as few blocks as keep within a line; what belongs to one metric stays together if it can."""
    columns = layout(table, PLAIN)[1:]
    marks = [row.label_marks for row in table.rows]
    narrow = (width for width in range(30, int(LABELS)) if fits(_marked(table, marks), 2, width, INDENT))
    width = next(narrow, LABELS)
    groups: list[list[int]] = [[]]
    for index, column in enumerate(columns):
        belongs = index < 2 or column.heading in ("gain", "p") or column.heading.startswith("paper ")
        groups += [] if belongs else [[]]
        groups[-1].append(index)
    blocks: list[list[int]] = [[]]
    for group in groups:
        is_whole = width + _room([columns[index] for index in group]) <= PAGE_WIDTH
        for part in [group] if is_whole else [[index] for index in group]:
            if blocks[-1] and width + _room([columns[index] for index in blocks[-1] + part]) > PAGE_WIDTH:
                blocks.append([])
            blocks[-1] += part
    return [_block(table, marks, PAGE_WIDTH, chosen) for chosen in blocks]


def _marked(table: Table, marks: Sequence[str]) -> list[str]:
    """Labels with the letters of their footnotes, for their widths."""
    return [f"{row.label}{own}" for row, own in zip(table.rows, marks, strict=True)]


def _room(columns: Sequence[Column], stacked: bool = False) -> float:
    """Points that columns take, with the space before each."""
    return sum(
        BETWEEN + max(_cells_width(column, stacked), *map(text_width, _heading(column, stacked))) for column in columns
    )


def _cells_width(column: Column, stacked: bool) -> float:
    return max(text_width(line.replace("-", "−")) for cell in column.cells for line in _cell_lines(cell, stacked))


def _cell_lines(cell: str, stacked: bool) -> list[str]:
    """A gain in one line, or its interval in a second one; of LaTeX or as it reads."""
    return re.split(r" (?=\$?[\[(])", cell) if stacked else [cell]


def _heading(column: Column, stacked: bool) -> list[str]:
    """A heading in lines no wider than its column, unless a word is."""
    longest = max(map(text_width, column.heading.split()))
    return wrap(column.heading, max(_cells_width(column, stacked), min(longest, HEADING)))


def _block(table: Table, marks: Sequence[str], whole: float, chosen: Sequence[int], stacked: bool = False) -> Block:
    """The chosen columns, with all that they leave of `whole` points for the labels."""
    plain, latex = layout(table, PLAIN)[1:], layout(table, LATEX)[1:]
    width = whole - _room([plain[index] for index in chosen], stacked)
    labels = [_label_lines(row.label, own, width) for row, own in zip(table.rows, marks, strict=True)]
    headings = [_stack([escape_latex(line) for line in _heading(plain[i], stacked)], "r", "b") for i in chosen]
    return Block(tuple(labels), tuple(latex[index] for index in chosen), tuple(headings), stacked)


def _label_lines(label: str, marks: str, width: float) -> list[str]:
    """A label in lines as LaTeX, the letters of its footnotes behind it."""
    lines = wrap(label, width, INDENT)
    escaped = [escape_latex(line) for line in lines]
    if marks and text_width(lines[-1] + marks) <= width - INDENT:
        escaped[-1] += LATEX.mark(marks)
    elif marks:
        escaped += [LATEX.mark(line) for line in wrap(marks.replace(",", ", "), width - INDENT)]
    return [rf"\enspace {line}" if number else line for number, line in enumerate(escaped)]


# ---- how they are written


@dataclass(frozen=True)
class Panel:
    """A tabular of some rows of a block, and how many lines of text it is high."""

    lines: list[str]
    height: float


def _panels(block: Block) -> list[Panel]:
    """The rows of a block in tabulars that a page holds."""
    start = [rf"\begin{{tabular}}{{@{{}}l{'r' * len(block.columns)}@{{}}}}", r"\toprule"]
    start += [" & ".join([block.corner, *block.headings]) + r" \\", r"\midrule"]
    end = [r"\bottomrule", r"\end{tabular}"]
    rows = []
    for index, label in enumerate(block.labels):
        cells = [_stack(_cell_lines(column.cells[index], block.stacked), "r") for column in block.columns]
        cells.insert(0, _stack(label, "l"))
        rows.append((" & ".join(cells) + r" \\", max(map(_height, cells))))
    top = 1.0 + max(map(_height, block.headings), default=1)
    space = [r"\addlinespace[2pt]"] if any(height > 1 for _, height in rows) else []
    panels: list[Panel] = []
    body: list[str] = []
    used = top
    for line, height in rows:
        needed = height + 0.2 * len(space)
        if body and used + needed > MOST_LINES:
            panels.append(Panel([*start, *body, *end], used))
            body, used = [], top
        body += [*(space if body else []), line]
        used += needed
    return [*panels, Panel([*start, *body, *end], used)]


def _floats(panels: Sequence[Panel]) -> list[list[Panel]]:
    """Panels in floats that a page holds."""
    floats: list[list[Panel]] = [[]]
    for panel in panels:
        if floats[-1] and sum(other.height + 1 for other in floats[-1]) + panel.height > MOST_LINES:
            floats.append([])
        floats[-1].append(panel)
    return floats


def _float_lines(
    floats: Sequence[Sequence[Panel]], environment: str, title: str, label: str, inside: Sequence[str] = ()
) -> list[str]:
    """The floats one after the other, the later ones as continued; `inside` stands in the last one."""
    lines = []
    for number, panels in enumerate(floats):
        lines += [rf"\begin{{{environment}}}[tp]", r"\centering\footnotesize\setlength{\tabcolsep}{4pt}"]
        if number:
            lines.append(r"\addtocounter{table}{-1}")
            lines.append(rf"\caption[]{{{title} (continued)}}")
        else:
            lines += [rf"\caption{{{title}}}", rf"\label{{{label}}}"]
        for place, panel in enumerate(panels):
            lines += [r"\par\medskip"] if place else []
            lines += panel.lines
        if inside and number == len(floats) - 1:
            lines += [r"\par\smallskip", r"{\raggedright", *(rf"{text}\par" for text in inside), "}"]
        lines.append(rf"\end{{{environment}}}")
    return lines


def _stack(lines: Sequence[str], side: str, place: str = "t") -> str:
    """Lines above each other in one cell."""
    if len(lines) == 1:
        return lines[0]
    return rf"\begin{{tabular}}[{place}]{{@{{}}{side}@{{}}}}" + r"\\".join(lines) + r"\end{tabular}"


def _height(cell: str) -> int:
    return 1 + cell.count(r"\\")


def _letters_in(lines: Iterable[str]) -> set[str]:
    """Letters of the footnotes that are marked in `lines`."""
    marks = [mark for line in lines for mark in re.findall(r"\\textsuperscript\{([a-z, ]+)\}", line)]
    return {letter.strip() for mark in marks for letter in mark.split(",")}


def _without_p(notes: Sequence[str]) -> list[str]:
    """Notes of a table that has no column of p-values."""
    return [note.partition("; p: ")[0] for note in notes if not note.startswith("p cannot be")]


def _paragraph(text: str) -> str:
    """Text escaped, with places where a long word may go on in the next line."""
    return " ".join(
        escape_latex(word) if len(word) <= LONG_WORD else r"\allowbreak{}".join(map(escape_latex, pieces(word, 50.0)))
        for word in text.split()
    )
