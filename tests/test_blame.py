"""Settings that do not go together: the one that was written last is blamed, with both values and both places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.__main__ import main
from harness.errors import UserError
from harness.spec.grid import open_grid

# first setting, second setting, the rule they break, what must stand besides
CONFLICTS: list[tuple[tuple[str, Any], tuple[str, Any], str, dict[str, Any]]] = [
    (
        ("data.eval_short_side", 800),
        ("data.max_long_side", 500),
        "max_long_side must not be below eval_short_side",
        {},
    ),
    (
        ("model.transformer.channels", 36),
        ("model.transformer.num_attention_heads", 8),
        "channels must be a multiple of num_attention_heads",
        {},
    ),
    (
        ("model.min_positive_queries", 20),
        ("model.max_positive_queries", 10),
        "min_positive_queries must not exceed max_positive_queries",
        {},
    ),
    (
        ("model.two_stage", True),
        ("model.box_refinement", False),
        "two_stage needs box_refinement: true",
        {"model.look_forward_twice": False, "model.mixed_selection": False},
    ),
    (
        ("model.look_forward_twice", True),
        ("model.box_refinement", False),
        "look_forward_twice needs box_refinement: true",
        {"model.two_stage": False, "model.mixed_selection": False},
    ),
    (("model.mixed_selection", True), ("model.two_stage", False), "mixed_selection needs two_stage: true", {}),
    (
        ("model.transformer.num_levels", 2),
        ("model.backbone.stages", [2, 3, 4]),
        "transformer.num_levels must not be smaller than the number of backbone.stages",
        {},
    ),
    (
        ("train.min_steps", 100),
        ("train.drop_epochs", [3]),
        "min_steps above 0 needs drop_epochs: [], since drop_epochs name fixed epochs",
        {},
    ),
    (("train.batch_size", 6), ("train.accumulate_steps", 4), "batch_size must be a multiple of accumulate_steps", {}),
    (
        ("runtime.accelerator_type", "H100"),
        ("runtime.gpus_per_trial", 0),
        "accelerator_type needs gpus_per_trial, such as 1",
        {},
    ),
    (
        ("evaluate.branches", ["atss"]),
        ("model.heads", ["gfl"]),
        'unknown branch "atss" in evaluate.branches; known for these heads: decoder, gfl',
        {},
    ),
    (
        ("runtime.ranks", 2),
        ("model.backbone.norm", "batch"),
        "norm: batch takes its statistics from one process, so that several ranks train another detector",
        {},
    ),
    (
        ("model.head_defaults.retinanet.negative_iou", 0.6),
        ("model.head_defaults.retinanet.positive_iou", 0.5),
        "negative_iou must not exceed positive_iou",
        {"model.heads": ["retinanet"]},
    ),
    (
        ("model.head_defaults.mask_rcnn.rpn.negative_iou", 0.6),
        ("model.head_defaults.mask_rcnn.rpn.positive_iou", 0.5),
        "negative_iou must not exceed positive_iou",
        {"model.heads": ["mask_rcnn"]},
    ),
    (
        ("model.head_defaults.atss.num_groups", 5),
        ("model.transformer.channels", 64),
        "num_groups of the head atss (5) must divide transformer.channels",
        {"model.heads": ["atss"]},
    ),
]
IDS = [rule for _, _, rule, _ in CONFLICTS]
WRITERS = ("--set", "row", "row's preset", "axis", "base", "file's preset", "preset")


def lines(spec: Path, preset: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        open_grid(spec, str(preset), overrides, require_data=False)
    return str(caught.value).splitlines()


def shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def write(path: Path, tree: Any) -> Path:
    path.write_text(json.dumps(tree))  # JSON is YAML
    return path


@pytest.mark.parametrize("swapped", [False, True], ids=["first is last", "second is last"])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(("first", "second", "rule", "besides"), CONFLICTS, ids=IDS)
def test_the_last_writer_is_blamed_and_told_of_the_other(tmp_path, first, second, rule, besides, writer, swapped):
    (key, value), (other, its) = (second, first) if swapped else (first, second)
    below = {**besides, other: its}
    spec: dict[str, Any] = {"rows": [{"label": "a"}]}
    overrides = []
    file, scale = tmp_path / "table.yaml", tmp_path / "scale.yaml"
    if writer == "--set":
        overrides, place = [f"{key}={shown(value)}"], f"--set {key}"
    elif writer == "row":
        spec["rows"][0]["set"], place = {key: value}, f"{file}:rows.0.set.{key}"
    elif writer == "row's preset":
        spec["rows"][0]["presets"], place = {"scale": {key: value}}, f"{file}:rows.0.presets.scale.{key}"
    elif writer == "axis":
        spec["axes"], place = {key: [value]}, f"{file}:axes.{key}"
    elif writer == "base":
        spec["base"], place = {key: value}, f"{file}:base.{key}"
    elif writer == "file's preset":
        spec["presets"], place = {"scale": {key: value}}, f"{file}:presets.scale.{key}"
    else:
        below, place = {**below, key: value}, f"{scale}:{key}"
    (told,) = lines(write(file, spec), write(scale, below), *overrides)
    where, _, what = told.partition(f"={shown(value)}: {rule}; ")
    assert where == place
    name, _, rest = what.partition(" is ")
    assert other.endswith(name)
    assert rest == f"{shown(its)} ({scale}:{other}); change it too"


def test_a_default_that_nobody_wrote_is_named_as_such(tmp_path):
    spec, preset = write(tmp_path / "t.yaml", {"rows": [{"label": "a"}]}), write(tmp_path / "p.yaml", {"data": {}})
    assert lines(spec, preset, "data.eval_short_side=800") == [
        "--set data.eval_short_side=800: max_long_side must not be below eval_short_side; "
        "max_long_side is 240 (the default); change it too"
    ]


def test_a_shipped_preset_is_named(tmp_path):
    spec = write(tmp_path / "t.yaml", {"rows": [{"label": "a"}]})
    with pytest.raises(UserError) as caught:
        open_grid(spec, "digits", ["data.eval_short_side=800"], require_data=False)
    told = str(caught.value)
    assert told.startswith("--set data.eval_short_side=800: max_long_side must not be below eval_short_side; ")
    assert "max_long_side is 240 (" in told and "digits.yaml:data.max_long_side); change it too" in told


def test_what_is_taken_out_brings_no_second_line(tmp_path):
    """800 stands in the preset and goes with its own 1333; 240, the default behind 500, is nobody's."""
    preset = write(tmp_path / "p.yaml", {"data": {"eval_short_side": 800, "max_long_side": 1333}})
    spec = write(tmp_path / "t.yaml", {"rows": [{"label": "a"}]})
    assert len(lines(spec, preset, "data.max_long_side=500")) == 1
    told = lines(spec, preset, "data.max_long_side=500", "data.flip_probability=7")
    assert len(told) == 2 and told[1].startswith("--set data.flip_probability: ")


@pytest.mark.parametrize(
    ("heads", "defaults", "place"),
    [
        ([{"name": "retinanet", "negative_iou": 0.6}], {"positive_iou": 0.55}, "--set model.heads.0.negative_iou=0.6"),
        ([{"name": "retinanet", "positive_iou": 0.3}], {}, "--set model.heads.0.positive_iou=0.3"),
    ],
)
def test_an_option_in_the_list_of_heads_is_blamed(tmp_path, heads, defaults, place):
    preset = write(tmp_path / "p.yaml", {"model": {"head_defaults": {"retinanet": defaults}}})
    spec = write(tmp_path / "t.yaml", {"rows": [{"label": "a"}]})
    (told,) = lines(spec, preset, f"model.heads={json.dumps(heads)}")
    assert told.startswith(f"{place}: negative_iou must not exceed positive_iou; ")
    other = f"{preset}:model.head_defaults.retinanet.positive_iou" if defaults else "the default"
    assert f"({other}); change it too" in told


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--cpus-per-trial", "0"], "--cpus-per-trial: cpus_per_trial must be positive, got 0"),
        (["--cpus-per-trial", "many"], "--cpus-per-trial: must be a number, got the text 'many'"),
        (["--gpus-per-trial", "-1"], "--gpus-per-trial: gpus_per_trial must not be negative, got -1"),
        (["--accelerator-type", "H100"], "--accelerator-type=H100: accelerator_type needs gpus_per_trial, such as 1; "),
        (["--ranks", "2", "--set", "model.backbone.norm=batch"], "--ranks=2: norm: batch takes its statistics"),
        (["--seeds", "1,1"], "--seeds: seeds must differ, got [1, 1]"),
        (
            ["--data", "nowhere"],
            "nowhere: no such folder; --data (or data.path) must name a folder in COCO, YOLO or VOC layout",
        ),
    ],
)
def test_options_are_blamed_under_their_own_names(tmp_path, monkeypatch, argv, told, capsys):
    monkeypatch.setenv("CODETR_STORE", str(tmp_path))
    quickstart = Path(__file__).parents[1] / "ablations" / "quickstart.yaml"
    assert main(["run", str(quickstart), "--preset", "digits_fast", *argv]) == 2
    out, err = capsys.readouterr()
    assert told in err and err.count("\n") == 1 and "--set runtime" not in err and not out


def test_a_part_written_as_a_mapping_is_not_said_to_have_another_value(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("title: t\nrows: [{label: a}]\n")
    with pytest.raises(UserError) as caught:
        open_grid(file, "digits_fast", ["model.proposals={name: learned, content: zero, points: mlp}"])
    told = str(caught.value)
    assert "points=learned" not in told and "proposals" in told and "is learned" in told


def test_the_command_of_a_grid_keeps_its_options():
    quickstart = Path(__file__).parents[1] / "ablations" / "quickstart.yaml"
    grid = open_grid(quickstart, "digits_fast", options={"--accelerator-type": "100", "--gpus-per-trial": "0.5"})
    assert grid.command.endswith("--preset digits_fast --accelerator-type 100 --gpus-per-trial 0.5")
    assert {(t.runtime.accelerator_type, t.runtime.gpus_per_trial) for t in grid.trials} == {("100", 0.5)}


@pytest.mark.parametrize(
    ("settings", "given", "told"),
    [
        (["data.path=one"], {"data": "two"}, "--data two: --set data.path=one says something else; remove one of them"),
        (["runtime.ranks=2"], {"options": {"--ranks": "4"}}, "--ranks 4: --set runtime.ranks=2 says something else"),
        (["runtime.ranks=2"], {"options": {"--ranks": "2"}}, ""),
        (["train.epochs=2", "train.epochs=3"], {}, ""),  # the last one counts, as anywhere on a command line
    ],
)
def test_an_option_and_a_setting_that_disagree_are_told(tmp_path, settings, given, told):
    file = tmp_path / "mine.yaml"
    file.write_text("title: t\nrows: [{label: a}]\n")
    try:
        open_grid(file, "digits_fast", settings, require_data=False, **given)
    except UserError as error:
        assert told and told in str(error)
    else:
        assert not told
