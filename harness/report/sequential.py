"""A claim judged while seeds come in: looks in their order, verdicts that stand, and when to give up.

`follow` replays a claim from its paired differences alone, over the first seeds of each look, so that a run that was
killed and resumed decides what an undisturbed one does, and seeds that others bring change nothing. Rules:

- A row is *reproduced* at the first look whose interval at 1 - α lies on the better side (or within the margin). A
  claim is when all its rows are, each at its own look: an intersection, for which nothing is corrected.
- A claim is *not reproduced* as soon as the interval of one of its m rows at 1 - α / m lies on the worse side (or
  beyond the margin): a union.
- From 5 seeds on it ends without a verdict where more than one pair in five of a row that is still open is missing.
- It is given up, from 5 seeds on, when even a favourable continuation would not decide. That spends no error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from harness.report.looks import ERROR, Looks
from harness.report.statistics import detectable, t_quantile, t_test
from harness.report.verdicts import NOT_REPRODUCED, REPRODUCED, UNDECIDED

PATIENCE = 5  # seeds before a claim is given up, or ended for its failures
MOST_FAILED = 0.2  # of a row's pairs
LONELY = 0.5  # of the sum of squares, that one pair carries


@dataclass(frozen=True)
class Estimate:
    """What a row's differences to the reference say at a look."""

    seeds: int  # of the look
    pairs: int  # of them that are there
    mean: float
    deviation: float  # of the paired differences
    low: float
    high: float
    alpha: float  # the interval holds at 1 - alpha
    lonely: bool = False  # one pair carries more than half of the sum of squares


@dataclass(frozen=True)
class RowCourse:
    """One row of a claim."""

    label: str
    verdict: str = UNDECIDED
    estimate: Estimate | None = None  # at the deciding look, else at the last one
    p: float = 1.0  # see `p_value`, over all looks taken


@dataclass(frozen=True)
class Course:
    """What has become of a claim."""

    rows: tuple[RowCourse, ...]
    verdict: str = UNDECIDED
    next_look: int | None = None  # seeds that it waits for; None: it has ended
    reason: str = ""  # why it ended without a verdict
    look: int | None = None  # seeds of the last look taken
    is_failing: bool = False  # it ended for pairs that are missing


@dataclass(frozen=True)
class Rule:
    """What a claim says of its rows' differences."""

    sign: float  # 1: higher is better, -1: lower is
    margin: float | None = None  # None: the rows are better; otherwise they are equal within this


Write = Callable[[float, bool], str]  # a difference in words; with True its sign is always there


def _two_decimals(value: float, signed: bool) -> str:
    return f"{value:+.2f}" if signed else f"{value:.2f}"


def follow(
    rows: Mapping[str, Sequence[float | None]], rule: Rule, looks: Looks, write: Write = _two_decimals
) -> Course:
    """Replay a claim.

    Args:
        rows: by label the differences row - reference of seeds 0, 1, 2 …, as far as both have ended; None where
            one of the two has failed for good.
        rule: of the claim.
        looks: planned.
        write: how reasons write a number of the claim's metric.
    """
    course = Course(tuple(RowCourse(label) for label in rows), next_look=looks.numbers[0])
    for number, alpha in zip(looks.numbers, looks.alphas, strict=True):
        waiting = [own.label for own in course.rows if own.verdict == UNDECIDED]
        if any(len(rows[label]) < number for label in waiting):
            return replace(course, next_look=number)
        if reason := _failing({label: rows[label] for label in waiting}, number):
            seen = tuple(_estimated_again(own, rows[own.label], number, alpha) for own in course.rows)
            return Course(seen, reason=reason, look=number, is_failing=True)
        course = _look(course, rows, rule, number, alpha)
        if course.verdict != UNDECIDED:
            return replace(course, next_look=None)
        if reason := _give_up(course, rule, looks, number, write):
            return replace(course, next_look=None, reason=reason)
    return replace(course, next_look=None, reason=f"all {looks.most} seeds leave it open")


def _look(course: Course, rows: Mapping[str, Sequence[float | None]], rule: Rule, number: int, alpha: float) -> Course:
    """The rows that are still open, at one look, and what follows for the claim."""
    found = []
    refuted = False
    for own in course.rows:
        if own.verdict != UNDECIDED:
            found.append(own)
            continue
        estimate = estimated(rows[own.label], number, alpha)
        strict = estimated(rows[own.label], number, alpha / len(course.rows))
        p = own.p if estimate is None else min(own.p, p_value(estimate, rule) * ERROR / alpha)
        verdict = UNDECIDED
        if strict is not None and _is_refuted(strict, rule):
            verdict, estimate, refuted = NOT_REPRODUCED, strict, True
        elif estimate is not None and _is_shown(estimate, rule):
            verdict = REPRODUCED
        found.append(RowCourse(own.label, verdict, estimate or own.estimate, p))
    verdict = UNDECIDED
    if refuted:
        verdict = NOT_REPRODUCED
    elif all(own.verdict == REPRODUCED for own in found):
        verdict = REPRODUCED
    return Course(tuple(found), verdict, course.next_look, look=number)


def _estimated_again(own: RowCourse, differences: Sequence[float | None], number: int, alpha: float) -> RowCourse:
    """An open row with what its pairs say at a look that judges nothing."""
    if own.verdict != UNDECIDED:
        return own
    return replace(own, estimate=estimated(differences, number, alpha) or own.estimate)


def estimated(differences: Sequence[float | None], number: int, alpha: float) -> Estimate | None:
    """Mean and t interval at 1 - `alpha` of the first `number` differences; None with fewer than two of them."""
    values = [value for value in differences[:number] if value is not None]
    pairs = len(values)
    if pairs < 2:
        return None
    mean = math.fsum(values) / pairs
    squares = [(value - mean) ** 2 for value in values]
    total = math.fsum(squares)
    deviation = math.sqrt(total / (pairs - 1))
    half = _quantile(1 - alpha / 2, pairs - 1) * deviation / math.sqrt(pairs)
    lonely = pairs >= PATIENCE and max(squares) > LONELY * total
    return Estimate(number, pairs, mean, deviation, mean - half, mean + half, alpha, lonely)


@lru_cache(maxsize=4096)
def _quantile(probability: float, degrees: int) -> float:
    return t_quantile(probability, degrees)


def _is_shown(own: Estimate, rule: Rule) -> bool:
    if rule.margin is not None:
        return -rule.margin <= own.low and own.high <= rule.margin
    return (own.low if rule.sign > 0 else -own.high) > 0


def _is_refuted(own: Estimate, rule: Rule) -> bool:
    if rule.margin is not None:
        return own.low > rule.margin or own.high < -rule.margin
    return (own.high if rule.sign > 0 else -own.low) < 0


# ---- giving up ----------------------------------------------------------------------------------------------------


def _failing(rows: Mapping[str, Sequence[float | None]], number: int) -> str:
    """Which row lacks too many pairs; empty where none does."""
    for label, differences in rows.items() if number >= PATIENCE else ():
        failed = sum(value is None for value in differences[:number])
        if failed > MOST_FAILED * number:
            return f"failing: of the {number} pairs of '{label}' {failed} are missing: trainings failed, or lack it"
    return ""


def _give_up(course: Course, rule: Rule, looks: Looks, number: int, write: Write) -> str:
    """Why the claim ends without a verdict; empty where it goes on."""
    if number < PATIENCE or number == looks.most:
        return ""
    waiting = [own for own in course.rows if own.verdict == UNDECIDED]
    stuck = [own for own in waiting if own.estimate is not None and is_hopeless(own.estimate, rule, looks)]
    if not stuck or any(_may_be_refuted(own, rule, looks, len(course.rows)) for own in waiting):
        return ""
    own = stuck[0]
    assert own.estimate is not None
    made = own.estimate
    smallest = detectable(made.deviation, looks.most, looks.alphas[-1])
    return (
        f"given up at {number} seeds: '{own.label}' differs by {write(made.mean, True)} with a paired deviation of "
        f"{write(made.deviation, False)}; at {looks.most} seeds {write(smallest, False)} could be shown (80 % power)"
    )


def is_hopeless(own: Estimate, rule: Rule, looks: Looks) -> bool:
    """Whether even a favourable continuation would leave a row unshown at the last look; see `_may_be_refuted`."""
    reach, half = _reach(own, looks), _last_half(own, looks, 1)
    if rule.margin is None:
        return rule.sign * own.mean + reach <= half  # equal where all differences are zero
    return abs(own.mean) - reach + half > rule.margin


def _may_be_refuted(own: RowCourse, rule: Rule, looks: Looks, rows: int) -> bool:
    """Whether a continuation towards the other side could still refute the claim by this row."""
    if own.estimate is None:
        return True
    reach, half = _reach(own.estimate, looks), _last_half(own.estimate, looks, rows)
    if rule.margin is None:
        return rule.sign * own.estimate.mean - reach < -half
    return abs(own.estimate.mean) + reach > rule.margin + half


def _reach(own: Estimate, looks: Looks) -> float:
    """How far the mean may come by the last look: a deviation of what the seeds until then add."""
    return own.deviation * math.sqrt(max(1 / own.pairs - 1 / looks.most, 0.0))


def _last_half(own: Estimate, looks: Looks, rows: int) -> float:
    """Half of the interval at the last look, if the deviation stays what it is."""
    quantile = _quantile(1 - looks.alphas[-1] / rows / 2, looks.most - 1)
    return quantile * own.deviation / math.sqrt(looks.most)


def p_value(own: Estimate, rule: Rule) -> float:
    """Student's, of no difference, or of one beyond the margin. Over looks the least of p · 0.05 / α counts."""
    return t_test(own.mean, own.deviation, own.pairs, rule.margin)
