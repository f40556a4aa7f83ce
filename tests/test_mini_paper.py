"""The first mini-paper (docs/mini-paper/first): its trials keep their ids, and its tables follow from its records."""

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
FOLDER = ROOT / "docs" / "mini-paper" / "first"
TRIALS = sorted((FOLDER / "store" / "runs").iterdir())


def test_all_its_records_are_there():
    assert len(TRIALS) == 93


@pytest.mark.parametrize("folder", TRIALS, ids=lambda folder: folder.name)
def test_an_id_follows_from_its_record_alone(folder):
    record = checked(folder.name, {"result.json": (folder / "result.json").read_bytes()})  # computes the id anew
    assert record["trial_id"] == folder.name
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"


def test_its_tables_are_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CODETR_STORE", os.environ.get("CODETR_STORE", str(tmp_path)))  # --store writes it
    text = (FOLDER / "README.md").read_text()
    (command,) = [line.removeprefix("$ codetr ") for line in text.splitlines() if line.startswith("$ codetr report")]
    words = shlex.split(command)
    words[words.index("--out") + 1] = str(tmp_path / "out")
    assert main([*words, "--format", "md,tex,csv,png"]) == 0
    capsys.readouterr()
    tables = (".md", ".tex", ".csv")
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix in tables}
    kept = {path.name: path.read_bytes() for path in (FOLDER / "report").iterdir() if path.suffix in tables}
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
