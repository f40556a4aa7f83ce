"""Exact grids, the identity of trials, and the labels that tell them apart."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config import DataConfig, EvaluateConfig, TrainConfig, TrialConfig
from harness.errors import UserError
from harness.spec.grid import open_grid
from harness.spec.identity import config_from_dict, config_to_dict, identity, trial_id
from model.config import DetectorConfig

ABLATIONS = Path(__file__).parents[1] / "ablations"
FILES = sorted(ABLATIONS.glob("*.yaml"))
PRESETS = sorted((ABLATIONS / "presets").glob("*.yaml"))


@pytest.fixture
def grid_of(tmp_path):
    def open_text(text: str, *overrides: str, preset: str = "digits", **options):
        path = tmp_path / "table.yaml"
        path.write_text(text)
        return open_grid(path, preset, overrides, **options)

    return open_text


@pytest.fixture
def config():
    from model.heads import HEADS

    model = DetectorConfig(heads=(HEADS["atss"].Config(),))
    return TrialConfig(model, DataConfig(), TrainConfig(), EvaluateConfig(), seed=0)


# ---- grids

FROM_SCRATCH = ("digits_fast", "digits_v1")  # nothing is pretrained there: both rows of photos.yaml are one trial


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_every_ablation_file_plans_with_every_preset(file, preset, tmp_path):
    grid = open_grid(file, preset.stem, [f"data.path={tmp_path}"], require_data=False)
    rows = {row.trial_ids for row in grid.rows}
    assert len(grid.trials) == len(rows)
    is_one = file.stem == "photos" and preset.stem in FROM_SCRATCH
    assert is_one or len(rows) == len(grid.rows) >= 2
    assert grid.search or all(grid.baseline_of(row) for row in grid.listed)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_given_by_its_path_goes_by_its_name(preset):
    assert open_grid(ABLATIONS / "quickstart.yaml", str(preset), require_data=False).preset == preset.stem


def test_rows_axes_and_seeds_multiply_in_order(grid_of):
    grid = grid_of(
        """
rows: [{label: short, set: {train.epochs: 1}}, {label: long, set: {train.epochs: 2}}]
axes: {model.num_queries: [10, 20], train.batch_size: [4]}
seeds: [3, 5]
"""
    )
    assert [(t.config.train.epochs, t.config.model.num_queries, t.config.seed) for t in grid.trials] == [
        (epochs, queries, seed) for epochs in (1, 2) for queries in (10, 20) for seed in (3, 5)
    ]
    assert {t.config.train.batch_size for t in grid.trials} == {4}
    assert [row.label for row in grid.rows][:2] == [
        "short, num_queries=10 batch_size=4",
        "short, num_queries=20 batch_size=4",
    ]
    assert [row.trial_ids for row in grid.rows] == [
        tuple(t.trial_id for t in grid.trials[i : i + 2]) for i in range(0, 8, 2)
    ]


def test_a_mistake_of_every_row_is_told_once_and_leaves_no_half_detector_behind(grid_of):
    with pytest.raises(UserError) as caught:
        grid_of("axes: {model.lambda1: [0.5, 1]}\nbase: {model.heads: [atss], model.neck: simple_fpn}")
    told = (
        r"\S+table.yaml:base.model.neck=simple_fpn: the neck simple_fpn takes one stage of stride 16, .*, "
        r"not \[8, 16, 32\]; backbone is resnet \(.*\) and transformer.num_levels is 3 \(.*\); change them too"
    )
    assert re.fullmatch(told, str(caught.value))


def test_axes_alone(grid_of):
    grid = grid_of("axes: {model.lambda1: [0.5, 1]}\nbase: {model.heads: [atss]}")
    assert [row.label for row in grid.rows] == ["lambda1=0.5", "lambda1=1"]
    assert [t.label for t in grid.trials] == ["lambda1=0.5", "lambda1=1"]


def test_a_trial_in_two_rows_is_one_trial(grid_of):
    grid = grid_of(
        """
rows:
  - {label: default, set: {}}
  - {label: forty, set: {model.num_queries: 40}}
  - {label: fifty, set: {model.num_queries: 50}}
seeds: [0, 1]
"""
    )
    assert len(grid.trials) == 4
    assert grid.rows[0].trial_ids == grid.rows[1].trial_ids != grid.rows[2].trial_ids
    assert grid.trial(grid.rows[1].trial_ids[0]).row == "default"


def test_files_share_trials():
    def ids(name):
        return {trial.trial_id for trial in open_grid(ABLATIONS / f"{name}.yaml", "digits").trials}

    quickstart = ids("quickstart")
    assert len(ids("table09_components") & quickstart) == 3
    assert len(ids("table07_heads") & ids("table08_head_kinds") & quickstart) == 2
    assert len(ids("table12_convolutions") & ids("table13_loss_weights") & quickstart) == 1


def test_seeds_from_the_command_line_replace_the_files(grid_of):
    grid = grid_of("rows: [{label: a}]\nseeds: [0, 1]", seeds=[7])
    assert [trial.config.seed for trial in grid.trials] == [7] == list(grid.seeds)


def test_labels_show_only_what_differs(grid_of):
    grid = grid_of(
        """
rows:
  - {label: plain, set: {model.heads: [], model.positive_queries: true}}
  - {label: head, set: {model.heads: [atss], model.positive_queries: false}}
  - {label: both, set: {model.heads: [atss, {name: atss, num_convs: 0}], model.positive_queries: true}}
seeds: [0, 1]
"""
    )
    assert [trial.label for trial in grid.trials if trial.config.seed == 1] == [
        "heads=none seed=1",
        "heads=atss positive_queries=false seed=1",
        "heads=atss+atss(num_convs=0) positive_queries=true seed=1",
    ]
    assert grid.trials[3].factors == {"model.heads": "atss", "model.positive_queries": False, "seed": 1}
    assert grid.rows[1].factors == {"model.heads": "atss", "model.positive_queries": False}


def test_labels_and_dictionaries_know_settings_inside_settings_of_heads(grid_of):
    from model.heads import HEADS

    grid = grid_of("axes: {model.heads: [[faster_rcnn], [{name: faster_rcnn, rpn: {num_samples: 8, ratios: [1]}}]]}")
    assert [trial.label for trial in grid.trials] == [
        "heads=faster_rcnn",
        "heads=faster_rcnn(rpn=(ratios=1,num_samples=8))",
    ]
    config = grid.trials[1].config
    assert type(config.model.heads[0]) is HEADS["faster_rcnn"].Config and config.model.heads[0].rpn.ratios == (1.0,)
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_labels_keep_apart_keys_of_the_same_name(grid_of):
    grid = grid_of("axes: {data.digits.seed: [0, 1]}\nseeds: [0, 1]")
    assert grid.trials[-1].label == "digits.seed=1 seed=1"


def test_one_trial_is_labelled_by_its_row(grid_of):
    assert grid_of("rows: [{label: the only one}]").trials[0].label == "the only one"


def test_published_numbers_belong_to_a_preset(tmp_path):
    def published(preset):
        grid = open_grid(ABLATIONS / "table09_components.yaml", preset, require_data=False)
        return grid.published_preset, [row.published.get("AP") for row in grid.rows]

    assert published("coco_r50_12e") == ("coco_r50_12e", [37.1, 41.6, 40.5, 42.3, None])
    assert published("coco_r50_36e") == ("coco_r50_36e", [43.3, 46.2, 45.3, 46.8, 44.6])
    assert published("digits") == ("coco_r50_12e", [37.1, 41.6, 40.5, 42.3, None])


def test_an_override_of_what_rows_vary_is_marked(grid_of):
    text = """
rows:
  - {label: plain, set: {model.heads: []}, published: {AP: 1}}
  - {label: head, set: {model.heads: [atss]}, published: {AP: 2}}
  - {label: long, set: {train.epochs: 9}, published: {AP: 3}}
baseline: plain
"""
    grid = grid_of(text, "model.heads=[atss]")
    assert [row.label for row in grid.rows] == ["plain [model.heads=atss]", "head [model.heads=atss]", "long"]
    assert [row.published for row in grid.rows] == [{}, {}, {"AP": 3}]
    assert grid.baseline == "plain [model.heads=atss]"
    assert len(grid.trials) == 2 and "model.heads=atss" in grid.notes[0]


def test_absent_data_is_an_error_unless_only_planned(grid_of, tmp_path):
    text, away = "rows: [{label: a}]", str(tmp_path / "away")
    with pytest.raises(UserError, match="away"):
        grid_of(text, data=away)
    grid = grid_of(text, data=away, require_data=False)
    assert grid.trials[0].fingerprint == "" and "away" in grid.notes[0]


def test_epochs_that_the_preset_s_least_number_of_steps_overrules_are_told(grid_of, tmp_path):
    """Digit scenes have 400 steps an epoch, and the preset asks for 2,000: fewer than 5 epochs would change nothing."""
    text = "rows: [{label: a}]"
    [note] = grid_of(text, "train.epochs=2").notes
    assert note.startswith("train.epochs=2: train.min_steps=2000 asks for 5 epochs") and "train.min_steps=0" in note
    [note] = grid_of("base: {train.epochs: 2}\nrows: [{label: a}, {label: b, set: {model.heads: []}}]").notes
    assert note.startswith("train.epochs=2: train.min_steps=2000 asks for 5 epochs")
    away = {"data": str(tmp_path), "require_data": False}
    notes = grid_of(text, "train.epochs=2", **away).notes
    assert any("more than 2 epochs of fewer than 4,000 images" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("rows: [{label: a}]", []),
        ("rows: [{label: a}]", ["train.epochs=5"]),
        ("rows: [{label: a}]", ["train.epochs=2", "train.min_steps=0"]),
        ("base: {train: {min_steps: 400, epochs: 1}}\nrows: [{label: a}]", []),
    ],
)
def test_nothing_is_told_of_epochs_that_hold_or_are_meant(grid_of, text, overrides):
    assert grid_of(text, *overrides).notes == ()


# ---- identity


def change(config, path, value):
    """`config` with the setting at a dotted path replaced."""
    name, _, rest = path.partition(".")
    return replace(config, **{name: change(getattr(config, name), rest, value) if rest else value})


def every_setting(node, path=""):
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        here = f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from every_setting(value, f"{here}.")
        else:
            yield here, value


def other(path, value):
    """A legal value that differs; the few settings tied to others are named."""
    tied = {
        "model.backbone.block": "basic",
        "model.backbone.stem": "conv3",
        "model.backbone.norm": "group",
        "model.backbone.depths": (1, 1, 1, 1),
        "model.backbone.stages": (3, 4),
        "model.backbone.weights": "resnet50.pth",
        "model.transformer.channels": 64,
        "model.transformer.num_attention_heads": 4,
        "model.heads": (),
        "model.compatibility": "official",
        "model.loss_normaliser": "objects",
        "data.train_short_sides": (96, 128),
        "train.schedule": "one_cycle",
        "train.drop_epochs": (),
        "train.precision": "bf16",
        "evaluate.evaluator": "pycocotools",
        "evaluate.branches": ("decoder", "atss"),
        "train.warmup_fraction": 0.5,
        "train.weight_decay_of": "matrices",
        "train.layer_decay": 0.8,
        "train.ema_warmup": "exponential",
        "data.max_long_side": 999,
        "data.crop_short_sides": (300,),
        "data.crop_sides": (100, 200),
        "data.resize": "official",
        "data.aspect_group_size": 2,
        "data.eval_long_side": 500,
        "data.square": 64,
        "data.jitter_scales": (0.5, 2.0),
        "data.repeat": "drawn",
        "data.outside_boxes": "clipped",
        "model.first_weights": "official",
        "evaluate.precision": "training",
        "model.neck.norm": "none",
        "train.accumulate_steps": 2,
    }
    if path in tied:
        return tied[path]
    if isinstance(value, bool):
        return not value
    if value is None:  # a number that follows from others
        return 0.5
    return value + 1 if isinstance(value, int) else value / 2 + 0.1


def test_every_setting_but_the_path_makes_another_trial(config):
    dependent = {  # cannot be changed alone
        "model.two_stage": {"model.mixed_selection": False},
        "model.box_refinement": {
            "model.mixed_selection": False,
            "model.two_stage": False,
            "model.look_forward_twice": False,
        },
        "train.min_steps": {"train.drop_epochs": ()},
        "data.jitter_scales": {"data.square": 64},
        "data.copy_paste": {"data.square": 64},
        "train.ema_warmup": {"train.ema_decay": 0.9},
        "train.ema_warmup_steps": {"train.ema_decay": 0.9, "train.ema_warmup": "exponential"},
    }
    seen = {trial_id(config, "f")}
    others = (
        "data.path",
        "model.proposals",
        "model.decoder.position",
        "model.groups",
    )  # content counts; no other is legal
    names = [(path, value) for path, value in every_setting(config) if path not in others]
    assert len(names) > 50
    for path, value in names:
        changed = config
        for needed, setting in dependent.get(path, {}).items():
            changed = change(changed, needed, setting)
        before = trial_id(changed, "f")
        after = trial_id(change(changed, path, other(path, value)), "f")
        assert after != before, path
        seen.add(after)
    assert len(seen) > 50  # and they differ among themselves


def test_content_of_the_data_counts_and_its_place_does_not(config):
    here, there = (replace(config, data=replace(config.data, path=path)) for path in ("/here", "/there"))
    assert trial_id(here, "f") == trial_id(there, "f") != trial_id(here, "g")
    assert trial_id(here, "f") != trial_id(config, "f")
    digits = replace(here, data=change(here.data, "digits.num_train", 5))
    assert trial_id(digits, "f") == trial_id(here, "f")  # they are not used


def test_a_moved_data_set_is_the_same_trial(grid_of, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "one" / split).mkdir(parents=True)
        (tmp_path / "one" / split / "1.jpg").write_bytes(b"image")
        file = tmp_path / "one" / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (grid_of("rows: [{label: a}]", data=str(tmp_path / name)).trials[0] for name in ("one", "two"))
    assert one.trial_id == two.trial_id and one.config.data.path != two.config.data.path
    (tmp_path / "two" / "annotations" / "instances_val.json").write_text("{ }")
    assert grid_of("rows: [{label: a}]", data=str(tmp_path / "two")).trials[0].trial_id != one.trial_id


def test_a_relative_data_path_becomes_absolute_for_workers_elsewhere(grid_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = grid_of("rows: [{label: a}]", data="pictures", require_data=False)
    assert grid.trials[0].config.data.path == str(tmp_path / "pictures")


def test_runtime_does_not_count(grid_of):
    text = "rows: [{label: a}]"
    one = grid_of(text).trials[0]
    two = grid_of(text, "runtime.cpus_per_trial=0.5", "runtime.num_workers=3", "runtime.device=cpu").trials[0]
    assert two.runtime.num_workers == 3 and two.runtime.cpus_per_trial == 0.5
    assert one.trial_id == two.trial_id


def test_order_and_spelling_of_numbers_do_not_count(grid_of):
    one = grid_of("base: {model.lambda1: 1, train: {epochs: 3, clip_grad_norm: 1}}\nrows: [{label: a}]")
    two = grid_of("rows: [{label: a}]\nbase: {train: {clip_grad_norm: 1.0, epochs: 3}, model.lambda1: 1.0}")
    assert one.trials[0].trial_id == two.trials[0].trial_id


def test_an_integer_given_in_python_counts_as_the_float_it_stands_for(config):
    assert trial_id(change(config, "model.lambda2", 2), "f") == trial_id(config, "f")


def test_without_heads_their_settings_do_not_count(config):
    plain = change(config, "model.heads", ())
    ids = {trial_id(plain, "f")}
    for name, value in {"auxiliary_loss": False, "positive_queries": False, "lambda1": 3.0}.items():
        ids.add(trial_id(change(plain, f"model.{name}", value), "f"))
    assert len(ids) == 1


def test_id_is_the_first_12_hex_digits(config):
    assert re.fullmatch("[0-9a-f]{12}", trial_id(config, "f"))


def test_identity_is_stable(config):
    """Changing this value makes every recorded trial a new one: raise `SCHEMA` or change a default knowingly."""
    tree = identity(change(config, "model.heads", ()), "f")
    assert set(tree) == {"schema", "model", "data", "train", "evaluate", "seed"}
    assert "path" not in tree["data"] and tree["data"]["fingerprint"] == "f"
    assert json.loads(json.dumps(tree)) == tree


def test_config_survives_a_dictionary(config):
    from model.heads import HEADS

    heads = (HEADS["atss"].Config(num_convs=0), HEADS["atss"].Config())
    config = replace(config, model=replace(config.model, heads=heads), seed=4)
    tree = json.loads(json.dumps(config_to_dict(config)))
    assert tree["model"]["heads"][0]["name"] == "atss"
    assert tree["model"]["heads"][0]["num_convs"] == 0 and tree["model"]["heads"][1]["num_convs"] == 1
    assert config_from_dict(tree) == config


def test_config_of_another_version_is_refused(config):
    tree = config_to_dict(config)
    tree["train"]["epoch"] = 3
    with pytest.raises(UserError, match="train.epoch: unknown key; did you mean 'epochs'"):
        config_from_dict(tree)


def test_a_setting_inside_a_plain_value_is_refused_and_not_silently_put_in_its_place(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("base: {train: 3}\nrows: [{label: a, set: {train.epochs: 2}}]")
    with pytest.raises(UserError) as caught:
        open_grid(path, "digits_fast")
    assert "rows.0.set.train.epochs: train is no mapping that could hold it, see" in str(caught.value)
    assert "base.train" in str(caught.value)
    path.write_text(f"rows: [{{label: a, set: {{train.learning_rate: 1{'0' * 400}}}}}]")
    with pytest.raises(UserError, match="must be finite"):
        open_grid(path, "digits_fast")
