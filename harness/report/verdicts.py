"""Whether the claims of an ablation file held: reproduced, not reproduced or undecided, by a rule that is written down.

A claim is decided by the interval of the difference to its reference row, paired by seed, and by nothing else: not by
the sign of a mean, and not by the size of the published difference, which belongs to another data set and scale. That
every row must be better is an intersection, for which nothing is corrected; that a claim fails by any of its m rows is
a union, for which each row has 1 - 0.05 / m. Claims that `codetr decide` settled have the verdict of their looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.report.statistics import (
    CONFIDENCE,
    Difference,
    detectable,
    false_discovery_rates,
    paired_difference,
    t_test,
)

if TYPE_CHECKING:
    from harness.report.tables import Group, Metric
    from harness.spec.claims import Claim

REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "undecided"
VERDICTS = (NOT_REPRODUCED, UNDECIDED, REPRODUCED)  # the first that occurs among several rows decides
RULES = {
    "better": (
        "better: reproduced when the 95 % interval of the difference, paired by seed, lies on the better side of zero "
        "for every row named; not reproduced when for any of m rows that at 1 - 0.05 / m lies on the worse side; "
        "otherwise undecided"
    ),
    "equal": (
        "equal within a margin: reproduced when the 95 % interval of the difference, paired by seed, lies within the "
        "margin on both sides of zero for every row named; not reproduced when for any of m rows that at 1 - 0.05 / m "
        "lies outside; otherwise undecided"
    ),
}
LOOKS = (
    "looked at while seeds came in: the interval of each look has the confidence that stands beside it, so that all "
    "looks of a comparison together are wrong at most 5 % of the time; the mean of a claim that was decided early is "
    "too large in expectation"
)
ONE_SEED = "one seed has no interval over seeds, and leaves every claim undecided"
SHOWN = "could show: the smallest difference that so many pairs with their deviation show with 80 % power"


@dataclass(frozen=True)
class Comparison:
    """One row of a claim beside its reference."""

    row: str
    difference: Difference | None  # row - reference, in the metric's unit; None where no seed is shared
    published: float | None  # the paper's difference
    verdict: str
    p: float | None = None  # Student's, of no difference or of one beyond the margin; over looks, of all of them

    @property
    def detectable(self) -> float | None:
        """The smallest difference that these pairs show with 80 % power; None on one pair."""
        found = self.difference
        if found is None or found.deviation is None or found.n < 2:
            return None
        return detectable(found.deviation, found.n, 1 - found.confidence)


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    claim: Claim
    metric: Metric
    comparisons: tuple[Comparison, ...]
    verdict: str
    seeds: int | None = None  # of the last look; None: the number of seeds was fixed
    reason: str = ""  # why looks ended without a verdict, or what they wait for

    @property
    def p(self) -> float | None:
        """The largest of its rows', which must all be better or equal; of one that is refuted m times the least."""
        known = [found.p for found in self.comparisons]
        refuting = [found.p for found in self.comparisons if found.verdict == NOT_REPRODUCED and found.p is not None]
        if refuting and self.claim.within is None:
            return min(1.0, len(known) * min(refuting))
        return None if None in known else max(own for own in known if own is not None)

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


def judge(
    difference: Difference | None, better: str, within: float | None = None, strict: Difference | None = None
) -> str:
    """Return the verdict on one difference.

    Args:
        difference: row - reference; None where there is none.
        better: "higher" or "lower"; of any other metric no row is better.
        within: the margin of a claim of equality; None for a claim that the row is better.
        strict: the same with the interval that says a claim fails; None: it is that of `difference`.
    """
    strict = strict or difference
    if difference is None or difference.low is None or difference.high is None:
        return UNDECIDED
    assert strict is not None and strict.low is not None and strict.high is not None
    if within is not None:
        if -within <= difference.low and difference.high <= within:
            return REPRODUCED
        return NOT_REPRODUCED if strict.low > within or strict.high < -within else UNDECIDED
    if better not in ("higher", "lower"):
        return UNDECIDED
    if (difference.low if better == "higher" else -difference.high) > 0:
        return REPRODUCED
    return NOT_REPRODUCED if (strict.high if better == "higher" else -strict.low) < 0 else UNDECIDED


def judge_claims(
    claims: Sequence[Claim],
    groups: Mapping[str, Group],
    metric_of: Callable[[str], Metric],
    settled: Mapping[Claim, Verdict] | None = None,
) -> tuple[Verdict, ...]:
    """Return a verdict for each claim.

    Args:
        claims: in the file's order.
        groups: the finished trials of each row by its label.
        metric_of: how a metric is written.
        settled: those of claims whose seeds were looked at one look after the other; the paper's numbers are added.
    """
    verdicts = []
    for claim in claims:
        metric, reference = metric_of(claim.metric), groups[claim.reference]
        looked = (settled or {}).get(claim)
        comparisons = []
        for place, label in enumerate(claim.rows):
            ours, theirs = (group.row.published.get(claim.metric) for group in (groups[label], reference))
            published = None if ours is None or theirs is None else ours - theirs
            if looked is not None:
                comparisons.append(replace(looked.comparisons[place], published=published))
                continue
            pairs = groups[label].values(metric), reference.values(metric)
            found = paired_difference(*pairs)
            strict = paired_difference(*pairs, 1 - (1 - CONFIDENCE) / len(claim.rows))
            verdict = judge(found, metric.better, claim.within, strict)
            comparisons.append(Comparison(label, found, published, verdict, _p(found, claim.within)))
        if looked is not None:
            verdicts.append(replace(looked, comparisons=tuple(comparisons)))
            continue
        worst = min((comparison.verdict for comparison in comparisons), key=VERDICTS.index)
        verdicts.append(Verdict(claim, metric, tuple(comparisons), worst))
    return tuple(verdicts)


def _p(found: Difference | None, within: float | None) -> float | None:
    if found is None or found.deviation is None:
        return None
    return t_test(found.mean, found.deviation, found.n, within)


def q_values(verdicts: Sequence[Verdict]) -> list[float | None]:
    """Return each claim's q-value among all of them; None where it has no p-value."""
    known = [(place, verdict.p) for place, verdict in enumerate(verdicts)]
    there = [(place, p) for place, p in known if p is not None]
    found: list[float | None] = [None] * len(verdicts)
    for (place, _), q in zip(there, false_discovery_rates([p for _, p in there]), strict=True):
        found[place] = q
    return found


def rules_of(verdicts: Sequence[Verdict]) -> list[str]:
    """The rules that these verdicts follow, and what to keep in mind when reading several."""
    fixed = [verdict for verdict in verdicts if verdict.seeds is None]
    kinds = {"better" if verdict.claim.within is None else "equal" for verdict in fixed}
    rules = [f"rule, {RULES[kind]}" for kind in RULES if kind in kinds]
    if any(verdict.seeds is not None for verdict in verdicts):
        rules.append(LOOKS)
    if any(found.detectable is not None for verdict in verdicts for found in verdict.comparisons):
        rules.append(SHOWN)
    differences = [comparison.difference for verdict in verdicts for comparison in verdict.comparisons]
    if any(difference is not None and difference.low is None for difference in differences):
        rules.append(ONE_SEED)
    return rules
