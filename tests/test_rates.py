"""`codetr plan --verbose` tells the optimiser's groups as a training makes them, without numbers of any weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.__main__ import main
from harness.config import DataConfig, TrainConfig, TrialConfig
from harness.trial.rates import groups_of, setting_of
from harness.trial.train import build_optimizer
from model.backbones.configs import ResNetConfig
from model.detector import Detector
from tests.support.quickstart import QUICKSTART
from tests.support.tiny import NUM_CLASSES, tiny_config, with_vit

FROZEN = ResNetConfig(block="basic", depths=(1, 1, 1, 1), width=8, stem="conv3", norm="group", frozen_stages=1)
TRAIN = TrainConfig(learning_rate=1e-3, backbone_lr_factor=0.1, sampling_lr_factor=0.5, weight_decay=0.05)
CASES = {
    "plain": (tiny_config(), TRAIN),
    "with a head": (tiny_config("atss"), TRAIN),
    "frozen": (tiny_config(backbone=FROZEN, stages=(2, 3, 4)), TRAIN),
    "by layer": (
        with_vit(tiny_config(stages=(1, 2, 3, 4))),
        replace(TRAIN, layer_decay=0.8, backbone_lr_factor=1.0, weight_decay_of="matrices"),
    ),
}


@pytest.mark.parametrize(("model", "train"), CASES.values(), ids=CASES)
def test_groups_are_those_of_the_optimiser(model, train: TrainConfig) -> None:
    detector = Detector(model, NUM_CLASSES)
    expected = [
        (group["lr"], group["weight_decay"], len(group["params"]), sum(own.numel() for own in group["params"]))
        for group in build_optimizer(detector, train).param_groups
    ]
    groups = groups_of(setting_of(TrialConfig(model, DataConfig(), train), NUM_CLASSES))
    learning = [group for group in groups if group.learning_rate is not None]
    told = [(own.learning_rate, own.weight_decay, own.num_tensors, own.num_parameters) for own in learning]
    assert told == expected
    still = [parameter for parameter in detector.parameters() if not parameter.requires_grad]
    frozen = [(own.num_tensors, own.num_parameters) for own in groups if own.learning_rate is None]
    assert frozen == ([(len(still), sum(own.numel() for own in still))] if still else [])
    assert sum(own.num_parameters for own in groups) == sum(own.numel() for own in detector.parameters())


def test_no_number_is_drawn_and_no_seed_moved() -> None:
    torch.manual_seed(7)
    groups_of(setting_of(TrialConfig(tiny_config("atss"), DataConfig(), TRAIN), NUM_CLASSES))
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))


def test_what_no_optimiser_reads_makes_no_other_setting() -> None:
    one = TrialConfig(tiny_config(), DataConfig(), replace(TRAIN, epochs=3, batch_size=4), seed=1)
    assert setting_of(one, 5) == setting_of(replace(one, train=replace(TRAIN, epochs=9), seed=2), 5)
    assert setting_of(one, 5) != setting_of(replace(one, train=replace(TRAIN, weight_decay=0.1)), 5)


def test_the_plan_has_a_table_for_each_detector(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CODETR_STORE", str(tmp_path))
    command = [
        "plan",
        str(QUICKSTART),
        "--preset",
        "digits_fast",
        "--seeds",
        "0,1",
        "--only",
        "row=Deformable-DETR++ (K = 0)",
    ]
    assert main([*command, "--verbose"]) == 0
    told = capsys.readouterr().out
    assert told.count("Deformable-DETR++ (K = 0): ") == 1 and "136 tensors, 10 classes" in told
    assert main(command) == 0
    assert "tensors" not in capsys.readouterr().out
