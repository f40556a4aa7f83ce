"""The commands about what lies in the store: status, logs, diff, retry, rm, gc.

As in `harness.commands`, every function takes the parsed arguments and returns the exit code.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.choose import find_trial, named_trials
from harness.errors import ReadError, UserError
from harness.files import read_bytes, read_text
from harness.schedule.progress import describe, duration
from harness.spec.detection_metrics import ap_of
from harness.spec.named_files import is_settings_file
from harness.store import decisions, housekeeping, ledger
from harness.store.results import CONFIG, LOG, RunStore
from harness.system.console import count, remark, size, table
from harness.system.words import quantity

if TYPE_CHECKING:
    from harness.spec.grid import Grid

FOLLOW_SECONDS = 1.0
OTHERS = "others"  # trials that no known grid asks for
UNREADABLE = "unreadable"  # no status, but the storage's answer at the moment


# ---- status -------------------------------------------------------------------------------------------------------


def status(args: argparse.Namespace) -> int:
    """Show each grid of the store, or of some ablation files: how many trials are done, and what the others are at."""
    store = RunStore()
    groups = _groups_of_files(args, store) if args.files else _groups_of_store(store)
    if not groups:
        print(f"no trials in {store.root}" if not args.files else "no trial of these files can be known yet")
        return 0
    every = args.all or bool(args.files)
    states: dict[str, str] = {}
    for heading, labels in groups:
        shown, rows = [], []
        for trial_id, label in labels.items():
            state, row = _row(store, trial_id, label)
            states[trial_id] = state
            shown.append(state)
            if every or state not in ("finished", "pending"):
                rows.append(row)
        print(f"{heading}  {count(shown)}")
        if rows:
            table("", {"trial": False, "label": True, "status": False, "progress": False, "result": True}, rows)

    _claims(store, args)
    print(f"{store.root}  {count(states.values())}")
    return 2 if UNREADABLE in states.values() else 0


def _claims(store: RunStore, args: argparse.Namespace) -> None:
    """How claims stand: of files those that they state now; of the store all that looks were taken of, as then."""
    from harness.decide import told

    def read(found: Grid | Path) -> tuple[str, list[str]]:
        return told.of_file(found) if isinstance(found, Path) else (found.heading, told.of_grid(found, store))

    all_kept: Sequence[Grid | Path] = [*decisions.decisions(store.root).values()] if not args.files else []
    for found in _decided(args, store) if args.files else all_kept:
        try:
            heading, lines = read(found)
        except UserError as error:
            remark(f"warning: {error}")
            continue
        print(f"{heading}  claims")
        for line in lines:
            print(f"  {line}")


def _decided(args: argparse.Namespace, store: RunStore) -> list[Grid]:
    """The grids of the files that are being decided, with the seeds of their looks, whatever seeds are asked for."""
    from harness.commands import open_grids
    from harness.decide.kept import max_seeds_kept

    found = []
    for file in args.files:
        one = argparse.Namespace(**{**vars(args), "files": [file]})
        for grid in open_grids(one, require_data=False):
            try:
                most = max_seeds_kept(grid, store)
            except UserError as error:
                remark(f"warning: {error}")
                continue
            if most is not None:
                one.seeds = list(range(most))
                found += open_grids(one, require_data=False)
    return found


def _row(store: RunStore, trial_id: str, label: str) -> tuple[str, list[str]]:
    """A trial's status and its line of the table; where the storage does not tell, a warning and `UNREADABLE`."""
    try:
        state, record = store.look(trial_id)
        record = record or {}
        _warn_of_damage(store, trial_id)
        told = label or str(record.get("label") or "")
        return state, [trial_id, told, state, _progress(store, trial_id, state, record), _outcome(state, record)]
    except ReadError as error:
        remark(f"warning: {error}")
        return UNREADABLE, [trial_id, label, UNREADABLE, "", ""]


def _groups_of_files(args: argparse.Namespace, store: RunStore) -> list[tuple[str, dict[str, str]]]:
    from harness.commands import open_grids

    grids = open_grids(args, require_data=False, decided=True)
    groups = [(grid.heading, _asked_for(grid, store)) for grid in grids]
    return [group for group in groups if group[1]]


def _asked_for(grid: Grid, store: RunStore) -> dict[str, str]:
    """Labels of a grid's trials by id; of seeds that only looks took, those that some look asked for."""
    known = [trial for trial in grid.trials if trial.has_id]
    looked = [seed in (grid.looked or ()) for seed in grid.seeds]
    beyond = {key for row in grid.rows for key, own in zip(row.trial_ids, looked, strict=True) if own}
    never = {key for key in beyond - grid.seen if store.status(key) == "pending"}
    return {trial.trial_id: trial.label for trial in known if trial.trial_id not in never}


def _groups_of_store(store: RunStore) -> list[tuple[str, dict[str, str]]]:
    known, lines = ledger.known_grids(store)
    for line in lines:
        remark(f"warning: {line}")
    groups = [(grid.heading, grid.labels) for grid in known]
    asked = {trial_id for _, labels in groups for trial_id in labels}
    others = {trial_id: "" for trial_id in store.trials() if trial_id not in asked}
    return [*groups, (OTHERS, others)] if others else groups


def _warn_of_damage(store: RunStore, trial_id: str) -> None:
    for line in housekeeping.damages(store, trial_id):
        remark(f"warning: {line}")


def _progress(store: RunStore, trial_id: str, state: str, record: dict[str, Any]) -> str:
    if state == "finished":
        seconds = (record.get("cost") or {}).get("wall_seconds")
        return f"in {duration(seconds)}" if isinstance(seconds, int | float) else ""
    beat = store.read_heartbeat(trial_id) or {}
    if "step" not in beat:
        return ""
    total = beat.get("total_steps")
    text = f"step {beat['step']}" + (f"/{total}" if total else "")
    eta = beat.get("eta_seconds")
    if state != "running" or not isinstance(eta, int | float):
        return text
    since = beat.get("time")
    waited = time.time() - since if isinstance(since, int | float) else 0.0
    return f"{text}, {duration(eta - waited)} left"


def _outcome(state: str, record: dict[str, Any]) -> str:
    if state == "failed":
        return str(record.get("error") or "no message was recorded")
    return "".join(f"{name} {ap:.1f}" for name, ap in ap_of(record.get("metrics") or {}).items())


# ---- one trial, two trials ----------------------------------------------------------------------------------------


def logs(args: argparse.Namespace) -> int:
    """Tell a trial's story from its record: its epochs, where it is now, warnings, and the traceback of a failure."""
    store = RunStore()
    trial_id = find_trial(store, args.trial)
    state, record = store.look(trial_id)
    print(f"{trial_id}  {(record or {}).get('label') or ''}  {state}".replace("    ", "  "))
    print(store.dir(trial_id))
    _warn_of_damage(store, trial_id)
    for folder in housekeeping.attempts(store, trial_id):
        last = (read_text(folder / LOG) or "").strip().splitlines()[-1:]
        print(f"earlier attempt failed: {''.join(last) or 'no log'}  ({folder})")
    seen: set[tuple[Any, ...]] = set()
    last_beat = _print_new(store, trial_id, seen, 0.0)
    while args.follow and store.status(trial_id) == "running":
        time.sleep(FOLLOW_SECONDS)
        last_beat = _print_new(store, trial_id, seen, last_beat)
    if args.follow:
        _print_new(store, trial_id, seen, last_beat)
    state, record = store.look(trial_id)
    log = store.dir(trial_id) / LOG
    if state == "failed":
        print(f"failed: {(record or {}).get('error') or 'no message was recorded'}")
        if (text := read_text(log)) is not None:
            print(f"{log}:\n{text.rstrip()}")
    elif args.follow:
        print(f"{state}  {_outcome(state, record or {})}".rstrip())
    return 0


def _print_new(store: RunStore, trial_id: str, seen: set[tuple[Any, ...]], last_beat: float) -> float:
    """Print epochs and warnings that were not printed yet, and the newest sign of life; returns its time."""
    for entry in store.metrics(trial_id):
        if (key := ("epoch", entry["epoch"], entry.get("time"))) not in seen:
            seen.add(key)
            print(f"{_clock(entry.get('time'))}  {describe(entry)}", flush=True)
    beat = store.read_heartbeat(trial_id) or {}
    for index, warning in enumerate(beat.get("warnings", [])):
        if ("warning", index) not in seen:
            seen.add(("warning", index))
            print(f"warning: {warning}", flush=True)
    at = beat.get("time")
    if not isinstance(at, int | float) or at <= last_beat or store.status(trial_id) == "finished":
        return last_beat
    eta = beat.get("eta_seconds")
    left = f"  eta {duration(eta)}" if isinstance(eta, int | float) and store.status(trial_id) == "running" else ""
    print(f"{_clock(at)}  {describe(beat)}{left}", flush=True)
    return float(at)


def _clock(seconds: Any) -> str:
    known = isinstance(seconds, int | float)
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if known else " " * 19


def diff(args: argparse.Namespace) -> int:
    """Show what differs between two trials: settings, data, provenance, results."""
    from harness.compare import differences

    store = RunStore()
    ids = [find_trial(store, text) for text in (args.first, args.second)]
    records = []
    for trial_id in ids:
        record = store.read(trial_id)
        _warn_of_damage(store, trial_id)
        records.append({"config": _config(store, trial_id), **(record or {"status": store.status(trial_id)})})
    found = differences(*records)
    if not found:
        print(f"{ids[0]} and {ids[1]} do not differ")
        return 0
    names = ids if ids[0] != ids[1] else [f"{ids[0]} (first)", f"{ids[1]} (second)"]
    table("", {"": False, **dict.fromkeys(names, True)}, [list(row) for row in found])
    return 0


def _config(store: RunStore, trial_id: str) -> dict[str, Any]:
    """config.yaml, for a record that does not hold the configuration."""
    import yaml

    data = read_bytes(store.dir(trial_id) / CONFIG)
    try:
        found = yaml.safe_load(data or b"")
    except (ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


# ---- retry, rm, gc ------------------------------------------------------------------------------------------------


def retry(args: argparse.Namespace) -> int:
    """Set failed trials back to pending; a checkpoint stays unless they are to start from scratch."""
    from harness.commands import open_grids

    store = RunStore()
    known, lines = ledger.known_grids(store)
    for line in lines:
        remark(f"warning: {line}")
    again = []
    for trial_id in named_trials(args, store, open_grids):
        if store.status(trial_id) == "failed":
            error = (store.read(trial_id) or {}).get("error")
            if housekeeping.set_back(store, trial_id, from_scratch=args.from_scratch):
                again.append(trial_id)
                print(f"{trial_id}  pending; it had failed: {error}")
    if not again:
        print("no trial of these has failed" if args.what else f"no trial in {store.root} has failed")
        names = {Path(text).stem for text in args.what if is_settings_file(text)}
        for grid in (grid for grid in known if grid.name in names):
            if failed := sum(store.status(trial_id) == "failed" for trial_id in grid.labels):
                print(f"{failed} of {grid.heading}: {grid.command.replace('codetr run', 'codetr retry', 1)}")
        return 0
    commands = [command for grid in known for command in grid.commands_for(again)]
    print(f"{count(['pending'] * len(again))}; the failed records are kept in attempts/")
    for command in dict.fromkeys(commands):
        print(f"run next: {command}")
    return 0


def rm(args: argparse.Namespace) -> int:
    """Remove trials from the store and from MLflow."""
    store = RunStore()
    ids = list(dict.fromkeys(find_trial(store, text) for text in args.trials))
    for trial_id in ids:
        state, record = store.look(trial_id)
        if state == "running":
            raise UserError(f"trial {trial_id} is running; stop its run first (nothing was removed)")
        label = str((record or {}).get("label") or "")
        print("  ".join(part for part in (trial_id, label, state, _outcome(state, record or {})) if part))
    if not args.yes and not _confirmed(f"remove {'these' if len(ids) > 1 else 'this'} for good?"):
        print("nothing was removed")
        return 1
    removed = [trial_id for trial_id in ids if housekeeping.remove(store, trial_id)]
    for trial_id in ids:
        print(f"{trial_id}  {'removed' if trial_id in removed else 'not removed: somebody has begun to work on it'}")
    _follow_in_tracking_store(store, removed)
    return 0 if removed == ids else 1


def _confirmed(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _follow_in_tracking_store(store: RunStore, removed: Iterable[str]) -> None:
    from harness.tracking import tracking

    if not list(removed) or not tracking.available():
        return
    from harness.tracking.mirror import delete_removed

    try:
        gone = delete_removed(store)
    except UserError as error:
        remark(
            f"note: their MLflow runs are still there ({error}); the next `codetr run` or `codetr sync` deletes them"
        )
        return
    print(f"MLflow: {quantity(gone, 'run')} deleted")


def gc(args: argparse.Namespace) -> int:
    """List what nobody needs any more in store and cache, and delete it with --yes. Finished records are never part."""
    store = RunStore()
    found = housekeeping.leftovers(store)
    if not found:
        print(f"nothing to clear away in {store.root}")
        return 0
    rows = [[str(leftover.path), leftover.what, size(leftover.num_bytes)] for leftover in found]
    table("", {"path": True, "what it is": False, "size": False}, rows)
    if args.yes:
        print(f"deleted {len(found)}, freed {size(housekeeping.delete(found, store))}")
    else:
        total = sum(leftover.num_bytes for leftover in found)
        named = quantity(len(found), "leftover")
        print(f"{named}, {size(total)}; `codetr gc --yes` deletes {'it' if len(found) == 1 else 'them'}")
    return 0
