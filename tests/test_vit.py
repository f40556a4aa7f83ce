"""The ViT backbone and its simple feature pyramid beyond their rooms' contracts; official numbers: test_golden.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.config import TrainConfig
from harness.trial.train import parameter_groups
from model.backbones.configs import ViTConfig
from model.backbones.vit import ViT, check_weights
from model.detector import Detector
from model.linear import Conv2d
from model.necks.configs import SimpleFpnConfig
from model.necks.simple_fpn import SimpleFpn
from model.share import Share, sharing
from tests.support.rooms import CANVAS, SIZES, assert_reached, assert_same_inside, masks_of, padded_batch, unmasked
from tests.support.tiny import NUM_CLASSES, SMALL_VIT, single, tiny_batch, tiny_config, with_vit

State = dict[str, Tensor]


def vit(**settings: Any) -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig(**{**SMALL_VIT, **settings}))


# ---- images -------------------------------------------------------------------------------------------------------


def test_the_default_is_vit_l() -> None:
    with torch.device("meta"):
        backbone = ViT(ViTConfig())
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 304_238_528
    assert [block.window for block in backbone.blocks] == [24, 24, 24, 0] + [24, 24, 24, 0] * 5
    assert backbone.blocks[0].mlp.w1.out_features == 2730


def test_an_image_is_padded_with_zeros_to_whole_patches() -> None:
    backbone, image = vit().eval(), torch.randn(1, 3, 67, 93)
    padded = torch.nn.functional.pad(image, (0, 3, 0, 13))
    assert torch.equal(backbone(image, unmasked)[0], backbone(padded, unmasked)[0])


def test_padding_takes_part_and_is_zero_in_the_stage() -> None:
    backbone, batch = vit().eval(), padded_batch()
    (stage,) = backbone(batch.images, masks_of(batch))
    (seen,) = backbone(batch.images, unmasked)
    inside = ~masks_of(batch)(16)[:, None]
    assert torch.equal(stage, seen * inside)
    (alone,) = backbone(batch.images[1:2, :, :64, :48], unmasked)
    assert not torch.allclose(stage[1, :, :4, :3], alone[0], atol=1e-3)


def test_blocks_with_windows_see_no_further() -> None:
    backbone, image = vit(global_blocks=(), window=2).eval(), torch.randn(1, 3, 64, 64)
    other = image.clone()
    other[..., 32:, 32:] += 1
    before, after = (backbone(own, unmasked)[0] for own in (image, other))
    same = (before == after).all(1)[0]
    assert same.tolist() == [[True] * 4] * 2 + [[True, True, False, False]] * 2


def test_positions_of_global_blocks_are_shares_of_the_image_at_hand_or_of_a_square() -> None:
    device = torch.device("cpu")
    whole, square = vit(), vit(image_size=128)
    for hw in ((4, 6), (8, 8)):
        assert torch.equal(whole.rotations(hw, device)[3][0], square.rotations(hw, device)[3][0])
        cut = square.rotations((8, 8), device)[0][1].view(8, 8, -1)[: hw[0], : hw[1]].flatten(0, 1)
        assert torch.equal(square.rotations(hw, device)[0][1], cut)
        assert torch.equal(whole.rotations(hw, device)[0][1], cut) == (hw == (8, 8))


# ---- drop path ----------------------------------------------------------------------------------------------------


def test_images_skip_branches_more_often_from_block_to_block() -> None:
    backbone = vit(depth=5, drop_path=0.6)
    shares = backbone._shares(4000, torch.device("cpu"))
    assert shares is not None and shares.shape == (4000, 5, 2)
    kept = torch.tensor([1.0, 0.85, 0.7, 0.55, 0.4])
    torch.testing.assert_close((shares > 0).float().mean((0, 2)), kept, atol=0.03, rtol=0)
    torch.testing.assert_close(shares.amax((0, 2)), 1 / kept)
    both = (shares[:, 4] > 0).float()
    assert abs(both.prod(1).mean() - 0.16) < 0.03  # the two branches are drawn apart


def test_a_block_that_is_skipped_changes_nothing() -> None:
    block, x = vit().blocks[0], torch.randn(2, 4, 5, 24)
    by = vit().rotations((4, 5), x.device)[3]
    skipped = block(x, by, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert torch.equal(skipped[0], x[0]) and torch.equal(skipped[1], block(x, by)[1]) and not torch.equal(skipped, x)


def test_nothing_is_dropped_in_evaluation_or_at_rate_zero() -> None:
    image = torch.randn(2, 3, 64, 64)
    backbone = vit(drop_path=0.9)
    dropped, again = (backbone.train()(image, unmasked)[0] for _ in range(2))
    assert not torch.equal(dropped, again)
    plain = vit(drop_path=0.0).train()(image, unmasked)[0]
    torch.testing.assert_close(backbone.eval()(image, unmasked)[0], plain)


def test_an_image_skips_the_same_branches_on_any_rank() -> None:
    backbone, device = vit(depth=4, drop_path=0.5), torch.device("cpu")
    found = []
    for first, number in ((0, 3), (0, 1), (1, 2)):
        with sharing(Share(first, 3), torch.Generator().manual_seed(7)):
            found.append(backbone._shares(number, device))
    assert torch.equal(found[0], torch.cat(found[1:]))


# ---- files of weights ---------------------------------------------------------------------------------------------


def pretrained(config: ViTConfig, patch: int = 14, side: int = 6) -> State:
    """A file of EVA-02's names: other patches, more positions, and what pretraining needs besides."""
    torch.manual_seed(3)
    state = {name: torch.randn(value.shape) for name, value in ViT(config).state_dict().items()}
    del state["out_norm.weight"], state["out_norm.bias"]
    return state | {
        "patch_embed.proj.weight": torch.randn(24, 3, patch, patch),
        "pos_embed": torch.randn(1, side * side + 1, 24),
        "cls_token": torch.zeros(1, 1, 24),
        "norm.weight": torch.full((24,), 7.0),
        "fc_norm.bias": torch.zeros(24),
        "head.weight": torch.zeros(10, 24),
        "rope.freqs_cos": torch.zeros(36, 8),
        "blocks.0.attn.rope.freqs_sin": torch.zeros(36, 8),
    }


SMALL = ViTConfig(**SMALL_VIT)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vit.pth"


def loaded(file: Path, content: Any, **settings: Any) -> State:
    torch.save(content, file)
    config = ViTConfig(**SMALL_VIT, **settings, weights=str(file))
    check_weights(config)
    return ViT(config).state_dict()


def test_pretrained_weights_are_resized_to_the_configuration(file: Path) -> None:
    state = pretrained(SMALL)
    found = loaded(file, {"model": state})
    assert found["patch_embed.proj.weight"].shape == (24, 3, 16, 16) and found["pos_embed"].shape == (1, 17, 24)
    assert torch.equal(found["pos_embed"][:, 0], state["pos_embed"][:, 0])
    kernel = torch.nn.functional.interpolate(state["patch_embed.proj.weight"], (16, 16), mode="bicubic")
    assert torch.equal(found["patch_embed.proj.weight"], kernel)
    grid = state["pos_embed"][:, 1:].view(1, 6, 6, 24).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (4, 4), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 16, 24)
    assert torch.equal(found["pos_embed"][:, 1:], grid)
    assert torch.equal(found["blocks.1.attn.q_bias"], state["blocks.1.attn.q_bias"])
    assert torch.equal(found["out_norm.weight"], torch.ones(24))  # a detector's own, not the classifier's


def test_the_backbone_of_a_detector_is_taken_alone(file: Path) -> None:
    own = {name: torch.randn(value.shape) for name, value in ViT(SMALL).state_dict().items()}
    besides = {"neck.p4.0.weight": torch.zeros(1), "backbone.rope_win.freqs_cos": torch.zeros(9, 8)}
    found = loaded(file, {"state_dict": {f"backbone.{name}": value for name, value in own.items()} | besides})
    assert found.keys() == own.keys() and all(torch.equal(found[name], own[name]) for name in own)


@pytest.mark.parametrize(
    ("edit", "settings", "told"),
    [
        (lambda own: own.pop("blocks.1.mlp.w3.bias"), {}, "lacks blocks.1.mlp.w3.bias, 1 of"),
        (lambda own: own.update(surprise=torch.zeros(1)), {}, "has besides surprise;"),
        (lambda own: own.update({"out_norm.weight": torch.ones(24)}), {}, "lacks out_norm.bias"),
        (lambda own: own["pos_embed"].fill_(torch.nan), {}, "has no finite numbers in pos_embed"),
        (lambda own: None, {"class_token": False}, "has another shape for pos_embed (1x37x24 instead of 1x16x24)"),
        (lambda own: None, {"depth": 3}, "lacks blocks.2.norm1.weight"),
        (lambda own: own.update(pos_embed=torch.zeros(37, 24)), {}, "has another shape for pos_embed (37x24"),
        (
            lambda own: own.update({"patch_embed.proj.weight": torch.zeros(24, 3 * 16 * 16)}),
            {},
            "has another shape for patch_embed.proj.weight (24x768 instead of 24x3x16x16)",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_told_in_one_line(
    file: Path, edit: Any, settings: dict[str, Any], told: str
) -> None:
    state = pretrained(SMALL)
    edit(state)
    torch.save(state, file)
    config = ViTConfig(**{**SMALL_VIT, **settings}, weights=str(file))
    for use in (check_weights, ViT):
        with pytest.raises(ValueError) as caught:
            use(config)
        line = str(caught.value)
        assert line.startswith(f"model.backbone.weights: {file} {told}") and "\n" not in line
        assert "expected are the names of EVA-02 with" in line


def test_a_missing_file_is_told(file: Path) -> None:
    with pytest.raises(ValueError, match=r"^model\.backbone\.weights: .*vit\.pth does not exist$"):
        check_weights(ViTConfig(weights=str(file)))


@pytest.mark.parametrize(
    "settings",
    [
        {"global_blocks": (2,)},
        {"global_blocks": (1, 0)},
        {"channels": 20},
        {"image_size": 100},
        {"pretrained_size": 0},
        {"window": 0},
        {"drop_path": 1.0},
        {"weights": " "},
    ],
)
def test_bad_settings_are_told_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ViTConfig(**{**SMALL_VIT, **settings})


# ---- the neck -----------------------------------------------------------------------------------------------------


def test_levels_keep_to_images_of_any_size() -> None:
    """Those whose last cells of stride 16 reach beyond the image: finer levels end before."""
    torch.manual_seed(0)
    neck = SimpleFpn(SimpleFpnConfig(), in_channels=(24,), in_strides=(16,), channels=8, num_levels=5)
    batch = padded_batch()
    stage = torch.randn(3, 24, CANVAS[0] // 16, CANVAS[1] // 16).masked_fill(masks_of(batch)(16)[:, None], 0)
    levels = neck([stage], masks_of(batch))
    for image, (height, width) in enumerate(SIZES):
        canvas = -(-height // 32) * 32, -(-width // 32) * 32
        own = stage[image : image + 1, :, : canvas[0] // 16, : canvas[1] // 16]
        alone = neck([own], masks_of(single(batch, image, canvas)))
        for level, its in zip(levels, alone, strict=True):
            assert_same_inside(level, image, its)
            assert level[image].abs().sum() > 0


def test_every_convolution_of_the_neck_reads_zeros_behind_the_mask_of_its_stride() -> None:
    neck = SimpleFpn(SimpleFpnConfig(), in_channels=(24,), in_strides=(16,), channels=8, num_levels=5)
    mask_at, read = masks_of(padded_batch()), []

    def look(module: Conv2d, inputs: tuple[Tensor, ...]) -> None:
        stride = CANVAS[1] // inputs[0].shape[3]
        assert (inputs[0].masked_select(mask_at(stride)[:, None]) == 0).all(), stride
        read.append(stride)

    for module in neck.modules():
        if isinstance(module, Conv2d):
            module.register_forward_pre_hook(look)
    neck([torch.randn(3, 24, 6, 8).masked_fill(mask_at(16)[:, None], 0)], mask_at)
    assert sorted(read) == [4, 4, 4, 8, 8, 8, 8, 16, 16, 32, 32, 32, 64, 64]


@pytest.mark.parametrize(("strides", "number"), [((8, 16), 4), ((32,), 4), ((16,), 6), ((16,), 0)], ids=str)
def test_the_neck_takes_one_stage_and_makes_up_to_five_levels(strides: tuple[int, ...], number: int) -> None:
    with pytest.raises(ValueError, match="^the neck simple_fpn "):
        SimpleFpnConfig().strides_of(strides, number)
    assert [SimpleFpnConfig().strides_of((16,), own)[0] for own in (5, 4, 3)] == [4, 8, 8]


# ---- a detector ---------------------------------------------------------------------------------------------------


def test_a_detector_with_both_learns_on_images_of_mixed_sizes() -> None:
    torch.manual_seed(0)
    detector = Detector(with_vit(tiny_config("atss"), drop_path=0.0), NUM_CLASSES).train()
    assert detector.size_divisor == 32 and detector.strides == (8, 16, 32)
    loss, _ = detector(tiny_batch((3, 1), ((90, 96), (64, 41))))
    loss.backward()
    assert torch.isfinite(loss)
    assert_reached(detector.backbone.named_parameters())
    assert_reached(detector.neck.named_parameters())


def test_learning_rates_fall_by_block_and_matrices_alone_decay() -> None:
    detector = Detector(with_vit(tiny_config()), NUM_CLASSES)
    train = TrainConfig(learning_rate=1.0, backbone_lr_factor=0.5, layer_decay=0.8, weight_decay_of="matrices")
    groups = parameter_groups(detector, train)
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    rates = {names[id(own)]: (group["lr"], "weight_decay" in group) for group in groups for own in group["params"]}
    assert rates["backbone.pos_embed"] == (pytest.approx(0.5 * 0.8**3), False)
    assert rates["backbone.patch_embed.proj.bias"] == (pytest.approx(0.5 * 0.8**3), True)
    assert rates["backbone.blocks.0.mlp.w1.weight"] == (pytest.approx(0.5 * 0.8**2), False)
    assert rates["backbone.blocks.1.attn.q_bias"] == (pytest.approx(0.5 * 0.8), True)
    assert rates["backbone.out_norm.weight"] == (0.5, True) and rates["neck.p4.0.weight"] == (1.0, False)
    assert len(groups) == len({(group["lr"], "weight_decay" in group) for group in groups}) == 11
