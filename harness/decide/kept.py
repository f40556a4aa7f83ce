"""What `codetr decide` keeps: the looks that were planned, and what each claim's looks have seen.

One file for each grid and preset, `grids/<key>/decide.<preset>.json` in the store, replaced whole after every round.
Looks are fixed before the first one is taken: more seeds afterwards would spend more error than was planned.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.decide.questions import Question, left_out, questions_of
from harness.errors import UserError
from harness.files import read_bytes, to_json, write_atomic
from harness.report.looks import DEFAULT, Looks, looks_for
from harness.spec.grid import Grid
from harness.store.results import RunStore

SCHEMA = 1


@dataclass(frozen=True)
class Decision:
    """A grid's claims on their way."""

    looks: Looks
    questions: tuple[Question, ...]
    before: frozenset[str] = frozenset()  # trials that were finished at the start: they cost nothing
    started: str = ""  # empty: nothing is kept yet
    left_out: tuple[tuple[str, str], ...] = ()  # claims that cannot be decided, and why
    aside: tuple[dict[str, Any], ...] = ()  # what was seen of claims that are not asked now, as the file has it


def path_of(grid: Grid, store: RunStore) -> Path:
    """Where the file lies."""
    return store.grid_dir(grid.key) / f"decide.{grid.preset}.json"


def read(grid: Grid, store: RunStore, max_seeds: int | None = None) -> Decision:
    """What is kept of a grid, or a new plan.

    Args:
        grid: with enough seeds for the plan.
        store: where it is kept.
        max_seeds: as asked for; None: as planned, as the file says, or 12.

    Raises:
        UserError: the file is damaged, looks were planned for another number of seeds, or a margin was changed since.
    """
    path = path_of(grid, store)
    kept = load(path)
    if kept is None:
        return Decision(looks_for(max_seeds or DEFAULT), tuple(questions_of(grid)), left_out=left_out(grid))
    planned = int(kept["max_seeds"])
    if max_seeds not in (None, planned):
        raise UserError(
            f"{grid.name}: its looks were planned for {planned} seeds before the first one was taken; other looks now "
            f"would spend more error than planned: leave out --max-seeds (or the file's decide.max_seeds)"
        )
    questions, aside = _resumed(grid, [*kept["aside"], *kept["claims"]])
    before, started = frozenset(kept["before"]), str(kept["started"])
    return Decision(looks_for(planned), questions, before, started, left_out(grid), aside)


def _resumed(grid: Grid, kept: list[dict[str, Any]]) -> tuple[tuple[Question, ...], tuple[dict[str, Any], ...]]:
    """The grid's questions with what was seen of them, and what was seen of claims that it does not ask now.

    A row may be missing for a while, as where a package is not installed: its looks must not be taken a second time.

    Raises:
        UserError: a margin was changed.
    """
    asked = [(question, _key(_as_dict(question))) for question in questions_of(grid)]
    now = {(key, question.claim.within) for question, key in asked}
    known = {(_key(own), own["within"]): own for own in kept}
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
        questions.append(question if own is None else replace(question, seen=own["differences"]))
    return tuple(questions), tuple(own for own in others.values() if any(own["differences"].values()))


def write(decision: Decision, grid: Grid, store: RunStore) -> Decision:
    """Keep it; returns it with the time of its start."""
    started = decision.started or datetime.now(UTC).isoformat(timespec="seconds")
    decision = replace(decision, started=started)
    content = {
        **{"schema": SCHEMA, "grid": grid.name, "preset": grid.preset, "started": started},
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


def seeds_looked_at(grid: Grid, store: RunStore) -> int:
    """How many seeds, from 0 on, looks have seen of any row; 0 where nothing is kept."""
    kept = load(path_of(grid, store))
    claims = [] if kept is None else [*kept["claims"], *kept["aside"]]
    return max((len(values) for own in claims for values in own["differences"].values()), default=0)


def load(path: Path) -> dict[str, Any] | None:
    """A file as it is kept; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    data = read_bytes(path)
    if data is None:
        return None
    try:
        kept = json.loads(data)
        if kept["schema"] != SCHEMA:
            raise ValueError(f"schema {kept['schema']}")
        for name in ("claims", "aside"):
            kept[name] = [{**own, "differences": dict(own["differences"])} for own in kept.get(name, ())]
        kept["left_out"] = [(str(text), str(why)) for text, why in kept.get("left_out", ())]
        looks_for(int(kept["max_seeds"]))
        return dict(kept)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); its trials are safe: move it away to plan looks anew") from error


def _as_dict(question: Question) -> dict[str, Any]:
    claim = question.claim
    return {
        **{"text": claim.text, "rows": list(claim.rows), "reference": claim.reference},
        **{"metric": claim.metric, "within": claim.within, "sign": question.rule.sign},
        "differences": {row: list(values) for row, values in question.seen.items()},
    }


def _key(own: dict[str, Any]) -> tuple[tuple[str, ...], str, str, bool]:
    """What makes a claim the same, whatever its words."""
    return tuple(own["rows"]), own["reference"], own["metric"], own["within"] is None
