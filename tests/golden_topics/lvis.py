"""LVIS: its federated evaluation, and how often images with rare classes are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from harness.config import DataConfig
from harness.data.order import aspect_groups, repeat_factors, repeated, samples_of_epoch
from harness.trial.evaluate import evaluate_at_limit, evaluate_detections
from tests.golden_topics.case import EXACT, Case, Comparison, Tolerance
from tests.golden_topics.recipe import same

PERCENT = Tolerance(0, 1e-9)
NAMES = {"APs": "APS", "APm": "APM", "APl": "APL"}  # here; the others are alike
RECALLS_BY_SIZE = ("ARs@300", "ARm@300", "ARl@300")  # are no metrics here
UNDEFINED = -1.0


@dataclass
class Split:
    """What the evaluation needs of a data set."""

    ground_truth: dict[str, Any]
    category_names: tuple[str, ...]
    area_bounds: tuple[float, float] = (32.0**2, 96.0**2)


def lvis_eval(case: Case) -> Iterator[Comparison]:
    """All metrics and the AP of each category, with 300 detections of each image and with 1,000."""
    truth, results = case.table("annotations"), case.table("detections")
    categories = sorted(row["id"] for row in truth["categories"])
    split = Split(truth, tuple(map(str, categories)))
    found = evaluate_detections(split, results, "faster_coco_eval")  # type: ignore[arg-type]
    yield from _metrics(case.table("expected_max300"), found, "", "AR300", "max300")
    yield _values("per_category_ap_max300", found["per_class"], case.table("per_category_ap_max300"))
    more = evaluate_at_limit(split, results, "faster_coco_eval", 1000)  # type: ignore[arg-type]
    yield from _metrics(case.table("expected_max1000"), more, "@1000", "AR@1000", "max1000")
    # Of each category on its own, as the only one whose frequency is asked for
    expected = case.table("per_category_ap_max1000")
    for category in categories:
        rows = [{**row, "frequency": "r" if row["id"] == category else "f"} for row in truth["categories"]]
        alone = Split({**truth, "categories": rows}, split.category_names)
        own = evaluate_at_limit(alone, results, "faster_coco_eval", 1000)  # type: ignore[arg-type]
        yield _values(f"per_category {category}", {"": own["APr@1000"]}, {"": expected[str(category)]})


def _metrics(
    expected: Mapping[str, float], found: Mapping[str, float | None], end: str, recall: str, name: str
) -> Iterator[Comparison]:
    for key, value in expected.items():
        if key in RECALLS_BY_SIZE:
            continue
        own = recall if key == "AR@300" else f"{NAMES.get(key, key)}{end}"
        yield _values(f"{name} {key}", {key: found[own]}, {key: value})


def _values(name: str, found: Mapping[str, float | None], expected: Mapping[str, float]) -> Comparison:
    """Percentages against shares of 1, where -1 is undefined."""
    assert found.keys() == expected.keys()
    ours = [UNDEFINED if value is None else value / 100 for value in found.values()]
    theirs = torch.tensor([expected[key] for key in found], dtype=torch.float64)
    return Comparison(name, torch.tensor(ours, dtype=torch.float64), theirs, PERCENT)


def repeat_factor(case: Case) -> Iterator[Comparison]:
    """Factors, and the images of an epoch with their shapes."""
    of_images = case.table("category_ids_per_image")
    images = np.repeat(np.arange(len(of_images)), [len(own) for own in of_images])
    classes = np.array([category for own in of_images for category in own], np.int64)
    is_wide = case["aspect_flag"].numpy().astype(bool)
    image_hw = [(100, 150 if wide else 100) for wide in is_wide]
    config = DataConfig(repeat_threshold=case["threshold"].item())
    factors = repeat_factors(images, classes, image_hw, config)
    assert factors is not None
    yield Comparison("repeat_factor", torch.from_numpy(factors), case["repeat_factor"], PERCENT)
    with_empty = repeat_factors(images, classes, image_hw, replace(config, repeat_empty=True))
    assert with_empty is not None
    name = "repeat_factor_empty_as_class"
    yield Comparison(name, torch.from_numpy(with_empty), case[name], PERCENT)
    draws = np.random.default_rng(0)
    (order,) = repeated(aspect_groups(image_hw, config), factors, config, draws)
    yield same("repeat_indices", order, case)
    yield same("epoch_length", [samples_of_epoch(image_hw, config, 1, factors)], case)
    in_groups = replace(config, aspect_group_size=2)
    groups = repeated(aspect_groups(image_hw, in_groups), factors, in_groups, draws)
    flags = np.concatenate([is_wide[group] for group in groups])[np.argsort(np.concatenate(groups), kind="stable")]
    yield Comparison("flag_after", torch.from_numpy(flags.astype(np.int64)), case["flag_after"], EXACT)
