"""Presets of released models: they resolve at every size, have the official numbers of parameters, train as twins."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from harness.__main__ import main
from harness.config import TrainConfig, TrialConfig
from harness.errors import UserError
from harness.report.protocols import protocol_of
from harness.report.released import PRECISION, RELEASED, released
from harness.revisit.beside import protocol_lines
from harness.revisit.key_report import trouble
from harness.spec.grid import expand, open_grid
from harness.spec.presets import preset_files, released_models
from harness.spec.spec import AblationSpec, RowSpec
from harness.spec.strict import Mistakes
from harness.trial.train import build_optimizer, train_step
from model.config import DetectorConfig
from model.detector import Detector
from tests.support.layouts import LAYOUTS, filled, translated
from tests.support.tiny import NUM_CLASSES as OF_TINY
from tests.support.tiny import tiny_batch

NAMES = sorted(released_models(preset_files("", "presets/released"), Mistakes()))
EVERY_NAME = pytest.mark.parametrize("name", NAMES)
NUM_CLASSES = {name: 1203 if "lvis" in name else 80 for name in LAYOUTS}
# Parameters in millions that the authors' models have, refine-mask and mask-IoU heads left out
MILLIONS = {
    "co_deformable_detr_r50_1x_coco": 65.13,
    "co_deformable_detr_swin_large_900q_3x_coco": 235.57,
    "co_dino_5scale_r50_1x_coco": 65.20,
    "co_dino_5scale_swin_large_16e_o365tococo": 235.47,
    "co_dino_5scale_lsj_swin_large_16e_o365tolvis": 246.12,
    "co_dino_5scale_vit_large_coco": 365.37,
    "co_dino_5scale_lsj_vit_large_lvis": 374.88,
}
COUNTS, NOT_BUILT = (
    ("num_batches_tracked", "relative_position_index", "freqs_cos", "freqs_sin"),
    ("mask_head.", "mask_iou_head."),
)
UNPUBLISHED = ("co_deformable_detr_mask_r50_1x_coco", "co_dino_5scale_r50_1x_lvis", "co_dino_5scale_lsj_r50_1x_lvis")
STATISTICS = ("running_mean", "running_var")


@cache
def config_of(name: str, scale: str, *settings: str) -> TrialConfig:
    spec = AblationSpec(name="x", rows=(RowSpec(label="x"),))
    overrides = [f"model.preset={name}", *settings]
    return expand(spec, scale, overrides, require_data=False).trials[0].config


@EVERY_NAME
@pytest.mark.parametrize("scale", ["digits", "digits_fast", "coco_r50_12e"])
def test_every_released_model_resolves_at_every_size(name: str, scale: str) -> None:
    config = config_of(name, scale)
    assert len(config.model.heads) == 2 and config.model.official == (scale == "coco_r50_12e")


def test_every_layout_at_hand_has_its_preset() -> None:
    assert LAYOUTS.keys() <= set(NAMES) and MILLIONS.keys() <= LAYOUTS.keys()


def number_of_values(detector: Detector) -> int:
    """Parameters, and what a fixed norm holds in buffers and the authors' in parameters that are not trained."""
    state = detector.state_dict()
    kept = {name for name, _ in detector.named_parameters()}
    kept |= {
        name for name in state if f"{name.rpartition('.')[0]}.running_var" in state and not name.endswith(STATISTICS)
    }
    return sum(state[name].numel() for name in kept if not name.endswith("num_batches_tracked"))


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_released_model_has_the_official_number_of_parameters(name: str) -> None:
    config = config_of(name, "coco_r50_12e")
    with torch.device("meta"):
        detector = Detector(config.model, NUM_CLASSES[name])
    found = number_of_values(detector)
    shapes = {key: shape for key, shape in LAYOUTS[name].items() if not key.endswith((*COUNTS, *STATISTICS))}
    assert found == sum(torch.Size(shape).numel() for key, shape in shapes.items() if not key.startswith(NOT_BUILT))
    if name in MILLIONS:
        assert round(found / 1e6, 2) == MILLIONS[name]


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_released_layout_fits_its_preset_and_one_changed_key_is_named(name: str) -> None:
    state, preset = filled(LAYOUTS[name]), f"model.preset={name}"
    found = translated(state, preset)
    assert found.fits and {*found.renamed, *found.dropped} == state.keys() and found.num_classes == NUM_CLASSES[name]
    key = next(own for own in found.renamed if own.startswith("neck."))
    renamed = {("neck.mystery" if own == key else own): value for own, value in state.items()}
    assert (
        trouble(translated(renamed, preset)) == f"the weights lack {found.renamed[key]}, have the unknown neck.mystery"
    )
    less = {own: value for own, value in state.items() if own != key}
    assert trouble(translated(less, preset)) == f"the weights lack {found.renamed[key]}"
    other = trouble(translated({**state, key: torch.zeros(())}, preset))
    assert other.startswith(f"the weights have in another shape {found.renamed[key]}: a single number instead of ")


@EVERY_NAME
def test_a_preset_evaluates_as_its_published_numbers_were_measured(name: str) -> None:
    published, federated = released(name), "lvis" in name
    if published is None:
        assert name in UNPUBLISHED
        return
    ours = protocol_of(config_of(name, "coco_r50_12e"), PRECISION, federated=federated)
    assert ours == published.protocol
    lines = protocol_lines(ours, published, name, federated=federated)
    assert not any("differ" in line for line in lines) and any("LVIS" in line for line in lines) == federated


def test_every_published_model_has_a_preset() -> None:
    own = {name.removesuffix("_coco") for name in NAMES}
    assert {name.removesuffix("_coco") for name in RELEASED} <= own


@cache
def three_steps(model: DetectorConfig, train: TrainConfig) -> tuple[float, ...]:
    """The totals; many twins are the same detector."""
    torch.manual_seed(0)
    detector = Detector(model, OF_TINY)
    optimizer, schedule = build_optimizer(detector, train), {"total_steps": 3, "steps_per_epoch": 3}
    steps = (train_step(detector, [tiny_batch()], optimizer, train, step=step, **schedule) for step in range(3))
    return tuple(losses["total"] for losses in steps)


@EVERY_NAME
def test_a_twin_of_each_released_model_trains_three_steps(name: str) -> None:
    config = config_of(name, "digits_fast")
    losses = three_steps(config.model, replace(config.train, epochs=1))
    assert all(math.isfinite(loss) for loss in losses) and losses[0] > 0


# ---- mistakes


@pytest.fixture
def mistakes(tmp_path: Path) -> Callable[[str, str], list[str]]:
    """What is told of a file of released models beside the ablation file."""

    def tell(text: str, name: str = "mine") -> list[str]:
        (tmp_path / "presets" / "released").mkdir(parents=True)
        (tmp_path / "presets" / "released" / "own.yaml").write_text(text, encoding="utf-8")
        (tmp_path / "table.yaml").write_text(f"rows: [{{label: a, set: {{model.preset: {name}}}}}]", encoding="utf-8")
        with pytest.raises(UserError) as caught:
            open_grid(tmp_path / "table.yaml", "digits", (), require_data=False)
        return str(caught.value).replace(f"{tmp_path}/", "").splitlines()

    return tell


FIRST = "the first layer, and no other, names the detector: model.preset"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mine: 3", "mine: must be a list of layers of settings, got 3"),
        ("mine: [3]", "mine: must be a list of layers of settings, got [3]"),
        ("mine: []", f"mine: {FIRST}"),
        ("mine: [{model.heads: [atss]}]", f"mine: {FIRST}"),
        ("mine: [{model.preset: dino_4scale}, {model.preset: dino_5scale}]", f"mine: {FIRST}"),
        (
            "mine: [{model.preset: dino_4scale}, {runtime.ranks: 2}]",
            "mine.1.runtime.ranks: unknown key; known: model, ",
        ),
        ("mine: [{model.preset: dino_4scale}, {digits: 3}]", "mine.1.digits: must be a mapping of settings, got 3"),
    ],
)
def test_mistakes_in_a_file_of_released_models(mistakes: Callable[..., list[str]], text: str, told: str) -> None:
    (line,) = mistakes(text)
    assert line.startswith(f"presets/released/own.yaml:{told}")


def test_the_nearest_released_model_is_named(mistakes: Callable[..., list[str]]) -> None:
    (line,) = mistakes("pieces: []", "co_dino_5scale_r50_1x_cocoa")
    assert line.endswith("unknown detector 'co_dino_5scale_r50_1x_cocoa'; did you mean 'co_dino_5scale_r50_1x_coco'?")


def test_layers_of_ones_own_win_in_their_order(tmp_path: Path) -> None:
    own = "{digits: {model.num_queries: 9}, paper: {model.num_queries: 5}}"
    text = f"mine: [{{model.preset: dino_4scale}}, {{model.num_queries: 7}}, {own}]"
    (tmp_path / "presets" / "released").mkdir(parents=True)
    (tmp_path / "presets" / "released" / "own.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "table.yaml").write_text("rows: [{label: a, set: {model.preset: mine}}]", encoding="utf-8")
    found = [
        open_grid(tmp_path / "table.yaml", scale, require_data=False).trials[0] for scale in ("digits", "coco_r50_12e")
    ]
    assert [trial.config.model.num_queries for trial in found] == [9, 5]


def test_plan_notes_large_backbones_that_start_at_random(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table.yaml").write_text("rows: [{label: a, set: {model.backbone: swin}}]", encoding="utf-8")
    assert main(["plan", str(tmp_path / "table.yaml"), "--preset", "coco_r50_12e"]) == 0
    told = capsys.readouterr()
    assert "1 trial would start from random weights (a Swin Transformer (tiny)), and published results do" in told.err
    assert (
        main(["plan", str(tmp_path / "table.yaml"), "--preset", "coco_r50_12e", "--set", "model.backbone.channels=24"])
        == 0
    )
    assert "random weights" not in capsys.readouterr().err
