"""Claims: what a file may state, and the verdict that an interval gives."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from harness.errors import UserError
from harness.report.formats import claims_to_csv, to_text
from harness.report.statistics import Difference, detectable, paired_difference
from harness.report.tables import make_table
from harness.report.verdicts import judge
from harness.spec.claims import Claim
from harness.spec.grid import open_grid
from tests.support.report_grid import make_grid, make_record

FILE = """
rows:
  - {label: none, set: {model.heads: []}}
  - {label: atss, set: {model.heads: [atss]}}
  - {label: fcos, set: {model.heads: [fcos]}}
metrics: [AP50, AP]
claims:
"""
ABLATIONS = Path(__file__).parents[1] / "ablations"


def claims(tmp_path: Path, text: str, *overrides: str) -> tuple[Claim, ...]:
    path = tmp_path / "mine.yaml"
    path.write_text(FILE + text)
    return open_grid(path, "digits", overrides).claims


def test_a_file_states_claims(tmp_path):
    found = claims(
        tmp_path,
        "  - {text: one, better: atss, than: none}\n"
        "  - {text: many, better: [atss, fcos], than: none, metric: AP}\n"
        "  - {text: same, equal: [fcos], to: atss, within: 1, metric: AP}\n",
    )
    assert found == (
        Claim("one", ("atss",), "none", "AP50"),
        Claim("many", ("atss", "fcos"), "none", "AP"),
        Claim("same", ("fcos",), "atss", "AP", 1.0),
    )


def test_a_label_is_no_beginning_of_another(tmp_path):
    """Only what the command line changed, `label [key=value]`, is still meant by the file's label."""
    path = tmp_path / "mine.yaml"
    rows = FILE.replace("label: atss", "label: 'atss [small lr]'").replace("label: fcos", "label: 'atss [big lr]'")
    path.write_text(rows + "  - {text: one, better: atss, than: none}\n")
    with pytest.raises(UserError, match="claims.0.better: 'atss' is not the label of a row"):
        open_grid(path, "digits")


@pytest.mark.parametrize(
    ("claim", "where", "what"),
    [
        (
            "{text: t, better: [ats], than: none}",
            "claims.0.better",
            "'ats' is not the label of a row; did you mean 'atss'",
        ),
        (
            "{text: t, better: [atss], than: non}",
            "claims.0.than",
            "'non' is not the label of a row; did you mean 'none'",
        ),
        ("{text: t, equal: [atss], to: no, within: 1}", "claims.0.to", "'no' is not the label of a row"),
        ("{text: t, better: [atss, none], than: none}", "claims.0.than", "'none' is compared with itself"),
        (
            "{text: t, better: [atss], than: none, metric: AP5}",
            "claims.0.metric",
            "'AP5' is not among the table's metrics",
        ),
        ("{text: t, better: [atss]}", "claims.0.than", "than is missing"),
        ("{text: t, equal: [atss], to: none}", "claims.0.within", "within is missing"),
        ("{text: t, equal: [atss], to: none, within: 0}", "claims.0.within", "within is missing"),
        ("{text: t, equal: [atss], to: none, within: .nan}", "claims.0", "within"),
        ("{text: t, better: [atss], equal: [atss], than: none}", "claims.0", "must say either better"),
        ("{text: t}", "claims.0", "must say either better"),
        ("{text: t, better: [atss], then: none}", "claims.0.then", "unknown key; did you mean 'than'"),
        ("{better: [atss], than: none}", "claims.0.text", "missing; add it"),
        ("{text: t, better: [atss], than: none, within: 1}", "claims.0", "better takes than"),
    ],
)
def test_each_mistake_is_told_with_its_place(tmp_path, claim, where, what):
    with pytest.raises(UserError) as caught:
        claims(tmp_path, f"  - {claim}\n")
    assert any(f":{where}" in line and what in line for line in str(caught.value).splitlines()), str(caught.value)


def test_a_name_of_several_lines_is_told_in_one(tmp_path):
    with pytest.raises(UserError) as caught:
        claims(tmp_path, '  - {text: t, better: atss, than: none, metric: "one\\ntwo"}\n')
    assert str(caught.value).splitlines() == [str(caught.value)] and "'one two' is not among" in str(caught.value)


def test_a_claim_follows_a_row_that_the_command_line_changed(tmp_path):
    (claim,) = claims(tmp_path, "  - {text: t, better: atss, than: fcos}\n", "model.heads=[gfl]")
    assert claim.rows == ("atss [model.heads=gfl]",)


def test_the_files_of_the_paper_state_claims_that_its_own_numbers_bear_out():
    """A claim that the paper's numbers contradict would be misread; each has at least the paper's sign or margin."""
    stated = 0
    for path in sorted(ABLATIONS.glob("*.yaml")):
        for preset in ("coco_r50_12e", "coco_r50_36e"):
            grid = open_grid(path, preset, require_data=False)
            for verdict in make_table(grid, []).verdicts:
                published = [found.published for found in verdict.comparisons if found.published is not None]
                stated += len(published)
                margin = verdict.claim.within
                assert all(abs(value) <= margin if margin else value > 0 for value in published), verdict.claim.text
    assert stated > 20


@pytest.mark.parametrize(
    ("low", "high", "better", "within", "verdict"),
    [
        (0.1, 2.0, "higher", None, "reproduced"),
        (-0.1, 2.0, "higher", None, "undecided"),
        (0.0, 2.0, "higher", None, "undecided"),
        (-2.0, -0.1, "higher", None, "not reproduced"),
        (-2.0, -0.1, "lower", None, "reproduced"),
        (0.1, 2.0, "lower", None, "not reproduced"),
        (0.1, 2.0, "", None, "undecided"),
        (None, None, "higher", None, "undecided"),
        (-0.5, 0.5, "higher", 0.5, "reproduced"),
        (0.1, 0.4, "higher", 0.5, "reproduced"),
        (-0.6, 0.1, "higher", 0.5, "undecided"),
        (0.4, 0.6, "higher", 0.5, "undecided"),
        (0.6, 0.9, "higher", 0.5, "not reproduced"),
        (-0.9, -0.6, "higher", 0.5, "not reproduced"),
        (None, None, "higher", 0.5, "undecided"),
    ],
)
def test_the_interval_decides(low, high, better, within, verdict):
    difference = Difference(0.0, low, high, None, 1 if low is None else 3)
    assert judge(difference, better, within) == verdict


def test_a_claim_about_many_rows_fails_by_a_stricter_interval_than_it_holds_by():
    """At -1.0 ± 0.97 one row refutes a claim about itself; among five it does not, for some row is so low by chance."""
    records = {0: 40.0, 1: 40.0, 2: 40.0}
    gains = (-0.61, -1.0, -1.39)  # deviation 0.39, half of the 95 % interval 0.97
    for others in (0, 4):
        labels = {"none": {}, "worse": {}, **{f"fine {n}": {} for n in range(others)}}
        rows = [label for label in labels if label != "none"]
        grid = make_grid(labels, seeds=(0, 1, 2), claims=(Claim("t", tuple(rows), "none", "AP"),))
        made = [make_record(f"0-{seed}", value) for seed, value in records.items()]
        made += [make_record(f"1-{seed}", records[seed] + gain) for seed, gain in enumerate(gains)]
        made += [make_record(f"{2 + n}-{seed}", 50.0 + seed) for n in range(others) for seed in records]
        (verdict,) = make_table(grid, made).verdicts
        assert verdict.verdict == ("undecided" if others else "not reproduced")
        assert verdict.deciding.row == "worse" and verdict.deciding.difference.high < 0
        p = {found.row: found.p for found in verdict.comparisons}
        assert verdict.p == (max(p.values()) if others else p["worse"])


def test_a_comparison_says_what_it_could_have_shown():
    grid = make_grid({"a": {}, "b": {}}, seeds=(0, 1, 2, 3), claims=(Claim("t", ("b",), "a", "AP"),))
    made = [make_record(f"0-{seed}", 40.0) for seed in range(4)]
    made += [make_record(f"1-{seed}", 41.0 + gain) for seed, gain in enumerate((-1.0, 0.0, 0.5, 0.5))]
    table = make_table(grid, made)
    (found,) = table.verdicts[0].comparisons
    assert found.detectable == pytest.approx(detectable(found.difference.deviation, 4))
    assert f"could show {found.detectable:.1f}" in to_text(table)
    line = next(csv.DictReader(io.StringIO(claims_to_csv([table]))))
    assert float(line["could_show"]) == pytest.approx(found.detectable, abs=1e-5)
    assert float(line["q"]) == float(line["p"]) == pytest.approx(found.p, abs=1e-5)


def test_without_a_shared_seed_nothing_is_decided():
    assert judge(None, "higher") == "undecided"


def verdict_of(claim: Claim, **values: tuple[float, ...]):
    """The verdict on rows with these APs by seed."""
    grid = make_grid({name: {} for name in values}, claims=(claim,))
    records = [
        make_record(f"{number}-{seed}", ap) for number, row in enumerate(values.values()) for seed, ap in enumerate(row)
    ]
    return make_table(grid, records)


def test_of_several_rows_the_one_that_says_least_decides():
    claim = Claim("all help", ("good", "better", "bad"), "none", "AP")
    table = verdict_of(claim, none=(30.0, 31, 32), good=(31, 32, 33.1), better=(35, 36, 37.1), bad=(30, 32, 32))
    (verdict,) = table.verdicts
    assert [found.verdict for found in verdict.comparisons] == ["reproduced", "reproduced", "undecided"]
    assert (verdict.verdict, verdict.deciding.row) == ("undecided", "bad")
    table = verdict_of(claim, none=(30.0, 31, 32), good=(31, 32, 33.1), better=(35, 36, 37.1), bad=(28, 29, 30.1))
    assert (table.verdicts[0].verdict, table.verdicts[0].deciding.row) == ("not reproduced", "bad")
    table = verdict_of(claim, none=(30.0, 31, 32), good=(31, 32, 33.1), better=(35, 36, 37.1), bad=(30.5, 31.5, 32.6))
    assert (table.verdicts[0].verdict, table.verdicts[0].deciding.row) == ("reproduced", "bad")
    text = " ".join(to_text(table).split())
    assert "claim: all help: reproduced (of 3 rows 'bad' decides; AP +0.5 [+0.4, +0.7], n = 3; could show 0.2)" in text


def test_claims_as_csv_have_a_line_for_each_comparison():
    claims = Claim("all, or both, help", ("good", "bad"), "none", "AP"), Claim("equal", ("bad",), "none", "AP", 1.0)
    rows = {"none": (30.0, 31, 32), "good": (31, 32, 33.1), "bad": (30, 32, 32)}
    grid = make_grid({name: {} for name in rows}, claims=claims)
    records = [make_record(f"{n}-{seed}", ap) for n, row in enumerate(rows.values()) for seed, ap in enumerate(row)]
    lines = list(csv.DictReader(io.StringIO(claims_to_csv([make_table(grid, records[:-1])]))))
    assert [(line["claim"], line["row"], line["row_verdict"], line["verdict"]) for line in lines] == [
        ("all, or both, help", "good", "reproduced", "undecided"),
        ("all, or both, help", "bad", "undecided", "undecided"),
        ("equal", "bad", "undecided", "undecided"),
    ]
    assert lines[0]["difference"] == "1.033333" and lines[0]["n"] == "3" and lines[0]["margin"] == ""
    assert float(lines[0]["low"]) == pytest.approx(1.033333 - 4.302653 * 0.057735 / 3**0.5, abs=1e-5)
    assert lines[2]["margin"] == "1" and lines[2]["n"] == "2" and lines[2]["paper_difference"] == ""


def test_the_farthest_row_decides_whether_all_are_equal():
    claim = Claim("all equal", ("near", "far"), "one", "AP", 1.0)
    (verdict,) = verdict_of(claim, one=(30.0, 31, 32), near=(30.1, 31.1, 32), far=(29.5, 30.5, 31.4)).verdicts
    assert (verdict.verdict, verdict.deciding.row) == ("reproduced", "far")


def test_less_is_better_of_a_cost():
    claim = Claim("cheaper", ("cheap",), "dear", "peak_memory_mb")
    grid = make_grid({"dear": {}, "cheap": {}}, metrics=("AP", "peak_memory_mb"), claims=(claim,))
    records = [
        make_record(f"{number}-{seed}", 30.0, cost={"peak_memory_mb": memory + seed + 0.1 * number * seed})
        for number, memory in enumerate((500, 400))
        for seed in range(3)
    ]
    assert make_table(grid, records).verdicts[0].verdict == "reproduced"


def test_one_seed_and_missing_trials_decide_nothing_and_say_so():
    claim = Claim("helps", ("b",), "a", "AP")
    grid = make_grid({"a": {}, "b": {}}, seeds=(0,), claims=(claim,))
    text = to_text(make_table(grid, [make_record("0-0", 30.0), make_record("1-0", 40.0)]))
    assert "claim: helps: undecided (AP +10.0, n = 1)" in text and "one seed has no interval" in text
    text = to_text(make_table(grid, [make_record("0-0", 30.0)]))
    assert "claim: helps: undecided (no finished seed shared by 'b' and 'a')" in text


@pytest.mark.parametrize("n", [3, 5])
def test_no_effect_is_called_reproduced_in_one_of_forty(n):
    """4,000 simulated comparisons without effect: 2.5 % on each side within 4 standard errors (0.25 %)."""
    generator = np.random.default_rng(100 + n)
    zeros = dict.fromkeys(range(n), 0.0)
    rows = generator.normal(0.0, 1.2, size=(4000, n))
    found = [judge(paired_difference(dict(enumerate(row)), zeros), "higher") for row in rows.tolist()]
    for verdict in ("reproduced", "not reproduced"):
        assert 0.015 < found.count(verdict) / 4000 < 0.035


@pytest.mark.parametrize("n", [3, 5])
def test_a_difference_at_the_margin_is_called_equal_in_one_of_forty_at_most(n):
    generator = np.random.default_rng(200 + n)
    zeros = dict.fromkeys(range(n), 0.0)
    rows = generator.normal(0.5, 0.05, size=(4000, n))
    found = [judge(paired_difference(dict(enumerate(row)), zeros), "higher", 0.5) for row in rows.tolist()]
    assert found.count("reproduced") / 4000 < 0.035
    assert found.count("undecided") / 4000 > 0.93
