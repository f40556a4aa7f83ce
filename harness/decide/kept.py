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

from harness.decide.questions import Pair, Question, difference_of, left_out, questions_of
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
    looks = looks_of(kept) if is_bound else looks_for(max_seeds or planned)
    questions, aside = _resumed(grid, [_named(own, grid, store) for own in (*kept["aside"], *kept["claims"])])
    before, started = frozenset(kept["before"]), str(kept["started"])
    return Decision(looks, questions, before, started, left_out(grid), aside)


def looks_of(kept: Mapping[str, Any]) -> Looks:
    """The looks as they were planned."""
    return Looks(tuple(kept["looks"]["seeds"]), tuple(kept["looks"]["alphas"]))


def _named(own: Mapping[str, Any], grid: Grid, store: RunStore) -> dict[str, Any]:
    """A claim of schema 1, which had labels alone, with the trials of its labels, if their records say the same."""
    trials = {row.label: dict(zip(grid.seeds, row.trial_ids, strict=True)) for row in grid.rows}
    has_trials = all(trial for found in own["pairs"].values() for trial, *_ in found)
    if has_trials or not {*own["pairs"], own["reference"]} <= trials.keys():
        return dict(own)
    pairs: dict[str, list[Pair]] = {}
    for row, found in own["pairs"].items():
        pairs[row] = []
        for seed, (*_, difference) in enumerate(found):
            trial, reference = (trials[label].get(seed, "") for label in (row, own["reference"]))
            now = difference_of(trial, reference, own["metric"], store) if trial and reference else ...
            if now is ... or now != difference:
                return dict(own)
            pairs[row].append(Pair(trial, reference, difference))
    return {**own, "pairs": pairs}


def _resumed(grid: Grid, kept: list[dict[str, Any]]) -> tuple[tuple[Question, ...], tuple[dict[str, Any], ...]]:
    """The grid's questions with what was seen of them, and what was seen of claims that it does not ask now.

    A row may be missing for a while, as where a package is not installed: its looks must not be taken a second time.

    Raises:
        UserError: a margin was changed.
    """
    known = [own for own in kept if any(own["pairs"].values())]
    fitting = [
        (question, [own for own in known if _is_of(own, question.claim, grid)]) for question in questions_of(grid)
    ]
    exact = [[own for own in found if own["within"] == question.claim.within] for question, found in fitting]
    used = [id(own) for found in exact for own in found]
    questions = []
    for (question, found), same in zip(fitting, exact, strict=True):
        others = [own for own in found if id(own) not in used]
        if not same and others:
            before, now = others[0]["within"], question.claim.within
            raise UserError(
                f"{grid.name}: the margin of '{question.claim.text}' was {before:g} when its first look was taken, and "
                f"is {now:g} now; set it back, or state another claim"
            )
        questions.append(replace(question, seen=_seen(question, same[0], grid)) if same else question)
    return tuple(questions), tuple(own for own in known if id(own) not in used)


def _is_of(own: Mapping[str, Any], claim: Claim, grid: Grid) -> bool:
    """Whether what was kept is of this claim, whatever its words and labels: of the same trials, metric and kind."""
    same_kind = own["metric"] == claim.metric and (own["within"] is None) == (claim.within is None)
    return same_kind and bool(_rows_of(own, claim, grid))


def is_about(own: Mapping[str, Any], claim: Claim, grid: Grid) -> bool:
    """Whether what was kept is of this claim with the margin that it has now."""
    return _is_of(own, claim, grid) and own["within"] == claim.within


def _rows_of(own: Mapping[str, Any], claim: Claim, grid: Grid) -> dict[str, str]:
    """The rows that a claim's rows had in what was kept, found by their trials; empty where these are others.

    They may stand in another order. Rows of which nothing was seen fit any.
    """
    if len(own["rows"]) != len(claim.rows):
        return {}
    trials = {row.label: dict(zip(grid.seeds, row.trial_ids, strict=True)) for row in grid.rows}
    reference, found = trials[claim.reference], dict[str, str]()
    compared = 0
    for row in sorted(own["rows"], key=lambda row: not own["pairs"].get(row)):
        pairs = {seed: tuple(pair[:2]) for seed, pair in enumerate(own["pairs"].get(row, ()))}
        for label in (label for label in claim.rows if label not in found):
            here = [seed for seed in pairs if seed in trials[label]]
            if all(pairs[seed] == (trials[label][seed], reference[seed]) for seed in here) and (here or not pairs):
                compared += len(here)
                found[label] = row
                break
        else:
            return {}
    return found if compared else {}


def _seen(question: Question, own: Mapping[str, Any], grid: Grid) -> dict[str, list[Pair]]:
    """What was seen, by the labels that its rows have now."""
    rows = _rows_of(own, question.claim, grid)
    return {label: [Pair(*pair) for pair in own["pairs"].get(rows[label], ())] for label in question.claim.rows}


def write(decision: Decision, grid: Grid, store: RunStore) -> Decision:
    """Keep it; returns it with the time of its start."""
    started = decision.started or datetime.now(UTC).isoformat(timespec="seconds")
    decision = replace(decision, started=started)
    content = {
        **{"schema": SCHEMA, "grid": grid.name, "preset": grid.preset, "variant": grid.variant.words},
        "started": started,
        "max_seeds": decision.looks.most,
        "looks": decision.looks.as_dict(),
        "before": sorted(decision.before),
        "claims": [as_dict(question) for question in decision.questions],
        "left_out": [list(pair) for pair in decision.left_out],
        "aside": list(decision.aside),
    }
    write_atomic(path_of(grid, store), to_json(content, indent=1) + "\n")
    return decision


def max_seeds_kept(grid: Grid, store: RunStore) -> int | None:
    """For how many seeds a grid's looks are planned; None: nothing is kept."""
    kept = load(path_of(grid, store))
    return None if kept is None else int(kept["max_seeds"])


def as_dict(question: Question) -> dict[str, Any]:
    """A claim and what was seen of it, in JSON types."""
    claim = question.claim
    return {
        **{"text": claim.text, "rows": list(claim.rows), "reference": claim.reference},
        **{"metric": claim.metric, "within": claim.within, "sign": question.rule.sign},
        "pairs": {row: [list(pair) for pair in pairs] for row, pairs in question.seen.items()},
    }
