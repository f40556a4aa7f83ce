"""The claims of a grid as questions: what has been seen of each, and which trials its next look needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.report.looks import Looks
from harness.report.sequential import Course, Rule, follow
from harness.report.tables import metric_of
from harness.report.verdicts import UNDECIDED
from harness.spec.claims import Claim
from harness.spec.grid import Grid
from harness.store.results import RunStore

FAILED = "failed"


@dataclass(frozen=True)
class Question:
    """A claim, and the differences that its looks have taken."""

    claim: Claim
    rule: Rule
    seen: Mapping[str, Sequence[float | None]] = field(default_factory=dict)  # by row, of seeds 0, 1, 2 …

    def course(self, looks: Looks) -> Course:
        """What has become of it."""
        return follow({row: self.seen.get(row, ()) for row in self.claim.rows}, self.rule, looks)


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
    metric = metric_of(question.claim.metric)
    rows = {row.label: row for row in grid.rows}
    seen = dict(question.seen)
    for own in course.rows:
        if own.verdict != UNDECIDED:
            continue
        values = list(seen.get(own.label, ()))
        for seed in range(len(values), course.next_look):
            labels = own.label, question.claim.reference
            pair = [_number(store, rows[label].trial_ids[seed], metric.name) for label in labels]
            if any(value is ... for value in pair):
                return None
            row, reference = pair
            known = row is not None and reference is not None
            values.append(row - reference if known else None)
        seen[own.label] = values
    return replace(question, seen=seen)


def _number(store: RunStore, trial_id: str, metric: str) -> Any:
    """The number of a finished trial; None where it failed or has none; `...` where it is still to come."""
    from harness.report.frames import recorded

    status, record = store.look(trial_id)
    if status == "finished" and record is not None:
        return recorded(record, metric)
    return None if status == FAILED else ...
