"""Every part in small settings, and what the contract suites feed them with.

A new part gets its room's whole suite by its line in the room's dict; it must have a line in `TINY` or the suite fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.adapters import ADAPTERS
from model.assign import ASSIGNERS
from model.backbones import BACKBONES
from model.classification import CLASSIFICATIONS
from model.criterion import Objective
from model.decoders import DECODERS
from model.encoders import ENCODERS
from model.groups import GROUPS
from model.layers import Padding
from model.necks import NECKS
from model.parts import Parts
from model.position import sine_position_encoding, valid_ratios
from model.postprocess import POSTPROCESSORS
from model.proposals import PROPOSALS
from model.share import Share, sharing
from model.types import Batch, Memory
from tests.support.tiny import NUM_CLASSES, OF_REFERENCES, PLAIN, SMALL_VIT, tiny_batch, tiny_config

ROOMS: dict[str, Parts] = {
    "backbones": BACKBONES,
    "necks": NECKS,
    "encoders": ENCODERS,
    "adapters": ADAPTERS,
    "proposals": PROPOSALS,
    "decoders": DECODERS,
    "groups": GROUPS,
    "assign": ASSIGNERS,
    "classification": CLASSIFICATIONS,
    "postprocess": POSTPROCESSORS,
}
# Room → case → settings. A case is the name of a part, or `<name>, <what is particular to it>`.
SMALL_RESNET = {"depths": (1, 1, 1, 1), "width": 8, "stem": "conv3"}
SMALL_SWIN = {"channels": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4), "window": 4, "drop_path": 0.0}
TINY: dict[str, dict[str, dict[str, Any]]] = {
    "backbones": {
        "resnet": {**SMALL_RESNET, "block": "basic", "norm": "group", "frozen_stages": -1},
        "resnet, bottleneck": {**SMALL_RESNET, "stages": (1, 4)},
        "resnet, batch norm": {**SMALL_RESNET, "norm": "batch", "stem": "conv7", "frozen_stages": 0},
        "efficientnet_lite0": {},
        "efficientnet_lite0, group norm": {"norm": "group", "stages": (1, 3), "frozen_stages": 0},
        "vit": {**SMALL_VIT, "drop_path": 0.0},
        "vit, of squares": {
            **SMALL_VIT,
            "image_size": 128,
            "class_token": False,
            "global_blocks": (0, 1),
            "drop_path": 0.1,
        },
        "swin": {**SMALL_SWIN, "depths": (2, 2, 2, 2)},
        "swin, frozen": {**SMALL_SWIN, "window": 2, "stages": (1, 3), "frozen_stages": 1},
        "auto": {"settings": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}},
        "auto, dinov2": {
            "model": "dinov2",
            "settings": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16},
        },
        "auto, resnet": {
            "model": "resnet",
            "stages": ("stage1", 3),
            "settings": {
                **{"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]},
                **{"embedding_size": 8, "layer_type": "basic"},
            },
        },
    },
    "necks": {
        "projection": {},
        "projection, with bias": {"bias": True},
        "projection, no norm": {"norm": "none"},
        "simple_fpn": {},
    },
    "encoders": {
        "deformable": {},
        "deformable, as DINO's": {"position_offset": 0.0, "position_temperature": 20.0},
        "dense": {},
        "dense, as DAB-DETR's": {"position_temperature": 20.0, "scaled_position": True, "activation": "prelu"},
        "none": {},
    },
    "adapters": {"coarser": {}, "single_scale": {}, "single_scale, the finest": {"strides": (16, 32, 64)}},
    "proposals": {
        "learned": {},
        "learned, position alone": {"content": "zero", "points": "mlp"},
        "anchors": {},
        "anchors, uniform": {"centres": "uniform"},
        "anchors, fixed": {"centres": "fixed"},
        "anchors, learned content": {"content": "learned"},
        "binary": {},
        "classes": {},
        "per_group": {},
    },
    "decoders": {
        "deformable": {},
        "deformable, positions of references": {
            "position": "reference",
            "final_norm": True,
            "inverse_sigmoid_epsilon": 1e-3,
        },
        "deformable, shared branches": {"position": "reference", "final_norm": True, "shared_branches": True},
        "conditional": {},
        "dab": {},
    },
    "groups": {
        "main": {},
        "positives": {},
        "hybrid": {"number": 9, "repeats": 3},
        "replicas": {"number": 2},
        "replicas, sum": {"number": 3, "reduction": "sum"},
        "denoising": {"number": 7},
    },
    "assign": {"hungarian": {}},
    "classification": {"focal": {}, "quality": {}},
    "postprocess": {"top_k": {}, "soft_nms": {}},
}
# Room → case → changes of the tiny detector (`tiny_config`) around it, where the part does not go with the usual one.
AROUND: dict[str, dict[str, dict[str, Any]]] = {
    "adapters": {"single_scale": {"stages": (4,)}, "single_scale, the finest": {"stages": (3,)}},
    "necks": {"simple_fpn": {"stages": (3,)}},
    "decoders": {"conditional": PLAIN, "dab": {"box_refinement": True}},
    "proposals": {case: OF_REFERENCES for case in TINY["proposals"] if case.startswith("anchors")},
}

STRIDES, CHANNELS = (8, 16, 32), 32  # of `tiny_config`'s encoder
SIZES = ((67, 93), (50, 41), (96, 30))  # (height, width): no multiple of a stride
CANVAS = (96, 128)


def name_of(case: str) -> str:
    return case.split(",")[0]


def every(room: str) -> pytest.MarkDecorator:
    """Runs a test over each part of a room, in each of its tiny settings, as its argument `case`."""
    known = {name_of(case) for case in TINY[room]}
    return pytest.mark.parametrize("case", [*TINY[room], *(name for name in ROOMS[room] if name not in known)])


def config_of(room: str, case: str) -> Any:
    if case not in TINY[room]:
        pytest.fail(f"{room}: {case!r} has no tiny setting: add a line to TINY in {__file__}")
    return ROOMS[room].config_of(name_of(case))(**TINY[room][case])


def around(room: str, case: str, **changes: Any) -> dict[str, Any]:
    """Changes of the tiny detector, and those that a case needs in their place."""
    return {**changes, **AROUND.get(room, {}).get(case, {})}


def strides_around(room: str, case: str) -> tuple[int, ...]:
    """Of the encoder's levels in the tiny detector around a case."""
    stages = around(room, case).get("stages")
    return STRIDES if stages is None else tuple(2 ** (stage + 1) for stage in stages)


def make(room: str, case: str, **arguments: Any) -> Any:
    """The part, built from seed 0; a module's parameters are shaken, since many begin at values that hide mistakes."""
    torch.manual_seed(0)
    part = ROOMS[room].build(config_of(room, case), **arguments)
    if isinstance(part, nn.Module):
        shake(part)
    return part


def objective(**changes: Any) -> Objective:
    """What the proposals and groups of the tiny detector learn by; `changes` are its settings."""
    config = tiny_config(**changes)
    assign = make("assign", "hungarian", weights=config.loss_weights)
    return Objective(config, NUM_CLASSES, make("classification", "focal"), assign)


def shake(module: nn.Module, scale: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def size_at(hw: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-hw[0] // stride), -(-hw[1] // stride)


def padded_batch(counts: tuple[int, ...] = (3, 0, 2)) -> Batch:
    """Images of odd sizes in one canvas."""
    return tiny_batch(counts, SIZES, CANVAS)


def unmasked(stride: int) -> None:
    """`mask_at` of an image alone."""


def masks_of(batch: Batch) -> Callable[[int], Tensor]:
    """`mask_at` of a padded batch."""
    return Padding(batch).mask_at  # type: ignore[return-value]


def maps(hw: tuple[int, int], channels: tuple[int, ...], strides: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    """Random stages or levels [1, C, h, w] of one image."""
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(channels, strides, strict=True)
    return [torch.randn(1, width, *size_at(hw, stride), generator=generator) for width, stride in pairs]


def batched(images: list[list[Tensor]], strides: tuple[int, ...], behind: float = 0.0) -> list[Tensor]:
    """The maps of several images in the corners of `CANVAS`; what lies `behind` the mask should not matter."""
    levels = []
    for index, stride in enumerate(strides):
        own = [image[index] for image in images]
        level = torch.full((len(own), own[0].shape[1], *size_at(CANVAS, stride)), behind)
        for i, single in enumerate(own):
            level[i, :, : single.shape[2], : single.shape[3]] = single[0]
        levels.append(level)
    return levels


def assert_same_inside(padded: Tensor, image: int, alone: Tensor) -> None:
    """An image's own part of a padded map [B, D, h, w] is what the image alone gives [1, D, h, w]."""
    h, w = alone.shape[2:]
    # another size takes another kernel, which rounds otherwise (by 2e-4 on a Xeon with AMX); padding adds more than 1
    torch.testing.assert_close(padded[image, :, :h, :w], alone[0], rtol=1e-3, atol=1e-3)


def assert_reached(parameters: Iterator[tuple[str, Tensor]]) -> None:
    """Every trainable parameter has a gradient, finite and not nothing."""
    for name, parameter in parameters:
        if parameter.requires_grad:
            assert parameter.grad is not None, f"no gradient reaches {name}"
            assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name


def memory_of(hw: tuple[int, int], seed: int = 0, strides: tuple[int, ...] = STRIDES) -> Memory:
    """What an encoder gives for one image alone."""
    return _memory(maps(hw, (CHANNELS,) * len(strides), strides, seed), None)


def padded_memory(behind: float = 1e3, strides: tuple[int, ...] = STRIDES) -> Memory:
    """The memories of images of all `SIZES` (seeds 0, 1, 2) in one batch."""
    images = [maps(hw, (CHANNELS,) * len(strides), strides, seed) for seed, hw in enumerate(SIZES)]
    mask_at = masks_of(padded_batch())
    return _memory(batched(images, strides, behind), [mask_at(stride) for stride in strides])


def _memory(levels: list[Tensor], padding: list[Tensor] | None) -> Memory:
    sizes = tuple((level.shape[2], level.shape[3]) for level in levels)
    masks = padding or [torch.zeros(len(levels[0]), *size, dtype=torch.bool) for size in sizes]
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
    hidden = None if padding is None else torch.cat([mask.flatten(1) for mask in masks], 1)
    places = [sine_position_encoding(mask, CHANNELS).flatten(2).transpose(1, 2) for mask in masks]
    return Memory(tokens, sizes, hidden, valid_ratios(masks), torch.cat(places, 1))


# ---- shares of a batch --------------------------------------------------------------------------------------------


class Meeting:
    """Stands for the other ranks: what the whole batch gave at each meeting is what every share of it hears.

    The whole batch goes first; then each share must meet as often, and its own numbers add up to the whole's.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.whole: list[Tensor] = []
        self.shares: list[list[Tensor]] = []
        monkeypatch.setattr(torch.distributed, "all_reduce", self._meet)

    def _meet(self, value: Tensor, operation: Any = None) -> None:
        if self._recording:
            self.whole.append(value.clone())
            return
        own = self.shares[-1]
        assert len(own) < len(self.whole), "a share asks the other ranks more often than the whole batch"
        own.append(value.clone())
        value.copy_(self.whole[len(own) - 1])

    @contextmanager
    def share(self, first: int, whole: int, *, recording: bool = False) -> Iterator[None]:
        self._recording = recording
        if not recording:
            self.shares.append([])
        with sharing(Share(first, whole), torch.Generator().manual_seed(5)):
            yield
        if not recording:
            assert len(self.shares[-1]) == len(self.whole), "a share asks the other ranks less often than they wait"


def images_of(batch: Batch, index: slice) -> Batch:
    return Batch(batch.images[index], batch.valid_hw[index], batch.targets.of_images(index), batch.image_ids[index])


def losses_by_share(
    compute: Callable[[Batch], dict[str, Tensor]], batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses of a whole batch, and the sums of those of its images, each on a rank of its own."""
    count, meeting = len(batch.images), Meeting(monkeypatch)
    with meeting.share(0, count, recording=True):
        whole = compute(batch)
    sums: dict[str, Tensor] = {}
    for image in range(count):
        with meeting.share(image, count):
            for name, loss in compute(images_of(batch, slice(image, image + 1))).items():
                sums[name] = sums.get(name, torch.zeros(())) + loss.detach()
    return whole, sums
