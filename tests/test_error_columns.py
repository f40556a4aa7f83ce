"""Errors as numbers of a trial: names, columns, the record, and `codetr analyse --metrics errors` for older ones."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from harness.__main__ import main
from harness.data import fingerprint
from harness.errors import UserError
from harness.report.tables import make_table, metric_of
from harness.revisit import opened
from harness.spec.error_metrics import ERROR_METRICS, branch_of, error_name, is_error_metric
from harness.spec.grid import open_grid
from harness.store.results import RunStore
from harness.tracking.metric_names import safe_names
from harness.trial.checkpoint import WEIGHTS
from harness.trial.trial import run_trial
from tests.support.folders import write_folder
from tests.support.kept_trial import TRIAL as KEPT
from tests.support.kept_trial import data_config, keep_trial
from tests.support.quickstart import QUICKSTART, silent
from tests.support.report_grid import make_grid, make_record
from tests.support.tiny import tiny_config

TRIAL = open_grid(
    QUICKSTART, "digits_fast", ("model.heads=[atss]", "evaluate.branches=[decoder,atss]", "data.digits.num_train=16")
).trials[0]
MODEL = tiny_config("atss")
Numbers = dict[str, float | None]


# ---- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "name", "branch"),
    [
        ("errors/duplicate", "errors/duplicate", ""),
        ("atss/errors/duplicate_gap", "errors/duplicate_gap", "atss"),
        ("faster_rcnn/best_f1", "best_f1", "faster_rcnn"),
        ("best_f1_threshold", "best_f1_threshold", ""),
        *(
            (other, "", "")
            for other in ("AP", "atss/AP", "duplicate", "errors", "a/b/errors/miss", "a/b/best_f1", "errors/x")
        ),
    ],
)
def test_names(metric, name, branch):
    assert (error_name(metric), branch_of(metric), is_error_metric(metric)) == (name, branch, bool(name))


def test_mlflow_takes_the_names_as_they_are():
    names = [*ERROR_METRICS, *(f"atss/{name}" for name in ERROR_METRICS)]
    assert safe_names(names) == {name: name for name in names}


def test_headings_directions_and_digits():
    shown = {
        name: (metric_of(name).heading, metric_of(name).better, metric_of(name).decimals) for name in ERROR_METRICS
    }
    assert shown["errors/false_positives"] == ("dAP false positives", "lower", 2)
    assert shown["errors/duplicate_gap"] == ("duplicate gap", "lower", 2)
    assert shown["errors/best_regressed_recall"] == ("best-regressed recall", "higher", 1)
    assert shown["best_f1"] == ("best F1", "higher", 1) and shown["best_f1_threshold"][1:] == ("", 3)
    assert metric_of("atss/errors/miss").heading == "atss dAP miss"
    assert len({heading for heading, _, _ in shown.values()}) == len(ERROR_METRICS)


def test_an_ablation_file_may_name_them_and_is_helped_to(tmp_path):
    file = tmp_path / "columns.yaml"
    file.write_text("metrics: [AP, errors/duplicate, atss/best_f1]\nfigures: [errors]\nrows: [{label: a}]\n")
    assert open_grid(str(file), "digits_fast", [], require_data=False).metrics[1:] == (
        "errors/duplicate",
        "atss/best_f1",
    )
    file.write_text("metrics: [AP, errors/duplicates]\nrows: [{label: a}]\n")
    with pytest.raises(UserError, match="unknown metric 'errors/duplicates'; did you mean 'errors/duplicate'"):
        open_grid(str(file), "digits_fast", [], require_data=False)


def test_a_number_that_is_missing_says_why():
    metrics = ("AP", "errors/miss", "best_f1", "gfl/errors/miss")
    grid = make_grid({"old": {}, "new": {}}, seeds=(0,), metrics=metrics)
    new = make_record("1-0", 30.0)
    new["metrics"] |= {"errors/miss": 2.345, "best_f1": None}
    table = make_table(grid, [make_record("0-0", 30.0), new])
    assert table.rows[1].cells["errors/miss"].summary.mean == 2.345
    assert [reason for _, reason in table.footnotes] == [
        "errors/miss was not recorded; `codetr analyse TRIAL --metrics errors` adds it to a finished trial",
        "best_f1 was not recorded; `codetr analyse TRIAL --metrics errors` adds it to a finished trial",
        "gfl/errors/miss was not recorded; evaluate.branches must name gfl",
        "best_f1 is undefined: nothing is right at any score",
    ]


# ---- of trials ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """A finished trial with two branches."""
    store = RunStore(tmp_path_factory.mktemp("trained"))
    run_trial(TRIAL, store, report=silent)
    return store


@pytest.fixture
def own(trained: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    """A copy of its store, which is also that of the command line."""
    shutil.copytree(trained.root, tmp_path / "store")
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return RunStore(tmp_path / "store")


def errors_in(entry: dict[str, Any]) -> Numbers:
    return {name: value for name, value in entry.items() if is_error_metric(name)}


def make_old(store: RunStore, change: Callable[[dict[str, Any]], None] = lambda record: None) -> dict[str, Any]:
    """Leave the trial as one was before errors were measured."""
    record = store.read(TRIAL.trial_id)
    lines = store.metrics(TRIAL.trial_id)
    for entry in (record["metrics"], *record["history"], *lines):
        for name in errors_in(entry):
            del entry[name]
    del record["classes"]
    (store.dir(TRIAL.trial_id) / "classes.json").unlink()
    (store.dir(TRIAL.trial_id) / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    change(record)
    store.write_result(TRIAL.trial_id, record)
    return record


def analyse_errors() -> int:
    return main(["analyse", TRIAL.trial_id[:8], "--metrics", "errors", "--device", "cpu"])


def test_the_last_epoch_measures_every_branch(trained):
    record = trained.read(TRIAL.trial_id)
    names = {*ERROR_METRICS, *(f"atss/{name}" for name in ERROR_METRICS)}
    assert set(errors_in(record["metrics"])) == names
    assert [set(errors_in(entry)) for entry in record["history"]] == [*([set()] * (len(record["history"]) - 1)), names]
    assert set(errors_in(trained.metrics(TRIAL.trial_id)[-1])) == names
    assert set(record["classes"]) == {"decoder", "atss"}
    classes = record["classes"]["decoder"]
    assert dict(zip(classes["class"], classes["AP"], strict=True)) == record["per_class"]
    assert all(isinstance(count, int) for count in classes["objects"])


def test_an_old_trial_gets_them_by_detecting_once_more(own, capsys):
    before = own.read(TRIAL.trial_id)
    old = make_old(own)
    assert analyse_errors() == 0
    after = own.read(TRIAL.trial_id)
    assert errors_in(after["metrics"]) == pytest.approx(errors_in(before["metrics"]))
    assert after["classes"].keys() == before["classes"].keys()
    assert after["classes"]["atss"]["objects"] == before["classes"]["atss"]["objects"]
    assert {name: value for name, value in after["metrics"].items() if name in old["metrics"]} == old["metrics"]
    assert errors_in(after["history"][-1]) == errors_in(own.metrics(TRIAL.trial_id)[-1]) == errors_in(after["metrics"])
    assert json.loads((own.dir(TRIAL.trial_id) / "classes.json").read_text()) == after["classes"]
    assert re.search(r"errors/classification +\d", capsys.readouterr().out)
    assert analyse_errors() == 2
    assert "has them already" in capsys.readouterr().err


def test_of_one_branch_the_detections_that_it_left_are_enough(own, monkeypatch, capsys):
    def one_branch(record: dict[str, Any]) -> None:
        record["config"]["evaluate"]["branches"] = ["decoder"]

    before = own.read(TRIAL.trial_id)
    make_old(own, one_branch)
    monkeypatch.setattr(opened, "build", None)
    assert analyse_errors() == 0
    after = own.read(TRIAL.trial_id)
    assert errors_in(after["metrics"]) == pytest.approx({n: errors_in(before["metrics"])[n] for n in ERROR_METRICS})
    assert after["classes"] == {"decoder": before["classes"]["decoder"]}
    make_old(own)
    (own.dir(TRIAL.trial_id) / "detections.json").write_text("[{")
    capsys.readouterr()
    assert analyse_errors() == 2
    told = capsys.readouterr().err.strip()
    assert "detections.json is damaged" in told and "move it away" in told and "\n" not in told


# ---- of trials that nothing trained -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set beside an empty store, which is that of the command line."""
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return write_folder(tmp_path / "data")


def right_detections(folder: Path) -> list[dict[str, Any]]:
    """Every object of the validation split, found."""
    rows = json.loads((folder / "annotations" / "instances_val.json").read_text())["annotations"]
    return [
        {key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.7}
        for row in rows
        if not row["iscrowd"]
    ]


def weights_of(trial_id: str) -> Path:
    return RunStore().dir(trial_id) / "checkpoint" / WEIGHTS


def test_detections_are_enough_where_the_weights_are_gone(folder, capsys):
    keep_trial(RunStore(), MODEL, data_config(folder), detections=right_detections(folder))
    weights_of(KEPT).unlink()
    ask = ["analyse", KEPT, "--device", "cpu"]
    assert main([*ask, "--metrics", "errors,queries"]) == 2
    assert f"trial {KEPT}: its weights are gone" in capsys.readouterr().err
    assert errors_in(RunStore().read(KEPT)["metrics"]) == {}
    assert main([*ask, "--metrics", "errors"]) == 0
    found = RunStore().read(KEPT)["metrics"]
    assert (found["best_f1"], found["best_f1_threshold"]) == (100, 0.7)


def test_what_one_of_several_has_already_stops_no_other(folder, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(f"base: {{data.path: {folder}}}\nrows: [{{label: plain}}]\n")
    store, ids = RunStore(), []
    for trial in open_grid(file, "digits_fast", seeds=range(2)).trials:
        ids.append(trial.trial_id)
        known = {"trial_id": trial.trial_id, "fingerprint": trial.fingerprint}
        keep_trial(store, MODEL, trial.config.data, detections=right_detections(folder), **known)
    assert main(["analyse", ids[0], "--metrics", "errors"]) == 0
    assert main(["analyse", *ids, "--metrics", "errors"]) == 1
    err = capsys.readouterr().err
    assert f"trial {ids[0]} has them already" in err and "1 of 2 could be analysed" in err
    assert errors_in(store.read(ids[1])["metrics"])
    assert main(["analyse", ids[0], "nobody", "--metrics", "errors"]) == 2  # neither
    assert "trial 'nobody': no such trial in " in capsys.readouterr().err


def test_one_trial_of_a_file_stops_no_other(folder, tmp_path, capsys):
    """One has only its record, one damaged detections, one weights of classes that are none; the others are done."""
    file = tmp_path / "mine.yaml"
    file.write_text(f"base: {{data.path: {folder}}}\nrows: [{{label: plain}}]\n")
    trials = open_grid(file, "digits_fast", seeds=range(6)).trials
    store, ids = RunStore(), [trial.trial_id for trial in trials]
    for trial in trials:
        detections = right_detections(folder)
        known = {"trial_id": trial.trial_id, "fingerprint": trial.fingerprint}
        keep_trial(store, MODEL, trial.config.data, detections=detections, **known)
    weights_of(ids[0]).unlink()
    (store.dir(ids[0]) / "detections.json").unlink()
    (store.dir(ids[1]) / "detections.json").write_text("[{")
    weights_of(ids[2]).write_bytes(b"\2\0\0\0\0\0\0\0{}")
    weights_of(ids[3]).unlink()
    save_file(load_file(weights_of(ids[4])), weights_of(ids[4]), {"codetr_classes": "ants"})
    ask = ["analyse", str(file), "--preset", "digits_fast", "--metrics", "errors", "--seeds", "0,1,2,3,4,5"]

    def told() -> list[str]:
        return [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note")]

    assert main(ask) == 1
    lines = told()
    assert "its metadata 'codetr_classes' is no list" in lines[0] and "detections.json is damaged" in lines[2]
    assert lines[1].startswith(f"error: trial {ids[0]}: its weights are gone") and all(
        "error: " in own for own in lines[:3]
    )
    assert lines[3:] == ["3 of 6 could be analysed"]
    assert [bool(errors_in(store.read(own)["metrics"])) for own in ids] == [False, False, True, True, False, True]
    assert main(ask) == 2 and told()[-1] == "error: none of the 3 could be analysed"
    for own in (ids[1], ids[4]):
        keep_trial(store, MODEL, data_config(folder), detections=[], trial_id=own)
    assert main(ask) == 1 and told()[1:] == ["2 of 3 could be analysed"]
    assert main(ask) == 2  # of a single one its own line is all
    (line,) = told()
    assert line.startswith(f"error: trial {ids[0]}: its weights are gone")


@pytest.mark.parametrize("metrics", ["errors", "queries", "AP@150"])
def test_numbers_of_other_data_do_not_go_into_the_record(folder, metrics, capsys):
    data, store = data_config(folder), RunStore()
    keep_trial(store, MODEL, data, detections=right_detections(folder), fingerprint=fingerprint(data))
    before, file = store.read(KEPT), folder / "annotations" / "instances_val.json"
    known = fingerprint(data)
    content = json.loads(file.read_text())
    for row in content["annotations"]:
        row["bbox"][0] //= 2
    file.write_text(json.dumps(content))
    options = ["--max-detections", "150"] if "@" in metrics else ["--metrics", metrics]
    ask = ["analyse", KEPT, "--device", "cpu", *options]
    assert main(ask) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told == (
        f"error: trial {KEPT}: {folder} holds other data now (fingerprint {fingerprint(data)} instead of {known}), "
        "and its record takes numbers of its own data only; "
        "--out FOLDER keeps those of these elsewhere, --data FOLDER names others"
    )
    assert main([*ask, "--out", "there"]) == 0 and main([*ask, "--data", str(folder)]) == 0
    for made in (Path("there"), Path("analysis") / KEPT):
        assert (made / ("queries.json" if metrics == "queries" else "evaluation.json")).exists()
    assert store.read(KEPT) == before
    store.write_result(KEPT, {**before, "fingerprint": None})  # an old record does not tell
    assert main(ask) == 0
    assert store.read(KEPT)["metrics"].keys() > before["metrics"].keys()
