"""Whether the claims of an ablation file held: reproduced, not reproduced or undecided, by a rule that is written down.

A claim is decided by the 95 % interval of the difference to its reference row, paired by seed, and by nothing else: not
by the sign of a mean, and not by the size of the published difference, which belongs to another data set and scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.report.statistics import Difference, paired_difference

if TYPE_CHECKING:
    from harness.report.tables import Group, Metric
    from harness.spec.claims import Claim

REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "undecided"
VERDICTS = (NOT_REPRODUCED, UNDECIDED, REPRODUCED)  # the first that occurs among several rows decides
RULES = {
    "better": (
        "better: reproduced when the 95 % interval of the difference, paired by seed, lies on the better side of zero "
        "for every row named; not reproduced when it lies on the worse side for any; otherwise undecided"
    ),
    "equal": (
        "equal within a margin: reproduced when the 95 % interval of the difference, paired by seed, lies within the "
        "margin on both sides of zero for every row named; not reproduced when it lies outside for any; otherwise "
        "undecided"
    ),
}
ONE_SEED = "one seed has no interval over seeds, and leaves every claim undecided"


@dataclass(frozen=True)
class Comparison:
    """One row of a claim beside its reference."""

    row: str
    difference: Difference | None  # row - reference, in the metric's unit; None where no seed is shared
    published: float | None  # the paper's difference
    verdict: str


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    claim: Claim
    metric: Metric
    comparisons: tuple[Comparison, ...]
    verdict: str

    @property
    def deciding(self) -> Comparison:
        """The comparison that decides: the worst verdict, and of several the one that speaks least for the claim."""

        def support(comparison: Comparison) -> tuple[int, float]:
            rank = VERDICTS.index(comparison.verdict)
            difference = comparison.difference
            if difference is None or difference.low is None or difference.high is None:
                return rank, float("-inf")
            if self.claim.within is not None:
                return rank, -max(abs(difference.low), abs(difference.high))
            return rank, difference.low if self.metric.better != "lower" else -difference.high

        return min(self.comparisons, key=support)


def judge(difference: Difference | None, better: str, within: float | None = None) -> str:
    """Return the verdict on one difference.

    Args:
        difference: row - reference; None where there is none.
        better: "higher" or "lower"; of any other metric no row is better.
        within: the margin of a claim of equality; None for a claim that the row is better.
    """
    if difference is None or difference.low is None or difference.high is None:
        return UNDECIDED
    low, high = difference.low, difference.high
    if within is not None:
        if -within <= low and high <= within:
            return REPRODUCED
        return NOT_REPRODUCED if low > within or high < -within else UNDECIDED
    if better not in ("higher", "lower"):
        return UNDECIDED
    if better == "lower":
        low, high = -high, -low
    return REPRODUCED if low > 0 else NOT_REPRODUCED if high < 0 else UNDECIDED


def judge_claims(
    claims: Sequence[Claim], groups: Mapping[str, Group], metric_of: Callable[[str], Metric]
) -> tuple[Verdict, ...]:
    """Return a verdict for each claim; `groups` holds the finished trials of each row by its label."""
    verdicts = []
    for claim in claims:
        metric = metric_of(claim.metric)
        reference = groups[claim.reference]
        comparisons = []
        for label in claim.rows:
            difference = paired_difference(groups[label].values(metric), reference.values(metric))
            ours, theirs = (group.row.published.get(claim.metric) for group in (groups[label], reference))
            published = None if ours is None or theirs is None else ours - theirs
            comparisons.append(Comparison(label, difference, published, judge(difference, metric.better, claim.within)))
        worst = min((comparison.verdict for comparison in comparisons), key=VERDICTS.index)
        verdicts.append(Verdict(claim, metric, tuple(comparisons), worst))
    return tuple(verdicts)


def rules_of(verdicts: Sequence[Verdict]) -> list[str]:
    """The rules that these verdicts follow, and what to keep in mind when reading several."""
    kinds = {"better" if verdict.claim.within is None else "equal" for verdict in verdicts}
    rules = [f"rule, {RULES[kind]}" for kind in RULES if kind in kinds]
    differences = [comparison.difference for verdict in verdicts for comparison in verdict.comparisons]
    if any(difference is not None and difference.low is None for difference in differences):
        rules.append(ONE_SEED)
    return rules
