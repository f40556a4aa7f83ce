"""What a store knows of grids: which trials were asked for together, so that `status` needs no ablation file.

The driver of a grid leaves `grids/<key>/grid.<preset>.json` before anything runs; the key is the file's name, or one
that takes in --data and --set (harness/spec/variants.py).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ReadError
from harness.files import is_folder, listed, read_bytes, to_json, write_atomic
from harness.spec.variants import IDLE, heading
from harness.store.agreement import agree, parts_of
from harness.store.closure import code_of
from harness.store.results import RunStore

if TYPE_CHECKING:
    from harness.spec.grid import Grid


SHOWN = 3  # grids of the same file, where none of what was asked for has finished


@dataclass(frozen=True)
class KnownGrid:
    """A grid as its driver left it."""

    name: str
    preset: str
    title: str
    command: str  # runs what is missing of it
    labels: dict[str, str]  # trial id -> label
    variant: str = ""  # its data set and settings of the command line, in words
    commands: dict[str, str] = field(default_factory=dict)  # of trials that another command asked for: id -> that one

    @property
    def heading(self) -> str:
        """What people read: `quickstart (digits, cards 1f3c)`."""
        return heading(self.name, self.preset, self.variant)

    def commands_for(self, trial_ids: Iterable[str]) -> list[str]:
        """The commands that run these trials, as far as they are of this grid."""
        asked = [self.commands.get(trial_id, self.command) for trial_id in trial_ids if trial_id in self.labels]
        return list(dict.fromkeys(filter(None, asked)))


def remember(store: RunStore, grid: Grid) -> None:
    """Leave the grid's trials in the store. Those of an earlier form of it stay known while they have a record.

    Raises:
        ReadError: the storage does not tell the earlier form.
        StorageError: the file cannot be written.
    """
    path = store.grid_dir(grid.key) / f"grid.{grid.preset}.json"
    asked = {trial.trial_id: trial.label or trial.row for trial in grid.trials}
    labels, commands = dict(asked), dict[str, str]()
    with suppress(ValueError):  # none, or damaged: it is replaced
        earlier = _read(path)
        kept = [key for key in earlier.labels if key not in asked and is_folder(store.dir(key))]
        labels |= {key: earlier.labels[key] for key in kept}
        given = {key: earlier.commands.get(key, earlier.command) for key in kept}
        commands = {key: command for key, command in given.items() if command != grid.command}
    known = {"name": grid.name, "preset": grid.preset, "title": grid.title, "command": grid.command, "trials": labels}
    known |= {"variant": grid.variant.words} if grid.variant.words else {}
    known |= {"commands": commands} if commands else {}
    write_atomic(path, to_json(known, indent=1) + "\n")


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
    own = {(grid.name, grid.preset, trial_id) for grid in found if grid.variant for trial_id in grid.labels}
    parted = [part for grid in found for part in ([grid] if grid.variant else _parts(grid, own))]
    return sorted(parted, key=lambda grid: (grid.name, grid.preset, grid.variant)), lines


def finished_otherwise(store: RunStore, grid: Grid) -> list[str]:
    """Lines on what has finished of the same file under other options; none where anything of the grid itself has."""

    def num_finished(trial_ids: Iterable[str]) -> int:
        return sum(store.status(trial_id) == "finished" for trial_id in trial_ids)

    try:
        if num_finished(trial.trial_id for trial in grid.trials if trial.has_id):
            return []
        named = [known for known in known_grids(store)[0] if known.name == grid.name]
        others = [(known, number) for known in named if (number := num_finished(known.labels))]
    except ReadError:  # it is told where the records are read
        return []
    if not others:
        return []
    told = (
        f"  {number} of {known.heading}: {known.command.replace('codetr run', 'codetr report', 1)}"
        for known, number in others[:SHOWN]
    )
    return [f"nothing asked for has finished; in {store.root} there are, of the same file,", *told]


# ---- files from before data set and settings were part of a grid's key: their labels end with them


def _parts(grid: KnownGrid, own: Collection[tuple[str, str, str]]) -> list[KnownGrid]:
    """A grid for each --data and --set that labels of one file end with, without trials that have a file of their own.

    `own` holds the latter with name and preset.
    """
    parts: dict[tuple[str, ...], dict[str, str]] = {}
    for trial_id, label in grid.labels.items():
        options = _options_of(label)
        chosen = _without_idle(options)
        if not chosen or (grid.name, grid.preset, trial_id) not in own:
            parts.setdefault(chosen, {})[trial_id] = label.removesuffix(shlex.join(options)).rstrip()
    if grid.labels and not parts:
        return []  # every trial has moved on
    if not parts.keys() - {()}:
        return [replace(grid, labels=parts.get((), {}))]
    return [
        replace(
            grid,
            labels=labels,
            variant=_words(options),
            command=_command(grid.command, options),
            commands={key: _command(grid.commands[key], options) for key in labels if key in grid.commands},
        )
        for options, labels in parts.items()
    ]


def _options_of(label: str) -> tuple[str, ...]:
    """`--data` and `--set` with their values at the end of a label."""
    try:
        words = shlex.split(label)
    except ValueError:
        return ()
    start = len(words)
    while start >= 2 and words[start - 2] in ("--data", "--set"):
        start -= 2
    options = tuple(words[start:])
    return options if options and label.endswith(shlex.join(options)) else ()


def _without_idle(options: tuple[str, ...]) -> tuple[str, ...]:
    """Those that change which trials there are."""
    named = zip(options[::2], options[1::2], strict=True)
    kept = [pair for pair in named if pair[0] == "--data" or pair[1].split(".")[0] not in IDLE]
    return tuple(word for pair in kept for word in pair)


def _words(options: tuple[str, ...]) -> str:
    named = zip(options[::2], options[1::2], strict=True)
    return ", ".join(Path(value).name if option == "--data" else value for option, value in named)


def _command(command: str, options: tuple[str, ...]) -> str:
    """A command with these options in place of its own, which are those that were given last."""
    words = shlex.split(command)
    kept: list[str] = []
    while words:
        word = words.pop(0)
        if word in ("--data", "--set") and words:
            words.pop(0)
        else:
            kept.append(word)
    return shlex.join([*kept, *options]) if kept else ""


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
    labels, variant, commands = found.get("trials"), found.get("variant", ""), found.get("commands", {})
    whole = all(isinstance(text, str) for text in (*texts, variant)) and _are_texts(labels) and _are_texts(commands)
    if not whole:
        raise ValueError("names or trials are missing")
    name, preset, title, command = texts
    return KnownGrid(name, preset, title, command, dict(labels), variant, dict(commands))  # type: ignore[arg-type]


def _are_texts(found: Any) -> bool:
    return isinstance(found, Mapping) and all(isinstance(text, str) for text in (*found, *found.values()))


def made_by_other_code(store: RunStore, trial_ids: Iterable[str]) -> list[str]:
    """Those that have finished with other code than is here now; records without digests tell nothing."""
    found = []
    for trial_id in trial_ids:
        record = store.read(trial_id) or {}
        made = (record.get("provenance") or {}).get("code")
        if record.get("status") == "finished" and made and not agree(made, code_of(parts_of(made))):
            found.append(trial_id)
    return found
