"""The mini-papers (docs/mini-paper): their trials keep their ids, and their tables follow from their records."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.editions import main as editions
from harness.__main__ import main
from harness.store.transfer import checked

ROOT = Path(__file__).parents[1]
EDITIONS = [ROOT / "docs" / "mini-paper" / name for name in ("first", "second")]
FOLDER = EDITIONS[0]
TRIALS = {edition.name: sorted((edition / "store" / "runs").iterdir()) for edition in EDITIONS}


def test_all_records_of_the_first_are_there():
    assert len(TRIALS["first"]) == 93


@pytest.mark.parametrize("folder", [*TRIALS["first"], *TRIALS["second"]], ids=lambda folder: folder.name)
def test_an_id_follows_from_its_record_alone(folder):
    record = checked(folder.name, {"result.json": (folder / "result.json").read_bytes()})  # computes the id anew
    assert record["trial_id"] == folder.name
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("edition", EDITIONS, ids=lambda edition: edition.name)
def test_the_tables_are_made_again(edition, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CODETR_STORE", os.environ.get("CODETR_STORE", str(tmp_path)))  # --store writes it
    text = (edition / "README.md").read_text()
    (command,) = [line.removeprefix("$ codetr ") for line in text.splitlines() if line.startswith("$ codetr report")]
    words = shlex.split(command)
    words[words.index("--out") + 1] = str(tmp_path / "out")
    assert main([*words, "--format", "md,tex,csv,png"]) == 0  # a page names the pictures that are there
    capsys.readouterr()
    tables = (".md", ".tex", ".csv")
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix in tables}
    kept = {path.name: path.read_bytes() for path in (edition / "report").iterdir() if path.suffix in tables}
    assert made.keys() == kept.keys()
    assert [name for name in made if made[name] != kept[name]] == []


def test_two_editions_side_by_side(tmp_path, capsys):
    for name in ("claims.csv", "table07_heads_trials.csv"):
        (tmp_path / name).write_text(
            (FOLDER / "report" / name).read_text().replace(",Any set of heads helps,", ",New,")
        )
    assert editions([str(FOLDER / "report"), str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("|")]
    verdicts = {row[2]: row[3:5] for row in cells[2:]}
    assert len(verdicts) == 22 and verdicts["New"] == ["–", "undecided"]
    assert verdicts["Any set of heads helps"] == ["undecided", "–"]
    assert verdicts["Two heads of different kinds are better than one kind twice"] == ["reproduced", "reproduced"]
    spoken = next(row for row in cells if row[2] == "Six kinds of heads are worse than two or three")
    assert spoken[5].startswith("K = 3: ATSS + Faster R-CNN + PAA against"), "the row that speaks least for it"
    rows = pd.read_csv(tmp_path / "table07_heads_trials.csv")
    spent = rows.drop_duplicates("trial_id")["device_hours"].sum()
    whole = 12 * rows.groupby("row")["device_hours"].mean().sum()
    assert f"{spent:.1f} device hours; 12 seeds of each of them would take {whole:.1f}" in lines[-1]


def test_claims_that_no_look_came_to_are_not_reached(tmp_path, capsys):
    second = EDITIONS[1] / "report"
    assert editions([str(FOLDER / "report"), str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("|")][2:]
    claims = pd.read_csv(second / "claims.csv", keep_default_na=False)
    looked = {(row.table, row.claim) for row in claims.itertuples() if row.looks}
    assert {(row[1], row[2]) for row in cells if not row[4].startswith(("not reached", "–"))} == looked
    assert f"{len({*zip(claims['table'], claims['claim'], strict=True)}) - 2} claims: " in lines[-2]
