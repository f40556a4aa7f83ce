"""The committed tables of docs/mini-paper follow from the committed records, byte for byte."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from harness.__main__ import main

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "mini-paper"


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
