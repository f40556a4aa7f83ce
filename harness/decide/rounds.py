"""Train what the next looks need, take them, and go on until every claim is settled or the budget is spent.

A round is for the claims whose next look needs the fewest seeds; all their trials run together. Nothing depends on the
order in which trials end: looks are taken after a round, and the budget counts the device seconds that records tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from statistics import fmean

from harness.decide import kept
from harness.decide.kept import Decision
from harness.decide.questions import FAILED, refilled, take_look, trials_needed
from harness.decide.sound import check_measured, check_planned_alike, check_same_code, check_seen
from harness.errors import UserError
from harness.report.verdicts import UNDECIDED
from harness.spec.grid import Grid
from harness.store import lease
from harness.store.decisions import LEASE, path_of
from harness.store.results import RunStore
from harness.system.words import quantity

RunTrials = Callable[[Sequence[str]], None]
NO_ROOM = "the budget has no room for the next look"


@dataclass(frozen=True)
class Round:
    """What would run next."""

    number: int  # seeds of the looks
    admitted: tuple[int, ...]  # places of the questions
    held: tuple[int, ...]  # that the budget does not allow
    trials: tuple[str, ...]  # still to run
    seconds: float | None  # of devices, by the rows' own trials; None: of some row no look has seen one


def decide(
    grid: Grid,
    store: RunStore,
    run: RunTrials,
    *,
    max_seeds: int | None = None,
    budget: float | None = None,
    others: Set[str] = frozenset(),
    allow_mixed: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Decision, str]:
    """Settle the claims of a grid.

    Args:
        grid: with the seeds 0, 1, 2 … up to the last look.
        store: of the records.
        run: trains trials, by id, as far as they are not finished.
        max_seeds: see `kept.read`.
        budget: device seconds for trials that were not finished at the start; None: no end.
        others: trials that count against the budget besides this grid's own (see `counted`), as those of other files.
        allow_mixed: take looks at trainings of different code or operators.
        say: takes a line before each round.

    Returns:
        where things stand, and why it stopped before every claim was settled (empty: they are).

    Raises:
        UserError: another process decides this grid, what looks saw is not what records say now, trainings do not
            compare, or see `kept.read`.
    """
    store.prepare()
    with _alone(grid, store) as held:
        decision = kept.read(grid, store, max_seeds)
        if not decision.started:
            done = frozenset(key for row in grid.rows for key in row.trial_ids if store.status(key) == "finished")
            decision = replace(decision, before=done)
        check_seen(decision, grid, store)
        check_planned_alike(decision, grid, store)
        check_measured(decision, grid, store)
        room = budget is None or seconds_of(counted(decision) | others, store) < budget
        decision = _repaired(decision, grid, store, run if room else None, allow_mixed=allow_mixed)
        decision = _keep(decision, grid, store, held)  # each time: what is left out, and why, is of now
        while (found := next_round(decision, grid, store, budget, others)) is not None:
            if not found.admitted:
                return decision, NO_ROOM
            say(_words(found, has_budget=budget is not None))
            asked = [decision.questions[place] for place in found.admitted]
            if not allow_mixed:
                check_same_code(asked, found.trials, decision, grid, store)
            if found.trials:
                run(found.trials)
            if not allow_mixed:
                check_same_code(asked, (), decision, grid, store)
            taken = {
                place: take_look(decision.questions[place], grid, decision.looks, store) for place in found.admitted
            }
            if any(own is None for own in taken.values()):
                return decision, "some trials of this look have not ended; the same command goes on"
            questions = [taken.get(place) or own for place, own in enumerate(decision.questions)]
            decision = _keep(replace(decision, questions=tuple(questions)), grid, store, held)
        return decision, ""


def _repaired(decision: Decision, grid: Grid, store: RunStore, run: RunTrials | None, *, allow_mixed: bool) -> Decision:
    """With pairs that were missing and are there now; trials of theirs that were set back are run first, with `run`."""
    looks = decision.looks
    lacking = [own for own in decision.questions if own.course(looks).verdict == UNDECIDED and own.missing]
    states = {key: store.status(key) for own in lacking for key in own.missing}
    to_run = [key for key, state in states.items() if state not in ("finished", FAILED)] if run else []
    if lacking and not allow_mixed:
        check_same_code(lacking, to_run, decision, grid, store)
    if run and to_run:
        run(to_run)
        if not allow_mixed:
            check_same_code(lacking, (), decision, grid, store)
    return replace(decision, questions=tuple(refilled(own, looks, store) for own in decision.questions))


def next_round(
    decision: Decision, grid: Grid, store: RunStore, budget: float | None = None, others: Set[str] = frozenset()
) -> Round | None:
    """The claims whose next look needs the fewest seeds, as many as the budget allows; None: all have ended."""
    courses = [question.course(decision.looks) for question in decision.questions]
    open_looks = [course.next_look for course in courses if course.next_look is not None]
    for number in sorted(set(open_looks)):
        places = [place for place, course in enumerate(courses) if course.next_look == number]
        found = _admit(places, number, decision, grid, store, budget, others)
        if found.admitted:
            return found
    if not open_looks:
        return None
    waiting = tuple(place for place, course in enumerate(courses) if course.next_look is not None)
    return Round(min(open_looks), (), waiting, (), 0.0)


def _admit(
    places: Sequence[int],
    number: int,
    decision: Decision,
    grid: Grid,
    store: RunStore,
    budget: float | None,
    others: Set[str],
) -> Round:
    """As many of the questions, in the file's order, as what is left of the budget has room for.

    What a look has not seen yet counts by the mean of its row, whether it has finished or not: after a kill the round
    that was cut short is admitted as it was before.
    """
    trials: dict[str, None] = {}
    admitted, held, seconds, is_known = [], [], 0.0, True
    paid = counted(decision) | others
    left = None if budget is None else budget - seconds_of(paid, store)
    priced = {*decision.before, *paid}
    for place in places:
        needed = trials_needed(decision.questions[place], grid, decision.looks)
        missing = [key for key in needed if store.status(key) != "finished" and key not in trials]
        unpaid = [key for key in needed if key not in priced]
        cost = _cost(unpaid, decision, grid, store)
        if left is not None and (left <= 0 or seconds + (cost or 0.0) > left) and missing:
            held.append(place)
            continue
        admitted.append(place)
        trials |= dict.fromkeys(missing)
        priced.update(unpaid)
        seconds, is_known = seconds + (cost or 0.0), is_known and cost is not None
    return Round(number, tuple(admitted), tuple(held), tuple(trials), seconds if is_known else None)


def counted(decision: Decision) -> set[str]:
    """Trials that a budget counts: those that looks have seen, but not those finished at the start."""
    return {key for question in decision.questions for key in question.trials} - decision.before


def seconds_of(trials: Iterable[str], store: RunStore) -> float:
    """Device seconds of those that have ended, of training and evaluation."""
    return sum(_seconds(store, key) or 0.0 for key in trials)


@dataclass(frozen=True)
class Hours:
    """Device hours of the trials that looks saw, whenever these ran, and of as many seeds as there are at every row."""

    seen: float
    whole: float  # the last look's seeds at every row that a look saw, each trial by the mean of its row
    rows: int  # of them
    unseen: int  # further rows of claims, of which no look has been taken


def hours(decided: Iterable[tuple[Decision, Grid]], store: RunStore) -> Hours:
    """What the looks of some grids took. A training that several grids or rows share counts once."""
    trials: dict[str, set[str]] = {}  # by the first trial of a row
    most: dict[str, int] = {}
    for decision, grid in decided:
        rows = {row.label: row for row in grid.rows}
        for question in decision.questions:
            seen = question.trials
            for label in (question.claim.reference, *question.claim.rows):
                first = rows[label].trial_ids[0]
                trials.setdefault(first, set()).update(seen.intersection(rows[label].trial_ids))
                most[first] = max(most.get(first, 0), decision.looks.most)
    spent, whole = 0.0, 0.0
    for first, own in trials.items():
        known = [value for key in own if (value := _seconds(store, key)) is not None]
        spent += sum(known)
        whole += most[first] * fmean(known) if known else 0.0
    looked = sum(bool(own) for own in trials.values())
    return Hours(spent / 3600, whole / 3600, looked, len(trials) - looked)


def _seconds(store: RunStore, key: str) -> float | None:
    """Device seconds of a trial that has ended."""
    record = store.read(key) or {}
    hours = (record.get("cost") or {}).get("device_hours")
    return 3600.0 * hours if isinstance(hours, int | float) else None


def _cost(unpaid: Sequence[str], decision: Decision, grid: Grid, store: RunStore) -> float | None:
    """Device seconds of trials that no look has seen, each by the mean of its row's that were seen; None: unknown."""
    seen = {key for question in decision.questions for key in question.trials}
    total = 0.0
    for row in grid.rows:
        own = [key for key in unpaid if key in row.trial_ids]
        if not own:
            continue
        known = [value for key in row.trial_ids if key in seen and (value := _seconds(store, key)) is not None]
        if not known:
            return None
        total += len(own) * fmean(known)
        unpaid = [key for key in unpaid if key not in own]
    return total


def _words(found: Round, *, has_budget: bool) -> str:
    claims = quantity(len(found.admitted), "claim")
    trials = quantity(len(found.trials), "trial")
    words = f"{claims} at {found.number} seeds: {trials} to run"
    if has_budget and found.trials and found.seconds is None:
        words += ", whatever the budget: no look has told yet what trials of these rows cost"
    if found.held:
        words += f"; {len(found.held)} more wait for a larger budget"
    return words


def _alone(grid: Grid, store: RunStore) -> lease.Lease:
    """The lease on deciding a grid.

    Raises:
        UserError: another process has it.
    """
    path = path_of(grid, store).with_name(f"decide.{grid.preset}{LEASE}")
    path.parent.mkdir(parents=True, exist_ok=True)
    held = lease.claim(path)
    if held is None:
        raise UserError(f"{grid.name}: another process is deciding its claims ({path}); wait for it, or end it")
    return held


def _keep(decision: Decision, grid: Grid, store: RunStore, held: lease.Lease) -> Decision:
    """Write what looks have seen, as long as nobody else has taken over: their looks may go further.

    Raises:
        UserError: somebody has.
    """
    if held.lost or not lease.names(held.path, held.token):
        raise UserError(
            f"{grid.name}: another process took over deciding its claims ({held.path}), as this one gave no sign of "
            f"life; nothing of this look is kept, its trainings are: the same command goes on once the other has ended"
        )
    return kept.write(decision, grid, store)
