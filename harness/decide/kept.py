"""What `codetr decide` keeps: the looks that were planned, and what each claim's looks have seen.

The file (`harness.store.decisions`) is replaced whole after every round. Looks are fixed with the first one: more seeds
afterwards would spend more error than was planned. What was seen belongs to trials and not to labels: where a row is
another training now, its claim begins anew, and what was seen of the former is set aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from harness.decide.questions import Pair, Question, left_out, questions_of
from harness.errors import UserError
from harness.files import to_json, write_atomic
from harness.report.looks import DEFAULT, Looks, looks_for
from harness.spec.claims import Claim
from harness.spec.grid import Grid
from harness.store.decisions import SCHEMA, load, pairs_of, path_of
from harness.store.results import RunStore


@dataclass(frozen=True)
class Decision:
    """A grid's claims on their way."""

    looks: Looks
    questions: tuple[Question, ...]
    before: frozenset[str] = frozenset()  # trials that were finished at the start: they cost nothing
    started: str = ""  # empty: nothing is kept yet
    left_out: tuple[tuple[str, str], ...] = ()  # claims that cannot be decided, and why
    aside: tuple[dict[str, Any], ...] = ()  # what was seen of claims that are not asked now, as the file has it


def read(grid: Grid, store: RunStore, max_seeds: int | None = None) -> Decision:
    """What is kept of a grid, or a new plan.

    Args:
        grid: with enough seeds for the plan.
        store: where it is kept.
        max_seeds: as asked for; None: as planned, as the file says, or 12.

    Raises:
        UserError: the file is damaged, looks were planned for another number of seeds, or a margin was changed since.
    """
    kept = load(path_of(grid, store))
    if kept is None:
        return Decision(looks_for(max_seeds or DEFAULT), tuple(questions_of(grid)), left_out=left_out(grid))
    planned = int(kept["max_seeds"])
    is_bound = any(True for _ in pairs_of(kept))
    if is_bound and max_seeds not in (None, planned):
        raise UserError(
            f"{grid.name}: its looks were planned for {planned} seeds before the first one was taken; other looks now "
            f"would spend more error than planned: leave out --max-seeds (or the file's decide.max_seeds)"
        )
    most = planned if is_bound else max_seeds or planned
    questions, aside = _resumed(grid, [_named(own, grid) for own in (*kept["aside"], *kept["claims"])])
    before, started = frozenset(kept["before"]), str(kept["started"])
    return Decision(looks_for(most), questions, before, started, left_out(grid), aside)


def _named(own: Mapping[str, Any], grid: Grid) -> dict[str, Any]:
    """A claim of schema 1, which had labels alone, with the trials that the grid has under them now."""
    trials = {row.label: row.trial_ids for row in grid.rows}
    has_trials = all(trial for found in own["pairs"].values() for trial, *_ in found)
    if has_trials or not {*own["pairs"], own["reference"]} <= trials.keys():
        return dict(own)
    reference = trials[own["reference"]]
    pairs = {
        row: [(key, other, pair[2]) for pair, key, other in zip(found, trials[row], reference, strict=False)]
        for row, found in own["pairs"].items()
    }
    return {**own, "pairs": pairs}


def _resumed(grid: Grid, kept: list[dict[str, Any]]) -> tuple[tuple[Question, ...], tuple[dict[str, Any], ...]]:
    """The grid's questions with what was seen of them, and what was seen of claims that it does not ask now.

    A row may be missing for a while, as where a package is not installed: its looks must not be taken a second time.

    Raises:
        UserError: a margin was changed.
    """
    known = {(_key_of(own), own["within"]): own for own in kept if any(own["pairs"].values())}
    asked = [(question, _key(question.claim, grid)) for question in questions_of(grid)]
    now = {(key, question.claim.within) for question, key in asked}
    others = {place: own for place, own in known.items() if place not in now}
    margins = {key: within for key, within in others}
    questions = []
    for question, key in asked:
        own = known.get((key, question.claim.within))
        if own is None and key in margins:
            raise UserError(
                f"{grid.name}: the margin of '{question.claim.text}' was {margins[key]:g} when its first look was "
                f"taken, and is {question.claim.within:g} now; set it back, or state another claim"
            )
        questions.append(question if own is None else replace(question, seen=_seen(question.claim, own)))
    return tuple(questions), tuple(others.values())


def _seen(claim: Claim, own: Mapping[str, Any]) -> dict[str, list[Pair]]:
    """What was seen, by the labels that its rows have now."""
    found = [own["pairs"].get(row, ()) for row in own["rows"]]
    return {row: [Pair(*pair) for pair in pairs] for row, pairs in zip(claim.rows, found, strict=True)}


def write(decision: Decision, grid: Grid, store: RunStore) -> Decision:
    """Keep it; returns it with the time of its start."""
    started = decision.started or datetime.now(UTC).isoformat(timespec="seconds")
    decision = replace(decision, started=started)
    content = {
        **{"schema": SCHEMA, "grid": grid.name, "preset": grid.preset, "variant": grid.variant.words},
        "started": started,
        "max_seeds": decision.looks.most,
        "looks": {"seeds": list(decision.looks.numbers), "alphas": list(decision.looks.alphas)},
        "before": sorted(decision.before),
        "claims": [_as_dict(question) for question in decision.questions],
        "left_out": [list(pair) for pair in decision.left_out],
        "aside": list(decision.aside),
    }
    write_atomic(path_of(grid, store), to_json(content, indent=1) + "\n")
    return decision


def max_seeds_kept(grid: Grid, store: RunStore) -> int | None:
    """For how many seeds a grid's looks are planned; None: nothing is kept."""
    kept = load(path_of(grid, store))
    return None if kept is None else int(kept["max_seeds"])


def _as_dict(question: Question) -> dict[str, Any]:
    claim = question.claim
    return {
        **{"text": claim.text, "rows": list(claim.rows), "reference": claim.reference},
        **{"metric": claim.metric, "within": claim.within, "sign": question.rule.sign},
        "pairs": {row: [list(pair) for pair in pairs] for row, pairs in question.seen.items()},
    }


def _key(claim: Claim, grid: Grid) -> tuple[Any, ...]:
    """What makes a claim the same, whatever its words and labels: its trials with the first seed, and its metric."""
    first = {row.label: row.trial_ids[0] for row in grid.rows}
    trials = tuple(first[label] for label in claim.rows)
    return trials, first[claim.reference], claim.metric, claim.within is None


def _key_of(own: Mapping[str, Any]) -> tuple[Any, ...]:
    """The same of a kept claim."""
    pairs = [next(iter(own["pairs"].get(row, ())), ("", "", None)) for row in own["rows"]]
    return tuple(pair[0] for pair in pairs), pairs[0][1], own["metric"], own["within"] is None
