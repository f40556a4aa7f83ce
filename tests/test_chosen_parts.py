"""Parts of a detector in what people write: names and mappings, layer over layer, and what becomes of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.__main__ import main
from harness.choose import choose
from harness.compare import differences
from harness.config import DataConfig, TrainConfig, TrialConfig
from harness.errors import UserError
from harness.spec.grid import Grid, open_grid
from harness.spec.identity import config_from_dict, config_to_dict, identity, recorded_id, trial_id
from harness.spec.parts import LISTS, ROOMS, SINGLE, default_part, part_name
from harness.spec.pretrained import check_backbones, check_start
from harness.tracking.views import params_of, varied
from model.backbones.configs import ResNetConfig
from model.checks import FORBID_UNKNOWN
from model.config import DetectorConfig
from model.decoders import DECODERS
from model.decoders.configs import DeformableDecoderConfig
from model.encoders import ENCODERS
from model.groups import GROUPS
from model.parts import Parts
from model.proposals.configs import BinaryConfig, LearnedConfig
from tests.support.own_parts import Inner, Mine, Yours, install

ROOT = Path(__file__).parents[1]
PRESET = "mine"  # a preset beside the file
EVERY_FIELD = pytest.mark.parametrize("field", list(ROOMS))
EVERY_SINGLE = pytest.mark.parametrize("field", SINGLE)
ONE_STAGE = {"model.two_stage": False, "model.mixed_selection": False}
# what a part needs that is not the default
BESIDE: dict[tuple[str, str], dict[str, Any]] = {
    ("proposals", "learned"): ONE_STAGE,
    ("proposals", "anchors"): {**ONE_STAGE, "model.decoder": {"name": "deformable", "position": "reference"}},
    ("decoder", "conditional"): {**ONE_STAGE, "model.box_refinement": False, "model.look_forward_twice": False},
    ("adapter", "single_scale"): {"model.transformer.num_levels": 1, "model.backbone.stages": [4]},
    ("neck", "simple_fpn"): {"model.backbone": {"name": "vit"}},
}


@pytest.fixture(autouse=True)
def own_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mine` and `yours` in every room."""
    install(monkeypatch)


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """An ablation file of these parts, and the preset `mine` beside it."""

    def make(preset: dict[str, Any] | None = None, **spec: Any) -> Path:
        (tmp_path / "presets").mkdir(exist_ok=True)
        (tmp_path / "presets" / f"{PRESET}.yaml").write_text(yaml.safe_dump(preset or {"train.epochs": 3}))
        path = tmp_path / "table.yaml"
        path.write_text(yaml.safe_dump({"rows": [{"label": "a"}], **spec}, sort_keys=False))
        return path

    return make


def opened(path: Path, *overrides: str) -> Grid:
    return open_grid(path, PRESET, overrides, require_data=False)


def model_of(path: Path, *overrides: str) -> DetectorConfig:
    return opened(path, *overrides).trials[0].config.model


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        opened(path, *overrides)
    return str(caught.value).replace(f"{path.parent}/", "").splitlines()


def ids(grid: Grid) -> list[str]:
    return [trial.trial_id for trial in grid.trials]


def row(**settings: Any) -> dict[str, Any]:
    return {"rows": [{"label": "a", "set": {f"model.{key}": value for key, value in settings.items()}}]}


# ---- one trial, however it is written


@EVERY_SINGLE
def test_a_name_a_mapping_with_the_defaults_and_no_word_at_all_are_one_trial(write: Write, field: str) -> None:
    name, trial = part_name(field, None), TrialConfig(DetectorConfig(), DataConfig(), TrainConfig())
    settings = config_to_dict(trial)["model"][field] or {}
    plain, with_head = (ids(opened(write(**row(heads=heads)))) for heads in ([], ["atss"]))
    for written in (name, {"name": name}, {}, settings, {**settings, "name": name}):
        assert ids(opened(write(**row(heads=["atss"], **{field: written})))) == with_head
        assert ids(opened(write(base={f"model.{field}": written}))) == plain
        assert ids(opened(write(), f"model.{field}={json.dumps(written)}")) == plain


def test_old_keys_and_the_name_are_one_trial(write: Write) -> None:
    old = opened(write(base={"model": {"backbone": {"width": 32, "norm": "group"}}}))
    new = opened(write(base={"model.backbone": {"norm": "group", "name": "resnet"}, "model.backbone.width": 32}))
    assert ids(old) == ids(new) and old.trials == new.trials
    assert old.trials[0].config.model.backbone == ResNetConfig(width=32, norm="group")


@EVERY_FIELD
def test_another_part_and_its_settings_make_another_trial(write: Write, field: str) -> None:
    def written(value: Any) -> Any:
        return [value] if field in LISTS else value

    heads = {} if field == "heads" else {"heads": ["atss"]}
    forms = [
        *("mine", "yours", {"name": "mine", "size": 4}, {"name": "mine", "inner": {"ratio": 0.25}}),
        {"name": "yours", "depth": 2},
    ]
    found = [ids(opened(write(**row(**heads, **{field: written(form)})))) for form in forms]
    assert len({tuple(found) for found in [*found, ids(opened(write(**row(**heads))))]}) == len(forms) + 1
    same = [{"name": "mine"}, {"name": "mine", "size": 3, "inner": {}}, {"name": "mine", "inner": {"ratio": 0.5}}]
    assert {tuple(ids(opened(write(**row(**heads, **{field: written(form)}))))) for form in same} == {tuple(found[0])}
    newer = {"name": "yours", "depth": 1}  # a newer setting counts only where it was changed
    assert ids(opened(write(**row(**heads, **{field: written(newer)})))) == found[1]


def test_only_the_name_that_stood_there_before_parts_had_names_is_in_no_id() -> None:
    model = DetectorConfig(backbone=ResNetConfig(width=8), decoder=DeformableDecoderConfig(position="other"))
    tree = identity(TrialConfig(model, DataConfig(), TrainConfig()), "f")["model"]
    assert "name" not in tree["backbone"] and tree["decoder"] == {"name": "deformable", "position": "other"}
    assert not {"neck", "encoder", "adapter", "proposals", "classification", "assign", "groups", "postprocess"} & set(
        tree
    )


def test_without_heads_an_adapter_has_no_effect(write: Write) -> None:
    plain, other = (opened(write(**row(heads=[], adapter=name))) for name in ("coarser", "mine"))
    assert ids(plain) == ids(other) and plain.trials == other.trials
    assert ids(opened(write(**row(heads=["atss"], adapter="mine")))) != ids(opened(write(**row(heads=["atss"]))))


@EVERY_FIELD
def test_a_record_holds_names_and_gives_the_same_trial(write: Write, field: str) -> None:
    part = {"name": "mine", "size": 7, "inner": {"ratio": 0.25}}
    value: Any = [part, "yours"] if field in LISTS else part
    (trial,) = opened(write(**row(**{"heads": ["atss"], field: value}))).trials
    tree = json.loads(json.dumps(config_to_dict(trial.config)))
    told = tree["model"][field][0] if field in LISTS else tree["model"][field]
    assert told == {"name": "mine", "size": 7, "most": 100, "inner": {"ratio": 0.25}}
    assert config_from_dict(tree) == trial.config
    assert recorded_id({"config": tree, "fingerprint": trial.fingerprint}) == trial.trial_id


def test_a_record_of_before_parts_had_names_is_read_as_before() -> None:
    records = sorted((ROOT / "docs" / "mini-paper" / "first" / "store" / "runs").glob("*/result.json"))
    for record in map(json.loads, (path.read_text() for path in records[:3])):
        model = config_from_dict(record["config"]).model
        assert not {"neck", "groups", "proposals"} & record["config"]["model"].keys()
        assert isinstance(model.backbone, ResNetConfig) and (model.proposals, model.groups) == (None, ())
        assert [type(getattr(model, name)) for name in SINGLE if name != "proposals"] == [
            type(default_part(name)) for name in SINGLE if name != "proposals"
        ]
        newer = {**record, "config": config_to_dict(config_from_dict(record["config"]))}
        assert newer["config"]["model"]["backbone"]["name"] == "resnet"
        assert differences(record, newer) == []


# ---- layers


LAYERED: list[tuple[dict[str, Any], dict[str, Any], list[str], Any]] = [
    # preset, the file, --set, what stands there
    ({"model.neck": {"name": "mine", "size": 7}}, row(neck="mine"), [], Mine.Config(size=7)),
    ({"model.neck": {"name": "mine", "size": 7}}, row(neck="yours"), [], Yours.Config()),
    ({"model.neck": {"name": "mine", "size": 7}}, row(neck={"most": 8}), [], Mine.Config(size=7, most=8)),
    ({"model.neck": "mine"}, row(neck={"size": 7}), [], Mine.Config(size=7)),
    ({"model.neck": "mine"}, row(neck={"inner": {"ratio": 0.1}}), [], Mine.Config(inner=Inner(0.1))),
    ({"model": {"neck": {"name": "mine"}}}, row(neck={"size": 7, "name": "yours"}), [], Yours.Config(size=7)),
    ({"model.neck": "mine"}, row(neck={}), ["model.neck.size=7"], Mine.Config(size=7)),
    ({"model.neck": {"name": "mine", "size": 7}}, row(neck="projection"), ["model.neck=mine"], Mine.Config()),
    ({}, {"base": {"model.neck.size": 7, "model.neck.name": "mine"}}, [], Mine.Config(size=7)),
    ({}, {"base": {"model.neck": "mine"}, "presets": {PRESET: {"model.neck.size": 7}}}, [], Mine.Config(size=7)),
    ({}, {"base": {"model.neck.name": "mine", "model.neck.size": 4}, **row(neck="mine")}, [], Mine.Config(size=4)),
    ({}, {"base": {"model.neck": "yours"}, "axes": {"model.neck": ["mine"]}}, ["model.neck.size=7"], Mine.Config(7)),
    ({}, {"axes": {"model.neck.size": [7], "model.neck": ["mine"]}}, [], Mine.Config(7)),
    ({}, {"axes": {"model.neck": [{"name": "mine", "size": 7}]}}, ["model.neck={most: 9}"], Mine.Config(7, most=9)),
    ({}, {}, ["model.neck.size=7", "model.neck=mine"], Mine.Config(7)),
    ({}, {}, ["model.neck=yours", "model.neck.size=7", "model.neck.name=mine"], Mine.Config(7)),
    ({}, {}, ["model={neck: mine}", "model.neck={size: 7}"], Mine.Config(7)),
]


@pytest.mark.parametrize(("preset", "spec", "overrides", "expected"), LAYERED)
def test_layers(write: Write, preset: Any, spec: Any, overrides: list[str], expected: Any) -> None:
    assert model_of(write(preset or None, **spec), *overrides).neck == expected


def test_another_backbone_starts_afresh(write: Write) -> None:
    preset = {"model": {"backbone": {"width": 8, "norm": "group", "stages": [3, 4], "frozen_stages": -1}}}
    assert model_of(write(preset, **row(backbone={"name": "mine"}))).backbone == Mine.Config()
    again = model_of(write(preset, **row(backbone={"name": "mine"})), "model.backbone=resnet")
    assert again.backbone == ResNetConfig()  # nothing of the preset's
    assert model_of(write(preset, **row(backbone="resnet"))).backbone.width == 8
    assert model_of(write(preset, **row(backbone={"depths": [1, 1, 1, 1]}))).backbone.width == 8


def test_a_search_draws_parts_and_their_settings(write: Write) -> None:
    space = {"model.neck.size": {"integer": [2, 9]}, "model.neck": {"choice": ["mine", {"name": "yours"}]}}
    path = write(rows=[], base={"model.decoder": "mine"}, search={"space": space, "num_trials": 6})
    found = [trial.config.model.neck for trial in opened(path).trials]
    assert {type(neck) for neck in found} == {Mine.Config, Yours.Config} and len({neck.size for neck in found}) > 1
    own = {"model.neck.size": {"integer": [2, 9]}}
    for searched in (path, write(rows=[], base={"model.neck": "mine"}, search={"space": own, "num_trials": 2})):
        told = mistakes(searched, "model.neck=mine")
        assert told[0] == "--set model.neck: table.yaml searches over it; take it out of search.space"


# ---- proposals follow from two_stage


def test_proposals_that_follow_anyway_are_as_good_as_not_named(write: Write) -> None:
    for settings, name in (({}, "binary"), (ONE_STAGE, "learned")):
        plain = opened(write(base=settings))
        for written in (name, {"name": name}, None, {}):
            named = opened(write(base={**settings, "model.proposals": written}))
            assert ids(named) == ids(plain) and named.trials[0].config.model.proposals is None
        assert (
            plain.trials[0].config.model.proposals_or_default
            == {"binary": BinaryConfig(), "learned": LearnedConfig()}[name]
        )


def test_null_goes_back_to_what_follows(write: Write) -> None:
    preset = {"model.proposals": {"name": "mine", "size": 9}}
    assert model_of(write(preset)).proposals == Mine.Config(9)
    assert model_of(write(preset, **row(proposals=None))).proposals is None
    assert model_of(write(preset, **row(proposals=None)), "model.proposals={name: yours}").proposals == Yours.Config()
    assert model_of(write(preset), *(f"{key}=false" for key in ONE_STAGE)).proposals == Mine.Config(9)  # goes with both


@pytest.mark.parametrize(
    ("settings", "overrides", "told"),
    [
        (
            {"model.proposals": "learned"},
            [],
            "table.yaml:base.model.proposals=learned: the proposals learned need two_stage: false; "
            "two_stage is true (the default); change it too",
        ),
        (
            {"model.proposals": {"name": "binary"}},
            ["model.two_stage=false", "model.mixed_selection=false"],
            "--set model.two_stage=false: the proposals binary need two_stage: true; "
            "proposals is binary (table.yaml:base.model.proposals.name); change it too",
        ),
    ],
)
def test_proposals_that_do_not_go_with_two_stage(write: Write, settings: Any, overrides: list[str], told: str) -> None:
    assert mistakes(write(base=settings), *overrides) == [told]


def test_a_mistaken_two_stage_brings_no_second_line(write: Write) -> None:
    told = mistakes(write(base={"model.two_stage": "no", "model.proposals": "learned"}))
    assert told == ["table.yaml:base.model.two_stage: must be true or false, got the text 'no'"]


# ---- mistakes


# those that can be chosen, with the two of these tests
GROUP_NAMES = sorted([*GROUPS.names, "mine", "yours"])
ENCODER_NAMES = sorted([*ENCODERS.names, "mine", "yours"])
DECODER_NAMES = ", ".join(sorted([*DECODERS.names, "mine", "yours"]))
ANY = f"must be a name (known: {', '.join(ENCODER_NAMES)})"
OF_MINE = "unknown key of the neck mine"
MISTAKES: list[tuple[str, str]] = [  # settings of the model, where they are mistaken and what is said
    (
        "decoder: deformabel",
        f"decoder: unknown decoder 'deformabel'; did you mean 'deformable'? known: {DECODER_NAMES}",
    ),
    ("decoder: {name: x}", f"decoder.name: unknown decoder 'x'; known: {DECODER_NAMES}"),
    ("encoder: 3", f"encoder: {ANY} or a mapping of settings, got 3"),
    ("encoder: null", f"encoder: {ANY} or a mapping of settings, got null"),
    ("encoder: [mine]", f'encoder: {ANY} or a mapping of settings, got ["mine"]'),
    ("encoder: {name: 3}", f"encoder.name: {ANY}, got 3"),
    ("encoder: {name: null}", f"encoder.name: {ANY}, got null"),
    ("neck: {name: mine, sise: 3}", f"neck.sise: {OF_MINE}; did you mean 'size'?"),
    ("neck: {name: mine, xyz: 3}", f"neck.xyz: {OF_MINE}; known: name, size, most, inner"),
    ("neck: {name: mine, inner: {rato: 1}}", f"neck.inner.rato: {OF_MINE}; did you mean 'ratio'?"),
    ("neck: {name: mine, size: big}", "neck.size: must be a whole number, got the text 'big'"),
    ("neck: {name: mine, size: 0}", "neck.size: size must be at least 1, got 0"),
    ("neck: {name: mine, inner: 3}", "neck.inner: must be a mapping (key: value), got 3"),
    (
        "neck: {name: mine, size: 9, most: 8}",
        "neck.most=8: size must not exceed most; size is 9 (table.yaml:base.model.neck.size); change it too",
    ),
    (
        "neck: {name: mine, size: 101}",
        "neck.size=101: size must not exceed most; most is 100 (the default); change it too",
    ),
    ("{neck: mine, neck.name: mine}", "neck.name: set twice, nested and dotted; remove one"),
    ("neck: {nam: mine}", "neck.nam: unknown key of the neck projection; did you mean 'name'?"),
    ("backbone: {wdith: 3}", "backbone.wdith: unknown key of the backbone resnet; did you mean 'width'?"),
    ("backbone: {learning_rate: 3}", "backbone.learning_rate: unknown key; did you mean 'train.learning_rate'?"),
    (
        "groups: mine",
        f"groups: must be a list of query groups such as [{GROUP_NAMES[0]}], or [] for none, got the text 'mine'",
    ),
    (
        "groups: [main]",
        "groups.0: the query group main follows from two_stage and num_queries and is never listed; take it out",
    ),
    (
        "groups: [mine, {name: positives}]",
        "groups.1: the query group positives follows from heads and positive_queries and is never listed; take it out",
    ),
    (
        "groups: [denoise]",
        f"groups.0: unknown query group 'denoise'; did you mean 'denoising'? known: {', '.join(GROUP_NAMES)}",
    ),
    ("groups: [null]", f"groups.0: must be a name (known: {', '.join(GROUP_NAMES)}), got null"),
    ("groups: [{size: 3}]", f"groups.0: a query group needs a name; known: {', '.join(GROUP_NAMES)}"),
    ("groups: [{name: mine, sise: 3}]", "groups.0.sise: unknown key; did you mean 'size'?"),
    (
        "groups: [{name: mine, size: 9, most: 8}]",
        "groups.0.size=9: size must not exceed most; most is 8 (table.yaml:base.model.groups.0.most); change it too",
    ),
]


@pytest.mark.parametrize(("settings", "told"), MISTAKES)
def test_each_mistake_is_one_line_where_it_was_written(write: Write, settings: str, told: str) -> None:
    assert mistakes(write(base={"model": yaml.safe_load(settings)})) == [f"table.yaml:base.model.{told}"]


def test_an_option_of_a_part_that_a_lower_layer_named_is_told_with_its_name(write: Write) -> None:
    path = write({"model.backbone": "mine"})
    assert mistakes(path, "model.backbone.width=32") == [
        "--set model.backbone.width: unknown key of the backbone mine; known: name, size, most, inner"
    ]


def test_parts_with_one_config_are_told(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROOMS["neck"], "child", type("Child", (Mine,), {}))
    assert mistakes(write(base={"model.neck": "child"})) == [
        "table.yaml:base.model.neck: the neck child has the Config of mine; give it a class of its own"
    ]


def test_mistakes_of_several_parts_come_together(write: Write) -> None:
    base = {"model": {"neck": "nek", "decoder": {"position": "left"}, "num_queries": 0, "groups": ["main"]}}
    assert len(mistakes(write(base=base), "model.backbone.width=x")) == 5


# ---- a backbone without the fields of a ResNet


def test_a_backbone_that_has_no_such_field_is_asked_for_none(write: Write, tmp_path: Path) -> None:
    preset = {"model.backbone.stages": [1, 2, 3, 4], "model.backbone.norm": "batch"}
    path = write(preset, **row(backbone="mine"))
    grid = opened(path, "model.transformer.num_levels=1", "runtime.ranks=2")  # the ResNet's stages do not count
    (trial,) = grid.trials
    assert trial.config.model.backbone == Mine.Config() and trial.has_id and trial.weights_hash is None
    check_backbones([trial])
    check_start(trial)
    assert trial.trial_id == trial_id(trial.config, trial.fingerprint)


class Weighty:
    """A backbone that has the fields that the program asks for."""

    @dataclass(frozen=True)
    class Config:
        """Its settings."""

        __pydantic_config__ = FORBID_UNKNOWN
        weights: str | None = None
        stages: tuple[int, ...] = (1, 2)
        norm: str = "batch"
        random_frozen: bool = False

        @property
        def frozen_at_random(self) -> str:
            return "" if self.weights else "the patches"


def test_a_backbone_that_has_such_fields_is_treated_as_a_resnet(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROOMS["backbone"], "weighty", Weighty)
    path = write(base={"model.backbone": "weighty"})
    assert mistakes(path, "model.transformer.num_levels=1") == [
        "--set model.transformer.num_levels=1: transformer.num_levels must not be smaller than the number of "
        "backbone.stages; backbone.stages is [1, 2] (the default); change it too"
    ]
    (told,) = mistakes(path, "runtime.ranks=2")
    assert told.startswith("--set runtime.ranks=2: norm: batch takes its statistics from one process")
    with pytest.raises(UserError, match="would freeze random weights \\(the patches\\)"):
        check_backbones(opened(path).trials)
    check_backbones(opened(path, "model.backbone.random_frozen=true").trials)
    contents = []
    for number in range(3):
        (tmp_path / f"{number}.pth").write_text(str(number % 2))
        contents.append(ids(opened(path, f"model.backbone.weights={tmp_path / str(number)}.pth"))[0])
    assert contents[0] == contents[2] != contents[1]  # a file counts by what is in it


# ---- how people see them


def test_labels_show_parts(write: Write) -> None:
    path = write(
        axes={"model.decoder": ["deformable", "mine", {"name": "mine", "size": 4}]},
        rows=[],
        baseline={"model.decoder": "mine"},
    )
    grid = opened(path)
    assert [trial.label for trial in grid.trials] == ["decoder=deformable", "decoder=mine", "decoder=mine(size=4)"]
    assert [row.label for row in grid.rows] == [trial.label for trial in grid.trials]
    assert grid.baseline == "decoder=mine"
    assert [trial.factors["model.decoder"] for trial in grid.trials] == ["deformable", "mine", "mine(size=4)"]


def test_labels_show_settings_alone_where_all_have_the_same_part(write: Write) -> None:
    path = write(
        base={"model.neck": "mine"}, rows=[], axes={"model.neck.size": [3, 4], "model.backbone.width": [8, 16]}
    )
    assert [trial.label for trial in opened(path).trials][:2] == ["width=8 size=3", "width=16 size=3"]


@pytest.mark.parametrize("key", ["model.backbone", "model.backbone.name"])
@pytest.mark.parametrize("name", ["backbone", "backbone.name", "model.backbone", "model.backbone.name"])
def test_only_takes_a_part_by_any_of_its_names(write: Write, key: str, name: str) -> None:
    grid = opened(write(axes={key: ["mine", "yours"]}))
    [chosen] = choose(grid, [f"{name}=yours"])
    [trial] = [trial for trial in grid.trials if trial.trial_id == chosen]
    assert trial.config.model.backbone == Yours.Config()


def test_labels_show_groups_and_proposals(write: Write) -> None:
    rows = [{"label": name, "set": settings} for name, settings in {
        "plain": {},
        "groups": {"model.groups": ["yours", {"name": "mine", "size": 100}]},
        "proposals": {"model.proposals": {"name": "yours", "depth": 2}},
    }.items()]  # fmt: skip
    grid = opened(write(rows=rows))
    assert [trial.label for trial in grid.trials] == [
        "proposals=binary groups=none",
        "proposals=binary groups=yours+mine(size=100)",
        "proposals=yours(depth=2) groups=none",
    ]


def test_mlflow_has_a_column_for_what_differs(write: Write) -> None:
    rows = [{"label": name, "set": settings} for name, settings in {
        "plain": {},
        "groups": {"model.groups": ["yours", {"name": "mine", "size": 99}, "mine"]},
        "parts": {"model.decoder": {"name": "yours", "size": 1}, "model.classification": "mine"},
        "backbone": {"model.backbone": "mine"},
    }.items()]  # fmt: skip
    configs = [config_to_dict(trial.config) for trial in opened(write(rows=rows)).trials]
    assert set(varied(configs)) >= {"backbone", "decoder", "groups", "classification.name"}
    params = [params_of(config) for config in configs]
    assert [own["decoder"] for own in params] == ["deformable", "deformable", "yours", "deformable"]
    assert params[0]["decoder.position"] == "learned" and params[2]["decoder.size"] == 1
    assert (params[1]["groups"], params[1]["groups.mine.2.size"]) == ("YoMi*2", 3) and params[0]["groups"] == "none"
    assert all(isinstance(value, str | int | float | bool) for own in params for value in own.values())
    assert params[0]["classification"] == 2.0  # the weight of the loss keeps its name


def test_diff_names_the_parts(write: Write) -> None:
    pairs = [{}, {"model.neck": {"name": "mine", "size": 4}}, {"model.neck": "mine"}, {"model.groups": ["mine"]}]
    rows = [{"label": str(index), "set": settings} for index, settings in enumerate(pairs)]
    plain, sized, mine, grouped = ({"config": config_to_dict(t.config)} for t in opened(write(rows=rows)).trials)
    assert differences(plain, sized) == [("model.neck.name", "projection", "mine")]
    assert differences(mine, sized) == [("model.neck.size", "3", "4")]
    assert differences(plain, grouped) == [("model.groups", "none", "mine")]


def test_a_grid_of_another_part_has_a_name_of_its_own_however_it_is_written(write: Write) -> None:
    path = write()
    grids = [opened(path, f"model.decoder{text}") for text in ("=mine", ".name=mine", "={name: mine}")]
    assert {grid.key for grid in grids} == {grids[0].key} and grids[0].heading == "table (mine, model.decoder=mine)"


def test_a_row_whose_part_is_replaced_says_so(write: Write) -> None:
    rows = [{"label": "a", "set": {"model.neck": {"name": "mine", "size": 4}}, "published": {"AP": 1.0}}]
    for override in ("model.neck=yours", "model.neck.name=yours"):
        (made,) = opened(write(rows=rows), override).rows
        assert made.label == "a [model.neck=yours]" and not made.published
    named = write(rows=[{"label": "a", "set": {"model.neck": "mine"}, "published": {"AP": 1.0}}])
    (made,) = opened(named, "model.neck.size=9").rows  # who names a part says all of it
    assert made.label == "a [model.neck.size=9]" and not made.published
    assert opened(named, "model.decoder=mine").rows[0].published


# ---- no torch


def loaded(code: str, *argv: str, cwd: Path = ROOT) -> set[str]:
    """The modules that a command loads in a process of its own."""
    text = (
        f"import sys; {code}; from harness.__main__ import main; assert main({list(argv)!r}) == 0; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", text], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_planning_any_built_in_part_loads_no_torch(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the parts of one's own
    rows = []
    for field, parts in ROOMS.items():
        for name in parts.names:
            own: dict[str, Any] = {f"model.{field}": [name] if field in LISTS else {"name": name}}
            own |= BESIDE.get((field, name), {})
            rows.append({"label": f"{field} {name}", "set": own})
    large = {
        "train_short_sides": [1600],
        "eval_short_side": 1600,
        "max_long_side": 1600,
    }  # tokens for all their queries
    path = write(rows=rows, base={"data": large})
    heads = f"model.heads=[{', '.join(ROOMS['heads'].names)}]"
    for argv in (["plan", str(path), "--preset", PRESET, "--set", heads], ["status", str(path), "--preset", PRESET]):
        assert not {"torch", "torchvision", "mlflow", "ray"} & loaded("pass", *argv)


def test_reporting_from_records_loads_no_torch(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = ROOT / "docs" / "mini-paper" / "first" / "store"
    quick = ("report", str(ROOT / "ablations" / "quickstart.yaml"), "--from", "records", "--store", str(store))
    assert "torch" not in loaded("pass", *quick, "--format", "md,csv", "--out", str(tmp_path / "out"))


OWN_FILE = """
from dataclasses import dataclass
import torch

class Net(torch.nn.Module):
    @dataclass(frozen=True)
    class Config:
        __pydantic_config__ = {"extra": "forbid"}
        width: int = 4
"""


def test_a_part_of_ones_own_loads_torch_where_it_is_named(write: Write, tmp_path: Path) -> None:
    (tmp_path / "own_net.py").write_text(OWN_FILE)
    line = f"sys.path.insert(0, {str(tmp_path)!r}); from model.backbones import BACKBONES as rooms; "
    line += "rooms['net'] = 'own_net:Net'"
    path = str(write(rows=[{"label": "a", "set": {"model.heads": ["atss"]}}]))
    argv = ("plan", path, "--preset", PRESET)
    assert "torch" not in loaded(line, *argv)
    assert "torch" in loaded(line, *argv, "--set", "model.backbone={name: net, width: 5}")


# ---- the rooms themselves


@EVERY_FIELD
def test_every_config_refuses_what_it_does_not_know_and_leaves_the_name_alone(field: str) -> None:
    """A name and the settings stand in one mapping, and pydantic takes unknown keys in silence unless told not to."""
    parts: Parts = ROOMS[field]
    for name in parts:
        kind = parts.config_of(name)
        assert kind.__pydantic_config__ == FORBID_UNKNOWN and "name" not in kind.__dataclass_fields__, name
        assert parts.name_of(kind()) == name


def test_plan_takes_a_part_by_set_and_by_row(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(**row(decoder={"name": "deformable", "position": "learned"}))
    assert main(["plan", str(path), "--preset", PRESET, "--set", "model.backbone.width=32"]) == 0
    assert main(["plan", str(path), "--preset", PRESET, "--set", "model.decoder=sparse"]) == 2
    assert f"--set model.decoder: unknown decoder 'sparse'; known: {DECODER_NAMES}" in capsys.readouterr().err
    assert model_of(path).decoder == DeformableDecoderConfig()
