"""Records on their way from one machine to another: `codetr export` and `codetr import`.

What a grid gives on a machine without Ray or MLflow fills the tables on another one. An archive (or folder) holds
`runs/<trial_id>/` as a store does, without what only a running trial needs; the same records make the same bytes. What
is taken in has been checked: it is whole, finished, and its id follows from its configuration, data and pretrained
weights. A record of before the weights' hashes has their path in its id and no `weights_hash`; it is taken as it is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import uuid
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harness.errors import ReadError, StorageError, UserError
from harness.files import attributes, chunks, exists, files_below, is_file, write_atomic
from harness.spec.detection_metrics import ap_of
from harness.store.decisions import is_decision, of_trials, take
from harness.store.parcel import Parcel, Refused, opened, read, unpack
from harness.store.results import (
    ANALYSIS,
    CHECKPOINTS,
    CLASSES,
    CONFIG,
    DETECTIONS,
    HEARTBEAT,
    LOG,
    METRICS,
    PER_CLASS,
    RECORD,
    RunStore,
)

FILES = (
    CONFIG,
    METRICS,
    PER_CLASS,
    CLASSES,
    RECORD,
)  # the record itself comes last
CHECKPOINT = "checkpoint/model.safetensors"  # the rest of a checkpoint only serves to go on training
OF_OTHERS = (DETECTIONS, LOG, HEARTBEAT)  # goes when another training takes the place
PARTS = {"config": dict, "metrics": dict, "history": list, "cost": dict, "provenance": dict, "fingerprint": str}
TRIAL_ID = re.compile(r"[0-9a-f]{12}")
SCHEMA = 1  # of a record
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can hold


# ---- export -------------------------------------------------------------------------------------------------------


def export_records(
    store: RunStore, trial_ids: Iterable[str], out: Path, *, checkpoints: bool = False, detections: bool = False
) -> int:
    """Write finished records to `out`: an archive if its name ends in .zip, else a folder that is a store by itself.

    What `codetr decide` keeps of looks at them goes along.

    Returns:
        The number of files.

    Raises:
        UserError: `out` is there already and no archive or store, or cannot be written; other looks lie there.
        ReadError: the storage does not give a file of a record; no archive was written.
    """
    trial_ids = sorted(trial_ids)
    looks, files = of_trials(store, trial_ids), dict[str, Path]()
    for trial_id in trial_ids:
        for name in _parts(store.dir(trial_id), checkpoints=checkpoints, detections=detections):
            files[f"runs/{trial_id}/{name}"] = store.dir(trial_id) / name
    try:
        if out.suffix == ".zip":
            _write_archive(out, files | looks)
        else:
            for name, path in files.items():
                _copy(path, out / name)
            for name, path in looks.items():
                take(RunStore(out), name, path.read_bytes())
    except Refused as reason:
        raise UserError(f"{out}: {name}: {reason}; choose another place with --out") from reason
    except ReadError:
        raise
    except OSError as error:
        raise UserError(f"{out}: {error.strerror or error}; choose another place with --out") from error
    return len(files | looks)


def _parts(folder: Path, *, checkpoints: bool, detections: bool) -> list[str]:
    """Names, below a trial's folder, of the files that travel; result.json is the last one."""
    # Of an analysis its tables: maps and figures are large, and `codetr analyse` makes them again from the weights.
    names = [path.relative_to(folder).as_posix() for path in files_below(folder / ANALYSIS) if path.suffix == ".json"]
    names = [name for name in names if _known(name)]
    names += [CHECKPOINT] * checkpoints + [DETECTIONS] * detections + list(FILES)
    return [name for name in names if is_file(folder / name)]


def _known(name: str) -> bool:
    """Whether a file of this name is a part of a record."""
    first, *others = name.split("/")
    in_analysis = first == ANALYSIS and others and not any(part.startswith(".") for part in others)
    return name in (*FILES, CHECKPOINT, DETECTIONS) or bool(in_analysis)


def _write_archive(out: Path, files: Mapping[str, Path]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, path in sorted(files.items()):
                info = zipfile.ZipInfo(name, EPOCH)
                info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
                info.compress_type = zipfile.ZIP_STORED if name.endswith(CHECKPOINT) else zipfile.ZIP_DEFLATED
                found = attributes(path)
                info.file_size = found.st_size if found else 0
                with archive.open(info, "w") as target:
                    for piece in chunks(path):
                        target.write(piece)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as handle:
            for piece in chunks(source):
                handle.write(piece)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


# ---- what arrives -------------------------------------------------------------------------------------------------


def _by_trial(parcel: Parcel) -> tuple[dict[str, list[str]], list[str]]:
    """Names below each trial's folder, and names of what is no part of any record."""
    trials: dict[str, list[str]] = {}
    others = []
    for name in parcel.names:
        match = re.fullmatch(r"runs/([^/]+)/(.+)", name)
        if match and TRIAL_ID.fullmatch(match[1]) and _known(match[2]):
            trials.setdefault(match[1], []).append(match[2])
        else:
            others.append(name)
    return trials, others


def _json(data: bytes, name: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{name} is no whole JSON: {error}") from error


def checked(trial_id: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    """The record in `files` (names below the trial's folder), if it is one.

    Raises:
        Refused: it is damaged, not finished, of another schema, or of another trial than it says.
    """
    from harness.spec.identity import recorded_id

    if RECORD not in files:
        raise Refused("has no result.json")
    record = _json(files[RECORD], RECORD)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise Refused(f"result.json is no record of schema {SCHEMA}")
    if wrong := [name for name, kind in PARTS.items() if not isinstance(record.get(name), kind)]:
        raise Refused(f"result.json: {wrong[0]} is missing, or of another type")
    if record.get("trial_id") != trial_id:
        raise Refused(f"its record is of trial {record.get('trial_id')}")
    if record.get("status") != "finished":
        raise Refused(f"is not finished: {record.get('status')}")
    for name, data in files.items():
        if name.endswith(".json") and name != RECORD:
            _json(data, name)
    for line in files.get(METRICS, b"").splitlines():
        entry = _json(line, METRICS)
        if not isinstance(entry, dict) or not isinstance(entry.get("epoch"), int):
            raise Refused("metrics.jsonl has a line that is no epoch's")
    try:
        found = recorded_id(record)
    except UserError as error:
        why = str(error).splitlines()[0]
        raise Refused(f"its configuration is not understood by this version: {why}") from error
    except ValueError as error:
        raise Refused(f"result.json: {error}") from error
    if found != trial_id:
        what = "configuration, data and weights make" if record.get("weights_hash") else "configuration and data make"
        raise Refused(f"its {what} trial {found}: it was changed, or made by another version")
    return record


# ---- import -------------------------------------------------------------------------------------------------------


@dataclass
class Imported:
    """What became of the records of a parcel; reasons by trial id."""

    taken: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)  # were here already
    kept: dict[str, str] = field(default_factory=dict)  # another finished record is here
    refused: dict[str, str] = field(default_factory=dict)
    looks: list[str] = field(default_factory=list)  # names of what `codetr decide` keeps of a grid, that were taken
    ignored: list[str] = field(default_factory=list)  # files that are no part of a record
    without_weights: list[str] = field(default_factory=list)  # that the parcel has, and nobody asked for


def import_records(
    store: RunStore,
    source: Path,
    *,
    replace: bool = False,
    checkpoints: bool = False,
    contradiction: Callable[[dict[str, Any]], str] = lambda kept: "",
) -> Imported:
    """Take finished records into the store, each whole or not at all.

    A trial that is not finished here gets the record; a finished one that differs is kept unless `replace`.

    Args:
        store: where to put them.
        source: an archive or folder that `export_records` wrote, or another store.
        replace: overwrite finished records that differ.
        checkpoints: take weights as well, where there are any.
        contradiction: why what `codetr decide` kept of looks does not fit the records that are here by then.

    Raises:
        UserError: `source` cannot be used, or the store cannot be written.
        ReadError: the storage does not give a file, of the source or of the record that is here.
    """
    store.prepare()
    done = Imported()
    with opened(source) as parcel:
        trials, others = _by_trial(parcel)
        done.ignored = [name for name in others if not name.startswith("grids/")]
        for trial_id, names in sorted(trials.items()):
            try:
                _import_trial(store, parcel, trial_id, names, replace, checkpoints, done)
            except Refused as reason:
                done.refused[trial_id] = str(reason)
            except StorageError:
                raise
            except OSError as error:
                raise UserError(f"{store.dir(trial_id)}: {error.strerror or error}") from error
        for name in filter(is_decision, others):
            try:
                if take(store, name, read(parcel, name), replace=replace, contradiction=contradiction):
                    done.looks.append(name)
            except Refused as reason:
                done.refused[name] = str(reason)
    return done


def _import_trial(
    store: RunStore, parcel: Parcel, trial_id: str, names: list[str], replace: bool, checkpoints: bool, done: Imported
) -> None:
    files = {name: read(parcel, f"runs/{trial_id}/{name}") for name in names if name != CHECKPOINT}
    record = checked(trial_id, files)
    files[CONFIG] = yaml.safe_dump(record["config"], sort_keys=False).encode()  # what was checked
    weights = f"runs/{trial_id}/{CHECKPOINT}" if checkpoints and CHECKPOINT in names else None
    left_out = CHECKPOINT in names and not checkpoints
    folder = store.dir(trial_id)
    held = store.claim(trial_id)
    if held is None:
        raise Refused("is running here")
    with held:
        store = store.fenced(held.token)
        here = store.read(trial_id) or {}
        same = here == record
        if here.get("status") == "finished" and not same and not replace:
            done.kept[trial_id] = f"{_outcome(here)} here, {_outcome(record)} there"
            return
        if same:  # only what is not here yet
            files = {name: data for name, data in files.items() if not exists(folder / name)}
            weights = None if exists(folder / CHECKPOINT) else weights
        _put(store, trial_id, files, parcel, weights, clear=not same)
        if left_out and not exists(folder / CHECKPOINT):
            done.without_weights.append(trial_id)
    (done.same if same else done.taken).append(trial_id)


def _outcome(record: Mapping[str, Any]) -> str:
    found = ap_of(record.get("metrics") or {})
    return "".join(f"{name} {ap:.4f}" for name, ap in found.items()) or "no AP"


def _put(
    store: RunStore, trial_id: str, files: Mapping[str, bytes], parcel: Parcel, weights: str | None, *, clear: bool
) -> None:
    """Put files into a trial's folder, with `clear` instead of those of another training.

    Everything is on disk before anything is replaced, and the record is replaced last.
    """
    folder = store.dir(trial_id)
    staged = folder / f".import-{uuid.uuid4().hex}"
    try:
        for name, data in files.items():
            write_atomic(staged / name, data)
        if weights is not None:
            unpack(parcel, weights, staged / CHECKPOINT)
        store.check_lease(trial_id)
        if clear:
            for name in (*FILES[:-1], *OF_OTHERS):
                (folder / name).unlink(missing_ok=True)
            for part in (ANALYSIS, CHECKPOINTS):
                shutil.rmtree(folder / part, ignore_errors=True)
        for path in sorted(files_below(staged), key=lambda path: path.name == RECORD):
            target = folder / path.relative_to(staged)
            target.parent.mkdir(parents=True, exist_ok=True)
            store.check_lease(trial_id)
            os.replace(path, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
