"""Keeping a store in order: failed trials set back, records removed, leftovers found, damaged files named.

Nothing here touches a trial that somebody works on, and nothing loses a finished record: a failed or damaged one
is moved to `runs/<trial_id>/attempts/<number>/`, a removed one leaves a mark until the tracking store has
followed (see `harness.tracking.mirror`).
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from harness import files
from harness.files import TEMPORARY, cache_dir, write_atomic
from harness.store.lease import STALE_AFTER, file_lock, is_alive, read_holder
from harness.store.results import (
    ATTEMPTS,
    CHECKPOINT,
    CHECKPOINTS,
    HEARTBEAT,
    LEASE,
    LOG,
    METRICS,
    PREVIOUS,
    RECORD,
    WEIGHTS,
    RunStore,
    beat_flaw,
    record_flaw,
)

OF_LEASES = (".now-*", ".lease.*.json.*", ".lease.json.*")  # what a killed writer of one leaves
LEASES = "lease*.json"  # of a trial, or of a grid under a preset
RESUME_FILES = (CHECKPOINT, PREVIOUS)  # only a continuation needs them
QUIET_SECONDS = 60 * STALE_AFTER  # what nobody touched for an hour is nobody's work in progress


# ---- damaged files ------------------------------------------------------------------------------------------------


def damages(store: RunStore, trial_id: str) -> list[str]:
    """One line for each file of a trial that cannot be understood: which, why, and what becomes of it.

    Raises:
        ReadError: the storage does not give a file, which is no damage.
    """
    folder, lines = store.dir(trial_id), []
    for name, what in (
        (RECORD, "the next `codetr run` keeps it in attempts/ and trains the trial again; "
         "where MLflow has the run, its artifact result.json is the same file and can be put back"),
        (METRICS, "its whole lines are used; the file is kept as metrics.jsonl.damaged when one is added"),
        (HEARTBEAT, "only the progress of a running trial is not shown; it may be deleted"),
        (LEASE, "it counts as nobody's; the next `codetr run` takes the trial over"),
    ):  # fmt: skip
        why = _flaw_of(folder / name)
        if why:
            lines.append(f"{folder / name} is damaged ({why}): {what}")
    return lines


def _flaw_of(path: Path) -> str:
    """Why the content of a record's file cannot be used; empty when it can, or is not there.

    Raises:
        ReadError: the storage does not give it, which is no damage.
    """
    text = files.read_bytes(path)
    if text is None:
        return ""
    try:
        if path.suffix == ".jsonl":
            for number, line in enumerate(text.splitlines(), 1):
                if not _is_epoch(line):
                    return f"line {number} is no epoch's entry"
            return ""
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return str(error).splitlines()[0]
    if path.name in (RECORD, HEARTBEAT):
        return record_flaw(found) if path.name == RECORD else beat_flaw(found)
    return "" if isinstance(found, dict) else "not a JSON object"


def _is_epoch(line: bytes) -> bool:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and isinstance(entry.get("epoch"), int)


# ---- failed trials ------------------------------------------------------------------------------------------------


def attempts(store: RunStore, trial_id: str) -> list[Path]:
    """Folders of a trial's earlier, failed attempts, oldest first."""
    folders = files.listed(store.dir(trial_id) / ATTEMPTS)
    return sorted((path for path in folders if path.name.isdecimal()), key=lambda path: int(path.name))


def set_back(store: RunStore, trial_id: str, *, from_scratch: bool = False) -> bool:
    """Make a failed trial pending; False when it has not failed, or somebody works on it.

    Its record and log move to `attempts/<number>/`. The checkpoint stays, so the trial goes on where it was left;
    with `from_scratch` checkpoint and epochs go too, and so will its run in the tracking store.

    Raises:
        ReadError: the storage does not tell whether it has failed; nothing was changed.
    """
    held = store.claim(trial_id)
    if held is None:
        return False
    with held:
        store = store.fenced(held.token)
        record = store.read(trial_id)
        if record is None or record.get("status") != "failed":
            return False
        folder, earlier = store.dir(trial_id), attempts(store, trial_id)
        target = folder / ATTEMPTS / str(1 + (int(earlier[-1].name) if earlier else 0))
        target.mkdir(parents=True)
        if from_scratch:
            store.check_lease(trial_id)
            leave_mark(store, trial_id)
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        names = (LOG, *((METRICS, HEARTBEAT) if from_scratch else ()), RECORD)
        for name in names:  # the record last: until it has moved, the trial has failed
            store.check_lease(trial_id)
            with suppress(FileNotFoundError):
                os.replace(folder / name, target / name)
    return True


def take_up(store: RunStore, trial_ids: Iterable[str]) -> list[str]:
    """Make ready what is to run now: failed trials are set back. Returns remarks for a person."""
    remarks, again = [], 0
    for trial_id in trial_ids:
        if files.is_folder(store.dir(trial_id)):
            remarks += [f"warning: {line}" for line in damages(store, trial_id)]
            again += set_back(store, trial_id)
    if again:
        remarks.append(f"{again} failed before: tried again, the earlier record is kept in attempts/")
    return remarks


# ---- removing -----------------------------------------------------------------------------------------------------


def remove(store: RunStore, trial_id: str) -> bool:
    """Delete everything about a trial and leave the mark for the tracking store; False while somebody works on it.

    Raises:
        ReadError: the storage does not tell whether somebody does; nothing was removed.
    """
    folder = store.dir(trial_id)
    with file_lock(folder / ".lock"):
        if store.status(trial_id) == "running":
            return False
        leave_mark(store, trial_id)
        trash = store.root / "removed" / f"{trial_id}.{uuid.uuid4().hex}"
        os.replace(folder, trash)  # whole, or not at all
    shutil.rmtree(trash, ignore_errors=True)
    return True


def leave_mark(store: RunStore, trial_id: str) -> None:
    """Note that the run of this trial in the tracking store is to be deleted."""
    write_atomic(store.root / "removed" / trial_id, "")


def marks(store: RunStore) -> dict[str, Path]:
    """Trials whose run in the tracking store is to be deleted, and the mark that goes when it was."""
    found = files.listed(store.root / "removed")
    return {path.name: path for path in found if not path.name.startswith(".") and files.is_file(path)}


# ---- leftovers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leftover:
    """Something that nobody needs any more."""

    path: Path
    what: str
    num_bytes: int


def leftovers(store: RunStore) -> list[Leftover]:
    """What may be deleted: of ended launches, killed writers, dead holders, and checkpoints of finished trials.

    Raises:
        ReadError: the storage does not tell what somebody may still need.
    """
    return [
        Leftover(path, what, _bytes_of(path))
        for search in (_ended_launches, _of_killed_writers, _dead_leases, _resume_files, _half_removed, _torn_caches)
        for path, what in search(store)
    ]


def delete(found: Sequence[Leftover], store: RunStore) -> int:
    """Delete leftovers that still are what they were; returns the bytes freed."""
    freed = 0
    for leftover in found:
        path = leftover.path
        if path.match(LEASES):
            with file_lock(path.with_name(".lock")):
                if not is_alive(path):
                    path.unlink(missing_ok=True)
        elif path.name in RESUME_FILES and store.status(path.parent.parent.name) != "finished":
            continue
        elif files.is_folder(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        freed += 0 if files.exists(path) else leftover.num_bytes
    return freed


def _trials(store: RunStore) -> Iterator[Path]:
    yield from (store.dir(trial_id) for trial_id in store.trials())


def _ended_launches(store: RunStore) -> Iterator[tuple[Path, str]]:
    owners = {found.get("owner") for folder in _trials(store) if (found := _living(folder / LEASE))}
    for path in files.listed(store.root / "launches"):
        if path.name not in owners and _quiet(path):
            yield path, "working files of a launch that has ended"


def _living(path: Path) -> dict[str, Any] | None:
    return read_holder(path) if is_alive(path) else None


def _of_killed_writers(store: RunStore) -> Iterator[tuple[Path, str]]:
    folders = [store.root, store.root / "runs", *files.listed(store.root / "grids"), *_trials(store)]
    folders += [folder / CHECKPOINTS for folder in _trials(store)]
    for folder in folders:
        for path in files.listed(folder):
            temporary = any(path.match(pattern) for pattern in (*TEMPORARY, *OF_LEASES))
            if temporary and files.is_file(path) and _quiet(path):
                yield path, "temporary file of a killed process"


def _dead_leases(store: RunStore) -> Iterator[tuple[Path, str]]:
    for folder in [*_trials(store), *files.listed(store.root / "grids")]:
        for path in files.listed(folder):
            if path.match(LEASES) and not is_alive(path):
                yield path, "lease of a dead process"


def _resume_files(store: RunStore) -> Iterator[tuple[Path, str]]:
    for folder in _trials(store):
        kept = folder / CHECKPOINTS
        found = [kept / name for name in RESUME_FILES if files.exists(kept / name)]
        if found and files.exists(kept / WEIGHTS) and store.status(folder.name) == "finished":
            yield from ((path, "checkpoint of a finished trial (its weights stay)") for path in found)


def _half_removed(store: RunStore) -> Iterator[tuple[Path, str]]:
    for path in files.listed(store.root / "removed"):
        if "." in path.name and files.is_folder(path):
            yield path, "rest of a removed trial"


def _torn_caches(_: RunStore) -> Iterator[tuple[Path, str]]:
    for path in files.listed(cache_dir() / "digits"):
        if path.suffix == ".tmp" and _quiet(path):
            yield path, "digit scenes of a killed process"


def _quiet(path: Path) -> bool:
    """Whether nothing at or below `path` was changed lately."""
    try:
        newest = max(os.lstat(entry).st_mtime for entry in (path, *_below(path)))
    except OSError:
        return False  # it changes right now, or the storage does not tell
    return time.time() - newest > QUIET_SECONDS


def _below(path: Path) -> Iterator[Path]:
    """All that lies below a folder. Raises `OSError` where the storage does not tell."""

    def fail(error: OSError) -> NoReturn:
        raise error

    if files.is_folder(path):
        for folder, folders, names in os.walk(path, onerror=fail):
            yield from (Path(folder, name) for name in (*folders, *names))


def _bytes_of(path: Path) -> int:
    below = files.files_below(path) if files.is_folder(path) else [path]
    return sum(found.st_size for entry in below if (found := files.attributes(entry)) is not None)
