"""LaTeX tables: no line is wider than its column, by TeX where it is here and by the widths of letters anywhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest
from matplotlib.font_manager import findfont, get_font

from harness.__main__ import main
from harness.report.latex import COLUMN_WIDTH, PAGE_WIDTH, pivot_to_latex, to_latex
from harness.report.letters import escape_latex
from harness.report.pivot import Pivot
from harness.report.tables import Table, make_table
from harness.report.widths import fits, text_width, wrap
from tests.support.report_grid import full_grid, full_records, make_grid, make_record

ROOT = Path(__file__).parents[1]
TEX = shutil.which("pdflatex")
LONG = "Co-Deformable-DETR++ with ATSS, Faster R-CNN and whatever else a person wants to tell (K = 6) for $5"
ODD = [
    "100 % _odd_ a_b & #1 | {x} $y$ \\ ~^ [z] *",
    "learning_rate=0.0002,weight_decay=0.0001,drop_epochs=[11,20],warmup_fraction=0.1,clip_grad_norm=0.1",
    "红细胞 и другие, größer Łódź ñ ç ø ǖ ệ",
    "λ₁ = ½ µm², 30 °C ≤ T ≤ 40 °C → “good” ‘or’ – not… € 🂡",
    "x" * 90,
    "[starts with a bracket] -- '' `` ,, << >>",
    "*",
    "\\begin{tabular} \\\\ \\end{document} %",
]
CLASSES = {  # of a paper at 10 points: one column, two, two on A4, two of a conference
    "one": r"\documentclass[10pt]{article}",
    "two": r"\documentclass[10pt,twocolumn]{article}",
    "a4": r"\documentclass[10pt,twocolumn,a4paper]{article}",
    "conference": r"\documentclass[10pt,twocolumn,letterpaper]{article}"
    r"\usepackage{times}\setlength{\textwidth}{6.875in}\setlength{\columnsep}{0.3125in}",
}


def table_of(labels: list[str], seeds: tuple[int, ...] = (0, 1, 2), **fields) -> Table:
    """Rows with gains, intervals and the paper's numbers, named by `labels`."""
    rows = {label: {"published": {"AP": 40.0 + number / 10}} for number, label in enumerate(labels)}
    grid = make_grid(rows, seeds=seeds, **fields)
    records = [
        make_record(f"{row}-{seed}", 30.0 + 3 * row / len(labels) + seed * (row % 3))
        for row in range(len(labels))
        for seed in seeds
    ]
    return make_table(grid, records)


def failing_table() -> Table:
    """Every seed of every row failed for a reason of its own, that is long."""
    labels = [f"row {number}" for number in range(25)]
    error = "RuntimeError: CUDA_ERROR_" + "very_long_name_" * 8
    records = [
        make_record(f"{row}-{seed}", 30.0) if seed == 0 else make_record(f"{row}-{seed}", None, **failed)
        for row in range(25)
        for seed in range(3)
        for failed in [{"status": "failed", "error": f"{error} {row} {seed}"}]
    ]
    return make_table(make_grid({label: {} for label in labels}), records)


def analysed_table() -> Table:
    """Columns of many kinds, with long names."""
    names = (
        "AP",
        "AP50",
        "conflict/mean",
        "a_head_with_a_very_long_name_indeed.2/AP",
        "instability_gt",
        "train_seconds",
    )
    return table_of(["a", LONG], metrics=(*names, "num_parameters", "peak_memory_mb", "queries/atss/positives_per_gt"))


TABLES = {
    "full": lambda: make_table(full_grid(), full_records()),
    "odd": lambda: table_of(["baseline", *ODD], title=f"Odd_letters & more {ODD[1]}", name="odd letters"),
    "long": lambda: table_of([LONG, *(f"{LONG}, number {number}" for number in range(3))], title=LONG),
    "one row": lambda: table_of([LONG]),
    "one seed": lambda: table_of(["K = 0", "K = 1: ATSS", "K = 2: ATSS + Faster R-CNN"], seeds=(0,)),
    "seventy rows": lambda: table_of([f"λ1 = {number}, λ2 = {number / 3:.3f}" for number in range(70)]),
    "failing": failing_table,
    "analysed": analysed_table,
    "nothing": lambda: make_table(make_grid({"a": {}, "b": {}}), []),
}


def pivot_of(labels: list[str], columns: list[str], corner: str = "variant") -> Pivot:
    """Every label against every value of an axis, the first one without gains."""
    rows = table_of(labels).rows
    metric = table_of(labels).metrics[0]
    below = tuple((label, (row,) * (len(columns) - 1) + (None,)) for label, row in zip(labels, rows, strict=True))
    return Pivot(f"AP against {ODD[0]}", metric, corner, "num_queries", tuple(columns), below, f"{LONG}; {ODD[1]}")


PIVOTS = {
    "pivot": lambda: pivot_of(["no head", "ATSS"], ["10", "20", "40"]),
    "pivot of many": lambda: pivot_of(["no head", LONG], [str(10 * number) for number in range(14)], ODD[0]),
    "pivot of words": lambda: pivot_of(ODD, [ODD[1], "x" * 90, "a+b+c"]),
}


@lru_cache
def texts(wide: bool) -> dict[str, str]:
    tables = {name: to_latex(make(), wide) for name, make in TABLES.items()}
    return tables | {name: pivot_to_latex(make(), name) for name, make in PIVOTS.items()}


@pytest.fixture(scope="module")
def mini_paper(tmp_path_factory) -> dict[bool, dict[str, str]]:
    """The LaTeX of the first mini-paper's ten tables, compact and wide."""
    readme = (ROOT / "docs" / "mini-paper" / "first" / "README.md").read_text()
    (command,) = [line.removeprefix("$ codetr ") for line in readme.splitlines() if line.startswith("$ codetr report")]
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("CODETR_STORE", str(tmp_path_factory.mktemp("store")))
        for wide in (False, True):
            out = tmp_path_factory.mktemp("tables")
            words = shlex.split(command)
            words[words.index("--out") + 1] = str(out)
            assert main([*words, "--format", "tex", *(["--wide"] if wide else [])]) == 0
            found[wide] = {path.stem: path.read_text() for path in sorted(out.glob("*.tex"))}
    assert len(found[False]) == len(found[True]) == 10
    return found


# ---- by TeX


@pytest.mark.skipif(TEX is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("wide", [False, True])
def test_nothing_leaves_its_column_or_page(wide, kind, tmp_path, mini_paper):
    tables = {**texts(wide), **mini_paper[wide]}
    body = "\\clearpage\n".join(tables.values())
    document = f"{CLASSES[kind]}\n\\usepackage{{booktabs}}\n\\begin{{document}}\n{body}\\end{{document}}\n"
    (tmp_path / "paper.tex").write_text(document)
    command = [str(TEX), "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert re.findall(r"Overfull \\hbox.*(?:\n.*){2}", done.stdout) == []
    assert "Float too large" not in done.stdout and "Missing character" not in done.stdout


# ---- by the widths of letters, independent of those that the tables are made by


def cell_lines(cell: str) -> list[str]:
    """The lines of a cell of LaTeX as they are read."""
    inner = re.fullmatch(r"\s*\\begin\{tabular\}\[[tb]\]\{@\{\}[lr]@\{\}\}(.*)\\end\{tabular\}\s*", cell)
    return [readable(line) for line in (inner[1].split("\\\\") if inner else [cell])]


def readable(text: str) -> str:
    text = re.sub(r"\\unicodeletter\{.\}\{(U\+\w+)\}", r"\1", text)
    text = text.replace(r"\textbackslash{}", "/").replace(r"\enspace", "n").replace(r"\textsuperscript", "")
    text = re.sub(r"\\(char34|text\w+|[a-z]+|[`'^~=.\"]|[AO]E?)(?![a-z])", "~" if "$" not in text else "+", text)
    return re.sub(r"[{}$]", "", text.replace("\\", "").replace("-", "+" if "$" in text else "-")).strip()


@lru_cache
def measured(text: str) -> float:
    """Points at 8 pt, by the outlines of Computer Modern that matplotlib brings; small sizes are 6 % wider."""
    font = get_font(findfont("cmr10"))
    font.set_size(8, 7200)
    font.set_text(text.replace(" ", ""))
    return 1.06 * font.get_width_height()[0] / 6400 + 2.83 * text.count(" ")


def widest_line(text: str) -> tuple[float, list[str]]:
    """Points of the widest tabular of some LaTeX, columns and the space between them, and its first row."""
    found = []
    outer = r"\\begin\{tabular\}\{@\{\}(lr*)@\{\}\}\n\\toprule\n(.*?)\\bottomrule"
    for columns, body in re.findall(outer, text, re.DOTALL):
        lines = [line.removesuffix(" \\\\") for line in body.splitlines() if not line.startswith((r"\mid", r"\add"))]
        rows = [[cell_lines(cell) for cell in re.split(r"(?<!\\) & ", line)] for line in lines]
        assert {len(row) for row in rows} == {len(columns)}
        widths = [max(measured(line) for row in rows for line in row[index]) for index in range(len(columns))]
        found.append((sum(widths) + 8 * (len(columns) - 1), [" ".join(cell) for cell in rows[0]]))
    return max(found)


@pytest.mark.parametrize("name", [*TABLES, *PIVOTS])
@pytest.mark.parametrize(("wide", "limit"), [(False, 221.0), (True, 345.0)])
def test_the_letters_of_a_line_fit(name, wide, limit):
    """221 points are a column of two on A4, 345 the text of an article of one column."""
    width, row = widest_line(texts(wide)[name])
    assert 60 < width <= limit, row


def test_the_mini_papers_lines_fit(mini_paper):
    for wide, limit in ((False, 221.0), (True, 345.0)):
        for name, text in mini_paper[wide].items():
            width, row = widest_line(text)
            assert 100 < width <= limit, (name, row)
    assert (COLUMN_WIDTH, PAGE_WIDTH) <= (221.0, 345.0)


def test_the_measure_of_the_test_tells_what_is_too_wide():
    text = (
        texts(True)["analysed"].replace("tabular}{@", "tabular}{@").replace("AP50", "AP50 and a good deal more of it")
    )
    assert widest_line(text)[0] > 345.0


# ---- what stands in it


def rows(text: str) -> list[list[str]]:
    return [
        [" ".join(cell_lines(cell)) for cell in re.split(r"(?<!\\) & ", line.removesuffix(" \\\\"))]
        for line in re.findall(r"^(?!\\)?.* & .*\\\\$", text, re.MULTILINE)
    ]


def test_the_compact_form_has_the_gain_and_where_it_fits_the_papers():
    short = rows(texts(False)["one seed"])
    assert short[0] == ["variant", "AP +", "gain", "paper AP", "paper gain"]
    assert short[2][2:] == ["+1.0", "40.1", "+0.1"]
    assert rows(texts(False)["long"])[0] == ["variant", "AP +", "gain"]
    assert "codetr report --wide" in texts(False)["long"].splitlines()[1]


def test_the_wide_form_has_every_column(mini_paper):
    headings = [cell for row in rows(mini_paper[True]["table07_heads"]) if row[0] == "variant" for cell in row]
    assert [heading.rstrip("+ ") for heading in headings if heading != "variant"] == [
        *("seeds", "AP", "gain", "paper AP", "paper gain", "AP50", "AP75", "memory (MB)", "paper memory (MB)"),
        *("device hours", "paper device hours"),
    ]
    assert r"\begin{table*}" in mini_paper[True]["table07_heads"]
    assert r"\begin{table*}" not in mini_paper[False]["table07_heads"]


def test_notes_stand_below_the_float():
    text = texts(False)["full"]
    assert text.count(r"\end{table}") == 1
    inside, outside = text.split(r"\end{table}")
    for note in ("preset digits", "Claim: A head helps", "gain: over the row", "rule, better"):
        assert note in outside and note not in inside
    assert "p: exact" not in texts(True)["full"]  # of a column that is not there
    letters = re.findall(r"^\\textsuperscript\{(\w)\}", inside, re.MULTILINE)
    assert letters == ["b", "c", "d", "e", "f", "g"]  # a says why APS is missing, which is not shown


def test_what_no_page_holds_goes_on_in_a_second_float():
    text = texts(False)["seventy rows"]
    assert text.count(r"\begin{table}") == text.count("(continued)") + 1 > 1
    assert text.count(r"\label{") == 1
    assert [row[0] for row in rows(text)].count("variant") == text.count(r"\begin{table}")
    assert len([row for row in rows(text) if row[0].startswith("+")]) == 70  # λ reads as a sign


def test_every_letter_has_a_form_that_compiles():
    assert escape_latex("Łódź ñ ǖ") == r"\L{}\'{o}d\'{z} \~{n} \={\"{u}}"
    assert escape_latex("红") == r"\unicodeletter{红}{U+7EA2}"
    assert texts(False)["odd"].startswith(r"\ifdefined\unicodeletter\else\protected\def\unicodeletter")
    assert "unicodeletter" not in texts(False)["long"]
    assert escape_latex("a -- b, c,, ''") == "a -{}- b, c,{}, '{}'"
    assert escape_latex("\x07") == r"\unicodeletter{U+0007}{U+0007}"


# ---- widths


@pytest.mark.parametrize("text", [LONG, *ODD])
@pytest.mark.parametrize("width", [31.0, 61.5, 200.0])
def test_lines_are_no_wider_than_asked(text, width):
    lines = wrap(text, width)
    assert max(map(text_width, lines)) <= width
    assert "".join("".join(lines).split()) == "".join(text.split())  # nothing is lost


def test_words_are_broken_only_where_they_must():
    assert wrap("the heads (K = 2)", 60.0) == ["the heads", "(K = 2)"]
    assert wrap("a weight_decay_of_0.1", 50.0) == ["a", "weight_", "decay_of_0.1"]
    assert wrap("", 50.0) == [""]
    assert fits(["the heads"], 1, text_width("the heads")) and not fits(["the heads"], 1, text_width("the head"))
    assert fits(["the heads"], 2, text_width("heads")) and not fits(["the heads"], 2, text_width("heads"), indent=1.0)
    assert not fits(["x" * 50], 99, 100.0)
