"""The claims of a grid as questions: what has been seen of each, and which trials its next look needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from harness.report.cells import written
from harness.report.looks import Looks
from harness.report.sequential import Course, Rule, Write, follow
from harness.report.tables import metric_of
from harness.report.verdicts import UNDECIDED
from harness.spec.claims import Claim
from harness.spec.grid import Grid
from harness.store.results import RunStore

FAILED = "failed"


class Pair(NamedTuple):
    """What a look has seen of one seed: two trainings, and the difference of their numbers."""

    trial: str  # of the row
    reference: str
    difference: float | None  # None: one of the two failed, or has no such number


@dataclass(frozen=True)
class Question:
    """A claim, and the pairs that its looks have seen."""

    claim: Claim
    rule: Rule
    seen: Mapping[str, Sequence[Pair]] = field(default_factory=dict)  # by row, of seeds 0, 1, 2 …

    def course(self, looks: Looks) -> Course:
        """What has become of it."""
        differences = {row: [pair.difference for pair in self.seen.get(row, ())] for row in self.claim.rows}
        return follow(differences, self.rule, looks, writing(self.claim.metric))

    @property
    def missing(self) -> list[str]:
        """Trials of the pairs that have no difference, each once."""
        lacking = [pair for pairs in self.seen.values() for pair in pairs if pair.difference is None]
        return list(dict.fromkeys(key for pair in lacking for key in (pair.trial, pair.reference)))

    @property
    def trials(self) -> set[str]:
        """Those that its looks have seen."""
        return {key for pairs in self.seen.values() for pair in pairs for key in (pair.trial, pair.reference)}


def writing(metric: str) -> Write:
    """How a number of a metric is written."""
    return lambda value, signed: written(value, metric_of(metric), signed)


def questions_of(grid: Grid) -> list[Question]:
    """The claims about metrics that are better one way, of rows that can run; the others are `left_out`."""
    asked = [claim for claim in grid.claims if not _obstacle(claim, grid)]
    return [Question(claim, Rule(_sign(claim) or 1.0, claim.within)) for claim in asked]


def left_out(grid: Grid) -> tuple[tuple[str, str], ...]:
    """The claims that cannot be decided: the text of each, and why."""
    return tuple((claim.text, why) for claim in grid.claims if (why := _obstacle(claim, grid)))


def _obstacle(claim: Claim, grid: Grid) -> str:
    """Why a claim cannot be decided; empty where it can."""
    labels, needs = {row.label for row in grid.rows}, {row.label: row.needs for _, row in grid.waiting}
    for label in (claim.reference, *claim.rows):
        if label not in labels:
            return f"'{label}' needs {needs[label]}, which is not here yet" if label in needs else f"no row '{label}'"
    trials = {row.label: row.trial_ids for row in grid.rows}
    if same := next((label for label in claim.rows if trials[label] == trials[claim.reference]), ""):
        return f"'{same}' and '{claim.reference}' are the same trainings"
    if claim.within is None and not _sign(claim):
        return f"{claim.metric} is better neither higher nor lower"
    return ""


def _sign(claim: Claim) -> float:
    """1: higher is better, -1: lower is, 0: neither."""
    return {"higher": 1.0, "lower": -1.0}.get(metric_of(claim.metric).better, 0.0)


def trials_needed(question: Question, grid: Grid, looks: Looks) -> dict[str, int]:
    """Ids of the trials of the next look that were not seen before, with their seeds; empty once it has ended."""
    course = question.course(looks)
    if course.next_look is None:
        return {}
    rows = {row.label: row for row in grid.rows}
    waiting = [own.label for own in course.rows if own.verdict == UNDECIDED]
    first = course.look or 0
    return {
        rows[label].trial_ids[seed]: seed
        for label in (question.claim.reference, *waiting)
        for seed in range(first, course.next_look)
    }


def take_look(question: Question, grid: Grid, looks: Looks, store: RunStore) -> Question | None:
    """The question with the differences of its next look; None while a trial has neither finished nor failed."""
    course = question.course(looks)
    if course.next_look is None:
        return question
    rows = {row.label: row for row in grid.rows}
    seen = dict(question.seen)
    for own in course.rows:
        if own.verdict != UNDECIDED:
            continue
        pairs = list(seen.get(own.label, ()))
        for seed in range(len(pairs), course.next_look):
            ids = rows[own.label].trial_ids[seed], rows[question.claim.reference].trial_ids[seed]
            difference = difference_of(*ids, question.claim.metric, store)
            if difference is ...:
                return None
            pairs.append(Pair(*ids, difference))
        seen[own.label] = pairs
    return replace(question, seen=seen)


def refilled(question: Question, looks: Looks, store: RunStore) -> Question:
    """The question with pairs that were missing and have finished since; a claim with a verdict stays as it is."""
    if question.course(looks).verdict != UNDECIDED:
        return question

    def now(pair: Pair) -> Pair:
        if pair.difference is not None:
            return pair
        difference = difference_of(pair.trial, pair.reference, question.claim.metric, store)
        return pair if difference is ... else pair._replace(difference=difference)

    return replace(question, seen={row: [now(pair) for pair in pairs] for row, pairs in question.seen.items()})


def difference_of(trial: str, reference: str, metric: str, store: RunStore) -> Any:
    """Row - reference; None where one of the two failed or has no such number; `...` where one is still to come."""
    values = [_number(store, key, metric_of(metric).name) for key in (trial, reference)]
    if ... in values:
        return ...
    return None if None in values else values[0] - values[1]


def _number(store: RunStore, trial_id: str, metric: str) -> Any:
    """The number of a finished trial; None where it failed or has none; `...` where it is still to come."""
    from harness.report.frames import recorded

    status, record = store.look(trial_id)
    if status == "finished" and record is not None:
        return recorded(record, metric)
    return None if status == FAILED else ...
