"""The contracts of `model/backbones`, `model/necks`, `model/encoders` and `model/adapters`, as tests of a part.

A test file subclasses them and says for which parts (`tests.support.rooms.every`). All say the same of padding: an
image's own positions hold what the image alone would give.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from model.backbones.configs import asked
from model.encoders import ENCODERS
from model.types import Memory
from tests.support.rooms import (
    CANVAS,
    CHANNELS,
    SIZES,
    STRIDES,
    assert_reached,
    assert_same_inside,
    batched,
    config_of,
    make,
    maps,
    masks_of,
    memory_of,
    name_of,
    padded_batch,
    padded_memory,
    size_at,
    strides_around,
    unmasked,
)
from tests.support.tiny import tiny_batch, tiny_config

# ---- backbones ----------------------------------------------------------------------------------------------------


class BackboneContract:
    """What every part of `model/backbones` keeps."""

    @pytest.mark.parametrize("hw", [(64, 96), (67, 93), (33, 70)], ids=str)
    def test_stages_have_the_channels_and_strides_that_are_told(self, case: str, hw: tuple[int, int]) -> None:
        backbone = make("backbones", case)
        stages = backbone(torch.randn(2, 3, *hw), unmasked)
        assert len(stages) == len(backbone.channels) == len(backbone.strides)
        assert list(backbone.strides) == sorted(set(backbone.strides))
        assert asked(config_of("backbones", case), "strides") in ((), backbone.strides)
        for stage, channels, stride in zip(stages, backbone.channels, backbone.strides, strict=True):
            assert stride & (stride - 1) == 0, "strides are powers of two"
            assert stage.shape == (2, channels, *size_at(hw, stride))

    def test_a_padded_image_gives_what_it_gives_alone(self, case: str) -> None:
        """Unless the backbone says that it sees padding; an image that fills the batch has none."""
        backbone, batch = make("backbones", case).eval(), padded_batch()
        mask_at, images = masks_of(batch), list(enumerate(SIZES))
        stages = backbone(batch.images, mask_at)
        for stage, stride in zip(stages, backbone.strides, strict=True):
            assert (stage.masked_select(mask_at(stride)[:, None]) == 0).all()
        if getattr(backbone, "sees_padding", False):
            stages, images = backbone(batch.images, unmasked), [(image, CANVAS) for image, _ in images]
        for image, (h, w) in images:
            alone = backbone(batch.images[image : image + 1, :, :h, :w], unmasked)
            for stage, own in zip(stages, alone, strict=True):
                assert_same_inside(stage, image, own)

    def test_depth_falls_from_the_first_parameter_to_the_last(self, case: str) -> None:
        backbone = make("backbones", case)
        depths = [backbone.lr_depth(name) for name, _ in backbone.named_parameters()]
        assert all(isinstance(depth, int) for depth in depths)
        assert depths == sorted(depths, reverse=True) and depths[-1] == 0

    def test_the_gradient_reaches_all_of_a_backbone_that_trains(self, case: str) -> None:
        backbone = make("backbones", case)
        stages = backbone(torch.randn(2, 3, *CANVAS), unmasked)
        torch.stack([stage.square().mean() for stage in stages]).sum().backward()
        assert_reached(backbone.named_parameters())
        assert any(parameter.requires_grad for parameter in backbone.parameters())

    def test_a_backbone_follows_from_the_seed(self, case: str) -> None:
        first, second = (make("backbones", case).state_dict() for _ in range(2))
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[name]) for name, value in first.items())


# ---- necks --------------------------------------------------------------------------------------------------------

WIDTHS = (8, 12, 20)  # of the stages at `STRIDES`
LEVELS = pytest.mark.parametrize("num_levels", [3, 5])


def neck_of(case: str, num_levels: int) -> torch.nn.Module:
    strides = strides_around("necks", case)
    widths = WIDTHS[: len(strides)]
    return make("necks", case, in_channels=widths, in_strides=strides, channels=CHANNELS, num_levels=num_levels)


def stages_for(
    neck: torch.nn.Module, case: str, hw: tuple[int, int], seed: int = 0
) -> tuple[list[Tensor], tuple[int, int]]:
    """Stages of an image of about this size, and the size that it has."""
    strides = strides_around("necks", case)
    sides = strides[0] if neck.strides[0] < strides[0] else 1
    height, width = (-(-side // sides) * sides for side in hw)
    return maps((height, width), WIDTHS[: len(strides)], strides, seed), (height, width)


class NeckContract:
    """What every part of `model/necks` keeps."""

    def test_more_stages_than_levels_are_understood_or_told_of(self, case: str) -> None:
        try:
            neck = neck_of(case, 2)
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert len(neck(stages_for(neck, case, CANVAS)[0], unmasked)) == len(neck.strides) == 2

    @LEVELS
    def test_levels_have_the_strides_that_are_told(self, case: str, num_levels: int) -> None:
        neck = neck_of(case, num_levels)
        stages, hw = stages_for(neck, case, (67, 93))
        levels = neck(stages, unmasked)
        assert len(levels) == len(neck.strides) == num_levels
        if hasattr(config := config_of("necks", case), "strides_of"):
            assert config.strides_of(strides_around("necks", case), num_levels) == neck.strides
        assert list(neck.strides) == sorted(set(neck.strides))
        for level, stride in zip(levels, neck.strides, strict=True):
            assert level.shape == (1, CHANNELS, *size_at(hw, stride))

    @LEVELS
    def test_a_neck_sees_no_padding(self, case: str, num_levels: int) -> None:
        neck = neck_of(case, num_levels)
        found = [stages_for(neck, case, hw, seed) for seed, hw in enumerate(SIZES)]
        images = [stages for stages, _ in found]
        mask_at = masks_of(tiny_batch((0, 0, 0), tuple(hw for _, hw in found), CANVAS))
        levels = neck(batched(images, strides_around("necks", case)), mask_at)
        for image, stages in enumerate(images):
            for level, alone in zip(levels, neck(stages, unmasked), strict=True):
                assert_same_inside(level, image, alone)
        for level, stride in zip(levels, neck.strides, strict=True):
            assert (level.masked_select(mask_at(stride)[:, None]) == 0).all()

    @LEVELS
    def test_the_gradient_reaches_all_of_a_neck_and_every_stage(self, case: str, num_levels: int) -> None:
        neck = neck_of(case, num_levels)
        stages = [stage.requires_grad_() for stage in stages_for(neck, case, CANVAS)[0]]
        levels = neck(stages, unmasked)
        torch.stack([(level * torch.randn_like(level)).mean() for level in levels]).sum().backward()
        assert_reached(neck.named_parameters())
        assert_reached((f"stage {index}", stage) for index, stage in enumerate(stages))


# ---- encoders -----------------------------------------------------------------------------------------------------


def encode(encoder: torch.nn.Module, levels: list[Tensor], masks: list[Tensor] | None, embedding: Tensor) -> Memory:
    nothing = [torch.zeros(len(level), *level.shape[2:], dtype=torch.bool) for level in levels]
    wanted = embedding if encoder.has_level_embedding else None
    memory: Memory = encoder(levels, masks or nothing, padded=masks is not None, level_embedding=wanted)
    return memory


class EncoderContract:
    """What every part of `model/encoders` keeps."""

    def test_a_memory_has_its_shapes(self, case: str) -> None:
        encoder, embedding = make("encoders", case, model=tiny_config()), torch.randn(3, CHANNELS)
        memory = encode(encoder, maps((67, 93), (CHANNELS,) * 3, STRIDES), None, embedding)
        num_tokens = sum(h * w for h, w in memory.sizes)
        assert memory.sizes == tuple(size_at((67, 93), stride) for stride in STRIDES)
        assert memory.tokens.shape == (1, num_tokens, CHANNELS)
        assert memory.padding is None and torch.equal(memory.ratios, torch.ones(1, 3, 2))
        assert memory.position is None or memory.position.shape == memory.tokens.shape

    def test_no_valid_token_depends_on_padding(self, case: str) -> None:
        encoder, embedding = make("encoders", case, model=tiny_config()), torch.randn(3, CHANNELS)
        images = [maps(hw, (CHANNELS,) * 3, STRIDES, seed) for seed, hw in enumerate(SIZES)]
        masks = [masks_of(padded_batch())(stride) for stride in STRIDES]
        memory = encode(encoder, batched(images, STRIDES, behind=1e3), masks, embedding)
        assert memory.padding is not None and torch.equal(memory.padding, torch.cat([m.flatten(1) for m in masks], 1))
        assert ((memory.ratios > 0) & (memory.ratios <= 1)).all()
        for image, levels in enumerate(images):
            alone = encode(encoder, levels, None, embedding)
            for level, own in zip(memory.maps(), alone.maps(), strict=True):
                assert_same_inside(level, image, own)

    def test_the_gradient_reaches_all_of_an_encoder(self, case: str) -> None:
        encoder = make("encoders", case, model=tiny_config())
        embedding = torch.randn(3, CHANNELS).requires_grad_()
        levels = [level.requires_grad_() for level in maps(CANVAS, (CHANNELS,) * 3, STRIDES)]
        memory = encode(encoder, levels, None, embedding)
        (memory.tokens * torch.randn_like(memory.tokens)).mean().backward()
        assert_reached(encoder.named_parameters())
        assert_reached((f"level {index}", level) for index, level in enumerate(levels))
        assert (embedding.grad is not None) == ENCODERS[name_of(case)].has_level_embedding


# ---- adapters -----------------------------------------------------------------------------------------------------


def adapter_of(case: str) -> tuple[torch.nn.Module, Callable[..., Memory]]:
    """The adapter of a case, and what gives the memory of an image of (height, width) and seed for it."""
    strides = strides_around("adapters", case)
    return make("adapters", case, channels=CHANNELS, strides=strides), partial(memory_of, strides=strides)


class AdapterContract:
    """What every part of `model/adapters` keeps."""

    def test_a_pyramid_has_the_strides_that_are_told(self, case: str) -> None:
        adapter, memory = adapter_of(case)
        pyramid = adapter(memory((67, 93)), torch.tensor([[67, 93]]), unmasked, (67, 93))
        assert pyramid.strides == tuple(adapter.strides) == tuple(sorted(set(adapter.strides)))
        assert pyramid.sizes == tuple(size_at((67, 93), stride) for stride in adapter.strides)
        assert all(level.shape[:2] == (1, CHANNELS) for level in pyramid.levels)
        assert pyramid.masks == (None,) * len(adapter.strides) and pyramid.valid_hw.tolist() == [[67, 93]]

    def test_the_encoders_levels_are_among_the_pyramids(self, case: str) -> None:
        adapter, memory = adapter_of(case)
        own, strides = memory((67, 93)), strides_around("adapters", case)
        pyramid = adapter(own, torch.tensor([[67, 93]]), unmasked, (67, 93))
        for level, stride in zip(own.maps(), strides, strict=True):
            assert torch.equal(pyramid.levels[pyramid.strides.index(stride)], level)

    def test_no_level_of_a_pyramid_depends_on_padding(self, case: str) -> None:
        adapter, memory = adapter_of(case)
        batch, own = padded_batch(), padded_memory(strides=strides_around("adapters", case))
        pyramid = adapter(own, batch.valid_hw, masks_of(batch), CANVAS)
        assert pyramid.sizes == tuple(size_at(CANVAS, stride) for stride in adapter.strides)
        for mask, stride in zip(pyramid.masks, pyramid.strides, strict=True):
            assert mask is not None and torch.equal(mask, masks_of(batch)(stride))
        for image, hw in enumerate(SIZES):
            alone = adapter(memory(hw, image), batch.valid_hw[image : image + 1], unmasked, hw)
            for level, own in zip(pyramid.levels, alone.levels, strict=True):
                assert_same_inside(level, image, own)

    def test_the_gradient_reaches_all_of_an_adapter_and_every_token(self, case: str) -> None:
        adapter, memory_of_image = adapter_of(case)
        memory = memory_of_image(CANVAS)
        memory.tokens.requires_grad_()
        levels = adapter(memory, torch.tensor([CANVAS]), unmasked, CANVAS).levels
        torch.stack([(level * torch.randn_like(level)).mean() for level in levels]).sum().backward()
        assert_reached(adapter.named_parameters())
        assert memory.tokens.grad is not None and (memory.tokens.grad.abs().sum(2) > 0).all()
