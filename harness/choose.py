"""Some trials of a grid, chosen by what differs: `--only heads=atss --only seed=0`.

A name is a factor as labels show it (`heads`, `seed`), its dotted key (`model.heads`) or `row`; a value is what
labels show. Several values of one name add up, several names must all hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.spec.labels import short_names, show_value, shown_at
from harness.spec.parts import NAME, SINGLE
from harness.spec.strict import suggest

if TYPE_CHECKING:
    from harness.spec.grid import Grid

ROW = "row"


def choose(grid: Grid, wanted: Sequence[str]) -> frozenset[str]:
    """Ids of the grid's trials that `wanted` texts (`name=value`) choose; all of them when it is empty.

    Raises:
        UserError: a text that is not `name=value`, an unknown name or value, or nothing is left.
    """
    traits = _traits(grid)
    known: dict[str, dict[str, None]] = {}
    for own in traits.values():
        for name, values in own.items():
            known.setdefault(name, {}).update(dict.fromkeys(values))
    asked: dict[str, set[str]] = {}
    for text in wanted:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise UserError(f"--only {text}: must be name=value; names here: {', '.join(known)}")
        if name not in known:
            raise UserError(f"--only {text}: nothing in {grid.name} is called '{name}'; names here: {', '.join(known)}")
        if value not in known[name]:
            raise UserError(f"--only {text}: no trial of {grid.name} has it{_values(value, known[name])}")
        asked.setdefault(name, set()).add(value)
    chosen = frozenset(
        trial_id
        for trial_id, own in traits.items()
        if all(values & own.get(name, set()) for name, values in asked.items())
    )
    if not chosen:
        raise UserError(f"--only {' --only '.join(wanted)}: no trial of {grid.name} has all of it; see `codetr plan`")
    return chosen


def _values(value: str, known: Iterable[str]) -> str:
    found = list(known)
    near = suggest(value, found)
    return near if "did you mean" in near or len(found) > 20 else f"; known: {', '.join(map(repr, found))}"


def _traits(grid: Grid) -> dict[str, dict[str, set[str]]]:
    """By trial: names and the values that hold for it. A trial of several rows has all their labels."""
    short = short_names(dict.fromkeys(["seed", *(key for row in grid.rows for key in row.factors)]))
    seeds = {trial.trial_id: trial.factors.get("seed", trial.config.seed) for trial in grid.trials}
    traits: dict[str, dict[str, set[str]]] = {trial.trial_id: {} for trial in grid.trials}
    for row in grid.rows:
        for trial_id in row.trial_ids:
            own = traits[trial_id]
            if row.label:
                own.setdefault(ROW, set()).add(row.label)
            for key, value in {**row.factors, "seed": seeds[trial_id]}.items():
                for name in (key, short[key], *_names_of_a_part(key)):
                    own.setdefault(name, set()).update((show_value(value), shown_at(key, value)))
    return traits


def _names_of_a_part(key: str) -> tuple[str, ...]:
    """What an axis over the names of a part is called: `model.backbone.name` and `backbone.name`."""
    section, _, field = key.partition(".")
    return (f"{key}.{NAME}", f"{field}.{NAME}") if section == "model" and field in SINGLE else ()
