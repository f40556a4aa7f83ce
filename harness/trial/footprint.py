"""How much memory a training step takes, known before it runs: counted on small images, carried on to large ones.

At its largest a step holds what autograd keeps for the backward pass (each storage once, parameters left out), the
parameters with buffers, their gradients and AdamW's two moments. The last three are counted. The first grows by a line
with the number of pixels and images, so forward passes of one or two images at two small sizes on the CPU tell it for
any; small images are counted at their own size. What an operator needs for a moment, the allocator's gaps and the
libraries' own memory are not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.config import DataConfig, TrialConfig
from harness.data.transforms import resized_hw
from harness.trial.train import recompute
from model.attention import GroupedSelfAttention
from model.backbones.configs import without_weights
from model.config import DetectorConfig
from model.detector import Detector
from model.types import MASK_CELLS, Batch, Targets

SHARES = (0.25, 0.4)  # of the sides of the images asked for: the sizes that are counted
SMALL = 256  # pixels; images of up to twice its square are counted as they are, and none with fewer than its square
OBJECTS = 20  # of each image: so many that most heads give all the customised queries they may
OBJECT_SIDES = (24.0, 120.0)  # pixels, whatever the image's size: anchors are that large, too


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training step of `images` images of `height` x `width` on one rank, of `sharing` on its GPU."""

    images: int
    height: int
    width: int
    kept: float  # for the backward pass
    parameters: int  # with buffers, and the moving average where there is one
    gradients: int
    optimiser: int
    sharing: int = 1  # ranks on one GPU

    @property
    def total(self) -> float:
        """All of it together, of one rank."""
        return self.kept + self.parameters + self.gradients + self.optimiser

    @property
    def on_gpu(self) -> float:
        """What a GPU must have for all ranks that share it."""
        return self.sharing * self.total


class Kept:
    """Within `with Kept() as kept:` autograd tells what it keeps; ask while the graph is there."""

    def __init__(self) -> None:
        self._alive: weakref.WeakSet[_Held] = weakref.WeakSet()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._hold, lambda held: held.tensor)

    def __enter__(self) -> Kept:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _hold(self, tensor: Tensor) -> _Held:
        held = _Held(tensor.detach())
        self._alive.add(held)
        return held

    def tensors(self, but_of: torch.nn.Module | None = None) -> list[Tensor]:
        """One of each storage, the widest, but those of a module's parameters and buffers."""
        own = [] if but_of is None else [*but_of.parameters(), *but_of.buffers()]
        left_out = {tensor.untyped_storage().data_ptr() for tensor in own}
        found: dict[int, Tensor] = {}
        for tensor in sorted((held.tensor for held in self._alive), key=Tensor.numel):
            found[tensor.untyped_storage().data_ptr()] = tensor
        return [tensor for place, tensor in found.items() if place not in left_out]

    def bytes(self, but_of: torch.nn.Module | None = None) -> int:
        """Of those tensors' storages."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors(but_of))


class _Held:
    """A tensor, as long as the graph lives."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def sample_batch(images: int, height: int, width: int, num_classes: int) -> Batch:
    """Noise, and objects in its upper left corner that are the same in each image of each size."""
    generator = torch.Generator().manual_seed(0)
    low, high = OBJECT_SIDES
    sides = low + (high - low) * torch.rand(OBJECTS, 2, generator=generator)
    corner = (SMALL - sides) * torch.rand(OBJECTS, 2, generator=generator)
    end = torch.tensor([width, height])
    corner = torch.minimum(corner, (end - sides).clamp(min=0))
    boxes = torch.cat([corner, torch.minimum(corner + sides, end)], -1)
    labels = torch.randint(0, num_classes, (OBJECTS,), generator=generator)
    masks = torch.full((OBJECTS, MASK_CELLS, MASK_CELLS), 255, dtype=torch.uint8)
    boxes, labels, masks = (values.expand(images, *values.shape) for values in (boxes, labels, masks))
    targets = Targets(boxes, labels, masks)
    noise = torch.randn(images, 3, height, width, generator=generator)
    return Batch(noise, torch.tensor([[height, width]] * images), targets, tuple(range(images)))


def kept_bytes(detector: Detector, batch: Batch, precision: str = "fp32") -> int:
    """What one forward pass keeps for the backward pass."""
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with Kept() as kept, mixed:
        loss, losses = detector(batch)
        found = kept.bytes(detector)
    del loss, losses
    return found


def fixed_bytes(detector: Detector, moving_average: bool = False) -> tuple[int, int, int]:
    """Of parameters with buffers, gradients, and AdamW's state."""
    parameters = sum(tensor.nbytes for tensor in [*detector.parameters(), *detector.buffers()])
    gradients = sum(tensor.nbytes for tensor in detector.parameters() if tensor.requires_grad)
    return parameters * (1 + moving_average), gradients, 2 * gradients


def built(config: TrialConfig, num_classes: int) -> Detector:
    """The detector of a trial, with random weights, ready to train; draws no random number that others see."""
    model: DetectorConfig = replace(config.model, backbone=without_weights(config.model.backbone))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = Detector(model, num_classes).train()
    recompute(detector, config.train)
    for module in detector.modules():
        if isinstance(module, GroupedSelfAttention):
            module.dropout = 0.0  # with it a CPU keeps the table of all pairs, which a GPU's kernel does not
    return detector


def largest_batch(config: TrialConfig, ranks: int, divisor: int) -> tuple[int, int, int]:
    """Images of one forward pass on one rank, height and width: the longest that the longest short side gives."""
    data, train = config.data, config.train
    height = max(data.train_short_sides)
    width = min(height, data.max_long_side) if data.path is None else max(data.max_long_side, height)
    height, width = (data.square or side for side in (height, width))
    images = -(-train.batch_size // (train.accumulate_steps * ranks))
    return images, -(-height // divisor) * divisor, -(-width // divisor) * divisor


def largest_of(image_hw: Sequence[tuple[int, int]], data: DataConfig) -> tuple[int, int]:
    """Height and width of a batch that holds the largest of these images [N, 2], as a training resizes them.

    Images of both directions can meet in a batch, except where `data.aspect_group_size` keeps them apart.
    """
    if data.square:
        return data.square, data.square
    longest = max(data.train_short_sides)
    different = np.unique(np.asarray(image_hw), axis=0).tolist()
    sizes = np.array([resized_hw(height, width, longest, data.max_long_side) for height, width in different])
    upright = sizes[:, 0] > sizes[:, 1]
    together = [sizes] if not data.aspect_group_size else [sizes[upright], sizes[~upright]]
    height, width = max((own.max(0) for own in together if len(own)), key=lambda hw: int(hw[0]) * int(hw[1]))
    return int(height), int(width)


def small_sizes(detector: Detector, height: int, width: int, shares: Sequence[float]) -> list[tuple[int, int]]:
    """Sizes with such shares of the sides, each padded as a batch is, and with more tokens than queries start from."""
    divisor, strides = detector.size_divisor, detector.strides

    def tokens(size: tuple[int, int]) -> int:
        return sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in strides)

    found: list[tuple[int, int]] = []
    least = 1.5 * detector.num_proposals
    for share in shares:
        size = (height, width)
        while True:
            size = (max(1, round(share * height / divisor)) * divisor, max(1, round(share * width / divisor)) * divisor)
            if size not in found and tokens(size) >= least and size[0] * size[1] >= SMALL**2:
                break
            share += 0.05
        found.append(size)
    return found


def footprint(
    config: TrialConfig,
    num_classes: int,
    *,
    ranks: int = 1,
    sharing: int = 1,
    size: tuple[int, int] | None = None,
) -> Footprint:
    """Of the largest batch of a trial, or of its batches at `size` (height, width), padded.

    `ranks` share a batch, and `sharing` of them a GPU.

    Raises:
        UserError, ValueError, RuntimeError: from a part that cannot be built, or not run at a small size.
    """
    detector = built(config, num_classes)
    images, height, width = largest_batch(config, ranks, detector.size_divisor)
    if size is not None:
        height, width = (-(-side // detector.size_divisor) * detector.size_divisor for side in size)
    exact = height * width <= 2 * SMALL**2
    small, larger = ((height, width),) * 2 if exact else small_sizes(detector, height, width, SHARES)
    precision = config.train.precision

    def count(number: int, at: tuple[int, int]) -> int:
        return kept_bytes(detector, sample_batch(number, *at, num_classes), precision)

    with torch.random.fork_rng(devices=[]):
        few = min(images, 2)
        first = count(few, small)
        pixels = few * (larger[0] * larger[1] - small[0] * small[1])
        per_pixel = (count(few, larger) - first) / pixels if pixels else 0.0
        per_image = first - count(1, small) if images > few else 0
    kept = first + images * per_pixel * (height * width - small[0] * small[1]) + (images - few) * per_image
    fixed = fixed_bytes(detector, config.train.ema_decay > 0)
    return Footprint(images, height, width, kept, *fixed, sharing=sharing)


def footprint_or_none(config: TrialConfig, num_classes: int, **options: Any) -> Footprint | None:
    """`footprint`, or None where it cannot be told: an estimate stops no trial."""
    with suppress(Exception):
        return footprint(config, num_classes, **options)
    return None
