"""What each command does: the story of the package docstring, one function per command.

Every function takes the parsed arguments and returns the exit code. Tables go to standard output, so that they
can be piped; remarks and mistakes go to standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.grid import Grid, Trial, open_grid
from harness.progress import duration
from harness.results import RunStore
from harness.spec import DEFAULT_PRESET


def _grids(args: argparse.Namespace, *, require_data: bool = True) -> list[Grid]:
    overrides = list(args.overrides)
    for option in ("cpus_per_trial", "gpus_per_trial"):
        if getattr(args, option, None) is not None:
            overrides.append(f"runtime.{option}={getattr(args, option)}")
    grids = []
    for file in args.files:
        preset = args.preset or DEFAULT_PRESET
        grid = open_grid(file, preset, overrides, data=args.data, seeds=args.seeds, require_data=require_data)
        for note in grid.notes:
            print(f"note: {note}", file=sys.stderr)
        grids.append(grid)
    return grids


def _table(title: str, columns: dict[str, bool], rows: list[list[str]]) -> None:
    """Print a table; `columns` tells by heading whether long cells may be wrapped."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:  # a pipe or a job log has no width: do not wrap for it
        console = Console(highlight=False, width=max(80, 4 + sum(_widths(list(columns), rows))))
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold")
    for heading, wrap in columns.items():
        table.add_column(heading, no_wrap=not wrap, overflow="fold")
    for row in rows:
        table.add_row(*[_escape(cell) for cell in row])
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


def _widths(headings: list[str], rows: list[list[str]]) -> list[int]:
    return [max(len(cell) for cell in column) + 2 for column in zip(headings, *rows, strict=True)]


def plan(args: argparse.Namespace) -> int:
    """Show every trial of the grids, what differs, and which are done."""
    store = RunStore()
    for grid in _grids(args, require_data=False):
        states = {trial.trial_id: _state(store, trial) for trial in grid.trials}
        rows = [
            [trial.trial_id if trial.fingerprint else "-", trial.row, trial.label, states[trial.trial_id]]
            for trial in grid.trials
        ]
        _table(
            f"{grid.title} (preset {grid.preset})", {"trial": False, "row": True, "label": True, "status": False}, rows
        )
        print(_totals(grid, states, store))
    return 0


def _state(store: RunStore, trial: Trial) -> str:
    return store.status(trial.trial_id) if trial.fingerprint else "pending"


def _totals(grid: Grid, states: dict[str, str], store: RunStore) -> str:
    text = _count(states.values())
    asked = len(grid.rows) * len(grid.seeds)
    if asked > len(grid.trials):
        text += f" ({asked} cells share them)"
    left = [trial for trial in grid.trials if states[trial.trial_id] not in ("finished", "running")]
    seconds = [
        cost["wall_seconds"]
        for trial in grid.trials
        if states[trial.trial_id] == "finished"
        and (cost := (store.read(trial.trial_id) or {}).get("cost") or {}).get("wall_seconds")
    ]
    if left and seconds:
        text += f"; about {duration(len(left) * sum(seconds) / len(seconds))} of trial time left"
        text += f", judged by {len(seconds)} finished"
    return text


def _count(states: Iterable[str]) -> str:
    """`3 trials: 2 finished, 1 pending`."""
    counts = Counter(states)
    number = sum(counts.values())
    ordered = sorted(counts, key=("finished", "running", "interrupted", "failed", "pending").index)
    return f"{number} trial{'s'[: number != 1]}: " + ", ".join(f"{counts[state]} {state}" for state in ordered)


def run(args: argparse.Namespace) -> int:
    """Run what is missing of each grid, then print its table."""
    grids = _grids(args)  # mistakes are told before anything heavy is loaded
    from harness.report import grid_text
    from harness.schedule import run_grid

    store = RunStore()
    failed = False
    for grid in grids:
        summary = run_grid(grid, store, executor=args.executor, concurrent=args.concurrent, limit=args.limit)
        left = summary.interrupted if args.limit is None else ()
        failed |= bool(summary.failed or left)
        records = [record for trial in grid.trials if (record := store.read(trial.trial_id))]
        print(f"\n{grid_text(grid, records)}")
    return 1 if failed else 0


def status(args: argparse.Namespace) -> int:
    """Show the trials of the store, or of some ablation files: state, progress, result, reason of failure."""
    store = RunStore()
    labels: dict[str, str] = {}
    for grid in _grids(args, require_data=False):
        labels.update({trial.trial_id: trial.label for trial in grid.trials if trial.fingerprint})
    ids = list(labels) if args.files else store.trials()
    if not ids:
        print(f"no trials in {store.root}" if not args.files else "no trial of these files can be known yet")
        return 0
    rows = []
    states = []
    for trial_id in ids:
        record = store.read(trial_id) or {}
        state = store.status(trial_id)
        states.append(state)
        label = labels.get(trial_id) or str(record.get("label") or "")
        rows.append([trial_id, label, state, _progress(store, trial_id, state, record), _outcome(state, record)])
    _table(str(store.root), {"trial": False, "label": True, "status": False, "progress": False, "result": True}, rows)
    print(_count(states))
    return 0


def _progress(store: RunStore, trial_id: str, state: str, record: dict[str, Any]) -> str:
    if state == "finished":
        seconds = (record.get("cost") or {}).get("wall_seconds")
        return f"in {duration(seconds)}" if seconds else ""
    beat = store.read_heartbeat(trial_id) or {}
    if "step" not in beat:
        return ""
    total = beat.get("total_steps")
    text = f"step {beat['step']}" + (f"/{total}" if total else "")
    eta = beat.get("eta_seconds")
    return f"{text}, {duration(eta)} left" if state == "running" and eta is not None else text


def _outcome(state: str, record: dict[str, Any]) -> str:
    if state == "failed":
        return str(record.get("error") or "no message was recorded")
    ap = (record.get("metrics") or {}).get("AP")
    return "" if ap is None else f"AP {ap:.1f}"


def report(args: argparse.Namespace) -> int:
    """Write the tables and figures of the grids from the tracking store, and print the tables."""
    from harness.report import FORMATS, write_report

    made = write_report(_grids(args), args.out, args.formats or FORMATS)
    print(made.text)
    for path in made.paths:
        print(f"wrote {path}")
    return 0


def sync(args: argparse.Namespace) -> int:
    """Replay in the tracking store what it lacks of the grids' records."""
    from harness import mirror

    store = RunStore()
    for grid in _grids(args):
        mirror.sync(store, grid)
        print(f"{grid.name}: the tracking store has every record of its {len(grid.trials)} trials")
    return 0


def export(args: argparse.Namespace) -> int:
    """Write the finished records of trials to an archive or folder."""
    from harness.transfer import export_records

    store = RunStore()
    wanted = _named(args, store)
    finished = [trial_id for trial_id in wanted if store.status(trial_id) == "finished"]
    if len(finished) < len(wanted):
        print(f"note: left out {len(wanted) - len(finished)} that are not finished here", file=sys.stderr)
    if not finished:
        raise UserError(f"{store.root}: no finished trial to export; see `codetr status`")
    export_records(store, finished, Path(args.out), checkpoints=args.checkpoints, detections=args.detections)
    print(f"wrote {args.out}: {_number(finished)}")
    return 0


def _named(args: argparse.Namespace, store: RunStore) -> list[str]:
    """Ids of the trials that ablation files and beginnings of ids name; all of the store when nothing is named."""
    if not args.what:
        return store.trials()
    files = [text for text in args.what if text.endswith((".yaml", ".yml"))]
    wanted: list[str] = []
    for grid in _grids(argparse.Namespace(**{**vars(args), "files": files}), require_data=False):
        wanted += [trial.trial_id for trial in grid.trials if trial.fingerprint]
    for text in args.what:
        if text not in files:
            found = [trial_id for trial_id in store.trials() if trial_id.startswith(text)]
            if len(found) != 1:
                told = f"begins the ids of {len(found)} trials" if found else "is neither an ablation file nor a trial"
                raise UserError(f"'{text}' {told} in {store.root}; see `codetr status`")
            wanted += found
    return list(dict.fromkeys(wanted))


def import_(args: argparse.Namespace) -> int:
    """Take the finished records of an archive or folder into the store."""
    from harness.transfer import import_records

    store = RunStore()
    done = import_records(store, Path(args.path), replace=args.replace, checkpoints=args.checkpoints)
    for trial_id, why in done.refused.items():
        print(f"refused {trial_id}: {why}", file=sys.stderr)
    for trial_id, why in done.kept.items():
        print(f"kept {trial_id}: another record is here ({why}); --replace takes the other", file=sys.stderr)
    for name in done.ignored[:3]:
        print(f"note: '{name}' is no part of a record", file=sys.stderr)
    if len(done.ignored) > 3:
        print(f"note: and {len(done.ignored) - 3} more such files", file=sys.stderr)
    told = {"taken": done.taken, "here already": done.same, "kept": done.kept, "refused": done.refused}
    counts = ", ".join(f"{len(ids)} {what}" for what, ids in told.items() if ids)
    print(f"{store.root}: {counts or 'no records there'}")
    if done.taken:
        print("`codetr sync FILE` brings them to MLflow")
    return 1 if done.refused or done.kept else 0


def _number(trial_ids: Sequence[str]) -> str:
    return f"{len(trial_ids)} record{'s'[: len(trial_ids) != 1]}"


def ui(args: argparse.Namespace) -> int:
    """Serve the MLflow pages of the tracking store until interrupted."""
    from harness.tracking import runs_page, ui_command

    command = ui_command(host=args.host, port=args.port)
    print(f"MLflow at http://{args.host}:{args.port}/{runs_page()} (ready in about 20 s; Ctrl-C stops it)", flush=True)
    os.execv(command[0], command)  # this process becomes the server, so that a signal to it stops the server


def doctor(args: argparse.Namespace) -> int:
    """Show which operators run here, and prove them by a comparison with the reference."""
    from harness.doctor import examine

    return 0 if examine() else 1
