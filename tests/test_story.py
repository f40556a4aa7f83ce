"""The whole story through the command line: run a grid, report it, run it again."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.store.results import RunStore

QUICKSTART = str(Path(__file__).parents[1] / "ablations" / "quickstart.yaml")
FAST = [QUICKSTART, "--preset", "digits_fast"]


def results(store: RunStore) -> dict[str, bytes]:
    return {key: (store.dir(key) / "result.json").read_bytes() for key in store.trials()}


def test_run_report_and_run_again(tmp_path: Path, tracking_store: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    store = RunStore(tmp_path / "store")

    assert main(["run", *FAST, "--executor", "local"]) == 0
    told = capsys.readouterr().out
    assert "3 finished" in told
    first = results(store)
    records = [json.loads(text) for text in first.values()]
    assert [record["status"] for record in records] == ["finished"] * 3
    assert all(len(record["history"]) == 2 and record["history"][-1]["loss"] > 0 for record in records)

    assert main(["report", *FAST, "--out", str(tmp_path / "reports")]) == 0
    reported = capsys.readouterr().out
    table = reported.split("\n\n")[0]
    assert table in told  # what the tracking store gives back is what the run printed from its records
    assert re.search(r"\+ ATSS head \+ positive queries +1 +\d+\.\d +[+-]?\d+\.\d +48\.7 +\+1\.6", table)
    written = list(csv.DictReader((tmp_path / "reports" / "quickstart.csv").open()))
    aps = sorted(float(line["AP"]) for line in written)
    assert aps == pytest.approx(sorted(record["metrics"]["AP"] for record in records), abs=1e-6)
    names = [*(f"quickstart.{ending}" for ending in ("csv", "md", "tex")), "claims.csv", "report.html"]
    names += [f"quickstart_{figure}.{ending}" for figure in ("ap", "detections") for ending in ("pdf", "png")]
    names += ["quickstart_trials.csv", "quickstart_epochs.csv", "quickstart_classes.csv"]
    assert {path.name for path in (tmp_path / "reports").iterdir()} == set(names)

    assert main(["run", *FAST, "--executor", "local"]) == 0
    told = capsys.readouterr().out
    assert "nothing is left to do: all 3 trials are finished" in told
    assert table in told
    assert results(store) == first  # nothing was trained or written again
