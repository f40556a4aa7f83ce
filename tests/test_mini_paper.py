"""The first mini-paper (docs/mini-paper/first): its trials keep their ids, and its tables follow from its records."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

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
