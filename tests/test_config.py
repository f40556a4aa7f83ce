"""Every value that cannot work is refused where it is written, with the field's name in the message."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path

import pytest

import harness.config
import model.config
from harness.config import DataConfig, DigitsConfig, EvaluateConfig, RuntimeConfig, TrainConfig
from model.adapters.configs import SingleScaleConfig
from model.assign.configs import HungarianConfig
from model.backbones.configs import ResNetConfig
from model.config import DetectorConfig, LossWeights, TransformerConfig
from model.decoders.configs import ConditionalDecoderConfig, DabDecoderConfig
from model.encoders.configs import DenseEncoderConfig

REFUSED = [
    (ResNetConfig, {"depths": (3, 0, 6, 3)}, "depths"),
    (ResNetConfig, {"width": 3}, "width"),
    (ResNetConfig, {"stages": ()}, "stages"),
    (ResNetConfig, {"stages": (3, 2)}, "stages"),
    (ResNetConfig, {"stages": (2, 2)}, "stages"),
    (ResNetConfig, {"stages": (4, 5)}, "stages"),
    (ResNetConfig, {"frozen_stages": -2}, "frozen_stages"),
    (ResNetConfig, {"frozen_stages": 5}, "frozen_stages"),
    (TransformerConfig, {"channels": 0}, "channels"),
    (TransformerConfig, {"channels": 100}, "num_attention_heads"),
    (TransformerConfig, {"channels": 6, "num_attention_heads": 2}, "channels"),
    (TransformerConfig, {"num_levels": 0}, "num_levels"),
    (TransformerConfig, {"num_attention_heads": 0}, "num_attention_heads"),
    (TransformerConfig, {"num_points": 0}, "num_points"),
    (TransformerConfig, {"num_encoder_layers": -1}, "num_encoder_layers"),
    (TransformerConfig, {"num_decoder_layers": 0}, "num_decoder_layers"),
    (TransformerConfig, {"dropout": 1.0}, "dropout"),
    (TransformerConfig, {"dropout": -0.1}, "dropout"),
    (LossWeights, {"classification": -1.0}, "classification"),
    (LossWeights, {"l1": -1.0}, "l1"),
    (LossWeights, {"giou": -1.0}, "giou"),
    (LossWeights, {"giou_epsilon": -1e-6}, "giou_epsilon"),
    (HungarianConfig, {"log_epsilon": 0.0}, "log_epsilon"),
    (DenseEncoderConfig, {"position_temperature": 0.0}, "position_temperature"),
    (DabDecoderConfig, {"inverse_sigmoid_epsilon": 0.0}, "inverse_sigmoid_epsilon"),
    (ConditionalDecoderConfig, {"inverse_sigmoid_epsilon": 0.5}, "inverse_sigmoid_epsilon"),
    (DetectorConfig, {"num_queries": 0}, "num_queries"),
    (DetectorConfig, {"lambda1": -1.0}, "lambda1"),
    (DetectorConfig, {"lambda2": -1.0}, "lambda2"),
    (DetectorConfig, {"min_positive_queries": 0}, "min_positive_queries"),
    (DetectorConfig, {"min_positive_queries": 10, "max_positive_queries": 9}, "max_positive_queries"),
    (DetectorConfig, {"box_refinement": False}, "box_refinement"),
    (DetectorConfig, {"box_refinement": False, "two_stage": False, "mixed_selection": False}, "look_forward_twice"),
    (DetectorConfig, {"two_stage": False}, "mixed_selection"),
    (DetectorConfig, {"transformer": TransformerConfig(num_levels=2)}, "num_levels"),
    (DetectorConfig, {"adapter": SingleScaleConfig()}, "num_levels"),
    (SingleScaleConfig, {"strides": ()}, "strides"),
    (SingleScaleConfig, {"strides": (8, 32)}, "strides"),
    (SingleScaleConfig, {"strides": (16, 8)}, "strides"),
    (SingleScaleConfig, {"strides": (0, 0)}, "strides"),
    (DigitsConfig, {"num_train": 0}, "num_train"),
    (DigitsConfig, {"num_val": 0}, "num_val"),
    (DigitsConfig, {"image_size": 63}, "image_size"),
    (DigitsConfig, {"difficulty": 1.1}, "difficulty"),
    (DataConfig, {"train_short_sides": ()}, "train_short_sides"),
    (DataConfig, {"train_short_sides": (160, 31)}, "train_short_sides"),
    (DataConfig, {"eval_short_side": 31}, "eval_short_side"),
    (DataConfig, {"max_long_side": 159}, "max_long_side"),
    (DataConfig, {"flip_probability": 1.5}, "flip_probability"),
    (DataConfig, {"eval_long_side": -1}, "eval_long_side"),
    (DataConfig, {"eval_long_side": 100}, "eval_long_side"),
    (DataConfig, {"square": 31}, "square"),
    (DataConfig, {"square": 64, "crop_probability": 0.5}, "crop_probability"),
    (DataConfig, {"jitter_scales": (0.1, 2.0)}, "square"),
    (DataConfig, {"square": 64, "jitter_scales": (2.0, 0.1)}, "jitter_scales"),
    (DataConfig, {"square": 64, "jitter_scales": (0.0, 1.0)}, "jitter_scales"),
    (DataConfig, {"copy_paste": 99}, "square"),
    (DataConfig, {"square": 64, "copy_paste": -1}, "copy_paste"),
    (DataConfig, {"square": 64, "copy_paste": 9, "boxes_from_masks": False}, "boxes_from_masks"),
    (TrainConfig, {"epochs": 0}, "epochs"),
    (TrainConfig, {"batch_size": 0}, "batch_size"),
    (TrainConfig, {"batch_size": 16, "accumulate_steps": 3}, "accumulate_steps"),
    (TrainConfig, {"accumulate_steps": 0}, "accumulate_steps"),
    (TrainConfig, {"learning_rate": 0.0}, "learning_rate"),
    (TrainConfig, {"weight_decay": -1.0}, "weight_decay"),
    (TrainConfig, {"backbone_lr_factor": -1.0}, "backbone_lr_factor"),
    (TrainConfig, {"sampling_lr_factor": -1.0}, "sampling_lr_factor"),
    (TrainConfig, {"clip_grad_norm": -1.0}, "clip_grad_norm"),
    (TrainConfig, {"warmup_fraction": 1.0}, "warmup_fraction"),
    (TrainConfig, {"warmup_steps": -1}, "warmup_steps"),
    (TrainConfig, {"warmup_steps": 5, "warmup_fraction": 0.1}, "cannot both be above 0"),
    (TrainConfig, {"warmup_start": 1.5}, "warmup_start"),
    (TrainConfig, {"layer_decay": 0.0}, "layer_decay"),
    (TrainConfig, {"layer_decay": 1.1}, "layer_decay"),
    (TrainConfig, {"ema_decay": 1.0}, "ema_decay"),
    (TrainConfig, {"ema_warmup_steps": 0}, "ema_warmup_steps"),
    (EvaluateConfig, {"every_epochs": 0}, "every_epochs"),
    (EvaluateConfig, {"branches": ()}, "branches"),
    (RuntimeConfig, {"cpus_per_trial": 0.0}, "cpus_per_trial"),
    (RuntimeConfig, {"gpus_per_trial": -1.0}, "gpus_per_trial"),
    (RuntimeConfig, {"num_workers": -1}, "num_workers"),
]

ACCEPTED = [
    (ResNetConfig, {"depths": (1, 1, 1, 1), "width": 8, "stages": (4,), "frozen_stages": -1}),
    (ResNetConfig, {"stages": (1, 2, 3, 4), "frozen_stages": 4}),
    (TransformerConfig, {"channels": 4, "num_attention_heads": 1, "num_levels": 1, "num_encoder_layers": 0}),
    (LossWeights, {"classification": 0.0, "l1": 0.0, "giou": 0.0}),
    (SingleScaleConfig, {"strides": (32,)}),
    (DetectorConfig, {"lambda1": 0.0, "lambda2": 0.0, "min_positive_queries": 5, "max_positive_queries": 5}),
    (
        DetectorConfig,
        {"two_stage": False, "mixed_selection": False, "box_refinement": False, "look_forward_twice": False},
    ),
    (DigitsConfig, {"num_train": 1, "num_val": 1, "image_size": 64, "difficulty": 0.0}),
    (DataConfig, {"train_short_sides": (32,), "eval_short_side": 32, "max_long_side": 32, "flip_probability": 1.0}),
    (DataConfig, {"eval_long_side": 160, "square": 32, "jitter_scales": (0.1, 2.0), "copy_paste": 99}),
    (
        DataConfig,
        {"train_short_sides": (480, 1536), "max_long_side": 2400, "eval_short_side": 1280, "eval_long_side": 2048},
    ),
    (TrainConfig, {"epochs": 1, "batch_size": 6, "accumulate_steps": 3, "clip_grad_norm": 0.0}),
    (EvaluateConfig, {"every_epochs": 3, "branches": ("decoder", "atss")}),
    (RuntimeConfig, {"cpus_per_trial": 0.5, "gpus_per_trial": 0.25}),
]


def described(case: tuple) -> str:
    return f"{case[0].__name__}-{'-'.join(f'{key}={value}' for key, value in case[1].items())}"


@pytest.mark.parametrize(("config", "values", "field"), REFUSED, ids=map(described, REFUSED))
def test_refuses_and_names_the_field(config, values, field):
    with pytest.raises(ValueError, match=rf"\b{field}\b") as caught:
        config(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("config", "values"), ACCEPTED, ids=map(described, ACCEPTED))
def test_accepts_the_border(config, values):
    built = config(**values)
    assert {key: getattr(built, key) for key in values} == values


ROOMS = sorted(path.parent.name for path in (Path(model.config.__file__).parent).glob("*/configs.py"))
MODULES = [model.config, harness.config, *(import_module(f"model.{room}.configs") for room in ROOMS)]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_config_is_frozen_and_hashable(module):
    configs = [c for c in vars(module).values() if dataclasses.is_dataclass(c) and c.__module__ == module.__name__]
    assert configs
    for config in configs:
        assert config.__dataclass_params__.frozen, config
        assert config.__pydantic_config__ == {"extra": "forbid"}, config
        required = {
            field.name: None
            for field in dataclasses.fields(config)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
        built = config(**required)
        assert hash(built) == hash(config(**required))
        with pytest.raises(dataclasses.FrozenInstanceError):
            built.anything = None


def test_defaults_are_the_published_recipe():
    """Co-Deformable-DETR with ResNet-50, 12 epochs: the official configuration."""
    detector, train = DetectorConfig(), TrainConfig()
    assert (detector.backbone.block, detector.backbone.depths) == ("bottleneck", (3, 4, 6, 3))
    assert (detector.num_queries, detector.lambda1, detector.lambda2) == (300, 1.0, 2.0)
    assert (detector.transformer.num_encoder_layers, detector.transformer.num_decoder_layers) == (6, 6)
    assert (train.epochs, train.drop_epochs, train.learning_rate, train.batch_size) == (12, (11,), 2e-4, 16)
    assert (train.weight_decay, train.clip_grad_norm) == (1e-4, 0.1)
