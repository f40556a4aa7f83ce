"""`codetr analyse` with files of official programs: a small one of each family detects what our own weights detect."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.__main__ import main
from harness.revisit.key_report import trouble
from harness.spec.grid import expand
from harness.spec.spec import AblationSpec, RowSpec
from model.config import DetectorConfig
from model.detector import Detector
from model.official import translate
from tests.support.folders import CATEGORIES, tables, write_split
from tests.support.official_names import as_co_detr, as_conditional_detr, as_deformable_detr

DIGITS, NUM_LAYERS = 10, 2  # classes, decoder layers
HEADS, OFFICIAL_ORDER = "model.heads=[atss, faster_rcnn]", ("faster_rcnn", "atss")
WITH_BIAS = "model.neck={name: projection, bias: true}"

State = dict[str, Tensor]


def in_mmdetection(state: State) -> dict[str, Any]:
    return {"meta": {"CLASSES": ("a", "b"), "epoch": 12}, "state_dict": as_co_detr(state, OFFICIAL_ORDER, NUM_LAYERS)}


def in_detr(state: State) -> dict[str, Any]:
    return {"model": as_deformable_detr(state, NUM_LAYERS), "args": argparse.Namespace(lr=1e-4), "epoch": 49}


def in_dino(state: State) -> dict[str, Any]:
    averaged = as_deformable_detr(state, NUM_LAYERS, dino=True)
    raw = {name: value + 1 for name, value in averaged.items()}
    return {"model": raw, "ema_model": {f"module.{name}": value for name, value in averaged.items()}}


def in_conditional_detr(state: State) -> dict[str, Any]:
    return {"model": as_conditional_detr(state), "optimizer": {"state": {}, "param_groups": []}}


# family, settings, the official program's file
FAMILIES: dict[str, tuple[tuple[str, ...], Callable[[State], dict[str, Any]]]] = {
    "Co-Deformable-DETR": (("model.preset=deformable_pp", HEADS), in_mmdetection),
    "Co-DINO": (("model.preset=dino_5scale", HEADS), in_mmdetection),
    "Deformable-DETR or H-Deformable-DETR": (("model.preset=h_deformable", WITH_BIAS), in_detr),
    "Deformable-DETR or H-Deformable-DETR, one stage": (("model.preset=deformable", WITH_BIAS), in_detr),
    "DINO": (("model.preset=dino_4scale", WITH_BIAS), in_dino),
    "DAB-DETR": (("model.preset=dab_c5",), in_conditional_detr),
    "Conditional-DETR": (("model.preset=conditional_c5",), in_conditional_detr),
    "Conditional-DETR, in groups": (
        ("model.preset=conditional_c5", "model.groups=[{name: replicas, number: 2}]"),
        in_conditional_detr,
    ),
}


FEW_IMAGES = ("data.digits.num_train=4", "data.digits.num_val=4")


@cache
def config_of(*settings: str) -> DetectorConfig:
    spec = AblationSpec(name="x", rows=(RowSpec(label="x"),))
    return expand(spec, "digits_fast", list(settings), require_data=False).trials[0].config.model


@cache
def trained(config: DetectorConfig, num_classes: int = DIGITS) -> State:
    """Not to be changed. Away from initial values, where attention is uniform and every box the reference itself."""
    torch.manual_seed(0)
    state = Detector(config, num_classes).state_dict()
    equal = {f"positive_queries.{name}.head_embedding" for name in OFFICIAL_ORDER}  # official: one number
    return {
        name: value + 0.05 * (torch.randn(1) if name in equal else torch.randn_like(value))
        for name, value in state.items()
    }


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))


def analyse(file: str, *arguments: str, settings: tuple[str, ...] = ()) -> int:
    changed = [word for setting in (*FEW_IMAGES, *settings) for word in ("--set", setting)]
    return main(["analyse", file, "--preset", "digits_fast", *changed, *arguments])


def read(name: str, table: str) -> Any:
    return json.loads(Path("analysis", name, f"{table}.json").read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_each_family_detects_what_our_own_weights_do(
    family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, as_official = FAMILIES[family]
    state = trained(config_of(*settings))
    torch.save(as_official(state), "official.pth")
    torch.save(state, "native.pth")
    assert analyse("native.pth", "--metrics", "evaluation", settings=settings) == 0
    assert "renamed" not in capsys.readouterr().out  # nothing was
    assert analyse("official.pth", "--metrics", "evaluation", settings=settings) == 0
    out = capsys.readouterr().out
    assert f"official.pth: the names of {family.partition(',')[0]}, under '" in out and "\n  missing 0\n" in out
    found, expected = (read(name, "detections") for name in ("official", "native"))
    assert found == expected and len(found) > 8 and len({str(row["bbox"]) for row in found}) > 8
    assert read("official", "evaluation") == read("native", "evaluation")
    assert set(read("official", "evaluation")["metrics"]) >= {"AP", "AP50", "AR100"}
    keys = read("official", "keys")
    assert keys["family"] == family.partition(",")[0] and not keys["missing"] and not keys["unknown"]
    assert {*keys["renamed"].values()} >= {"backbone.conv1.weight", "encoder.layers.0.feed_forward.0.weight"}


def test_of_several_state_dicts_one_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    settings = FAMILIES["DINO"][0]
    torch.save(in_dino(trained(config_of(*settings))), "both.pth")
    assert analyse("both.pth", "--metrics", "evaluation", settings=settings) == 0
    assert "under 'ema_model'; --entry takes model instead" in capsys.readouterr().out
    averaged = read("both", "detections")
    assert analyse("both.pth", "--metrics", "evaluation", "--entry", "model", settings=settings) == 0
    assert read("both", "detections") != averaged and read("both", "keys")["entry"] == "model"
    assert analyse("both.pth", "--entry", "teacher", settings=settings) == 2
    assert "has no state dict 'teacher'; it has ema_model, model" in capsys.readouterr().err


def test_rows_of_classes_may_be_category_ids(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """DETR's own programs have a row for each number up to the largest category id, and perhaps more."""
    ids = [row["id"] for row in CATEGORIES]
    assert ids != list(range(len(ids)))
    write_split(tmp_path / "data", "val", tables(1))
    arguments = ("--data", "data", "--metrics", "evaluation")
    settings = FAMILIES["Deformable-DETR or H-Deformable-DETR"][0]
    state = trained(config_of(*settings), max(ids) + 2)
    torch.save(in_detr(state), "ids.pth")
    assert analyse("ids.pth", *arguments, settings=settings) == 2
    error = capsys.readouterr().err
    assert f"knows {max(ids) + 2} classes" in error and "as DETR's 91, give --class-rows ids" in error
    assert analyse("ids.pth", "--class-rows", "ids", *arguments, settings=settings) == 0

    def rows(name: str, value: Tensor) -> Tensor:
        if "class_branch" not in name:
            return value
        return value[[0, *ids[1:]]] if name.startswith("queries.") else value[ids]  # there row 0 tells objects

    torch.save({name: rows(name, value) for name, value in state.items()}, "native.pth")
    assert analyse("native.pth", *arguments, settings=settings) == 0
    assert read("ids", "detections") == read("native", "detections")


@pytest.mark.usefixtures("unrendered")
def test_everything_is_looked_at_unless_something_is_named() -> None:
    settings = ("model.preset=deformable_pp", HEADS)
    torch.save(in_mmdetection(trained(config_of(*settings))), "official.pth")
    assert analyse("official.pth", "--images", "2", "--out", "there", settings=settings) == 0
    names = {path.name for path in Path("there").iterdir()}
    assert names >= {
        *("keys.json", "evaluation.json", "detections.json"),
        *("conflict.json", "discriminability.json", "queries.json"),
    }


def test_every_name_is_told_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("model.preset=dino_5scale", "model.heads=[]")
    full = trained(config_of("model.preset=dino_5scale", HEADS))
    torch.save(in_mmdetection(full), "official.pth")
    assert analyse("official.pth", "--verbose", "--metrics", "evaluation", settings=settings) == 0
    out = capsys.readouterr().out
    assert "\n    query_head.transformer.level_embeds → level_embedding\n" in out
    assert "\n    roi_head.0.bbox_head.fc_cls.bias: a head that the configuration does not have\n" in out
    assert "\n    query_head.downsample.0.weight: the adapter of heads, where the configuration has none\n" in out
    names = Detector(config_of(*settings), DIGITS).state_dict().keys()
    torch.save({name: full[name] for name in names}, "native.pth")
    assert analyse("native.pth", "--metrics", "evaluation", settings=settings) == 0
    assert read("official", "detections") == read("native", "detections")


def change_nothing(official: State) -> None: ...


@pytest.mark.parametrize(
    ("edit", "settings", "told"),
    [
        (lambda own: own.update({"query_head.mystery": torch.zeros(1)}), (), "have the unknown query_head.mystery"),
        (lambda own: own.pop("rpn_head.rpn_cls.bias"), (), "lack heads.faster_rcnn.stages.proposals.objectness.bias"),
        (
            change_nothing,
            ("model.num_queries=13",),
            "have in another shape queries.content.weight: 12x32 instead of 13x32",
        ),
        (
            change_nothing,
            ("model.transformer.num_encoder_layers=0",),
            "have besides query_head.transformer.encoder.layers.0.",
        ),
        (change_nothing, ("model.heads=[retinanet]",), "lack heads.retinanet."),
        (
            lambda own: [own.pop(name) for name in list(own) if "_branches" in name],
            (),
            "no names of a detector that is",
        ),
        (
            lambda own: own.update({"backbone.layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(1)}),
            (),
            "its backbone looks like a Swin Transformer",
        ),
    ],
)
def test_nothing_is_guessed(
    edit: Callable[[State], object],
    settings: tuple[str, ...],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = ("model.preset=dino_5scale", HEADS)
    official = in_mmdetection(trained(config_of(*named)))["state_dict"]
    edit(official)
    torch.save({"state_dict": official}, "official.pth")
    assert analyse("official.pth", settings=(*named, *settings)) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: official.pth: ") and told in error
    assert not Path("analysis").exists()


@pytest.mark.parametrize(
    ("family", "name", "shape", "told"),
    [
        ("Co-Deformable-DETR", "bbox_head.0.scales.1.scale", (2,), "have besides bbox_head.0.scales.1.scale"),
        ("Co-Deformable-DETR", "query_head.transformer.head_pos_embed.weight", (2, 3), "have besides query_head."),
        ("Co-Deformable-DETR", "query_head.transformer.head_pos_embed.weight", (), "have besides query_head."),
        ("DINO", "module.class_embed.0.weight", (), "decoder.class_branches.0.weight: a single number instead of"),
        ("DINO", "module.label_enc.weight", (), "groups.denoising.label_embedding: a single number instead of"),
        ("DINO", "module.label_enc.weight", (4, 32), "groups.denoising.label_embedding: 4x32 instead of 5x32"),
        ("DAB-DETR", "class_embed.bias", (), "decoder.class_branch.bias: a single number instead of 5"),
        ("DAB-DETR", "class_embed.bias", (4,), "decoder.class_branch.bias: 4 instead of 5"),
    ],
)
def test_a_tensor_of_any_shape_is_told_by_name(family: str, name: str, shape: tuple[int, ...], told: str) -> None:
    settings, as_official = FAMILIES[family]
    config = config_of(*settings)
    (official,) = (state for state in as_official(trained(config)).values() if name in state)
    official[name] = torch.zeros(shape)
    found = translate(official, config, category_ids=(1, 3, 5, 7, 9))
    assert told in trouble(found)


def test_what_nobody_knows_can_be_left_out_by_name() -> None:
    settings = ("model.preset=dino_5scale", HEADS)
    official = in_mmdetection(trained(config_of(*settings)))["state_dict"]
    torch.save(official | {"mask_head.a": torch.zeros(1), "mask_head.b": torch.zeros(1)}, "official.pth")
    assert analyse("official.pth", "--drop", "mask_head.", "--metrics", "evaluation", settings=settings) == 0
    assert read("official", "keys")["dropped"] == dict.fromkeys(("mask_head.a", "mask_head.b"), "asked for")


@pytest.mark.parametrize("compatibility", ["default", "official"])
def test_a_head_s_embedding_is_one_number_there(compatibility: str) -> None:
    config = config_of("model.preset=deformable_pp", "model.heads=[atss, mask_rcnn, atss]")
    config = DetectorConfig(**{**config.__dict__, "compatibility": compatibility})
    order = ("mask_rcnn", "atss", "atss.2")
    state = {name: value.clone() for name, value in trained(config).items()}
    for number, name in enumerate(order):
        state[f"positive_queries.{name.replace('.', ':')}.head_embedding"].fill_(number)
    found = translate(as_co_detr(state, order, NUM_LAYERS), config)
    assert found.fits and all(torch.equal(value, state[name]) for name, value in found.tensors.items())
    embedding = found.tensors["positive_queries.atss:2.head_embedding"]
    assert embedding.tolist() == [2.0] * (1 if compatibility == "official" else 32)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--entry", "model"], "--entry is about files of weights, and trial abcdefabcdef is none"),
        (["--class-rows", "ids"], "--class-rows is about files of weights"),
        (["--metrics", "evaluation"], "--metrics evaluation: trial abcdefabcdef has evaluated itself"),
    ],
)
def test_a_trial_is_no_file(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.revisit import asked
    from harness.revisit.trained import Found
    from harness.store.results import RunStore

    store = RunStore()
    store.write_result("abcdefabcdef", {"trial_id": "abcdefabcdef", "status": "finished"})
    found = Found("abcdefabcdef", None, Path("weights"), 1, "trial abcdefabcdef")  # type: ignore[arg-type]
    monkeypatch.setattr(asked, "read_trial", lambda store, name: found)
    assert main(["analyse", "abcdef", *arguments]) == 2
    assert told in capsys.readouterr().err
