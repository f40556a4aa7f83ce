"""COCO's metrics by name, as COCO has them or with another number of detections per image, as `AP@300`.

All are percentages, and higher is better. The 100 best detections of an image count; where images hold more objects,
`evaluate.max_detections: 300` has 300 counted as well, under names of their own, so that `AP` is always COCO's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

COCO_METRICS = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR1", "AR10", "AR100")
STANDARD_LIMIT = 100  # detections per image that `AP` counts
AT_LIMIT = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR")  # that other limits have


def own_name(metric: str) -> str:
    """`AP@300` of `atss/AP@300` and of `segm_AP@300`."""
    return metric.rpartition("/")[2].removeprefix("segm_")


def limit_of(metric: str) -> int | None:
    """How many detections per image a metric counts, where it says so (`AP@300`); None where it does not."""
    name, _, number = own_name(metric).partition("@")
    plain = number.isascii() and number.isdecimal() and not number.startswith("0") and len(number) < 10
    return int(number) if name in AT_LIMIT and plain and int(number) > STANDARD_LIMIT else None


def is_detection_metric(metric: str) -> bool:
    """Whether this is a metric of detections, of a branch (`atss/AP`) or of masks (`segm_AP`) too."""
    return own_name(metric) in COCO_METRICS or limit_of(metric) is not None


def trouble(metric: str) -> str:
    """What is wrong with a metric that names a limit, for a person; empty where none is named."""
    if "@" not in metric:
        return ""
    known = f"{', '.join(AT_LIMIT[:-1])} and {AT_LIMIT[-1]}"
    return f"unknown metric '{metric}'; {known} take a limit above {STANDARD_LIMIT}, as AP@300 does; AP has that of 100"


def unmeasured(metrics: Iterable[str], limits: Iterable[int]) -> list[str]:
    """A line for each limit of a metric that no trial has, and for each of a trial that no metric shows.

    Args:
        metrics: that are asked for.
        limits: `evaluate.max_detections` of the trials.
    """
    metrics, known = list(metrics), set(limits)
    wanted = {limit: metric for metric in reversed(metrics) if (limit := limit_of(metric)) not in (None, *known)}
    lines = [f"no trial measures {metric}; evaluate.max_detections: {limit} does" for limit, metric in wanted.items()]
    for limit in sorted(known - {STANDARD_LIMIT} - set(map(limit_of, metrics))):
        name = f"AP@{limit}"
        lines.append(f"{name} is measured; tables show it where the file's `metrics` name it, as in [AP, {name}]")
    return lines


def beyond_limit(objects: np.ndarray) -> dict[str, int]:
    """How many of the images hold more objects than `AP` counts detections; empty where none does.

    Args:
        objects: [I] of each validation image.

    Returns:
        `images`, `of` so many, and the `most` objects of an image.
    """
    images = int((objects > STANDARD_LIMIT).sum())
    return {"images": images, "of": len(objects), "most": int(objects.max())} if images else {}


def limit_words(crowded: Mapping[str, int], limit: int) -> str:
    """What the limit does to the numbers of such images, and the setting that lifts it where `limit` does not.

    Args:
        crowded: see `beyond_limit`.
        limit: `evaluate.max_detections` of the trials.
    """
    images, of, most = (crowded[name] for name in ("images", "of", "most"))
    words = f"{images:,} of {of:,} validation images have more than {STANDARD_LIMIT} objects ({most:,} at most)"
    words += f", and AP counts only the {STANDARD_LIMIT} best detections of an image"
    return words if most <= limit else f"{words}: evaluate.max_detections={most} adds AP@{most}, which counts all"


def best_of_images(results: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """The `limit` best detections of each image, in their order; of equal scores the earlier ones."""
    counts = Counter(row["image_id"] for row in results)
    if max(counts.values(), default=0) <= limit:
        return results
    kept, taken = set(), Counter[int]()
    for index in sorted(range(len(results)), key=lambda index: -results[index]["score"]):
        image = results[index]["image_id"]
        if taken[image] < limit:
            taken[image] += 1
            kept.add(index)
    return [row for index, row in enumerate(results) if index in kept]
