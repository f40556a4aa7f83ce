"""How the claims of a grid stand, in words: verdicts with their looks, what is open, and why others ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.decide.kept import Decision, as_dict, looks_of, max_seeds_kept, read
from harness.decide.questions import Question, trials_needed, writing
from harness.decide.rounds import hours
from harness.decide.sound import altered
from harness.report.cells import PLAIN, interval_words, percent
from harness.report.frames import recorded
from harness.report.looks import Looks
from harness.report.notes import undefined_reason
from harness.report.sequential import Estimate, Rule, follow
from harness.report.statistics import Difference
from harness.report.tables import metric_of
from harness.report.verdicts import UNDECIDED, VERDICTS, Comparison, Verdict
from harness.schedule.progress import duration
from harness.spec.claims import Claim
from harness.spec.grid import Grid
from harness.spec.variants import heading
from harness.store.decisions import load
from harness.store.results import RunStore

FAILED_TRAININGS = (
    "claims ended for trainings that failed: mend the cause, `codetr retry`, and the same command goes on"
)
COLUMNS = {
    "claim": True,
    "verdict": False,
    "decided by": True,
    "difference": False,
    "seeds": False,
    "why, or what next": True,
}


def lines(decision: Decision, grid: Grid, store: RunStore | None = None, held: str = "") -> list[list[str]]:
    """A line for each claim, by `COLUMNS`; those that cannot be decided come last."""
    asked = [_line(question, decision.looks, grid, store, held) for question in decision.questions]
    return asked + [[text, "left out", "", "", "", why] for text, why in decision.left_out]


def _line(question: Question, looks: Looks, grid: Grid, store: RunStore | None, held: str) -> list[str]:
    course, verdict = question.course(looks), verdict_of(question, looks)
    own = verdict.deciding
    notes = []
    if course.next_look is not None:
        missing = trials_needed(question, grid, looks)
        left = [key for key in missing if store is None or store.status(key) != "finished"]
        notes.append(f"next look at {course.next_look} seeds, {len(left)} trials to run{held}")
    notes.append(course.reason)
    if store is not None and (gone := altered(question, store)[1]):
        notes.append(f"{len(gone)} trainings that its looks saw are not here")
    lost = missing_pairs([pair.difference for pair in pairs] for pairs in question.seen.values())
    if lost and not course.is_failing:
        notes.append(f"{lost}: trainings failed, or lack the number")
    estimate = next(row.estimate for row in course.rows if row.label == own.row)
    if estimate is not None and estimate.lonely:
        notes.append("one pair carries more than half of the sum of squares: a training may have collapsed")
    return [
        question.claim.text,
        course.verdict if course.next_look is None else "open",
        f"{own.row} against {question.claim.reference}",
        "" if own.difference is None else interval_words(own.difference, verdict.metric, PLAIN),
        "" if estimate is None else counted_words(estimate),
        "; ".join(note for note in notes if note),
    ]


def counted_words(estimate: Estimate) -> str:
    """Seeds of a look; where pairs are missing, how many are there: `2 of 3`."""
    return str(estimate.seeds) if estimate.pairs == estimate.seeds else f"{estimate.pairs} of {estimate.seeds}"


def missing_pairs(pairs: Iterable[Sequence[float | None]]) -> str:
    """Which seeds the looks of a claim's rows lack: `without seed 1`; empty where they lack none."""
    lacking = sorted({seed for found in pairs for seed, value in enumerate(found) if value is None})
    return f"without seed{'s' if len(lacking) > 1 else ''} {', '.join(map(str, lacking))}" if lacking else ""


def failing(decision: Decision, store: RunStore) -> list[str]:
    """What to do about claims that ended for pairs that are missing: a line for each cause."""
    lines = []
    for question in decision.questions:
        if not question.course(decision.looks).is_failing:
            continue
        metric = metric_of(question.claim.metric).name
        finished = [key for key in question.missing if store.status(key) == "finished"]
        if len(finished) < len(question.missing):
            lines.append(FAILED_TRAININGS)
        if lack := [key for key in finished if _lacks(store, key, metric)]:
            why = undefined_reason(metric, [record for key in lack if (record := store.read(key)) is not None])
            lines.append(f"claims ended for trainings that lack their number, as {lack[0]}: {why}")
    return list(dict.fromkeys(lines))


def _lacks(store: RunStore, key: str, metric: str) -> bool:
    return recorded(store.read(key) or {}, metric) is None


def verdict_of(question: Question, looks: Looks) -> Verdict:
    """What has become of a claim, as a report has it."""
    course = question.course(looks)
    waits = "" if course.next_look is None else f"open until {course.next_look} seeds are there"
    rows = tuple(Comparison(own.label, _difference(own.estimate), None, own.verdict, own.p) for own in course.rows)
    metric = metric_of(question.claim.metric)
    return Verdict(question.claim, metric, rows, course.verdict, course.look, course.reason or waits)


def settled_verdicts(grid: Grid, store: RunStore) -> dict[Claim, Verdict]:
    """Verdicts of the claims that looks were taken of, for a report; those that are open say what they wait for.

    Raises:
        UserError: what is kept is damaged, or a claim was changed since.
    """
    if max_seeds_kept(grid, store) is None:
        return {}
    decision = read(grid, store)
    looked = [own for own in decision.questions if own.course(decision.looks).look is not None]
    return {own.claim: _with_doubts(verdict_of(own, decision.looks), own, store) for own in looked}


def _with_doubts(verdict: Verdict, question: Question, store: RunStore) -> Verdict:
    """The verdict with what the records no longer say of what its looks saw."""
    changed, gone = altered(question, store)
    doubts = [f"its looks saw other numbers of {len(changed)} trainings than the records have now"] if changed else []
    doubts += [f"{len(gone)} trainings that its looks saw are not here"] if gone else []
    return replace(verdict, reason="; ".join(filter(None, [verdict.reason, *doubts]))) if doubts else verdict


def _difference(own: Estimate | None) -> Difference | None:
    if own is None:
        return None
    return Difference(own.mean, own.low, own.high, None, own.pairs, own.deviation, 1 - own.alpha)


def tally(decision: Decision) -> str:
    """How many claims came out how, and what was saved against as many seeds as there are everywhere."""
    courses = [question.course(decision.looks) for question in decision.questions]
    open_ones = sum(course.next_look is not None for course in courses)
    counts = {name: sum(c.verdict == name and c.next_look is None for c in courses) for name in VERDICTS[::-1]}
    told = [f"{number} {name}" for name, number in counts.items() if number]
    told += [f"{open_ones} open"] if open_ones else []
    told += [f"{len(decision.left_out)} left out"] if decision.left_out else []
    spent = sum(course.look or 0 for course in courses)
    whole = decision.looks.most * len(courses)
    number = len(courses) + len(decision.left_out)
    words = f"{number} claims: {', '.join(told)}" if number != 1 else f"1 claim: {', '.join(told)}"
    return f"{words}; {spent} seeds looked at, where {decision.looks.most} for each claim are {whole}"


def hours_words(decision: Decision, grid: Grid, store: RunStore) -> str:
    """What the looks took, beside as many seeds everywhere; empty before the first one."""
    took = hours([(decision, grid)], store)
    if not took.rows:
        return ""
    rows = "each row" if not took.unseen else f"each of the {took.rows} rows looked at"
    whole = f"{decision.looks.most} seeds of {rows} would take {duration(3600 * took.whole)}"
    return f"the trials looked at took {duration(3600 * took.seen)} of one device; {whole}"


def looks_words(decision: Decision) -> str:
    """The planned looks and how sure each must be."""
    looks = zip(decision.looks.numbers, decision.looks.alphas, strict=True)
    return "looks: " + ", ".join(f"{number} seeds at {percent(1 - alpha)}" for number, alpha in looks)


def of_grid(grid: Grid, store: RunStore) -> list[str]:
    """A line for each claim that a grid has now, as `of_file` writes them; what looks saw of other claims is told."""
    decision = read(grid, store)
    kept = {"claims": [as_dict(own) for own in decision.questions], "left_out": decision.left_out}
    aside = f"{len(decision.aside)} claims that were looked at are not asked now, or of other trainings"
    return _kept_lines({**kept, "looks": decision.looks.as_dict()}) + ([aside] if decision.aside else [])


def of_file(path: Path) -> tuple[str, list[str]]:
    """Grid and preset of a kept file, and a line for each of its claims; the grid itself need not be known.

    Raises:
        UserError: the file is damaged.
    """
    kept = load(path)
    assert kept is not None, path
    return heading(kept["grid"], kept["preset"], str(kept.get("variant", ""))), _kept_lines(kept)


def _kept_lines(kept: dict[str, Any]) -> list[str]:
    looks, told = looks_of(kept), []
    for own in kept["claims"]:
        rule = Rule(float(own["sign"]), own["within"])
        pairs = {row: [pair[2] for pair in own["pairs"].get(row, ())] for row in own["rows"]}
        course = follow(pairs, rule, looks, writing(own["metric"]))
        words = course.verdict
        if course.next_look is not None:
            rows = 1 + sum(row.verdict == UNDECIDED for row in course.rows)
            words = (
                f"open, next look at {course.next_look} seeds ({rows * (course.next_look - (course.look or 0))} trials)"
            )
        elif course.reason:
            words += f": {course.reason}"
        elif course.look is not None:
            words += f" at {course.look} seeds"
        if (lost := missing_pairs(pairs.values())) and not course.is_failing:
            words += f", {lost}"
        told.append(f"{own['text']}: {words}")
    return told + [f"{text}: left out, as {why}" for text, why in kept["left_out"]]
