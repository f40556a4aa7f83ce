"""The published numbers of a released detector beside ours, with what both were measured by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from harness.report.released import METRICS, Protocol, Released
from harness.spec.detection_metrics import RARE_TO_FREQUENT, STANDARD_LIMIT
from harness.spec.error_metrics import BEST, COSTS, PREFIX, THRESHOLD, error_name

DECODER = "decoder"  # the branch that is no head
Numbers = Mapping[str, float | None]


def rows(metrics: Numbers, branches: tuple[str, ...], limit: int, published: Released | None) -> list[list[str]]:
    """Cells of the table: a row for what is published, one for each branch, and the decoder's difference.

    The decoder is named `ours`; what has no number is `-`.
    """
    columns = headings(metrics, published)
    found = {branch: _of_branch(metrics, branch, columns, limit) for branch in branches}
    told = {f"ours, {branch}": own for branch, own in found.items() if branch != DECODER}
    if DECODER in found:
        told = {"ours": found[DECODER], **told}
    if published is not None:
        theirs = [published.metrics.get(name) for name in columns]
        told = {f"published ({published.source})": theirs, **told}
    cells = [[name, *("-" if value is None else f"{value:.1f}" for value in own)] for name, own in told.items()]
    if published is not None and DECODER in found:
        pairs = zip(found[DECODER], theirs, strict=True)
        cells.insert(2, ["difference", *("-" if a is None or b is None else f"{a - b:+.1f}" for a, b in pairs)])
    return cells


def headings(metrics: Numbers, published: Released | None) -> list[str]:
    """Names of the columns."""
    rare = [name for name in RARE_TO_FREQUENT if name in metrics or (published and name in published.metrics)]
    return [*METRICS, *rare]


def _of_branch(metrics: Numbers, branch: str, columns: list[str], limit: int) -> list[float | None]:
    """By column, of as many detections of an image as there are.

    Officially COCO's `AP` counts the 100 best of each class among them, which differs where an image has more of one.
    """
    prefix = "" if branch == DECODER else f"{branch}/"
    counted = {name: f"{prefix}{name}@{limit}" for name in columns if limit > STANDARD_LIMIT}
    return [metrics.get(counted.get(name, ""), metrics.get(f"{prefix}{name}")) for name in columns]


ERROR_HEADINGS = {  # of the columns of `error_rows`, by metric
    **{f"{PREFIX}{kind}": kind for kind in COSTS},
    f"{PREFIX}duplicate_gap": "NMS adds",
    BEST: "best F1",
    THRESHOLD: "at score",
}


def error_rows(metrics: Numbers, branches: tuple[str, ...]) -> list[list[str]]:
    """Cells of the table of errors, a row for each branch; what is undefined is `-`."""
    rows = []
    for branch in branches:
        prefix = "" if branch == DECODER else f"{branch}/"
        values = [metrics.get(f"{prefix}{name}") for name in ERROR_HEADINGS]
        rows.append([branch, *map(cell, ERROR_HEADINGS, values)])
    return rows


def cell(metric: str, value: float | None, digits: int = 2) -> str:
    """A number with so many digits behind the point, a score with all that it has; `-` where it is undefined."""
    if value is None:
        return "-"
    return f"{value:g}" if error_name(metric) == THRESHOLD else f"{value:.{digits}f}"


def is_federated(metrics: Numbers) -> bool:
    """Whether these are LVIS's numbers."""
    return "AR300" in metrics


def protocol_lines(ours: Protocol, published: Released | None, name: str, *, federated: bool = False) -> list[str]:
    """Both protocols, and where they differ; a line on a model that nothing is published of."""
    lines = [f"ours: {ours}"]
    if published is None:
        lines.append(f"no published row is known: {f'none is of {name}' if name else 'no model is named'}")
    else:
        lines.insert(0, f"published: {published.protocol}")
        if replace(ours, precision=published.protocol.precision) != published.protocol:
            lines.append("note: the protocols differ, and with them the numbers may")
    if federated:
        lines.append(f"all columns are LVIS's, of {ours.detections} detections of an image")
    elif (limit := ours.detections) > STANDARD_LIMIT:
        lines.append(f"all columns count {limit} detections of an image; officially AP {STANDARD_LIMIT} of each class")
    return lines
