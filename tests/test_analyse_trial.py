"""Analyses of trials: at their end, in between, and later by command; the training itself never notices."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

import harness.trial.analysis
import harness.trial.trial
from harness.__main__ import main
from harness.analyse import analyse
from harness.config import AnalyseConfig, DataConfig
from harness.data.coco import CocoDataset
from harness.errors import Interrupted, UserError
from harness.revisit import trained
from harness.spec.grid import Trial, open_grid
from harness.store.results import RunStore
from harness.tracking import mirror, tracking
from harness.trial.checkpoint import WEIGHTS
from harness.trial.trial import run_trial
from tests.golden_topics import end_to_end
from tests.golden_topics.case import Case
from tests.support.fakes import finish, make_grid, make_trial
from tests.support.folders import real_data, tables, write_split
from tests.support.quickstart import QUICKSTART, silent, timeless
from tests.support.scattered_detector import build_detector as build
from tests.support.tiny import ON_ONE_LEVEL, PLAIN

REGIONS = "{name: faster_rcnn, rpn: {num_proposals: 16, train_candidates: 32}, roi: {num_samples: 16, fc_channels: 16}}"
METRICS = ("conflict", "discriminability", "queries", "gradient", "transfer")
ALL = f"analyse=[{', '.join(METRICS)}]"
EVERY = ("analyse.every_epochs=1", "analyse.num_images=6")


def trial_of(*overrides: str, heads: str = f"[atss, {REGIONS}]", seed: int = 0) -> Trial:
    options = (f"model.heads={heads}", "data.digits.num_train=16", *overrides)
    return open_grid(QUICKSTART, "digits_fast", options, seeds=[seed]).trials[0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunStore, Trial]:
    """A finished trial that was not analysed."""
    store, trial = RunStore(tmp_path_factory.mktemp("plain")), trial_of()
    run_trial(trial, store, report=silent)
    return store, trial


@pytest.fixture
def own(plain: tuple[RunStore, Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunStore, Trial]:
    """A copy of it, which is also the store of the command line."""
    import shutil

    shutil.copytree(plain[0].root, tmp_path / "store")
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return RunStore(tmp_path / "store"), plain[1]


def without_analysis(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in entry.items() if not name.startswith(METRICS)} for entry in history]


def test_an_analysed_training_is_the_very_same_training(plain: tuple[RunStore, Trial], tmp_path: Path) -> None:
    store, events = RunStore(tmp_path), []
    trial = trial_of(ALL, *EVERY)
    assert trial.trial_id == plain[1].trial_id  # what is analysed does not make it another trial
    record = run_trial(trial, store, report=events.append)
    expected = plain[0].read(trial.trial_id)
    assert expected is not None and expected["analysis"] == {}
    assert timeless(without_analysis(record["history"])) == timeless(expected["history"])
    assert without_analysis([record["metrics"]]) == [expected["metrics"]]
    for name in ("detections.json", f"checkpoint/{WEIGHTS}"):
        read = [(place.dir(trial.trial_id) / name).read_bytes() for place in (plain[0], store)]
        assert read[0] == read[1], name

    folder = store.dir(trial.trial_id) / "analysis"
    names = {path.name for path in folder.iterdir()}
    assert {name for name in names if not name.endswith((".png", ".pdf"))} == {
        *("maps.npz", *(f"{name}.json" for name in METRICS))
    }
    drawn = ("conflict", "conflict_matrix", "detections", "discriminability", "influence", "instability", "maps_cam")
    assert {f"{name}.{ending}" for name in (*drawn, "queries") for ending in ("png", "pdf")} <= names
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    for kind, table in found.items():
        assert (table["schema"], table["kind"], table["epoch"], table["num_images"]) == (1, kind, 2, 6)
    conflict = found["conflict"]
    assert conflict["heads"] == ["decoder", "atss", "faster_rcnn"] and conflict["variant"] == "cam-v1"
    matrix, low, high = (np.array(conflict[name]) for name in ("matrix", "low", "high"))
    assert (matrix.diagonal() == 0).all() and (low <= matrix).all() and (matrix <= high).all()
    assert (matrix + np.eye(3) > 0).all()
    distance = conflict["distance"]["atss"]
    assert distance["low"] < distance["value"] < distance["high"] and conflict["ceiling"]["value"] > 0
    assert record["metrics"]["conflict/atss"] == record["history"][-1]["conflict/atss"] == distance["value"]
    assert record["history"][0]["conflict/atss"] != distance["value"]  # of the first epoch: a curve
    assert record["metrics"]["discriminability/encoder_auc"] == found["discriminability"]["encoder"]["auc"]
    assert record["metrics"]["queries/decoder/positives_per_gt"] == 1.0
    assert store.metrics(trial.trial_id)[-1]["conflict/atss"] == distance["value"]
    kept = record["analysis"]
    assert kept["metrics"] == list(METRICS) and kept["error"] is None
    for name in ("gradient/decoder-atss", "gradient.shared/atss-faster_rcnn", "transfer/atss-decoder"):
        assert record["metrics"][name] == record["history"][-1][name] != record["history"][0][name]
    assert kept["conflict"] == conflict and kept["discriminability"] == found["discriminability"]
    assert kept["queries"] == {key: value for key, value in found["queries"].items() if key != "examples"}
    assert record == store.read(trial.trial_id)
    with np.load(folder / "maps.npz") as maps:
        example = found["queries"]["examples"][0]
        assert maps[f"image_{example['image_id']}"].shape == (example["height"], example["width"])
        assert {name.rpartition("_")[0] for name in maps} == {
            *("image", "attention", "cam_decoder", "cam_atss", "cam_faster_rcnn")
        }


def test_a_failed_analysis_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of something")

    monkeypatch.setattr(harness.trial.analysis, "analyse", broken)
    store, events = RunStore(tmp_path), []
    trial = trial_of(ALL, "train.epochs=1", heads="[]")
    record = run_trial(trial, store, report=events.append)
    assert record["status"] == "finished" and record["analysis"]["error"] == "RuntimeError: out of something"
    (warning,) = [event["message"] for event in events if event["kind"] == "warning"]
    assert "the analysis failed: RuntimeError: out of something" in warning
    assert "Traceback" in (store.dir(trial.trial_id) / "analysis" / "error.txt").read_text()


@pytest.mark.usefixtures("unrendered")
def test_a_trial_stopped_while_analysing_only_analyses_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, trial = RunStore(tmp_path), trial_of(ALL, "train.epochs=1", "analyse.num_images=6", heads="[]")
    asked: list[bool] = []
    monkeypatch.setattr(harness.trial.trial, "finish", lambda state: pytest.fail("it was asked to stop"))
    calls = []
    step = harness.trial.trial.train_step
    monkeypatch.setattr(harness.trial.trial, "train_step", lambda *a, **k: calls.append(1) or step(*a, **k))
    analysed = harness.trial.analysis.analyse
    monkeypatch.setattr(harness.trial.analysis, "analyse", lambda *a, **k: asked.append(True) or analysed(*a, **k))
    with pytest.raises(Interrupted):
        run_trial(trial, store, report=silent, should_stop=lambda: bool(asked))
    assert store.status(trial.trial_id) == "interrupted"
    monkeypatch.undo()
    trained_steps = len(calls)
    record = run_trial(trial, store, report=silent)
    assert record["status"] == "finished" and len(calls) == trained_steps
    assert record["metrics"]["discriminability/encoder_auc"] is not None


@pytest.mark.usefixtures("unrendered")
def test_analyse_command_completes_a_record(own: tuple[RunStore, Trial], capsys: pytest.CaptureFixture[str]) -> None:
    store, trial = own
    before = store.read(trial.trial_id)
    assert main(["analyse", trial.trial_id[:6], "--images", "5", "--variant", "cam-v1,cam-v1-l1"]) == 0
    out = capsys.readouterr().out
    assert "conflict/decoder-atss" in out and "conflict.cam-v1-l1.json" in out and "5 images" in out
    record = store.read(trial.trial_id)
    assert before is not None and record is not None and record["status"] == "finished"
    assert record["metrics"] | before["metrics"] == record["metrics"]
    assert record["metrics"]["conflict/atss"] == store.metrics(trial.trial_id)[-1]["conflict/atss"]
    assert record["metrics"]["conflict.cam-v1-l1/atss"] != record["metrics"]["conflict/atss"]
    assert record["analysis"]["error"] is None and record["analysis"]["epoch"] == 2
    assert store.metrics(trial.trial_id)[-1]["AP"] == before["metrics"]["AP"]


@pytest.mark.usefixtures("unrendered")
def test_analyse_command_takes_an_ablation_file_and_does_what_is_missing(
    own: tuple[RunStore, Trial], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"base: {{model.heads: [atss, {REGIONS}], data.digits.num_train: 16, analyse: [queries], "
        "analyse.num_images: 4}\nrows: [{label: both}, {label: none, set: {model.heads: []}}]\n"
    )
    arguments = ["analyse", str(file), "--preset", "digits_fast"]
    assert main(arguments) == 0
    assert own[1].trial_id in capsys.readouterr().out
    record = own[0].read(own[1].trial_id)
    assert record is not None and record["analysis"]["metrics"] == ["queries"]
    assert "queries/atss/positives_per_gt" in record["metrics"] and "conflict/atss" not in record["metrics"]
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    more = (["--images", "6"], ["--metrics", "conflict"], ["--metrics", "conflict", "--variant", "cam-v1,cam-v1-l1"])
    for options in (*more, ["--images", "500"]):  # the split has fewer: all of them, once
        assert main([*arguments, *options]) == 0
        assert "nothing to do" not in capsys.readouterr().out, options
        assert main([*arguments, *options]) == 0
        assert "nothing to do" in capsys.readouterr().out, options


@pytest.mark.usefixtures("unrendered")
def test_a_floor_is_another_training_of_the_same_heads(
    own: tuple[RunStore, Trial], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, trial = own
    other, different = trial_of("train.epochs=1", seed=1), trial_of("train.epochs=1", heads="[]")
    for one in (other, different):
        run_trial(one, store, report=silent)
    options = ["analyse", trial.trial_id, "--metrics", "conflict", "--images", "4", "--out", str(tmp_path / "out")]
    assert main([*options, "--floor", other.trial_id]) == 0
    table = json.loads((tmp_path / "out" / "conflict.json").read_text())
    assert table["floor"]["against"] == other.trial_id and table["floor"]["value"] > 0
    record = store.read(trial.trial_id)
    assert record is not None and record["analysis"] == {}  # written elsewhere: the record stays as it is
    into_record = ["analyse", trial.trial_id, "--metrics", "conflict", "--images"]
    assert main([*into_record, "4", "--floor", other.trial_id]) == 0
    assert "conflict/floor" in (store.read(trial.trial_id) or {})["metrics"]
    assert main([*into_record, "5"]) == 0
    record = store.read(trial.trial_id)  # a floor of other images stands beside nothing
    assert record is not None and record["analysis"]["conflict"]["floor"] is None
    for numbers in (record["metrics"], record["history"][-1], store.metrics(trial.trial_id)[-1]):
        assert "conflict/floor" not in numbers and "conflict/decoder-atss" in numbers and "AP" in numbers
    capsys.readouterr()
    assert main([*options, "--floor", different.trial_id]) == 2
    assert main([*options, "--floor", trial.trial_id]) == 2
    error = capsys.readouterr().err
    assert "its heads (none) and classes must be those of" in error and "trained from another seed" in error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothere"], "; a file of weights ends in .safetensors, .pth or .pt"),
        (["gone.pth"], "gone.pth does not exist"),
        (["TRIAL", "--metrics", "conflicts"], "--metrics: unknown 'conflicts'; did you mean 'conflict'?"),
        (
            ["TRIAL", "--metrics", "AP"],
            "known: conflict, discriminability, queries, gradient, transfer, errors, evaluation",
        ),
        (["TRIAL", "--max-detections", "300", "--images", "4"], "--images: an evaluation is of the whole split"),
        (["TRIAL", "--variant", "cam-v2"], "--variant: must be 'cam-v1'"),
        (["TRIAL", "--data", "nowhere"], "nowhere"),
        (["torn.safetensors"], "torn.safetensors cannot be read as weights"),
        (["other.pth"], "other.pth: no names of a detector that is known (Co-Deformable-DETR, "),
        (["WEIGHTS", "--preset", "digits_fast"], "give the configuration they were trained with"),
    ],
)
def test_mistakes_are_told_in_one_line(
    own: tuple[RunStore, Trial], arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("torn.safetensors").write_bytes(b"torn")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, "other.pth")
    weights = own[0].dir(own[1].trial_id) / "checkpoint" / WEIGHTS
    words = {"TRIAL": own[1].trial_id, "WEIGHTS": str(weights)}
    assert main(["analyse", *(words.get(word, word) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


def test_another_limit_of_detections_is_added_to_a_finished_trial(
    own: tuple[RunStore, Trial], capsys: pytest.CaptureFixture[str]
) -> None:
    store, trial = own
    before = store.read(trial.trial_id) or {}
    assert main(["analyse", trial.trial_id, "--max-detections", "150"]) == 0
    record = store.read(trial.trial_id) or {}
    added = {name for name in record["metrics"] if name not in before["metrics"]}
    assert added == {f"{name}@150" for name in ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR")}
    assert {name: value for name, value in record["metrics"].items() if name not in added} == before["metrics"]
    assert record["metrics"]["AP@150"] >= before["metrics"]["AP"]
    assert store.metrics(trial.trial_id)[-1]["AP@150"] == record["metrics"]["AP@150"]
    assert {key: value for key, value in record.items() if key not in ("metrics", "history")} == {
        key: value for key, value in before.items() if key not in ("metrics", "history")
    }
    for limit, told in (("150", "has AP@150 already"), ("100", "name more"), ("100001", "from 100, which")):
        capsys.readouterr()
        assert main(["analyse", trial.trial_id, "--max-detections", limit]) == 2
        assert told in capsys.readouterr().err


def test_another_limit_is_added_to_every_finished_trial_of_a_file(
    own: tuple[RunStore, Trial], capsys: pytest.CaptureFixture[str]
) -> None:
    store, trial = own
    settings = ["--set", f"model.heads=[atss, {REGIONS}]", "--set", "data.digits.num_train=16", "--seeds", "0"]
    ask = ["analyse", str(QUICKSTART), "--preset", "digits_fast", *settings, "--max-detections", "160"]
    assert main(ask) == 0
    assert "AP@160" in (store.read(trial.trial_id) or {})["metrics"]
    capsys.readouterr()
    assert main(ask) == 0 and "nothing to do" in capsys.readouterr().out


def test_weights_of_another_version_are_told_apart(own: tuple[RunStore, Trial]) -> None:
    found = trained.read_trial(own[0], own[1].trial_id)
    weights = load_file(found.weights)
    weights["former.name"] = weights.pop("level_embedding")
    save_file(weights, found.weights)
    with pytest.raises(
        UserError,
        match="the weights lack level_embedding, have besides former.name; another version of this code trained them",
    ):
        trained.build(found, torch.device("cpu"))


def test_only_finished_trials_have_weights(own: tuple[RunStore, Trial]) -> None:
    own[0].write_result("abcdefabcdef", {"trial_id": "abcdefabcdef", "status": "failed", "config": {}})
    with pytest.raises(UserError, match="trial abcdefabcdef is failed"):
        trained.named_trial(own[0], "abc")


@pytest.mark.usefixtures("unrendered")
def test_a_file_of_weights_is_analysed_under_a_preset(own: tuple[RunStore, Trial], tmp_path: Path) -> None:
    weights = own[0].dir(own[1].trial_id) / "checkpoint" / WEIGHTS
    save_file(load_file(weights), tmp_path / "mine.safetensors")
    arguments = ["analyse", "mine.safetensors", "--preset", "digits_fast", "--set", f"model.heads=[atss, {REGIONS}]"]
    assert main([*arguments, "--images", "3", "--metrics", "queries"]) == 0
    table = json.loads((tmp_path / "analysis" / "mine" / "queries.json").read_text())
    assert table["epoch"] is None and set(table["positives_per_gt"]) == {"decoder", "atss", "faster_rcnn"}
    before, name = own[0].read(own[1].trial_id), f"{own[1].trial_id}.safetensors"
    Path("mine.safetensors").rename(name)
    assert main(["analyse", name, *arguments[2:], "--images", "3", "--metrics", "queries"]) == 0
    assert (tmp_path / "analysis" / own[1].trial_id / "queries.json").exists()
    assert own[0].read(own[1].trial_id) == before  # a file is no trial, whatever its name


def test_of_several_the_others_are_done(own: tuple[RunStore, Trial], capsys: pytest.CaptureFixture[str]) -> None:
    store, trial = own
    record = store.read(trial.trial_id) or {}
    store.write_result("abcdefabcdef", record | {"trial_id": "abcdefabcdef"})
    store.write_result("fedcbafedcba", record | {"trial_id": "fedcbafedcba", "fingerprint": "0" * 16})
    ask = ["--metrics", "queries", "--images", "3", "--out", "there"]
    assert main(["analyse", "abcdef", trial.trial_id, *ask]) == 1
    out, err = capsys.readouterr()
    assert f"trial {trial.trial_id}: 3 images" in out and err.splitlines() == [
        f"error: trial abcdefabcdef: its weights are gone ({store.dir('abcdefabcdef') / 'checkpoint' / WEIGHTS}); "
        "train it again",
        "1 of 2 could be analysed",
    ]
    assert main(["analyse", "fedcba", "--metrics", "errors"]) == 2
    assert "has them already" in capsys.readouterr().err
    (store.dir("fedcbafedcba") / "checkpoint").mkdir()
    (store.dir(trial.trial_id) / "checkpoint" / WEIGHTS).rename(store.dir("fedcbafedcba") / "checkpoint" / WEIGHTS)
    assert main(["analyse", "fedcba", "--metrics", "queries"]) == 2
    assert "fedcbafedcba: its digit scenes are drawn otherwise now (fingerprint " in capsys.readouterr().err


def test_a_trial_evaluated_elsewhere_has_the_numbers_of_its_record(own: tuple[RunStore, Trial], tmp_path: Path) -> None:
    trial_id = own[1].trial_id
    assert main(["analyse", trial_id, "--metrics", "evaluation", "--out", "there"]) == 0
    found = json.loads((tmp_path / "there" / "evaluation.json").read_text())
    record = own[0].read(trial_id)
    assert record is not None and found["metrics"]["AP"] == record["metrics"]["AP"]
    kept = json.loads((own[0].dir(trial_id) / "detections.json").read_text())
    assert json.loads((tmp_path / "there" / "detections.json").read_text()) == kept
    assert not (tmp_path / "there" / "keys.json").exists()


def test_official_weights_are_translated(own: tuple[RunStore, Trial], tmp_path: Path) -> None:
    """A released checkpoint lists the region heads first, whatever the order of the configuration."""
    case = Case(next((Path(__file__).parent / "golden").glob("e2e_main__*.npz")))
    expected = end_to_end.detector_of(case)
    torch.save({"state_dict": case.under("param."), "meta": {}}, tmp_path / "official.pth")
    model = expected.config
    for heads in (model.heads, model.heads[::-1]):
        config = replace(own[1].config, model=replace(model, heads=heads))
        found = trained.Found("official", config, tmp_path / "official.pth", None, "official.pth")
        detector = trained.build(found, torch.device("cpu")).detector
        assert detector.num_classes == expected.num_classes
        for name, value in expected.state_dict().items():
            assert torch.equal(detector.state_dict()[name], value), name


def test_mlflow_has_numbers_tables_and_finds_the_trial(tmp_path: Path, tracking_store: str) -> None:
    store, trial = RunStore(tmp_path / "store"), make_trial(1)
    finish(store, trial)
    mirror.sync(store, make_grid(trial))
    (back,) = tracking.read_records([trial.trial_id])
    assert tracking.trial_of_run(back["run_id"]) == trial.trial_id and tracking.trial_of_run("0" * 32) is None
    record = store.read(trial.trial_id)
    assert record is not None
    areas = {"discriminability/encoder_auc": 0.75, "discriminability/version": 2}
    scalars = {"conflict/decoder-atss": 0.25, "conflict/floor": None, **areas}
    folder = store.dir(trial.trial_id) / "analysis"
    folder.mkdir()
    (folder / "conflict.json").write_text("{}")
    store.append_metrics(trial.trial_id, store.metrics(trial.trial_id)[-1] | scalars)
    store.write_result(trial.trial_id, {**record, "metrics": record["metrics"] | scalars})
    assert mirror.sync_trials(store, [trial.trial_id, "unknown"]) == 1
    (back,) = tracking.read_records([trial.trial_id], history=("conflict/decoder-atss",))
    assert back["metrics"]["conflict/decoder-atss"] == 0.25 and back["metrics"]["discriminability/encoder_auc"] == 0.75
    assert back["history"][-1] == {"epoch": 3, "step": 12, "conflict/decoder-atss": 0.25}
    artifacts = MlflowClient(tracking_uri=tracking_store).list_artifacts(back["run_id"], "analysis")
    assert [artifact.path for artifact in artifacts] == ["analysis/conflict.json"]


def test_crowds_empty_images_and_no_heads(tmp_path: Path) -> None:
    """K = 0 on a folder with an empty image and a crowd: everything is defined, and crowds reach the curves."""
    content = tables(1)
    write_split(tmp_path, "val", content)
    dataset = CocoDataset(tmp_path, "val")
    detector = build()
    settings = AnalyseConfig(metrics=METRICS, num_images=100)
    data = DataConfig(eval_short_side=64, max_long_side=128)
    found = analyse(detector, dataset, data, settings, "cpu")
    conflict, curves = found.tables["conflict"], found.tables["discriminability"]
    assert (conflict["heads"], conflict["matrix"], conflict["distance"]) == (["decoder"], [[0.0]], {})
    assert conflict["ceiling"] is None and conflict["floor"] is None and conflict["num_images_used"] == 3
    assert curves["num_images"] == 4 and curves["num_images_used"] == 3
    assert found.tables["queries"]["positives_per_gt"] == {"decoder": 1.0}
    assert set(found.scalars) == {
        *("discriminability/encoder_auc", "discriminability/attention_auc", "discriminability/version"),
        *("queries/decoder/positives_per_gt", "transfer/decoder-decoder", "transfer.far/decoder-decoder"),
    }
    assert not detector.training
    detector.train()
    assert content["annotations"].pop()["iscrowd"] == 1  # its pixels are background now
    write_split(tmp_path / "other", "val", content)
    without = analyse(detector, CocoDataset(tmp_path / "other", "val"), data, settings, "cpu").tables
    assert detector.training
    assert without["discriminability"]["attention"]["iof"] == curves["attention"]["iof"]
    assert without["discriminability"]["attention"]["iob"] != curves["attention"]["iob"]


CHANGES: dict[str, dict[str, Any]] = {
    **{"one-stage": PLAIN, "official": {"compatibility": "official"}, "no queries": {"positive_queries": False}},
    **ON_ONE_LEVEL,
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_the_batch_size_changes_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    """Images of four sizes, one-stage and two-stage, also where the official way lets padding through."""
    write_split(tmp_path, "val", tables(1))
    detector = build("atss", "faster_rcnn", **changes)
    data = DataConfig(eval_short_side=64, max_long_side=128)
    settings = AnalyseConfig(metrics=METRICS)
    dataset = CocoDataset(tmp_path, "val")
    together, alone = (analyse(detector, dataset, data, settings, "cpu", batch_size=size) for size in (4, 1))
    assert together.scalars.keys() == alone.scalars.keys() and together.scalars["conflict/mean"]
    undefined = {name for name, value in together.scalars.items() if value is None}
    assert all(name.endswith("/ceiling") for name in undefined)  # one image of four gives gradients
    for name, value in together.scalars.items():
        expected = alone.scalars[name]
        assert value == (expected if name in undefined else pytest.approx(expected, rel=2e-3, abs=1e-6)), name


def test_nothing_but_empty_images(tmp_path: Path) -> None:
    content = {**tables(1), "annotations": []}
    write_split(tmp_path, "val", content)
    settings = AnalyseConfig(metrics=METRICS)
    data = DataConfig(eval_short_side=64, max_long_side=128)
    found = analyse(build("atss"), CocoDataset(tmp_path, "val"), data, settings, "cpu")
    undefined = {name: value for name, value in found.scalars.items() if not name.startswith(METRICS[3:])}
    assert undefined.pop("discriminability/version") == 2
    assert undefined and all(value is None for value in undefined.values())
    assert found.scalars["gradient/decoder-atss"] is not None  # background is learnt, too
    assert found.maps == {} and found.tables["conflict"]["left_out_share"] is None


def test_blood_cells_with_every_analysis() -> None:
    """Real photographs of several sizes, more objects than queries: all of these are matched, none is a negative."""
    dataset = CocoDataset(real_data("bccd"), "val")
    data = DataConfig(eval_short_side=96, max_long_side=160)
    settings = AnalyseConfig(metrics=METRICS, num_images=6)
    found = analyse(build("atss", "faster_rcnn", "fcos"), dataset, data, settings, "cpu")
    undefined = {name for name, value in found.scalars.items() if value is None or not np.isfinite(value)}
    assert undefined == {f"queries/{head}/distance_to_negatives" for head in ("atss", "faster_rcnn", "fcos")}
    assert found.tables["conflict"]["num_images_used"] == 6 and found.tables["conflict"]["left_out_share"] > 0
    positions = found.tables["queries"]["examples"]
    assert [example["image_id"] for example in positions] == list(found.examples) == list(dataset.image_ids[:6])
    for example in positions:
        image, boxes = found.examples[example["image_id"]]
        assert image.shape == (example["height"], example["width"], 3) and image.dtype == np.uint8
        assert len(boxes) == len(example["objects"])


# ---- what an ablation file may say


def spec_of(tmp_path: Path, text: str) -> Trial:
    (tmp_path / "mine.yaml").write_text(text)
    return open_grid(tmp_path / "mine.yaml", "digits_fast", [], require_data=False).trials[0]


def test_analyses_are_asked_for_in_short_and_in_full(tmp_path: Path) -> None:
    short = spec_of(tmp_path, "base: {analyse: [conflict]}\nrows: [{label: a}]\n").analyse
    assert short == AnalyseConfig(metrics=("conflict",))
    full = "base: {analyse: {metrics: [queries], every_epochs: 2, variants: [cam-v1-l1]}}\nrows: [{label: a}]\n"
    assert spec_of(tmp_path, full).analyse == AnalyseConfig(("queries",), 2, variants=("cam-v1-l1",))
    assert spec_of(tmp_path, "rows: [{label: a}]\n").analyse == AnalyseConfig()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "base: {analyse: [conflit]}\nrows: [{label: a}]\n",
            "'conflict', 'discriminability', 'queries', 'gradient' or 'transfer'",
        ),
        ("base: {analyse.num_images: 0}\nrows: [{label: a}]\n", "num_images must be at least 1"),
        ("base: {analyse.variants: []}\nrows: [{label: a}]\n", "variants must name at least one"),
        ("rows: [{label: a, set: {analyse: [conflict]}}]\n", "cannot differ between rows"),
        ("axes: {analyse.num_images: [1, 2]}\n", "cannot differ between rows"),
        ("rows: [{label: a}]\nmetrics: [discriminability/decoder_auc]\n", "unknown metric"),
    ],
)
def test_mistakes_in_files(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        spec_of(tmp_path, text)


def test_numbers_of_analyses_are_columns(tmp_path: Path) -> None:
    names = "AP, conflict/decoder, conflict/decoder-atss, conflict.cam-v1-l1/atss.2, discriminability/encoder_auc"
    (tmp_path / "mine.yaml").write_text(f"rows: [{{label: a}}]\nmetrics: [{names}, queries/atss/positives_per_gt]\n")
    grid = open_grid(tmp_path / "mine.yaml", "digits_fast", [], require_data=False)
    assert len(grid.metrics) == 6
