"""The record of a trial on (shared) storage: the durable truth that the tracking store only mirrors.

`<store>/runs/<trial_id>/` holds result.json (the record) and config.yaml, metrics.jsonl (a line per epoch),
per_class.json, classes.json and detections.json (of the last evaluation), analysis/, checkpoint/, log.txt (of a
failure), attempts/ (records of failures that were tried again), heartbeat.json (the last sign of life), and while
somebody works on it lease.json. Every file is replaced whole or not at all.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness import files
from harness.errors import StorageError, UserError
from harness.files import store_dir, to_json, without_nan, write_atomic
from harness.store import lease
from harness.store.renamed import renamed_numbers, renamed_record

# Names of a trial's files and folders.
RECORD, CONFIG, METRICS = "result.json", "config.yaml", "metrics.jsonl"
LEASE, HEARTBEAT, LOG = "lease.json", "heartbeat.json", "log.txt"
DETECTIONS, PER_CLASS, CLASSES = "detections.json", "per_class.json", "classes.json"  # of the last evaluation
ANALYSIS, ATTEMPTS, CHECKPOINTS = "analysis", "attempts", "checkpoint"  # folders
CHECKPOINT, PREVIOUS = "state.safetensors", "previous.safetensors"  # of a checkpoint: only a continuation needs them
WEIGHTS = "model.safetensors"  # beside these, at the end

STATUSES = ("pending", "running", "finished", "failed", "interrupted", "pruned")

RECORD_PARTS: dict[str, type] = {  # each may be null, too
    **dict.fromkeys(("metrics", "cost", "config", "factors", "provenance", "per_class", "classes"), dict),
    **dict.fromkeys(("error", "started", "finished", "label", "fingerprint", "weights_hash"), str),
    "history": list,
}
KINDS: dict[type, str] = {dict: "table", str: "text", list: "list"}  # for messages


def record_flaw(record: Any) -> str:
    """Why this cannot be a record; empty when it can."""
    if not isinstance(record, dict):
        return "not a JSON object"
    if record.get("status") not in STATUSES:
        return f"its status is {record.get('status')!r}"
    for name, kind in RECORD_PARTS.items():
        if not isinstance(record.get(name), (kind, type(None))):
            return f"{name} is no {KINDS[kind]}"
    return ""


def beat_flaw(beat: Any) -> str:
    """Why this cannot be a heartbeat; empty when it can."""
    if not isinstance(beat, dict):
        return "not a JSON object"
    numbers = ("epoch", "epochs", "step", "total_steps", "loss", "seconds_per_step", "eta_seconds", "time", "evaluated")
    wrong = [name for name in numbers if not isinstance(beat.get(name), (int, float, type(None)))]
    if not isinstance(beat.get("warnings", []), list):
        wrong.append("warnings")
    return f"{wrong[0]} is of another type" if wrong else ""


class RunStore:
    """The records of all trials under one folder.

    Args:
        root: the store's folder; None takes `store_dir()`. It is made on the first write.
        token: of the lease under which it is used (see `fenced`).
    """

    def __init__(self, root: Path | str | None = None, token: str | None = None) -> None:
        self.root = Path(os.path.expanduser(root)).absolute() if root is not None else store_dir()
        self._token = token

    def fenced(self, token: str) -> RunStore:
        """The same store, but a trial's files can only be written while its lease has this token.

        It can be pickled: each process that works on a trial takes the fence along.
        """
        return RunStore(self.root, token)

    def check_lease(self, trial_id: str) -> None:
        """Make sure that the trial is still ours to write, where the store is `fenced`.

        Raises:
            LeaseLost: another process has taken it over.
            ReadError: the storage does not tell.
        """
        path = self.dir(trial_id) / LEASE
        if self._token is not None and not lease.names(path, self._token):
            raise lease.LeaseLost(f"{path}: another process has taken this trial over")

    def dir(self, trial_id: str) -> Path:
        """The folder of a trial, whether or not it exists."""
        return self.root / "runs" / trial_id

    def grid_dir(self, name: str) -> Path:
        """The folder where the drivers of a grid, one for each preset, leave what they know and their leases."""
        return self.root / "grids" / name

    def grid_lease(self, name: str, preset: str) -> Path:
        """The lease of whoever drives a grid under a preset."""
        return self.grid_dir(name) / f"lease.{preset}.json"

    def prepare(self) -> None:
        """Make the store's folder.

        Raises:
            UserError: it cannot be made or written.
        """
        try:
            (self.root / "runs").mkdir(parents=True, exist_ok=True)
            write_atomic(self.root / "runs" / ".writable", "", durable=False)
        except OSError as error:
            reason = error.reason if isinstance(error, StorageError) else error.strerror
            raise UserError(f"store {self.root}: {reason}; set CODETR_STORE or --store") from error

    def trials(self) -> list[str]:
        """Ids of all trials that have a folder, sorted.

        Raises:
            ReadError: the storage does not tell.
        """
        return [path.name for path in files.listed(self.root / "runs") if files.is_folder(path)]

    def read(self, trial_id: str) -> dict[str, Any] | None:
        """The record (result.json), or None when there is none.

        A file that cannot be understood counts as a failed trial whose error says so: it will be run again.

        Raises:
            ReadError: the storage does not give it, which says nothing about the trial.
        """
        path = self.dir(trial_id) / RECORD
        data = files.read_bytes(path)
        if data is None:
            return None
        try:
            record = json.loads(data)
            flaw = record_flaw(record)
            if not flaw:
                return renamed_record(record)
        except (ValueError, RecursionError) as error:
            flaw = str(error)
        return {"trial_id": trial_id, "status": "failed", "error": f"{path} cannot be read: {flaw}", "metrics": {}}

    def write(self, trial_id: str, name: str, data: bytes | str, *, durable: bool = True) -> None:
        """Replace a file of a trial's folder whole.

        Args:
            trial_id: whose folder.
            name: of the file, below the folder.
            data: as in `write_atomic`, like `durable`.
            durable: as there.

        Raises:
            LeaseLost: the store is `fenced`, and another process has taken the trial over; nothing was written.
            StorageError: it could not be written.
        """
        self.check_lease(trial_id)  # before folders are made
        path = self.dir(trial_id) / name
        write_atomic(path, data, durable=durable, confirm=lambda: self.check_lease(trial_id))

    def write_result(self, trial_id: str, record: dict[str, Any]) -> None:
        """Write the record whole."""
        self.write(trial_id, RECORD, to_json(record, indent=1) + "\n")

    def write_config(self, trial_id: str, config: dict[str, Any]) -> None:
        """Write the resolved configuration as config.yaml."""
        import yaml

        self.write(trial_id, CONFIG, yaml.safe_dump(config, sort_keys=False))

    def mark(self, trial_id: str, /, status: str, error: str | None = None, **fields: Any) -> dict[str, Any]:
        """Change the status of a record (made if absent); `fields` are taken only where the record has none.

        What is finished stays so: whatever goes wrong after that is no part of the trial.
        """
        record = self.read(trial_id) or {"schema": 1, "trial_id": trial_id, "metrics": {}, "history": []}
        if record.get("status") == "finished":
            return record
        record = {**fields, **record, "status": status, "error": error}
        self.write_result(trial_id, record)
        return record

    def append_metrics(self, trial_id: str, entry: dict[str, Any]) -> None:
        """Add an epoch's line to metrics.jsonl, stamped with the time.

        Lines of the same or a later epoch go: they come from before a resume.
        """
        self.check_lease(trial_id)
        path, known = self.dir(trial_id) / METRICS, self.metrics(trial_id)
        lines = [line for line in known if line["epoch"] < entry["epoch"]]
        lines.append({**entry, "time": entry.get("time", time.time())})
        whole = files.read_bytes(path) or b""
        if len(whole.splitlines()) > len(known):  # lines that cannot be understood
            self.write(trial_id, f"{METRICS}.damaged", whole)
        self.write(trial_id, METRICS, "".join(to_json(line) + "\n" for line in lines))

    def restore_metrics(self, trial_id: str, history: list[dict[str, Any]]) -> None:
        """Make metrics.jsonl hold the epochs of a checkpoint, no more and no fewer; known ones keep their time."""
        found = self.metrics(trial_id)
        times = {line["epoch"]: line.get("time") for line in found}
        lines = [{**entry, "time": times.get(entry["epoch"]) or time.time()} for entry in history]
        if without_nan(lines) != found:
            self.write(trial_id, METRICS, "".join(to_json(line) + "\n" for line in lines))

    def metrics(self, trial_id: str) -> list[dict[str, Any]]:
        """The epochs of metrics.jsonl in order; lines that cannot be understood are left out.

        Raises:
            ReadError: the storage does not give them.
        """
        entries = []
        for line in (files.read_bytes(self.dir(trial_id) / METRICS) or b"").splitlines():
            with suppress(ValueError, RecursionError):
                entry = json.loads(line)
                if isinstance(entry, dict) and isinstance(entry.get("epoch"), int):
                    entries.append(renamed_numbers(entry))
        return entries

    def heartbeat(self, trial_id: str, event: dict[str, Any]) -> None:
        """Leave a sign of life with the state of the work (step, total_steps, loss, eta_seconds and so on)."""
        beat = {**event, **lease.holder(), "time": time.time()}
        self.write(trial_id, HEARTBEAT, to_json(beat), durable=False)

    def read_heartbeat(self, trial_id: str) -> dict[str, Any] | None:
        """The last sign of life, however old; None when there is none, or it cannot be understood.

        Raises:
            ReadError: the storage does not give it.
        """
        beat = lease.read_holder(self.dir(trial_id) / HEARTBEAT)
        return None if beat is None or beat_flaw(beat) else beat

    def status(self, trial_id: str) -> str:
        """One of `STATUSES`. A trial is running only while the process that works on it lives.

        Raises:
            ReadError: the storage does not tell.
        """
        return self.look(trial_id)[0]

    def look(self, trial_id: str) -> tuple[str, dict[str, Any] | None]:
        """Status and record, read once. Raises `ReadError` where the storage does not tell."""
        record = self.read(trial_id)
        return self._status(trial_id, record), record

    def _status(self, trial_id: str, record: dict[str, Any] | None) -> str:
        if record is not None and record.get("status") == "finished":
            return "finished"
        held = self.dir(trial_id) / LEASE
        if lease.is_alive(held):
            return "running"
        if record is None:
            return "interrupted" if files.exists(held) else "pending"
        if record.get("status") != "running":
            return str(record.get("status", "failed"))
        # Without a lease (a trial run by hand) the heartbeat tells.
        beating = not files.exists(held) and lease.is_alive(self.dir(trial_id) / HEARTBEAT)
        return "running" if beating else "interrupted"

    def claim(self, trial_id: str, owner: str = "", driver: dict[str, Any] | None = None) -> lease.Lease | None:
        """The lease to work on a trial, or None while somebody else holds it (see `lease.claim`)."""
        return lease.claim(self.dir(trial_id) / LEASE, owner, driver=driver)

    def released(self, trial_ids: Iterable[str]) -> list[str]:
        """Those of the trials that nobody works on; waits where that is in doubt (see `lease.released`)."""
        paths = {self.dir(trial_id) / LEASE: trial_id for trial_id in trial_ids}
        return [paths[path] for path in lease.released(paths)]

    def claim_grid(self, name: str, preset: str) -> lease.Lease | None:
        """The lease that says a grid has a living driver, or None when another one has it."""
        return lease.claim(self.grid_lease(name, preset))
