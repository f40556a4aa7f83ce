"""What a step keeps for its backward pass: logits and labels, and nothing else as wide as there are classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.memory import line
from harness.config import DataConfig, TrainConfig, TrialConfig
from harness.trial.footprint import (
    Footprint,
    Kept,
    fixed_bytes,
    footprint,
    kept_bytes,
    largest_of,
    sample_batch,
)
from model.classification.configs import QualityConfig
from model.config import DetectorConfig
from model.detector import Detector
from model.gather import rows
from model.groups.configs import DenoisingConfig, HybridConfig
from model.heads import HEADS, masks
from model.heads.configs import MaskConfig
from model.heads.masks import MaskBranch
from model.proposals.configs import ClassesConfig
from model.types import Batch
from tests.support.tiny import tiny_batch, tiny_config

CLASSES = 1203  # LVIS
# Numbers of classes that a row of logits has; of a region's deltas, which only a class's own are kept of
WIDTHS = {CLASSES, CLASSES + 1, 4 * CLASSES, 9 * CLASSES}
DECODERS: dict[str, DetectorConfig] = {
    "focal": tiny_config(),
    "quality": tiny_config(classification=QualityConfig(), proposals=ClassesConfig()),
    "groups": tiny_config(groups=(DenoisingConfig(number=4), HybridConfig(number=6, repeats=2))),
}


def wide(config: DetectorConfig, batch: Batch) -> int:
    """Numbers kept in tensors as wide as there are classes, but for parameters."""
    torch.manual_seed(0)
    detector = Detector(config, CLASSES).train()
    with Kept() as kept:
        total, _ = detector(batch)
        found = kept.tensors(detector)
    assert total.requires_grad
    # A convolution over all anchors of a place has the classes side by side in its map, and keeps no map of its own.
    wide = (tensor for tensor in found if WIDTHS & set(tensor.shape) and tensor.is_floating_point())
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in wide)


def logits_of(config: DetectorConfig, batch: Batch) -> int:
    """Numbers of the decoder's logits, and of the encoder's that learn."""
    detector = Detector(config, CLASSES).train()
    seen = []
    detector.decoder.register_forward_hook(lambda module, given, output: seen.append(output.logits.numel()))
    with torch.no_grad():
        detector(batch)
    tokens = sum((96 // stride) ** 2 for stride in detector.strides)
    learning = config.num_queries if config.proposals is not None else tokens
    return seen[0] + len(batch.images) * learning * CLASSES


@pytest.mark.parametrize("name", DECODERS)
def test_of_the_decoder_only_logits_are_as_wide_as_the_classes(name: str) -> None:
    batch = tiny_batch()
    assert wide(DECODERS[name], batch) <= logits_of(DECODERS[name], batch)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_keeps_its_logits_and_nothing_else_as_wide(name: str) -> None:
    batch = tiny_batch()
    config = replace(DECODERS["focal"], heads=(HEADS[name].Config(),), positive_queries=False)
    positions = sum((-(-96 // stride)) ** 2 for stride in (8, 16, 32, 64))
    number = {"retinanet": 9 * positions}.get(name, 512 if "rcnn" in name else positions)  # of each image, at most
    own = wide(config, batch) - wide(DECODERS["focal"], batch)
    assert 0 < own <= len(batch.images) * number * (CLASSES + 1)


def test_with_many_classes_a_region_gets_the_mask_of_its_own_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    branch, pooled, labels = MaskBranch(MaskConfig(), 16, 5), torch.randn(3, 16, 14, 14), torch.tensor([4, 0, 4])
    found = []
    for least in (6, 5):
        monkeypatch.setattr(masks, "MANY_CLASSES", least)
        result = branch(pooled, labels)
        found.append([result, *torch.autograd.grad(result.square().sum(), list(branch.parameters()))])
        assert branch(pooled[:0], labels[:0]).shape == (0, 28, 28)
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-4) for one, other in zip(*found, strict=True))


def test_a_gather_keeps_its_index_and_gives_the_same_gradient() -> None:
    make = torch.Generator().manual_seed(0)
    index, direction = torch.randint(0, 40, (2, 90), generator=make), torch.randn(2, 90, 16, generator=make)
    gradients = []
    for function in (rows, lambda values, index: values.gather(1, index[..., None].expand(-1, -1, 16))):
        values = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with Kept() as kept:
            result = function(values * 2, index)
            sizes = sorted(tensor.untyped_storage().nbytes() for tensor in kept.tensors())
        gradients += [result.detach(), *torch.autograd.grad(result, values, direction)]
        assert sizes == ([index.nbytes] if function is rows else [index.nbytes, 2 * 40 * 16 * 4])
    assert torch.equal(gradients[0], gradients[2]) and torch.equal(gradients[1], gradients[3])


# ---- the footprint of a step --------------------------------------------------------------------------------------


def trial_config(*heads: str, batch_size: int, side: int, **train: object) -> TrialConfig:
    data = DataConfig(train_short_sides=(side,), eval_short_side=side, max_long_side=side)
    return TrialConfig(tiny_config(*heads), data, TrainConfig(batch_size=batch_size, **train))


def counted(config: TrialConfig, footprint: Footprint) -> int:
    """What a step of this size keeps, without any line."""
    detector = Detector(config.model, 10).train()
    return kept_bytes(detector, sample_batch(footprint.images, footprint.height, footprint.width, 10))


@pytest.mark.parametrize(("heads", "batch_size"), [((), 1), (("atss",), 2), (("retinanet", "faster_rcnn"), 3)])
def test_the_line_from_small_images_tells_what_a_large_one_takes(heads: tuple[str, ...], batch_size: int) -> None:
    config = trial_config(*heads, batch_size=batch_size, side=640)
    state = torch.get_rng_state()
    told = footprint(config, 10)
    assert torch.equal(state, torch.get_rng_state())
    assert (told.images, told.height, told.width) == (batch_size, 640, 640)
    assert told.kept == pytest.approx(counted(config, told), rel=0.1)
    weights, gradients, optimiser = fixed_bytes(Detector(config.model, 10))
    assert told.total == told.kept + weights + gradients + optimiser and optimiser == 2 * gradients


def test_small_images_are_counted_as_they_are() -> None:
    config = trial_config("atss", batch_size=2, side=224)
    told = footprint(config, 10)
    assert told.kept == counted(config, told)


def test_parts_and_ranks_share_a_batch_and_checkpoints_make_it_smaller() -> None:
    whole = footprint(trial_config(batch_size=8, side=224), 10)
    assert footprint(trial_config(batch_size=8, side=224, accumulate_steps=2), 10, ranks=2).images == 2
    less = footprint(trial_config(batch_size=8, side=224, checkpoint_encoder_layers=1, checkpoint_backbone=True), 10)
    assert less.kept < 0.8 * whole.kept and less.parameters == whole.parameters


def test_the_largest_batch_is_of_the_images_that_are_there() -> None:
    data = DataConfig(path="own", train_short_sides=(480, 800), eval_short_side=800, max_long_side=1333)
    assert largest_of([(480, 640), (300, 400)], data) == (800, 1067)
    both = [(480, 640), (640, 480), (480, 640)]
    assert largest_of(both, data) == (1067, 1067)  # padded to both
    assert largest_of(both, replace(data, aspect_group_size=2)) in ((800, 1067), (1067, 800))
    told = footprint(trial_config(batch_size=2, side=224), 10, sharing=2, size=(200, 161))
    assert (told.height, told.width) == (224, 192) and told.on_gpu == 2 * told.total


def test_a_line_tells_how_straight_it_is() -> None:
    assert line([(1, 3), (2, 5), (4, 9)]) == pytest.approx((2, 1, 0))
    assert line([(0, 0), (1, 1), (2, 4)])[2] == pytest.approx(1 / 6)
