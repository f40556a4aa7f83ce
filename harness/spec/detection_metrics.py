"""COCO's and LVIS's metrics by name, as they have them or with another number of detections per image, as `AP@300`.

All are percentages, and higher is better. The 100 best detections of an image count, and 300 on LVIS data; where images
hold more objects, `evaluate.max_detections: 1000` has 1,000 counted as well, under names of their own, so that `AP` is
always COCO's or LVIS's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np

R = TypeVar("R", bound=Mapping[str, Any])  # a row of COCO's results format

COCO_METRICS = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR1", "AR10", "AR100")
RARE_TO_FREQUENT = ("APr", "APc", "APf")  # means over LVIS's rare, common and frequent classes
LVIS_METRICS = (*COCO_METRICS[:6], *RARE_TO_FREQUENT, "AR300")
METRICS = tuple(dict.fromkeys((*COCO_METRICS, *LVIS_METRICS)))
STANDARD_LIMIT = (
    100  # detections per image that COCO's `AP` counts, and `evaluate.max_detections` where it asks for none
)
STANDARD_LIMITS = {"coco": STANDARD_LIMIT, "lvis": 300}  # by protocol
AT_LIMIT = ("AP", "AP50", "AP75", "APS", "APM", "APL", *RARE_TO_FREQUENT, "AR")  # that other limits have


def evaluator_trouble(protocol: str, evaluator: str) -> str:
    """Why data of a protocol cannot be evaluated so; empty where it can."""
    if protocol == "coco" or evaluator == "faster_coco_eval":
        return ""
    return f"evaluate.evaluator: {evaluator} knows no federated evaluation, which LVIS data needs; set faster_coco_eval"


def limit_asked(protocol: str, max_detections: int) -> int:
    """How many detections of an image are kept: those that the protocol counts, or more where more are asked for."""
    return max(STANDARD_LIMITS[protocol], max_detections)


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
    return own_name(metric) in METRICS or limit_of(metric) is not None


def was_evaluated(entry: Mapping[str, Any]) -> bool:
    """Whether an epoch's entry holds metrics of detections, of whichever branch."""
    return any(map(is_detection_metric, entry))


def ap_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """AP by its name: the decoder's, or where that was not evaluated the first branch's (`atss/AP`); empty without."""
    name = "AP" if "AP" in metrics else next((name for name in metrics if name.endswith("/AP")), "AP")
    value = metrics.get(name)
    return {name: float(value)} if isinstance(value, int | float) else {}


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


def beyond_limit(objects: np.ndarray, protocol: str = "coco") -> dict[str, int]:
    """How many of the images hold more objects than `AP` counts detections; empty where none does.

    Args:
        objects: [I] of each validation image.
        protocol: of the data set.

    Returns:
        `images`, `of` so many, the `most` objects of an image, and how many are `counted` where that is not COCO's 100.
    """
    limit = STANDARD_LIMITS[protocol]
    images = int((objects > limit).sum())
    words = {} if limit == STANDARD_LIMIT else {"counted": limit}
    return {"images": images, "of": len(objects), "most": int(objects.max()), **words} if images else {}


def limit_words(crowded: Mapping[str, int], limit: int) -> str:
    """What the limit does to the numbers of such images, and the setting that lifts it where `limit` does not.

    Args:
        crowded: see `beyond_limit`.
        limit: `evaluate.max_detections` of the trials.
    """
    images, of, most = (crowded[name] for name in ("images", "of", "most"))
    counted = crowded.get("counted", STANDARD_LIMIT)
    words = f"{images:,} of {of:,} validation images have more than {counted} objects ({most:,} at most)"
    words += f", and AP counts only the {counted} best detections of an image"
    return words if most <= limit else f"{words}: evaluate.max_detections={most} adds AP@{most}, which counts all"


def best_of_images(results: Sequence[R], limit: int) -> Sequence[R]:
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
