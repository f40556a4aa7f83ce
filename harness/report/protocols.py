"""By which protocol detectors are evaluated, in words: for the foot of a table, and beside published numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.config import TrialConfig
from harness.report.released import Protocol
from harness.spec.detection_metrics import STANDARD_LIMIT, STANDARD_LIMITS, limit_asked
from model.postprocess import POSTPROCESSORS

Made = Mapping[str, Any]  # provenance of a record
NAMES = {"coco": "COCO's protocol", "lvis": "LVIS's federated evaluation"}


def protocol_of(config: TrialConfig, precision: str, *, federated: bool = False) -> Protocol:
    """What a configuration evaluates by, in the words of the published ones; `federated`: on LVIS's data."""
    name = POSTPROCESSORS.name_of(config.model.postprocess)
    post = {"top_k": "no NMS"}.get(name, name.replace("_", "-"))
    if name == "soft_nms":
        post = f"soft-NMS at {config.model.postprocess.iou_threshold:g}"
    data = config.data
    size = f"{data.evaluated_long_side} x {data.eval_short_side}"
    if data.square:
        size = f"padded to {data.square} x {data.square}"
    limit = limit_asked("lvis" if federated else "coco", config.evaluate.max_detections)
    return Protocol(post, limit, size, precision)


def evaluated_by(configs: Sequence[TrialConfig], provenance: Sequence[Made]) -> str:
    """What stands below a table: protocol, evaluator, detections that count, NMS, test size, bounds of areas.

    Args:
        configs: of the trials behind the table.
        provenance: of their records, in the same order.
    """
    kinds = [str(made.get("protocol") or "coco") for made in provenance]
    protocols = [protocol_of(config, "", federated=kind == "lvis") for config, kind in zip(configs, kinds, strict=True)]
    evaluators = _either(str(made["evaluator"]) for made in provenance if made.get("evaluator"))
    parts = [
        f"evaluated by {_either(NAMES.get(kind, kind) for kind in kinds)}" + (f" ({evaluators})" if evaluators else ""),
        _detections(configs, kinds),
        f"decoder: {_either(own.post for own in protocols)}",
        f"images of at most {_either(own.size for own in protocols)} px",
        area_bounds(provenance),
    ]
    return ", ".join(filter(None, parts))


def area_bounds(provenance: Sequence[Made]) -> str:
    """Which areas part small, medium and large objects; empty where no record tells."""
    bounds = sorted({tuple(entry["area_bounds"]) for entry in provenance if entry.get("area_bounds")})
    return " or ".join(f"sizes S, M, L split at areas of {' and '.join(map(_area, pair))} px" for pair in bounds)


def _detections(configs: Sequence[TrialConfig], kinds: Sequence[str]) -> str:
    """How many detections of an image count, and in which columns more do."""
    counted = _either(str(STANDARD_LIMITS.get(kind, STANDARD_LIMIT)) for kind in kinds)
    more = sorted({config.evaluate.max_detections for config in configs} - {STANDARD_LIMIT})
    others = "".join(f", {limit} for AP@{limit}" for limit in more)
    return f"the {counted} best detections of an image{others}"


def _area(area: float) -> str:
    side = math.sqrt(area)
    return f"{side:g}²" if side == int(side) else f"{area:g}"


def _either(words: Iterable[str]) -> str:
    return " or ".join(sorted(set(words)))
