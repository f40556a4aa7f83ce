"""Results as data frames: what stands in which column, that nothing is lost on the way to a file, and no torch."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from harness.__main__ import main
from harness.errors import UserError
from harness.report import write_report
from harness.report.frames import epochs_frame, read_frames, summary_frame, trials_frame
from harness.report.tables import make_table
from harness.spec.grid import Grid, open_grid
from harness.store.results import RunStore
from harness.tracking.mirror import sync
from harness.tracking.tracking import read_records
from tests.support.fakes import finish
from tests.support.report_grid import full_grid, full_records, make_grid, make_record

ROOT = Path(__file__).parents[1]
FIRST = ROOT / "docs" / "mini-paper" / "first"
TABLES = sorted((FIRST / "ablations").glob("*.yaml"))
ROWS = """
rows:
  - {label: none, set: {model.heads: [], model.backbone.weights: null}}
  - {label: one, set: {model.heads: [atss], model.lambda1: 2, model.two_stage: false, model.mixed_selection: false}}
  - {label: two, set: {model.heads: [{name: fcos, center_radius: null}], train.clip_grad_norm: 0.5}}
  - {label: same, set: {model.heads: [], model.lambda1: 2}}
seeds: [0, 7]
"""


def grid_of(tmp_path: Path, text: str, *overrides: str) -> Grid:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return open_grid(path, "digits_fast", overrides, require_data=False)


def mini_paper(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    file = FIRST / "ablations" / f"{name}.yaml"
    return read_frames(file, seeds=[0, 1, 2], store=FIRST / "store", source="records")


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_means_and_gains_of_the_first_mini_paper_are_its_tables(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    trials, epochs = mini_paper(file.stem)
    lines = list(csv.DictReader(io.StringIO((FIRST / "report" / f"{file.stem}.csv").read_text())))
    assert (trials.status == "finished").all() and len(trials) == 3 * len(lines)
    metrics = [key.removesuffix("_std") for key in lines[0] if key.endswith("_std")]
    groups = trials.groupby("row", sort=False)
    assert list(groups.groups) == [line["variant"] for line in lines]
    for metric in metrics:
        mean, std = groups[metric].mean(), groups[metric].std()
        for line in lines:
            if line[metric]:
                assert mean[line["variant"]] == pytest.approx(float(line[metric]), abs=1e-6)
                assert std[line["variant"]] == pytest.approx(float(line[f"{metric}_std"]), abs=1e-6)
            else:
                assert pd.isna(mean[line["variant"]])
    last = epochs.groupby(["row", "seed"], sort=False).AP.last().reset_index()
    assert last.AP.to_numpy() == pytest.approx(trials.AP.to_numpy())
    assert (epochs.groupby(["row", "seed"]).epoch.max() == 5).all()


def test_settings_keep_their_types(tmp_path):
    frame = trials_frame(grid_of(tmp_path, ROWS), [])
    assert (
        frame["model.heads"].tolist() == ["none"] * 2 + ["atss"] * 2 + ["fcos(center_radius=none)"] * 2 + ["none"] * 2
    )
    assert frame["model.two_stage"].dtype == bool
    assert frame["train.clip_grad_norm"].dtype == "float64"
    assert frame["model.lambda1"].dtype == "Float64"  # without heads it has no effect, and is missing
    assert frame["model.lambda1"].isna().tolist() == [True, True, False, False, False, False, True, True]
    assert frame["model.lambda1"][2] == 2.0
    assert frame.seed.tolist() == [0, 7] * 4 and (frame.status == "pending").all()
    assert frame.same_as.tolist() == [pd.NA] * 6 + ["none"] * 2
    assert frame.trial_id[0] == frame.trial_id[6]
    assert frame.AP.dtype == "float64" and frame.AP.isna().all()


def test_a_setting_that_is_null_or_of_several_kinds_survives_parquet(tmp_path):
    levels = "model.transformer.num_levels: [3, 4], runtime.num_workers: [0, 1]"
    axes = f"axes: {{model.backbone.weights: [null, w.pth], {levels}}}"
    frame = trials_frame(grid_of(tmp_path, axes), [])
    assert frame["model.backbone.weights"].isna().tolist() == [True] * 4 + [False] * 4
    assert frame["model.transformer.num_levels"].dtype == "int64"
    mixed = "axes: {model.heads: [[], [atss, {name: atss, top_k: 5}]], train.drop_epochs: [[], [1], [1, 2]]}"
    other = trials_frame(grid_of(tmp_path, mixed), [])
    assert other["train.drop_epochs"].tolist() == ["none", "1", "1,2"] * 2
    for number, each in enumerate((frame, other)):
        path = tmp_path / f"{number}.parquet"
        each.to_parquet(path)
        assert_frame_equal(pd.read_parquet(path), each)


def test_numbers_of_unfinished_trials_stand_in_the_epochs_alone():
    trials, epochs = trials_frame(full_grid(), full_records()), epochs_frame(full_grid(), full_records())
    by_id = trials.set_index("trial_id")
    assert by_id.AP["0-1"] == 31.0 and by_id.status["3-0"] == "interrupted"
    assert pd.isna(by_id.AP["3-0"]) and by_id.epochs["3-0"] == 4 and by_id.steps["3-0"] == 40
    assert pd.isna(by_id.AP["2-2"]) and "out_of_memory" in by_id.error["2-2"]
    assert by_id.num_parameters["0-0"] == 1_234_567 and not by_id.dirty["0-0"]
    assert epochs[epochs.trial_id == "3-0"].AP.iloc[-1] == pytest.approx(5.0)
    assert set(epochs.trial_id) == set(by_id.index[by_id.epochs > 0])  # "elsewhere" is of another grid
    assert (epochs.groupby("trial_id").epoch.apply(list).map(lambda found: found == [1, 2, 3, 4])).all()


def test_what_is_not_finite_is_missing():
    records = [make_record("0-0", 30.0, metrics={"AP": float("nan"), "AP50": float("inf"), "APS": None})]
    frame = trials_frame(full_grid(), records)
    assert frame.loc[0, ["AP50", "APS"]].isna().all()


def test_a_table_as_data_holds_what_its_csv_holds():
    table = make_table(full_grid(), full_records())
    frame = summary_frame(table)
    assert frame.variant.tolist() == [row.label for row in table.rows]
    assert frame.AP[0] == 30.0 and frame.AP_std[0] == 1.0 and frame.AP_gain[1] == 5.0
    assert pd.isna(frame.AP_gain_p[1]) and frame.AP_paper_gain[1] == pytest.approx(4.5)
    assert pd.isna(frame.AP[4]) and frame.notes[4] == "not run yet"


def test_a_report_writes_both_as_csv_and_parquet(tmp_path):
    report = write_report([full_grid()], tmp_path, ("parquet", "csv"), records=full_records())
    names = ["table_09_trials", "table_09_epochs"]
    assert {path.name for path in report.paths} >= {f"{name}.{kind}" for name in names for kind in ("csv", "parquet")}
    for name, made in zip(names, (trials_frame, epochs_frame), strict=True):
        frame = made(full_grid(), full_records())
        assert_frame_equal(pd.read_parquet(tmp_path / f"{name}.parquet"), frame)
        plain = pd.read_csv(tmp_path / f"{name}.csv")
        assert list(plain) == list(frame) and plain.AP.to_numpy() == pytest.approx(frame.AP.to_numpy(), nan_ok=True)


def test_without_pyarrow_one_line_says_what_to_install(tmp_path, monkeypatch):
    def to_parquet(*_: Any, **__: Any) -> None:
        raise ImportError("Unable to find a usable engine; tried using: 'pyarrow', 'fastparquet'.")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", to_parquet)
    with pytest.raises(UserError, match="--format parquet: pyarrow is missing; pip install"):
        write_report([full_grid()], tmp_path, ("parquet",), records=full_records())


def test_no_torch_and_no_mlflow_is_loaded_for_records(tmp_path):
    """Heads are named in this file, and their settings are checked."""
    code = (
        "import sys\n"
        "from harness.report.frames import read_frames\n"
        f"frames = read_frames({str(FIRST / 'ablations/table07_heads.yaml')!r}, seeds=[0, 1, 2],"
        f" store={str(FIRST / 'store')!r}, source='records')\n"
        "assert len(frames.trials) == 24 and frames.trials.AP.notna().all()\n"
        "assert not {'torch', 'ray', 'mlflow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_plan_and_report_of_records_load_no_torch(tmp_path):
    for command in (
        ["plan", "ablations/table07_heads.yaml"],
        ["report", "docs/mini-paper/first/ablations/table07_heads.yaml", "--seeds", "0,1,2", "--from", "records"],
    ):
        store = ["--store", str(FIRST / "store")]
        more = ["--format", "md,csv", "--out", str(tmp_path)] if command[0] == "report" else []
        code = (
            "import sys\nfrom harness.__main__ import main\n"
            f"assert main({[*command, *store, *more]!r}) == 0\n"
            "assert 'torch' not in sys.modules\n"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_the_page_on_results_as_data_runs_as_it_stands(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "results-as-data.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (shown,) = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    said = io.StringIO()
    with redirect_stdout(said):
        exec(code, names)
    assert [line.rstrip() for line in said.getvalue().splitlines()] == shown.splitlines()
    table = pd.read_csv(FIRST / "report" / "table09_components.csv").set_index("variant")
    assert names["gains"].to_dict() == pytest.approx(table.AP_gain.dropna().to_dict(), abs=1e-6)
    assert names["effect"].size == 3 and (names["reached"] >= 3).all()


def test_mlflow_gives_the_same_frames(tmp_path, tracking_store, monkeypatch):
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    store = RunStore()
    grid = make_grid({"a": {}, "b": {}}, seeds=(0, 1))
    for trial in grid.trials:
        finish(store, trial)
    sync(store, grid)
    ids = [trial.trial_id for trial in grid.trials]
    told = read_records(ids, tracking_store, history=None)
    kept = [store.read(trial_id) for trial_id in ids]
    assert list(trials_frame(grid, told)) == list(trials_frame(grid, kept))
    assert_frame_equal(trials_frame(grid, told), trials_frame(grid, kept))
    assert_frame_equal(epochs_frame(grid, told), epochs_frame(grid, kept))


def test_an_unknown_format_is_told_with_the_known_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CODETR_STORE", str(tmp_path))
    assert main(["report", str(ROOT / "ablations" / "quickstart.yaml"), "--format", "parket", "--from", "records"]) == 2
    assert "known: html, md, tex, csv, png, pdf, parquet" in capsys.readouterr().err
