"""What a store knows of grids: which trials were asked for together, so that `status` needs no ablation file.

The driver of a grid leaves `grids/<name>/grid.<preset>.json` before anything runs. Also here: finding a trial by the
first letters of its id.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.files import is_folder, listed, read_bytes
from harness.results import RunStore, to_json, write_atomic
from harness.source import code_digest

if TYPE_CHECKING:
    from harness.grid import Grid


@dataclass(frozen=True)
class KnownGrid:
    """A grid as its driver left it."""

    name: str
    preset: str
    title: str
    command: str  # runs what is missing of it
    labels: dict[str, str]  # trial id -> label, and the --data and --set that it was asked for with


def remember(store: RunStore, grid: Grid) -> None:
    """Leave the grid's trials in the store. Those of an earlier form of it stay known while they have a record.

    Raises:
        ReadError: the storage does not tell the earlier form.
        StorageError: the file cannot be written.
    """
    path = store.grid_dir(grid.name) / f"grid.{grid.preset}.json"
    asked = {
        trial.trial_id: " ".join([trial.label or trial.row, *_changes(grid.command)]).strip() for trial in grid.trials
    }
    try:
        earlier = _read(path).labels
    except ValueError:
        earlier = {}  # none, or damaged: it is replaced
    kept = {key: label for key, label in earlier.items() if key not in asked and is_folder(store.dir(key))}
    labels = {**asked, **kept}
    known = {"name": grid.name, "preset": grid.preset, "title": grid.title, "command": grid.command, "trials": labels}
    write_atomic(path, to_json(known, indent=1) + "\n")


def _changes(command: str) -> list[str]:
    """The --data and --set of a grid's command: trials that differ in them alone have the same label."""
    words = shlex.split(command)
    pairs = zip(words, words[1:], strict=False)
    return [shlex.join(pair) for pair in pairs if pair[0] in ("--data", "--set")]


def known_grids(store: RunStore) -> tuple[list[KnownGrid], list[str]]:
    """All grids of the store in order of name, and a line for each file that is damaged.

    Raises:
        ReadError: the storage does not give one, which is no damage.
    """
    found, lines = [], []
    paths = [path for folder in listed(store.root / "grids") for path in listed(folder)]
    for path in (path for path in paths if path.match("grid.*.json")):
        try:
            found.append(_read(path))
        except ValueError as error:
            why = str(error).splitlines()[0]
            lines.append(f"{path} is damaged ({why}): its trials stand under others until its grid is run again")
    return found, lines


def _read(path: Path) -> KnownGrid:
    """Raises `ValueError` for what is damaged or not there, `ReadError` for what the storage does not give."""
    data = read_bytes(path)
    if data is None:
        raise ValueError("it is not there")
    try:
        found: Any = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    texts = [found.get(name) for name in ("name", "preset", "title", "command")]
    labels = found.get("trials")
    whole = isinstance(labels, dict) and all(isinstance(text, str) for text in (*texts, *labels, *labels.values()))
    if not whole:
        raise ValueError("names or trials are missing")
    return KnownGrid(found["name"], found["preset"], found["title"], found["command"], found["trials"])


def made_by_other_code(store: RunStore, trial_ids: Iterable[str]) -> list[str]:
    """Those that have finished with other code than is here now; records without a digest tell nothing."""
    here = code_digest()
    found = []
    for trial_id in trial_ids:
        record = store.read(trial_id) or {}
        made = (record.get("provenance") or {}).get("code")
        if record.get("status") == "finished" and made and made != here:
            found.append(trial_id)
    return found


def find_trial(store: RunStore, text: str, among: Iterable[str] | None = None) -> str:
    """The id of the trial that `text` begins.

    Args:
        store: where trials are looked for.
        text: an id, or enough of its beginning.
        among: ids; None takes all that have a folder.

    Raises:
        UserError: there is none, or more than one.
    """
    ids = sorted(store.trials() if among is None else among)
    if text in ids:
        return text
    found = [trial_id for trial_id in ids if text and trial_id.startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(found[:5]) + ("…" if len(found) > 5 else "")
        raise UserError(f"trial '{text}': {len(found)} ids begin so: {shown}; give more of it")
    if not ids:
        raise UserError(f"trial '{text}': there are no trials in {store.root}")
    raise UserError(
        f"trial '{text}': no such trial in {store.root}{_nearest(text, ids)}; `codetr status --all` lists them"
    )


def _nearest(text: str, ids: list[str]) -> str:
    import difflib

    begins: dict[str, list[str]] = {}  # a beginning is compared with beginnings
    for trial_id in ids:
        begins.setdefault(trial_id[: len(text)], []).append(trial_id)
    near = [trial_id for word in difflib.get_close_matches(text, begins, 3, 0.5) for trial_id in begins[word]]
    if near:
        return f"; nearest: {', '.join(near[:3])}"
    return f"; known: {', '.join(ids)}" if len(ids) <= 5 else ""
