"""Swin Transformers: files of four programs, branches left out at random, and what windows see of padding."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from harness.errors import install_hint
from model.backbones.configs import SwinConfig
from model.backbones.swin import Swin, check_weights
from model.config import DetectorConfig
from model.detector import Detector
from model.official import translate
from model.share import Share, sharing
from tests.support.rooms import masks_of, padded_batch, shake, unmasked
from tests.support.tiny import NUM_CLASSES, tiny_config

State = dict[str, Tensor]
SMALL = SwinConfig(channels=8, depths=(2, 2, 2, 1), num_heads=(1, 2, 2, 4), window=4, drop_path=0.0, stages=(1, 2, 4))
CLASSIFIER = ("norm.", "head.")
HW = (61, 83)  # no multiple of a patch, a window, or two


def reference() -> transformers.SwinBackbone:
    """The library's own backbone, with random parameters."""
    torch.manual_seed(3)
    size = SMALL.size
    settings = transformers.SwinConfig(
        **{"embed_dim": size.channels, "depths": size.depths, "num_heads": size.num_heads, "window_size": size.window},
        out_indices=SMALL.stages,
        drop_path_rate=0.0,
    )
    model = transformers.SwinBackbone(settings)
    shake(model)
    return model.eval()


REFERENCE = reference()
IMAGES = torch.randn(2, 3, *HW, generator=torch.Generator().manual_seed(4))
with torch.no_grad():
    EXPECTED = REFERENCE(IMAGES).feature_maps

# ---- the names of each program -------------------------------------------------------------------------------------

TO_MICROSOFT = (
    (r"^swin\.(encoder\.)?", ""),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.norm", "patch_embed.norm"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.o_proj", "attn.proj"),
    ("attention.relative_position_bias.", "attn."),
    (r"^layernorm\.", "norm."),
)


def renamed(state: State, *rules: tuple[str, str]) -> State:
    found = {}
    for name, value in state.items():
        for pattern, text in rules:
            name = re.sub(pattern, text, name)
        found[name] = value
    return found


def microsoft() -> State:
    found = renamed(REFERENCE.state_dict(), *TO_MICROSOFT)
    for name in [name for name in found if ".q_proj." in name]:
        before, rest = name.split(".attention.q_proj.")
        parts = [found.pop(f"{before}.attention.{own}_proj.{rest}") for own in "qkv"]
        found[f"{before}.attn.qkv.{rest}"] = torch.cat(parts)
    for stage in range(4):
        found = renamed(found, (rf"^hidden_states_norms\.stage{stage + 1}\.", f"norm{stage}."))
    index = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long)}
    return found | index | {"head.weight": torch.zeros(5, 64), "layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}


def timm() -> State:
    """Newer ones: a stage merges before its blocks."""
    found = microsoft()
    for stage in (3, 2, 1):
        found = renamed(found, (rf"^layers\.{stage - 1}\.downsample", f"layers.{stage}.downsample"))
    return found


def mmdetection() -> State:
    rules = (
        ("^layers", "stages"),
        ("patch_embed.proj", "patch_embed.projection"),
        (r"attn\.", "attn.w_msa."),
        ("mlp.fc1", "ffn.layers.0.0"),
        ("mlp.fc2", "ffn.layers.1"),
    )
    found = renamed(microsoft(), *rules)
    for name in [name for name in found if ".downsample." in name]:
        parts = found[name].chunk(4, -1)  # (row, column): (0, 0), (1, 0), (0, 1), (1, 1)
        found[name] = torch.stack([parts[place] for place in (0, 2, 1, 3)], -1).flatten(-2)  # as nn.Unfold has them
    return found


def older_transformers() -> State:
    """Those of version 4, which the library's hub has, of a classifier."""
    rules = (
        ("attention.q_proj", "attention.self.query"),
        ("attention.k_proj", "attention.self.key"),
        ("attention.v_proj", "attention.self.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("attention.relative_position_bias.", "attention.self."),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    )
    return renamed(REFERENCE.state_dict(), *rules) | {"classifier.bias": torch.zeros(5)}


PROGRAMS: dict[str, Callable[[], State]] = {
    "microsoft": microsoft,
    "below backbone": lambda: {f"module.backbone.{name}": value for name, value in microsoft().items()},
    "timm": timm,
    "mmdetection": mmdetection,
    "transformers": REFERENCE.state_dict,
    "older transformers": older_transformers,
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_file_of_any_program_gives_the_same_maps(program: str, tmp_path: Path) -> None:
    path = tmp_path / "swin.pth"
    torch.save({"model": PROGRAMS[program](), "epoch": 3}, path)
    config = replace(SMALL, weights=str(path))
    check_weights(config)
    stages = Swin(config).eval()(IMAGES, unmasked)
    for stage, expected in zip(stages, EXPECTED, strict=True):
        torch.testing.assert_close(stage, expected, rtol=1e-5, atol=1e-5)


def test_a_released_detector_gives_the_same_maps() -> None:
    config = tiny_config(backbone=replace(SMALL, stages=(2, 3, 4)))
    torch.manual_seed(0)
    own = Detector(config, NUM_CLASSES).state_dict()
    official = {f"backbone.{name}": value for name, value in microsoft().items() if not name.startswith(CLASSIFIER)}
    official = {name: value for name, value in official.items() if "norm0" not in name}
    official |= {f"backbone.norm2.{kind}": own[f"backbone.norms.2.{kind}"] for kind in ("weight", "bias")}
    decoder = "query_head.transformer.decoder.layers.0.norms.0.weight"  # tells whose names they are
    official |= {decoder: own["decoder.layers.0.self_norm.weight"]}
    classes = "query_head.cls_branches.0.weight"
    found = translate(official | {classes: own["decoder.class_branches.0.weight"]}, config)
    assert not found.unknown and not found.misshapen and not found.unexpected
    detector = Detector(config, NUM_CLASSES)
    detector.load_state_dict(own | found.tensors)
    stages = detector.backbone.eval()(IMAGES, unmasked)
    for stage, expected in zip((stages[0], stages[2]), EXPECTED[1:], strict=True):
        torch.testing.assert_close(stage, expected, rtol=1e-5, atol=1e-5)


# ---- files that fit in part ------------------------------------------------------------------------------------------


def test_norms_of_outputs_are_new_and_later_stages_left_out(tmp_path: Path) -> None:
    path, file = tmp_path / "swin.safetensors", {name: v for name, v in microsoft().items() if "head" not in name}
    save_file({name: v.contiguous() for name, v in file.items() if not re.match(r"norm\d", name)}, path)
    backbone = Swin(replace(SMALL, stages=(1, 3), weights=str(path))).eval()
    assert len(backbone.layers) == 3 and backbone.norms["2"].weight.eq(1).all()
    assert not any(name.startswith("layers.2.downsample") for name in backbone.state_dict())
    scale, shift = (getattr(REFERENCE.hidden_states_norms["stage1"], name) for name in ("weight", "bias"))
    normalised = ((EXPECTED[0].permute(0, 2, 3, 1) - shift) / scale).permute(0, 3, 1, 2)
    torch.testing.assert_close(backbone(IMAGES, unmasked)[0], normalised, rtol=1e-4, atol=1e-4)


def test_tables_of_another_window_are_resized(tmp_path: Path) -> None:
    path = tmp_path / "swin.pth"
    torch.save(microsoft(), path)
    backbone = Swin(replace(SMALL, window=7, weights=str(path)))
    own = backbone.layers[1].blocks[0].attention.relative_position_bias.relative_position_bias_table
    given = microsoft()["layers.1.blocks.0.attn.relative_position_bias_table"]
    assert own.shape == (13 * 13, 2)
    for head in range(2):
        expected = F.interpolate(given[:, head].view(1, 1, 7, 7), (13, 13), mode="bicubic")
        torch.testing.assert_close(own[:, head].view(1, 1, 13, 13), expected)


WRONG = {
    "another variant": (replace(SMALL, channels=16), "has another shape for .*, depths .2, 2, 2, 1., heads"),
    "deeper": (replace(SMALL, depths=(2, 2, 4, 1)), "lacks layers.2.blocks.2.*expected are the names of a Swin"),
    "shallower": (replace(SMALL, depths=(1, 2, 2, 1)), "has besides layers.0.blocks.1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_does_not_fit_is_told_in_one_line(case: str, tmp_path: Path) -> None:
    path = tmp_path / "swin.pth"
    torch.save(microsoft(), path)
    config, told = WRONG[case]
    for build in (Swin, check_weights):
        with pytest.raises(ValueError, match=rf"^model.backbone.weights: \S+ .*{told}") as caught:
            build(replace(config, weights=str(path)))
        assert "\n" not in str(caught.value)


ELSE: list[State] = [{"conv1.weight": torch.ones(4, 3)}, {"layers.0.blocks.0.attn.qkv.weight": torch.ones(7, 2)}]


@pytest.mark.parametrize("state", ELSE)
def test_a_file_of_something_else_is_told_in_one_line(state: State, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"^model.backbone.weights: \S+ lacks embeddings"):
        check_weights(replace(SMALL, weights=str(path)))


def test_the_library_is_asked_for_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=f"^this backbone needs .* {re.escape(install_hint('backbones'))}$"):
        Swin(SMALL)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_heads": (3, 2, 2, 4)}, "num_heads must divide"),
        ({"window": 1}, "window must be"),
        ({"drop_path": 1.0}, "drop_path must be"),
        ({"stages": (4, 2)}, "stages must be ascending"),
        ({"frozen_stages": 5}, "frozen_stages must be"),
        ({"weights": " "}, "weights must name a file"),
    ],
)
def test_settings_are_checked(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        replace(SMALL, **changes)


def test_frozen_parts_are_told_and_frozen() -> None:
    config = replace(SMALL, frozen_stages=1)
    assert config.frozen_at_random == "the patch embedding and 1 stage" and SMALL.frozen_at_random == ""
    trained = {name.partition(".")[0] for name, p in Swin(config).named_parameters() if p.requires_grad}
    frozen = {name[:9] for name, p in Swin(config).named_parameters() if not p.requires_grad}
    assert trained == {"layers", "norms"} and frozen == {"embedding", "layers.0."}


# ---- branches left out -------------------------------------------------------------------------------------------


def test_both_branches_are_left_out_for_each_image() -> None:
    backbone = Swin(replace(SMALL, drop_path=0.6))
    x = torch.randn(4, 5, 6, 8)
    kept = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    block = backbone.layers[0].blocks[0]
    mixed, whole = block(x, None, None, kept), block(x, None, None, None)
    feed_forward = x + block.mlp(block.layernorm_after(x))
    torch.testing.assert_close(mixed[0], x[0])
    torch.testing.assert_close(mixed[1], feed_forward[1])
    torch.testing.assert_close(mixed[3], whole[3])
    assert not torch.allclose(mixed[2], whole[2]) and not torch.allclose(mixed[2], x[2])


def test_rates_rise_from_nothing_to_the_most() -> None:
    backbone = Swin(replace(SMALL, drop_path=0.6, stages=(3,))).train()  # of all seven blocks, though six are there
    torch.manual_seed(0)
    kept = torch.cat(backbone._kept(torch.zeros(4000, 1, 1, 1)), 1)[:, :6]
    rates = 0.6 * torch.arange(6) / 6
    assert kept.shape == (4000, 6, 2)
    torch.testing.assert_close(kept.gt(0).float().mean(0), (1 - rates)[:, None].expand(6, 2), rtol=0, atol=0.03)
    torch.testing.assert_close(kept.amax((0, 2)), 1 / (1 - rates))
    assert not torch.equal(kept[..., 0], kept[..., 1])
    assert backbone.eval()._kept(torch.zeros(2, 1, 1, 1)) is None


def test_frozen_stages_leave_out_nothing() -> None:
    backbone = Swin(replace(SMALL, drop_path=0.6, frozen_stages=2)).train()
    kept = backbone._kept(torch.zeros(500, 1, 1, 1))
    assert kept[0].eq(1).all() and kept[1].eq(1).all() and kept[2].eq(0).any()


def test_images_leave_out_the_same_on_any_number_of_ranks() -> None:
    backbone, images = Swin(replace(SMALL, drop_path=0.6)).train(), torch.randn(3, 3, 40, 40)
    shares = []
    for first, last in ((0, 3), (0, 1), (1, 3)):
        with sharing(Share(first, 3), torch.Generator().manual_seed(5)):
            shares.append(backbone(images[first:last], unmasked)[-1])
    torch.testing.assert_close(torch.cat(shares[1:]), shares[0])
    assert not torch.allclose(shares[0], backbone.eval()(images, unmasked)[-1])


def test_half_precision_gives_about_the_same_maps() -> None:
    backbone = Swin(SMALL).eval()
    whole = backbone(IMAGES, unmasked)
    with torch.autocast("cpu", torch.bfloat16):
        half = backbone(IMAGES, unmasked)
    torch.stack([own.float().square().mean() for own in half]).sum().backward()
    for own, expected in zip(half, whole, strict=True):
        torch.testing.assert_close(own.float(), expected, rtol=0, atol=0.1)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


# ---- padding -----------------------------------------------------------------------------------------------------


def test_without_masks_padding_is_seen_as_in_the_official_code() -> None:
    """What `compatibility: official` asks for: maps of a padded image depend on how far it is padded."""
    torch.manual_seed(0)
    backbone, batch = Swin(SMALL).eval(), padded_batch()
    shake(backbone)
    seen, alone = backbone(batch.images, unmasked)[0], backbone(batch.images, masks_of(batch))[0]
    assert not torch.allclose(seen[1, :, :12, :10], alone[1, :, :12, :10], atol=1e-3)


def test_a_detector_trains_on_it() -> None:
    config: DetectorConfig = tiny_config("atss", backbone=replace(SMALL, drop_path=0.5))
    detector = Detector(replace(config, backbone=replace(SMALL, stages=(2, 3, 4))), NUM_CLASSES).train()
    total, _ = detector(padded_batch())
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.backbone.parameters())
