"""What an ablation file claims of its rows, so that a report can say whether it held.

A claim names rows and a row that they are compared with: `better: [ATSS, PAA]`, `than: no head`, or
`equal: [λ1 = 0.5]`, `to: λ1 = 1`, `within: 0.5` (in the metric's own unit). What decides it stands in
harness/report/verdicts.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from harness.spec.strict import Mistakes, suggest
from model.checks import require


class ClaimSpec(BaseModel):
    """A claim as a file states it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    text: str
    better: tuple[str, ...] = ()  # one label may stand without brackets
    than: str = ""
    equal: tuple[str, ...] = ()
    to: str = ""
    within: float | None = None
    margin: float | None = None  # of better: a difference below it does not matter; default: by the metric
    metric: str = ""  # default: the file's first

    @field_validator("better", "equal", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _whole(self) -> ClaimSpec:
        require(bool(self.better) != bool(self.equal), "must say either better: … than: …, or equal: … to: … within: …")
        if self.better:
            require(bool(self.than), "than is missing: name the row that the others are better than")
            require(not self.to and self.within is None, "better takes than; to and within belong to equal")
            require(self.margin is None or self.margin > 0, f"margin must be positive, got {self.margin}")
        else:
            require(bool(self.to), "to is missing: name the row that the others are equal to")
            own = not self.than and self.margin is None
            require(own, "equal takes to and within; than and margin belong to better")
            enough = self.within is not None and self.within > 0
            require(enough, "within is missing: say up to which difference rows count as equal, such as within: 0.5")
        return self


@dataclass(frozen=True)
class Claim:
    """A claim about rows of a grid: each of `rows` compared with `reference`."""

    text: str
    rows: tuple[str, ...]
    reference: str
    metric: str
    within: float | None = None  # None: the rows are better; otherwise equal within this difference
    margin: float | None = None  # of a claim that rows are better: less does not matter; None: by the metric


def claims_of(
    specs: Iterable[ClaimSpec],
    labels: Sequence[str],
    metrics: Sequence[str],
    where: str,
    mistakes: Mistakes,
    data_sets: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[Claim, ...]:
    """The claims of a file about the rows that its grid has.

    Args:
        specs: as the file states them.
        labels: of the grid's rows; one changed from the command line reads `label [key=value]`.
        metrics: the table's.
        where: the file, for mistakes.
        mistakes: unknown rows and metrics are added here.
        data_sets: by the name of a data set, labels that rows have without it -> with it: a claim about the former is
            one on each data set.
    """

    def known(label: str, place: str, on: Mapping[str, str]) -> str:
        label = on.get(label, label)
        changed = _matching(label, labels)
        if len(changed) > 1:
            mistakes.add(place, f"'{label}' is {len(changed)} rows, {' and '.join(changed[:2])}; name one of them")
        if not changed:
            told = [*dict.fromkeys(own for others in (data_sets or {}).values() for own in others), *labels]
            mistakes.add(place, f"'{label}' is not the label of a row{suggest(label, told)}")
        return changed[0] if changed else label

    each = {own for on in (data_sets or {}).values() for own in on}  # of a row on each data set
    found = []
    for index, spec in enumerate(specs):
        place = f"{where}:claims.{index}"
        metric = spec.metric or metrics[0]
        if metric not in metrics:
            mistakes.add(f"{place}.metric", f"'{metric}' is not among the table's metrics{suggest(metric, metrics)}")
        kind, anchor = ("better", "than") if spec.better else ("equal", "to")
        named, than = spec.better or spec.equal, spec.than or spec.to
        single = [label for label in (*named, than) if label not in each and _matching(label, labels)]
        if each and 0 < len(single) < len(named) + 1 and each & {*named, than}:
            told = f"'{single[0]}' is on one data set and others are on each; name the data set of all rows, or of none"
            mistakes.add(place, told)
            continue
        for data_set, on in (data_sets if data_sets and not single else {"": {}}).items():
            rows = tuple(known(label, f"{place}.{kind}", on) for label in named)
            reference = known(than, f"{place}.{anchor}", on)
            if reference in rows:
                mistakes.add(f"{place}.{anchor}", f"'{reference}' is compared with itself; take it out of {kind}")
            text = f"{spec.text} ({data_set})" if data_set else spec.text
            found.append(Claim(text, rows, reference, metric, spec.within, spec.margin))
    return tuple(found)


def _matching(label: str, labels: Sequence[str]) -> list[str]:
    """The row of this label, or those that the command line changed, as `label [model.num_queries=100]`."""
    changed = re.compile(re.escape(label) + r" \[[\w.]+=.*\]", re.DOTALL)
    return [label] if label in labels else [other for other in labels if changed.fullmatch(other)]
