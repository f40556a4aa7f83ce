"""How long a training is: whole epochs, and the optimiser steps that these take.

`train.min_steps` is a lower bound: a training goes on in whole epochs until it is reached, so that more steps are run
than were asked for. Whoever tells a length says both.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import DataConfig, TrainConfig, TrialConfig
from harness.errors import UserError
from harness.system.words import plural

if TYPE_CHECKING:
    import numpy as np

LARGEST = 50_000_000  # bytes of an annotation file that is read to count its images


@dataclass(frozen=True)
class TrainingLength:
    """What a training runs; in words when made a text: "2 epochs, 340 steps (at least 200 asked)"."""

    epochs: int
    steps: int
    asked: int = 0  # `train.min_steps`

    def __str__(self) -> str:
        asked = f" (at least {self.asked:,} asked)" if self.asked else ""
        return f"{_number(self.epochs, 'epoch')}, {_number(self.steps, 'step')}{asked}"


def epochs_of(train: TrainConfig, steps_per_epoch: int) -> int:
    """Epochs of a whole training: `train.epochs`, or as many whole ones as `train.min_steps` takes."""
    return max(train.epochs, -(-train.min_steps // steps_per_epoch))


def training_length(train: TrainConfig, num_images: int) -> TrainingLength:
    """Of a training on `num_images` images."""
    per_epoch = -(-num_images // train.batch_size)
    epochs = epochs_of(train, per_epoch)
    return TrainingLength(epochs, epochs * per_epoch, train.min_steps)


def recorded_length(train: TrainConfig, history: Any) -> TrainingLength | None:
    """As a finished trial's history tells it; None where it does not."""
    last = history[-1] if isinstance(history, list) and history and isinstance(history[-1], dict) else {}
    epochs, steps = last.get("epoch"), last.get("step")
    if not (isinstance(epochs, int) and isinstance(steps, int)):
        return None
    return TrainingLength(epochs, steps, train.min_steps)


def lengths(configs: Iterable[TrialConfig]) -> list[str]:
    """A line for each length that trainings with a least number of steps have; where several, with how many trials.

    A data set whose images cannot be counted quickly is left out.
    """
    images = cache(num_training_images)
    known = Counter(
        training_length(config.train, number)
        for config in configs
        if config.train.min_steps and (number := images(config.data, config.train.batch_size))
    )
    if len(known) == 1:
        return [str(length) for length in known]
    return [f"{length}: {_number(count, 'trial')}" for length, count in known.items()]


def num_training_images(data: DataConfig, batch_size: int) -> int | None:
    """Samples of an epoch, without any check of the split; None where that cannot be known quickly."""
    if data.path is None:
        return None if data.repeat_threshold else data.digits.num_train
    from harness.data.converted import own_folder
    from harness.data.layout import find_split

    try:
        file, _ = find_split(own_folder(Path(data.path).expanduser(), lambda line: None).folder, "train")
        content = json.loads(file.read_bytes()) if file.stat().st_size <= LARGEST else {"images": None}
        images = content["images"]
        if not isinstance(images, list):
            return None
        if not (data.aspect_group_size or data.min_image_side or data.repeat_threshold):
            return len(images)
        from harness.data.order import samples_of_epoch

        sizes = [(row["height"], row["width"]) for row in images]
        return samples_of_epoch(sizes, data, batch_size, _factors(content, sizes, data))
    except (UserError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # what is wrong is told by the checks


def _factors(content: Any, image_hw: list[tuple[int, int]], data: DataConfig) -> np.ndarray | None:
    """How often images are repeated, of an annotation file that nobody has checked."""
    if not data.repeat_threshold:
        return None
    import numpy as np

    from harness.data.order import repeat_factors

    index = {row["id"]: number for number, row in enumerate(content["images"])}
    objects = [row for row in content["annotations"] if not row.get("iscrowd", 0)]
    images, classes = (np.array([row[key] for row in objects], np.int64) for key in ("image_id", "category_id"))
    images = np.array([index[key] for key in images.tolist()], np.int64)
    return repeat_factors(images, classes, image_hw, data)


def _number(count: int, noun: str) -> str:
    return f"{count:,} {plural(noun, count)}"
