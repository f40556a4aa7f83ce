"""A table stands on one ground: trials of different code, data or operators are refused, and named."""

from __future__ import annotations

import re

import pytest

from harness.errors import UserError
from harness.report import write_report
from harness.report.ground import mixtures
from tests.support.report_grid import make_grid, make_record


def changed(trial_id: str, **made) -> dict:
    record = make_record(trial_id, 30.0)
    record["provenance"] = {**record["provenance"], **made}
    return record


def two_rows(**made) -> tuple:
    grid = make_grid({"a": {}, "b": {}}, seeds=(0, 1))
    return grid, [make_record("0-0", 30.0), make_record("0-1", 31.0), make_record("1-0", 33.0), changed("1-1", **made)]


def test_a_commit_that_changes_no_deciding_code_is_the_same_ground(tmp_path):
    grid, records = two_rows(commit="ffff00001111")
    assert mixtures(grid, records) == {}
    report = write_report([grid], tmp_path, ("md",), records=records)
    assert "WARNING" not in report.text
    assert "commits a1b2c3d4e5, ffff000011, code c0de12345678" in " ".join(report.text.split())


def names(grid, records) -> list[str]:
    return [group.name for group in mixtures(grid, records)["code versions"]]


@pytest.mark.parametrize(
    ("made", "what", "groups"),
    [
        (
            {"code": "beef00000000", "commit": "ffff00001111"},
            "code versions",
            ["code c0de12345678 (commit a1b2c3d4e5): 3 trials: a (seeds 0, 1), b (seed 0)",
             "code beef00000000 (commit ffff000011): 1 trial: b (seed 1)"],
        ),
        (
            {"ops": "reference"},
            "operators",
            ["compiled (c++ 12.2.0): 3 trials: a (seeds 0, 1), b (seed 0)", "reference: 1 trial: b (seed 1)"],
        ),
    ],
)  # fmt: skip
def test_mixed_trials_are_refused_and_named(tmp_path, made, what, groups):
    grid, records = two_rows(**made)
    with pytest.raises(UserError) as caught:
        write_report([grid], tmp_path / "out", records=records)
    first, *named, last = str(caught.value).splitlines()
    assert first == f"made: its trials come from different {what}, so their numbers do not compare:"
    assert [line.strip() for line in named] == groups
    assert "--allow-mixed" in last and "run the smaller group again" in last
    ids = re.search(r"\(codetr rm ([^,]+), then run\)", last)
    assert ids and ids.group(1).split() == [record["trial_id"] for record in records if record["trial_id"] == "1-1"]
    assert not (tmp_path / "out").exists()
    report = write_report([grid], tmp_path / "out", ("md",), records=records, allow_mixed=True)
    assert f"WARNING: trials of different {what}: " in " ".join(report.text.split())


def test_mixed_data_are_refused_unless_the_rows_vary_them(tmp_path):
    grid, records = two_rows()
    records[-1]["fingerprint"] = "fedcba9876543210"
    with pytest.raises(UserError, match="made: its trials come from different data sets"):
        write_report([grid], tmp_path, ("md",), records=records)
    varied = make_grid({"a": {}, "b": {"factors": {"data.digits.num_train": 500}}}, seeds=(0, 1))
    assert mixtures(varied, records) == {}


def test_records_from_before_digests_go_by_their_commit(tmp_path):
    grid, records = two_rows(code=None)
    assert mixtures(grid, records) == {}  # another record of the commit knows the digest
    grid, records = two_rows(code=None, commit="ffff00001111")
    assert names(grid, records) == ["code c0de12345678", "commit ffff000011"]
    grid, records = two_rows(code=None, dirty=True)
    assert names(grid, records) == ["code c0de12345678", "commit a1b2c3d4e5 with changes"]
    for record in records:
        record["provenance"] = {}
    assert mixtures(grid, records) == {}


def test_unfinished_trials_and_those_of_other_tables_do_not_count(tmp_path):
    grid, records = two_rows(code="beef00000000")
    records[-1]["status"] = "interrupted"
    report = write_report([grid], tmp_path, ("md",), records=[*records, changed("elsewhere", code="f00d00000000")])
    assert "WARNING" not in report.text


def test_many_rows_are_not_all_named(tmp_path):
    grid = make_grid({f"row {number}": {} for number in range(9)}, seeds=(0,))
    records = [changed(f"{number}-0", code="a" if number else "b") for number in range(9)]
    with pytest.raises(UserError, match="8 trials: row 1 .seed 0., row 2 .seed 0., row 3 .seed 0., and 5 more rows"):
        write_report([grid], tmp_path, ("md",), records=records)


def test_another_precision_than_fp32_is_told(tmp_path):
    for made, told in (({}, False), ({"precision": "bf16"}, True)):
        grid, records = two_rows(**made)
        text = " ".join(write_report([grid], tmp_path / "out", ("md",), records=records).text.split())
        assert ("trained in bf16 and fp32, evaluated in fp32" in text) == told and ("trained in" in text) == told
