"""Tables: a hand-made grid in every format against stored files, and what a table must say or refuse to say."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config import DataConfig, EvaluateConfig
from harness.errors import UserError
from harness.report import grid_text, write_report
from harness.report.formats import escape_markdown, to_csv, to_markdown, to_text
from harness.report.latex import to_latex
from harness.report.letters import escape_latex
from harness.report.tables import make_table, metric_of
from model.postprocess.configs import SoftNMSConfig
from tests.support.report_grid import full_grid, full_records, make_grid, make_record

EXPECTED = Path(__file__).parent / "expected"
WRITERS = {"md": lambda t: to_markdown(t, ["table 09_ap.png"]), "tex": to_latex, "csv": to_csv, "txt": to_text}


@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_is_as_stored(ending):
    """One table with seeds, a failed seed, trials that are missing for three reasons, and letters to escape."""
    table = make_table(full_grid(), full_records())
    assert WRITERS[ending](table) == (EXPECTED / f"table.{ending}").read_text()


def cells(text: str) -> list[list[str]]:
    """Rows of the Markdown table in `text`, without its rule."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| :")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_numbers_against_hand_calculation():
    grid = make_grid({"a": {"published": {"AP": 40.0}}, "b": {"published": {"AP": 41.5}}})
    gains = {0: 3.0, 1: 5.0, 2: 7.0}
    records = [make_record(f"0-{seed}", 10.0 * (seed + 1)) for seed in gains]
    records += [make_record(f"1-{seed}", 10.0 * (seed + 1) + gain) for seed, gain in gains.items()]
    heading, first, second = cells(to_markdown(make_table(grid, records)))
    assert heading == ["variant", "seeds", "AP ↑", "gain", "paper AP", "paper gain"]
    assert first == ["a", "3", "20.0 ± 10.0", "baseline", "40.0", ""]
    # Half width of the interval: 4.303 * 2 / sqrt(3) = 4.97; the deviation of 13, 25, 37 is 12.
    assert second == ["b", "3", "25.0 ± 12.0", "+5.0 [+0.03, +10.0]", "41.5", "+1.5"]


@pytest.mark.parametrize("seeds", [5, 6])
def test_a_p_value_stands_there_from_six_pairs_on(seeds):
    grid = make_grid({"a": {}, "b": {}}, seeds=tuple(range(seeds)))
    records = [make_record(f"{row}-{seed}", 10.0 + row + seed * row) for row in (0, 1) for seed in range(seeds)]
    text = to_markdown(make_table(grid, records))
    assert ("p" in cells(text)[0]) == ("sign-flip" in text) == (seeds == 6)
    assert ("0.031" in text) == (seeds == 6)  # 2 / 2⁶: all six agree


def test_one_seed_claims_nothing_but_the_number():
    grid = make_grid({"a": {}, "b": {}}, seeds=(4,))
    text = to_markdown(make_table(grid, [make_record("0-4", 30.0), make_record("1-4", 33.3)]))
    assert cells(text) == [
        ["variant", "seeds", "AP ↑", "gain"],
        ["a", "1", "30.0", "baseline"],
        ["b", "1", "33.3", "+3.3"],
    ]
    assert "one seed a row" in text
    assert "±" not in text and "interval;" not in text


def test_gain_is_paired_over_shared_seeds_only():
    grid = make_grid({"a": {}, "b": {}})
    records = [make_record("0-0", 30.0), make_record("0-1", 50.0), make_record("1-1", 51.0), make_record("1-2", 99.0)]
    row = make_table(grid, records).rows[1]
    assert row.cells["AP"].summary.mean == 75.0
    assert (row.cells["AP"].gain.mean, row.cells["AP"].gain.n) == (1.0, 1)


def test_without_a_finished_baseline_there_is_no_gain_and_a_reason():
    grid = make_grid({"a": {}, "b": {}}, seeds=(0,))
    table = make_table(grid, [make_record("1-0", 33.0)])
    assert cells(to_markdown(table))[2] == ["b", "1", "33.0", "–<sup>b</sup>"]
    assert dict(table.footnotes) == {"a": "not run yet", "b": "no gain: the row 'a' has no number from a shared seed"}


def test_without_a_baseline_there_is_no_gain_column():
    grid = make_grid({"a": {}, "b": {}}, seeds=(0,), baseline="")
    assert cells(grid_markdown(grid, [make_record("0-0", 1.0)]))[0] == ["variant", "seeds", "AP ↑"]


def grid_markdown(grid, records):
    return to_markdown(make_table(grid, records))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "not run yet"),
        ({"status": "failed", "error": "line one\nValueError: bad  \n box\n"}, "failed: box"),
        ({"status": "failed", "error": None}, "failed: no message was recorded"),
        ({"status": "failed", "error": "x" * 500}, "failed: " + "x" * 159 + "…"),
        ({"status": "running"}, "still running, after 4 epochs"),
        ({"status": "running", "history": []}, "still running, before the end of the first epoch"),
        ({"status": "interrupted", "history": [{"epoch": 1}]}, "interrupted after 1 epoch; run it again to resume"),
    ],
)
def test_reasons_of_missing_trials(record, reason):
    grid = make_grid({"a": {}}, seeds=(0,))
    table = make_table(grid, [] if record is None else [make_record("0-0", 9.0, **record)])
    assert dict(table.footnotes) == {"a": reason}
    assert table.rows[0].cells["AP"].summary is None  # the number of an unfinished trial is not used
    assert "9.0" not in to_text(table)


def test_a_number_that_was_not_recorded_is_not_zero():
    grid = make_grid({"a": {}}, seeds=(0,), metrics=("AP", "atss/AP", "APS", "AP75"))
    record = make_record("0-0", 9.0)
    record["metrics"] |= {"APS": None, "AP75": float("nan")}
    row = make_table(grid, [record])
    assert dict(row.footnotes) == {
        "a": "atss/AP was not recorded",
        "b": "APS is undefined: the validation split has no small objects",
        "c": "AP75 was not recorded",
    }
    assert cells(to_markdown(row))[1] == ["a", "1", "9.0", "–<sup>a</sup>", "–<sup>b</sup>", "–<sup>c</sup>"]


def test_mixed_or_changed_code_and_data_are_shouted():
    grid = make_grid({"a": {}, "b": {}}, seeds=(0,))
    first, second = make_record("0-0", 1.0), make_record("1-0", 2.0)
    assert "WARNING" not in grid_text(grid, [first, second])
    second["provenance"] = {**second["provenance"], "code": "beef00000000", "dirty": True}
    second["fingerprint"] = "fedcba9876543210"
    notes = make_table(grid, [first, second]).notes
    warnings = [note for note in notes if note.startswith("WARNING: ")]
    assert len(warnings) == 3
    assert "code beef00000000 (1 trial), code c0de12345678 (1 trial)" in warnings[0]
    assert "0123456789ab (1 trial), fedcba987654 (1 trial)" in warnings[1]
    assert "1 of 2 trials ran with uncommitted changes" in warnings[2]


def test_the_protocol_stands_below_every_table():
    """With what differs between trials side by side."""
    grid = make_grid({"a": {}, "b": {}}, seeds=(0,))
    records = [make_record("0-0", 1.0), make_record("1-0", 2.0)]
    expected = (
        "evaluated by COCO's protocol (faster_coco_eval 1.8.0), the 100 best detections of an image, decoder: no NMS, "
        "images of at most 240 x 160 px, sizes S, M, L split at areas of 16² and 32² px"
    )
    assert expected in make_table(grid, records).notes
    soft = replace(grid.trials[1].config, evaluate=EvaluateConfig(max_detections=300))
    soft = replace(soft, model=replace(soft.model, postprocess=SoftNMSConfig()), data=DataConfig(eval_short_side=96))
    other = replace(grid, trials=(grid.trials[0], replace(grid.trials[1], config=soft)))
    records[1]["provenance"]["protocol"] = "lvis"
    (words,) = [note for note in make_table(other, records).notes if note.startswith("evaluated by")]
    for part in (
        *("COCO's protocol or LVIS's federated evaluation", "the 100 or 300 best detections of an image"),
        *("300 for AP@300", "decoder: no NMS or soft-NMS at 0.8", "240 x 160 or 240 x 96 px"),
    ):
        assert part in words, part


def test_the_small_print_names_data_code_evaluator_and_area_bounds():
    grid = make_grid({"a": {}, "b": {}})
    text = " ".join(grid_text(grid, [make_record("0-0", 1.0), make_record("0-1", 2.0)]).split())
    for part in (
        *("preset digits", "1000 + 200 images of 160 px", "0123456789ab", "4 epochs, batch 8", "commit a1b2c3d4e5"),
        *("faster_coco_eval 1.8.0", "16² and 32² px", "on cpu", "seeds 0, 1, 2"),
    ):
        assert part in text


def test_latex_is_well_formed():
    text = to_latex(make_table(full_grid(), full_records()))
    rows = [line for line in re.search(r"\\midrule\n(.*)\\bottomrule", text, re.DOTALL)[1].splitlines() if "&" in line]
    columns = len(re.search(r"\\begin{tabular}{@{}(\w+)@{}}", text)[1])
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {columns - 1}
    bare = re.sub(r"\\[\\{}$&%#_]", "", text)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    assert "%" not in "\n".join(bare.splitlines()[2:])  # an open comment sign would swallow the rest of the line
    assert bare.count(r"\begin") == bare.count(r"\end") > 2


def test_escapes():
    assert escape_latex("50%_&#\n{x}\\") == r"50\%\_\&\# \{x\}\textbackslash{}"
    assert escape_latex("[a] λ ≥ 1") == r"{[}a] $\lambda$ $\ge$ 1"
    assert escape_markdown("a_b _c_ *d* |e| <f> &amp; 50 & $g$") == (
        r"a_b \_c\_ \*d\* \|e\| \<f\> &amp;amp; 50 & \$g\$"
    )


def test_csv_reads_back_to_the_same_numbers():
    lines = list(csv.DictReader(io.StringIO(to_csv(make_table(full_grid(), full_records())))))
    assert [line["variant"] for line in lines][2] == "100 % _odd_ a_b & #1 | {x} $y$ \\ ~^ [z] *"
    assert float(lines[1]["AP"]) == 35.0 and float(lines[1]["AP_std"]) == pytest.approx(3**0.5, abs=1e-6)
    assert (lines[1]["AP_gain"], lines[1]["AP_gain_p"], lines[1]["AP_paper_gain"]) == ("5", "", "4.5")
    assert lines[0]["num_parameters"] == "1234567"  # as recorded, not in millions
    assert lines[4]["AP"] == "" and lines[4]["notes"] == "not run yet"


@pytest.mark.parametrize("table", ["conflict", "conflict.cam-v1-l1", "conflict.cam-v1-each-level"])
def test_anchors_of_every_variant_are_neither_better_nor_worse(table):
    assert [metric_of(f"{table}/{name}").better for name in ("floor", "ceiling", "left_out_share")] == ["", "", ""]
    assert [metric_of(f"{table}/{name}").better for name in ("decoder", "mean", "decoder-atss")] == ["lower"] * 3


def test_csv_keeps_the_digits_of_small_numbers():
    grid = make_grid({"K = 0": {}, "ATSS": {}}, seeds=(0,), metrics=("transfer/atss-decoder",))
    small = {"0-0": 3.4e-7, "1-0": -0.0123456789}
    records = [make_record(key, 1.0, metrics={"transfer/atss-decoder": value}) for key, value in small.items()]
    lines = list(csv.DictReader(io.StringIO(to_csv(make_table(grid, records)))))
    assert [line["transfer/atss-decoder"] for line in lines] == ["3.4e-07", "-0.0123457"]


def test_headings_say_which_way_is_better():
    assert metric_of("atss.2/AP50").heading == "atss.2 AP50"
    assert [metric_of(name).better for name in ("AR100", "peak_memory_mb", "num_parameters")] == ["higher", "lower", ""]


def test_write_report_writes_and_returns(tmp_path):
    report = write_report([full_grid()], tmp_path / "out", ("md", "csv"), records=full_records())
    data = ["table_09_trials.csv", "table_09_epochs.csv"]
    assert [path.name for path in report.paths] == ["table_09.md", "table_09.csv", *data, "claims.csv"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in report.paths}
    assert report.text == (EXPECTED / "table.txt").read_text()


def test_write_report_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(UserError, match="unknown format 'word'; known: html, md, tex, csv, png, pdf"):
        write_report([full_grid()], tmp_path, ("word",), records=[])
    with pytest.raises(UserError, match="two ablation files are named 'table_09'"):
        write_report([full_grid(), full_grid()], tmp_path, records=[])
    with pytest.raises(UserError, match="an ablation file is named 'claims', as claims.csv is; rename it"):
        write_report([replace(full_grid(), name="claims")], tmp_path, records=[])
    assert list(tmp_path.iterdir()) == []
