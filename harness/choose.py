"""Which trials a command line means: one by its id, those of files, or some of a grid by what differs.

Of `--only heads=atss --only seed=0` a name is a factor as labels show it (`heads`, `seed`), its dotted key
(`model.heads`) or `row`; a value is what labels show. Several values of one name add up, several names must all hold.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.spec.labels import short_names, show_value, shown_at
from harness.spec.named_files import is_settings_file
from harness.spec.parts import NAME, SINGLE
from harness.spec.strict import suggest
from harness.store.results import RunStore

if TYPE_CHECKING:
    from harness.spec.grid import Grid

OpenGrids = Callable[..., "list[Grid]"]

ROW = "row"
RUN_ID = re.compile("[0-9a-f]{32}")  # of MLflow
NO_FILE = "; an ablation file ends in .yaml"  # where a trial may stand, or a file


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


def find_trial(store: RunStore, text: str, hint: str = "") -> str:
    """The id of the trial that `text` means.

    Args:
        store: where trials are looked for.
        text: an id, enough of its beginning, or the id of the trial's MLflow run.
        hint: what else it could have been, for the message when it is none.

    Raises:
        UserError: there is none, or more than one; or the tracking store, asked for a run, cannot be reached.
    """
    ids = store.trials()
    if text in ids:
        return text
    found = [trial_id for trial_id in ids if text and trial_id.startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(found[:5]) + ("…" if len(found) > 5 else "")
        raise UserError(f"trial '{text}': {len(found)} ids begin so: {shown}; give more of it")
    if RUN_ID.fullmatch(text):
        return _trial_of_run(store, text)
    if not ids:
        raise UserError(f"trial '{text}': there are no trials in {store.root}{hint}")
    where = f"{store.root}{_nearest(text, ids)}"
    raise UserError(f"trial '{text}': no such trial in {where}{hint}; `codetr status --all` lists them")


def _trial_of_run(store: RunStore, run: str) -> str:
    from harness.tracking.tracking import trial_of_run

    trial_id = trial_of_run(run)
    if trial_id is None:
        raise UserError(f"run {run}: the tracking store has no such run of a trial")
    if trial_id not in store.trials():
        raise UserError(f"run {run}: is of trial {trial_id}, which is not in {store.root}; name its store by --store")
    return trial_id


def _nearest(text: str, ids: list[str]) -> str:
    import difflib

    begins: dict[str, list[str]] = {}  # a beginning is compared with beginnings
    for trial_id in ids:
        begins.setdefault(trial_id[: len(text)], []).append(trial_id)
    near = [trial_id for word in difflib.get_close_matches(text, begins, 3, 0.5) for trial_id in begins[word]]
    if near:
        return f"; nearest: {', '.join(near[:3])}"
    return f"; known: {', '.join(ids)}" if len(ids) <= 5 else ""


def named_trials(args: argparse.Namespace, store: RunStore, open_grids: OpenGrids) -> list[str]:
    """Ids of the trials that `args.what` names, `FILE|TRIAL`; all of the store when it names nothing.

    Args:
        args: of the command line, with what `open_grids` reads of it.
        store: where trials are looked for.
        open_grids: `harness.commands.open_grids`.

    Raises:
        UserError: a file is mistaken, or there is no such trial.
    """
    if not args.what:
        return store.trials()
    files = [text for text in args.what if is_settings_file(text)]
    found = [find_trial(store, text, NO_FILE) for text in args.what if text not in files]
    if files:
        asked = argparse.Namespace(**{**vars(args), "files": files})
        for grid in open_grids(asked, require_data=False, decided=True):
            found += [trial.trial_id for trial in grid.trials if trial.has_id]
    return list(dict.fromkeys(found))
