"""Backbones of transformers by the library's own names: what is measured, what is refused, and whose files fit."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from harness.errors import UserError
from harness.spec.grid import Trial, expand
from harness.spec.identity import config_from_dict, config_to_dict
from harness.spec.pretrained import check_backbones, check_norms
from harness.spec.spec import AblationSpec, RowSpec
from model.backbones import from_transformers
from model.backbones.auto import AutoBackbone, check_weights
from model.backbones.configs import AutoBackboneConfig
from model.detector import Detector
from tests.support.rooms import padded_batch, unmasked
from tests.support.tiny import NUM_CLASSES, tiny_config

CONVNEXT = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 16}

SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}


def auto(model: str = "convnext", settings: dict[str, Any] | None = None, **more: Any) -> AutoBackboneConfig:
    return AutoBackboneConfig(model=model, settings=CONVNEXT if settings is None else settings, **more)


def trial_of(*overrides: str) -> Trial:
    spec = AblationSpec(name="x", rows=(RowSpec(label="x"),))
    return expand(spec, "digits_fast", ["model.transformer.num_levels=4", *overrides], require_data=False).trials[0]


# ---- stages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "channels", "strides"),
    [
        (auto(), (8, 16, 16), (8, 16, 32)),
        (auto(stages=(1, "stage4")), (8, 16), (4, 32)),
        (auto("dinov2", VIT), (16,), (16,)),  # all stages have one stride: the last
        (auto("dinov2", VIT, stages=(2,)), (16,), (16,)),
        (
            auto("swinv2", {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}),
            (16, 32, 64),
            (8, 16, 32),
        ),
    ],
    ids=str,
)
def test_strides_and_channels_are_measured(
    config: AutoBackboneConfig, channels: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    backbone = AutoBackbone(config).eval()
    assert (backbone.channels, backbone.strides) == (channels, strides)
    stages = backbone(torch.randn(1, 3, 70, 50), unmasked)
    assert [own.shape[2:] for own in stages] == [(-(-70 // stride), -(-50 // stride)) for stride in strides]


def test_what_no_output_depends_on_is_not_trained() -> None:
    backbone = AutoBackbone(auto("dinov2", VIT, stages=(2,)))
    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert "model.embeddings.mask_token" in frozen
    assert {name.split(".")[3] for name in frozen if ".layer." in name} == {"2"}  # behind the second


def test_an_image_that_needs_no_filling_is_as_in_the_library() -> None:
    backbone, images = AutoBackbone(auto(stages=(2, 3, 4))).eval(), torch.randn(2, 3, 64, 96)
    for own, expected in zip(backbone(images, unmasked), backbone.model(images).feature_maps, strict=True):
        assert torch.equal(own, expected)


def test_a_detector_trains_on_it() -> None:
    detector = Detector(tiny_config("atss", backbone=auto()), NUM_CLASSES).train()
    total, _ = detector(padded_batch())
    total.backward()
    assert all(p.grad is not None for p in detector.backbone.parameters() if p.requires_grad)


# ---- what is refused ----------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[AutoBackboneConfig, str]] = {
    "stride": (auto("dinov2", {**VIT, "patch_size": 14}), r"stages: stage3 of dinov2 gives 18 x 27 .* patch_size"),
    "one stride twice": (auto("dinov2", VIT, stages=(1, 2)), r"stages: stage1, stage2 of dinov2 have the strides"),
    "order": (auto(stages=(3, 2)), "stages: stage3, stage2 of convnext have the strides"),
    "stage": (auto(stages=("stage9",)), "stages: convnext has no stage9; known: stage1, stage2"),
    "model": (auto("convnxt"), "model: 'convnxt' is no backbone of transformers; did you mean 'convnext'"),
    "setting": (auto(settings={"depth": [1]}), "settings: convnext has no 'depth'; did you mean 'depths'"),
    "value": (auto(settings={"depths": "many"}), "settings: convnext refuses them"),
    "one size": (auto("vitpose_backbone", {}), "model: vitpose_backbone does not take images of 256 x 384 pixels"),
    "activation": (auto(settings={**CONVNEXT, "hidden_act": "foo"}), "settings: .* hold 'foo', which it does not know"),
    "no width": (auto(settings={**CONVNEXT, "hidden_sizes": [8, 16, 0, 32]}), "model: transformers cannot build convn"),
    "missing library": (auto("dinat", {}), "model: transformers cannot build dinat"),
    "no stages": (auto("timm_backbone", {}), "model: timm_backbone does not say which stages it has"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_built_is_told_in_one_line(case: str) -> None:
    config, told = REFUSED[case]
    for build in (AutoBackbone, check_weights):
        with warnings.catch_warnings(action="error"), pytest.raises(ValueError, match=f"^{told}") as caught:
            build(config)
        assert "\n" not in str(caught.value)


def test_the_driver_tells_before_anything_starts() -> None:
    with pytest.raises(UserError, match="gives 18 x 27 positions"):
        check_backbones([trial_of("model.backbone={name: auto, model: dinov2}")])
    check_backbones([trial_of("model.backbone=auto", "model.backbone.settings.depths=[1, 1, 1, 1]")])


def test_more_stages_than_levels_are_told_before_anything_starts() -> None:
    with pytest.raises(UserError, match=r"^model: transformer.num_levels \(2\) must not be smaller .* 3 stages; model"):
        check_backbones([trial_of("model.backbone=auto", "model.transformer.num_levels=2")])


def test_batch_norms_are_found_in_what_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = transformers.ResNetConfig(depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], embedding_size=8)
    monkeypatch.setattr(from_transformers, "_fetched", lambda name: kept)
    trials = [trial_of("model.backbone={name: auto, model: x/resnet}", f"runtime.ranks={ranks}") for ranks in (1, 2)]
    check_backbones(trials[:1])
    with pytest.raises(UserError, match=r"^runtime.ranks: backbone\.\S+ is a batch norm, .* use runtime.ranks: 1"):
        check_backbones(trials)
    with pytest.raises(UserError, match="is a batch norm"):
        check_norms(Detector(tiny_config("atss", backbone=auto("x/resnet", {})), NUM_CLASSES), ranks=2)


@pytest.mark.parametrize(("name", "told"), [("out_features", "choose by stages"), ("model_type", "choose by model")])
def test_a_setting_that_is_chosen_otherwise_is_refused(name: str, told: str) -> None:
    with pytest.raises(ValueError, match=f"^settings: {name} is no setting here; {told}"):
        auto(settings={name: ["stage1"]})
    with pytest.raises(UserError, match=told):
        trial_of("model.backbone=auto", f"model.backbone.settings={{{name}: [stage1]}}")


def test_a_hub_that_is_away_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def away(name: str, file: str, local_files_only: bool = False) -> bool:
        asked.append(local_files_only)
        return False

    monkeypatch.setattr(transformers.utils, "has_file", away)
    told = r"^model: facebook/dinov2-base is no folder .* cannot be fetched .* \(there is no answer.*\)$"
    with pytest.raises(ValueError, match=told):
        AutoBackbone(auto("facebook/dinov2-base", {}))
    assert asked == [True, False]  # once, where the library would ask for half a minute


def test_a_hub_gives_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = transformers.ConvNextConfig(**CONVNEXT)
    monkeypatch.setattr(transformers.utils, "has_file", lambda name, file, local_files_only: True)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda name, local_files_only: saved)
    assert AutoBackbone(auto("somebody/convnext", {"hidden_sizes": [4, 4, 4, 12]})).channels == (4, 4, 12)


# ---- settings ------------------------------------------------------------------------------------------------------


def test_settings_are_part_of_a_trial() -> None:
    trials = [
        trial_of("model.backbone=auto", f"model.backbone.settings={{depths: [1, 1, 1, {last}]}}") for last in (1, 1, 2)
    ]
    assert trials[0].trial_id == trials[1].trial_id != trials[2].trial_id
    config = trials[2].config
    assert config.model.backbone.settings == {"depths": [1, 1, 1, 2]}
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
    assert len({trial.config.model.backbone for trial in trials}) == 2  # looked up by what they say


def test_a_folder_gives_the_name_and_the_settings(tmp_path: Path) -> None:
    transformers.ConvNextConfig(**CONVNEXT, num_labels=3).save_pretrained(tmp_path)
    config = AutoBackboneConfig(model=str(tmp_path), settings={"layer_scale_init_value": 0.5})
    assert config.model == "convnext" and config.settings["hidden_sizes"] == [8, 8, 16, 16]
    assert AutoBackbone(config).channels == (8, 16, 16) and config.settings["layer_scale_init_value"] == 0.5
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"^model: \S+config.json is no config.json of transformers"):
        AutoBackboneConfig(model=str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"^model: \S+config.json cannot be read"):
        AutoBackboneConfig(model=str(tmp_path))


def test_batch_norms_are_known_without_the_library() -> None:
    small = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "embedding_size": 8}
    rt_detr = {**small, "layer_type": "basic"}
    for config in (auto(), auto("resnet", small), auto("rt_detr_resnet", rt_detr), auto("dinov2", VIT)):
        has = any(isinstance(own, torch.nn.BatchNorm2d) for own in AutoBackbone(config).modules())
        assert (config.norm == "batch") == has


# ---- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True], ids=["backbone", "classifier"])
def test_a_file_of_the_library_gives_its_maps(whole: bool, tmp_path: Path) -> None:
    settings, path = transformers.ConvNextConfig(**CONVNEXT), tmp_path / "model.safetensors"
    torch.manual_seed(5)
    kind = transformers.ConvNextForImageClassification if whole else transformers.ConvNextBackbone
    source = kind(settings).eval()
    save_file({name: value.contiguous() for name, value in source.state_dict().items()}, path)
    config = auto(weights=str(path), stages=(4,))
    check_weights(config)
    images = torch.randn(1, 3, 64, 64)
    backbone = AutoBackbone(config).eval()
    inner = source.convnext if whole else source
    expected = inner.encoder(inner.embeddings(images)).last_hidden_state
    torch.testing.assert_close(backbone.model.encoder(backbone.model.embeddings(images)).last_hidden_state, expected)
    assert backbone(images, unmasked)[0].shape == (1, 16, 2, 2)


def test_a_file_of_other_settings_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(AutoBackbone(auto()).model.state_dict(), path)
    with pytest.raises(ValueError, match=r"^model.backbone.weights: \S+ has another shape .* ConvNextBackbone with"):
        check_weights(auto(settings={**CONVNEXT, "hidden_sizes": [8, 8, 16, 24]}, weights=str(path)))
