"""What each command does: the story of the package docstring, one function per command.

Every function takes the parsed arguments and returns the exit code. Tables go to standard output, so that they
can be piped; remarks and mistakes go to standard error. Commands about the store alone: `harness.store_commands`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from harness.errors import UserError
from harness.schedule.progress import duration
from harness.spec.grid import Grid, Trial, open_grid
from harness.spec.named_files import is_settings_file
from harness.spec.pretrained import notes
from harness.spec.space import describe
from harness.spec.spec import DEFAULT_PRESET, OPTIONS
from harness.spec.training_length import lengths
from harness.store import decisions
from harness.store.housekeeping import damages
from harness.store.ledger import finished_otherwise, made_by_other_code
from harness.store.listing import WIDTH, list_grid
from harness.store.results import RunStore
from harness.store.suggestions import suggested
from harness.system.console import count, fitted, remark, table
from harness.system.words import quantity


def open_grids(
    args: argparse.Namespace, *, require_data: bool = True, decided: bool = False, say: Callable[[str], None] = remark
) -> list[Grid]:
    """The grids of the files that a command names.

    Args:
        args: of the command line.
        require_data: as in `open_grid`.
        decided: take the seeds that `codetr decide` has looked at besides the file's, where the command names none.
        say: takes notes.
    """
    given = {option: getattr(args, option.removeprefix("--").replace("-", "_"), None) for option in OPTIONS}
    options = {option: str(value) for option, value in given.items() if value is not None}
    grids = []
    for file in args.files:

        def opened(seeds: Sequence[int] | None, file: str = file) -> Grid:
            return open_grid(
                *(file, args.preset or DEFAULT_PRESET, args.overrides),
                data=args.data,
                seeds=seeds,
                options=options,
                require_data=require_data,
            )

        grid = opened(args.seeds)
        if decided and args.seeds is None:
            from harness.report.reading import with_looks

            grid = with_looks(grid, opened)
        for note in grid.notes:
            say(f"note: {note}")
        grids.append(suggested(grid, RunStore()))
    return grids


def _identified(grid: Grid) -> Grid:
    """The grid with the ids of records where its data or weights are not here; remarks on records of another name."""
    from harness.report.reading import identified

    found = identified(grid)
    for note in found.notes[len(grid.notes) :]:
        remark(f"note: {note}")
    return found


def _chosen(args: argparse.Namespace, grids: Sequence[Grid]) -> list[frozenset[str]]:
    """By grid: ids of the trials that --only chooses."""
    from harness.choose import choose

    return [choose(grid, args.only) for grid in grids]


def plan(args: argparse.Namespace) -> int:
    """Show every row of the grids with its trials, what differs, and which are done."""
    store = RunStore()
    if args.decide:
        from harness.decide.commands import plan_looks

        return plan_looks(args, store, open_grids)
    grids = open_grids(args, require_data=False)
    for grid, chosen in zip(grids, _chosen(args, grids), strict=True):
        trials = [trial for trial in grid.trials if trial.trial_id in chosen]
        states = {trial.trial_id: _state(store, trial) for trial in trials}
        listing = list_grid(grid, chosen, states)
        for line in notes([trial for trial in trials if states[trial.trial_id] != "finished"]):
            remark(f"note: {line}")
        total = count(states[trial.trial_id] for trial in trials)
        asked = len(grid.rows) * len(grid.seeds)
        if asked > len(grid.trials) == len(trials):
            total += f" ({asked} cells share them)"
        columns = {"left": _costs(store, trials, states)} if args.cost else {}
        columns |= {"memory": _memory(trials)} if args.memory else {}
        for heading, (cells, lines) in columns.items():
            listing.columns[heading] = False
            for row, trial_id in zip(listing.rows, listing.trials, strict=True):
                row.append(cells.get(trial_id, ""))
            total += "".join(f"\n{line}" for line in lines)
        if grid.num_unknown:
            total += f", {grid.num_unknown} to be suggested"
        folders = dict.fromkeys(trial.config.data.path for trial in trials if trial.config.data.path)
        where = ", ".join([f"preset {grid.preset}", *(f"data {folder}" for folder in folders)])
        table(f"{grid.title} ({where})", listing.columns, listing.rows, WIDTH)
        print(fitted(total, WIDTH))
        for line in lengths(trial.config for trial in trials):
            print(fitted(f"training: {line}", WIDTH))
        if detectors := dict.fromkeys(trial.detector for trial in trials if trial.detector):
            print(fitted(f"model.preset: {', '.join(detectors)}", WIDTH))
        if grid.search is not None:
            print(fitted(f"search: {describe(grid.search.spec)}", WIDTH))
        if args.verbose:
            from harness.trial.rates import print_groups

            print_groups(trials, WIDTH)
    return 0


def _state(store: RunStore, trial: Trial) -> str:
    if not trial.has_id:
        return "pending"
    for line in damages(store, trial.trial_id):
        remark(f"warning: {line}")
    return store.status(trial.trial_id)


def _costs(store: RunStore, trials: Sequence[Trial], states: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """A cell for each trial by its id, and lines for below the table: what is left in all, and how that is judged."""
    from harness.store.cost import Costs

    costs = Costs(store)
    cells: dict[str, str] = {}
    seconds, known, unknown = 0.0, 0, 0
    basis: dict[tuple[str, ...], str] = {}
    for trial in trials:
        if states[trial.trial_id] == "finished":
            continue
        if (found := costs.left(trial)) is None:
            unknown += 1
            cells[trial.trial_id] = "unknown"
        else:
            seconds, known = seconds + found.seconds, known + 1
            cells[trial.trial_id] = duration(found.seconds)
            basis.setdefault(found.basis, found.how)
    lines = []
    if known:
        lines.append(f"left: {duration(seconds)} of trial time for {known} of them, judged by")
    for ids, how in list(basis.items())[:5]:
        named = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
        lines.append(f"  {named} ({how})")
    if len(basis) > 5:
        lines.append(f"  and {len(basis) - 5} more such groups")
    if unknown:
        lines.append(f"unknown for {unknown}: nothing like it was measured yet")
    return cells, lines


def _memory(trials: Sequence[Trial]) -> tuple[dict[str, str], list[str]]:
    """A cell for each trial by its id, and lines for below the table: how that is known."""
    from dataclasses import replace

    from harness.data.classes import num_classes_of
    from harness.trial.footprint import footprint_or_none

    keys = {}
    for trial in trials:
        runtime = trial.runtime
        sharing = -(-runtime.ranks // max(1, int(runtime.gpus_per_trial)))  # ranks on a GPU
        keys[trial.trial_id] = replace(trial.config, seed=0), runtime.ranks, sharing  # all seeds are alike
    found = {}
    cells: dict[str, str] = {}
    batches: dict[str, None] = {}
    distinct = dict.fromkeys(keys.values())
    said = time.monotonic()
    for done, (config, ranks, sharing) in enumerate(distinct):
        if time.monotonic() - said >= 5:
            remark(f"memory: {done} of {len(distinct)} counted")
            said = time.monotonic()
        found[config, ranks, sharing] = footprint_or_none(
            config, num_classes_of(config.data), ranks=ranks, sharing=sharing
        )
    for trial_id, key in keys.items():
        needed = found[key]
        cells[trial_id] = "unknown" if needed is None else _bytes(needed.on_gpu)
        if needed is not None:
            images = quantity(needed.images, "image")
            each = f" on each of {needed.sharing} ranks" if needed.sharing > 1 else ""
            batches[f"{images} of {needed.height} x {needed.width}{each}"] = None
    if not batches:
        return cells, []
    lines = [
        f"memory: of a training step with {', or '.join(batches)} at once (the largest that the settings allow), on "
        "each GPU: what is kept for the backward pass, carried on by a line from small images (CPU), and parameters, "
        "gradients and optimiser state"
    ]
    return cells, lines


def _bytes(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def run(args: argparse.Namespace) -> int:
    """Run what is missing of each grid, then print its table."""
    grids = open_grids(args)  # mistakes are told before anything heavy is loaded
    chosen = _chosen(args, grids)
    from harness.report import grid_text
    from harness.schedule.schedule import run_grid

    store = RunStore()
    failed = False
    for grid, ids in zip(grids, chosen, strict=True):
        _tell_of_other_code(store, [trial.trial_id for trial in grid.trials if trial.trial_id in ids])
        summary = run_grid(
            grid,
            store,
            executor=args.executor,
            concurrent=args.concurrent,
            limit=args.limit,
            only=ids if args.only else None,
            fail_fast=args.fail_fast,
        )
        left = summary.interrupted if args.limit is None else ()
        failed |= bool(summary.failed or left)
        grid = suggested(grid, store)
        records = [record for trial in grid.trials if (record := store.read(trial.trial_id))]
        print(f"\n{grid_text(grid, records)}")
        if args.fail_fast and summary.failed:
            break
    return 1 if failed else 0


def decide(args: argparse.Namespace) -> int:
    """Train seeds where they decide, until every claim of the files is settled or the budget is spent."""
    from harness.decide.commands import decide as settle

    return settle(args, open_grids, _tell_of_other_code)


def _tell_of_other_code(store: RunStore, trial_ids: Sequence[str]) -> None:
    if other := made_by_other_code(store, trial_ids):
        one = len(other) == 1
        remark(
            f"note: {len(other)} finished trial{' was' if one else 's were'} made by other code than is here now; "
            f"to train {'it' if one else 'them'} again, first: codetr rm {' '.join(other)}"
        )


def submit(args: argparse.Namespace) -> int:
    """Run on a Ray cluster what `codetr run` would run here."""
    for grid in open_grids(args.asked, require_data=False):
        for line in notes(grid.trials):
            remark(f"note: {line}")
    from harness.submit import hand_over

    preset = args.asked.preset or ""
    files = [*args.asked.files, *([preset] if is_settings_file(preset) else [])]
    return hand_over(args.run, files, args.address, wait=not args.no_wait)


def report(args: argparse.Namespace) -> int:
    """Write the page, tables and figures of the grids, and print the tables; of a trial its own page."""
    if not any(is_settings_file(name) for name in args.files):
        return _trial_pages(args)
    from harness.decide.told import settled_verdicts
    from harness.report import DEFAULT_FORMATS, TRACKING, How, chosen_source, write_report
    from harness.tracking.tracking import read_suggestions

    grids = [_identified(grid) for grid in open_grids(args, require_data=False, decided=True)]
    if any(grid.trials and not any(trial.has_id for trial in grid.trials) for grid in grids):
        grids = open_grids(args, decided=True)  # neither data and weights nor a record of them are here: say so
    for index, grid in enumerate(grids):
        if grid.search is not None and grid.num_unknown and chosen_source(args.source) == TRACKING:
            with suppress(UserError):  # told where the records are read
                for values in read_suggestions(grid.search.key):  # the store of records may be elsewhere
                    grids[index] = grids[index].suggest(values)
    shared = _options(args)
    switches = {"--allow-mixed": args.allow_mixed, "--images": args.images, "--wide": args.wide}
    flags = [flag for flag, given in switches.items() if given]
    flags += ["--score", f"{args.score:g}"] if args.score is not None else []
    how = How(
        {
            grid.name: (shlex.join(["codetr", "run", file, *shared]),)
            for grid, file in zip(grids, args.files, strict=True)
        },
        shlex.join(["codetr", "report", *args.files, *shared, *flags]),
    )
    made = write_report(
        grids,
        args.out,
        args.formats or DEFAULT_FORMATS,
        source=args.source,
        allow_mixed=args.allow_mixed,
        images=args.images,
        wide=args.wide,
        score=args.score,
        how=how,
        settled=lambda grid: settled_verdicts(grid, RunStore()),
    )
    for note in made.notes:
        remark(f"note: {note}")
    for grid in grids:
        for line in finished_otherwise(RunStore(), grid):
            remark(f"note: {line}")
    print(made.text)
    for path in made.paths:
        print(f"wrote {path}")
    return 0


def _trial_pages(args: argparse.Namespace) -> int:
    """A page for each trial that is named instead of a file."""
    from harness.choose import NO_FILE, find_trial
    from harness.report.trial_page import write_trial_page

    given = {"--set": args.overrides, "--preset": args.preset, "--seeds": args.seeds, "--data": args.data}
    given |= {"--allow-mixed": args.allow_mixed, "--images": args.images, "--wide": args.wide}
    if wrong := [option for option, value in given.items() if value]:
        raise UserError(f"{wrong[0]} is about ablation files, and {args.files[0]} is none")
    if args.formats not in (None, ["html"]):
        raise UserError("--format: the page of a trial is HTML; its figures lie in the trial's folder, in analysis/")
    store = RunStore()
    for trial_id in [find_trial(store, name, NO_FILE) for name in args.files]:
        print(f"wrote {write_trial_page(store, trial_id, args.out, args.score)}")
    return 0


def pairs(args: argparse.Namespace) -> int:
    """Print how well numbers of single heads tell which pairs of them help most."""
    from harness.files import write_atomic
    from harness.report.ground import check_ground
    from harness.report.pairs import as_csv, predict, read, rows_of, words
    from harness.report.reading import read_trials, trial_ids

    (grid,) = [_identified(grid) for grid in open_grids(args, require_data=False, decided=True)]
    records = list(read_trials(trial_ids([grid]), args.source))
    if not args.allow_mixed:
        check_ground([grid], records)
    trainings = read(grid, records)
    found = predict(trainings)
    columns = ("measure", "feature", "Spearman", "95 %, seeds", "without a head", "p", "p of any")
    table(f"{grid.title}: which pair helps, told by single heads", dict.fromkeys(columns, False), rows_of(found))
    for line in words(trainings):
        print(fitted(line, WIDTH))
    if args.out:
        write_atomic(Path(args.out), as_csv(found))
        print(f"wrote {args.out}")
    return 0


def _options(args: argparse.Namespace) -> list[str]:
    """The options that decide which trials a grid has, as they were given."""
    options = ["--preset", args.preset] if args.preset else []
    for setting in args.overrides:
        options += ["--set", setting]
    options += [word for folder in args.data or () for word in ("--data", folder)]
    return options + (["--seeds", ",".join(map(str, args.seeds))] if args.seeds is not None else [])


def sync(args: argparse.Namespace) -> int:
    """Replay in the tracking store what it lacks of the grids' records."""
    from harness.tracking import mirror

    store = RunStore()
    for grid in open_grids(args, decided=True):
        mirror.sync(store, grid, say=remark)
        trials = "trial" if len(grid.trials) == 1 else f"{len(grid.trials)} trials"
        print(f"{grid.name}: the tracking store has every record of its {trials}")
    return 0


def export(args: argparse.Namespace) -> int:
    """Write the finished records of trials to an archive or folder."""
    from harness.choose import named_trials
    from harness.store.transfer import export_records

    store = RunStore()
    wanted = named_trials(args, store, open_grids)
    finished = [trial_id for trial_id in wanted if store.status(trial_id) == "finished"]
    if len(finished) < len(wanted):
        print(f"note: left out {len(wanted) - len(finished)} that are not finished here", file=sys.stderr)
    if not finished:
        raise UserError(f"{store.root}: no finished trial to export; see `codetr status`")
    for line in decisions.damaged(store):
        remark(f"note: left out {line}")
    export_records(store, finished, Path(args.out), checkpoints=args.checkpoints, detections=args.detections)
    print(f"wrote {args.out}: {quantity(len(finished), 'record')}")
    return 0


def import_(args: argparse.Namespace) -> int:
    """Take the finished records of an archive or folder into the store."""
    from harness.decide.sound import contradiction
    from harness.store.transfer import import_records

    store = RunStore()
    done = import_records(
        *(store, Path(args.path)),
        replace=args.replace,
        checkpoints=args.checkpoints,
        contradiction=lambda kept: contradiction(kept, store),
    )
    for trial_id, why in done.refused.items():
        print(f"refused {trial_id}: {why}", file=sys.stderr)
    for trial_id, why in done.kept.items():
        print(f"kept {trial_id}: another record is here ({why}); --replace takes the other", file=sys.stderr)
    for name in done.ignored[:3]:
        print(f"note: '{name}' is no part of a record", file=sys.stderr)
    if len(done.ignored) > 3:
        print(f"note: and {len(done.ignored) - 3} more such files", file=sys.stderr)
    if done.without_weights:
        print(f"weights of {len(done.without_weights)} left out; the same command with --checkpoints takes them")
    if done.looks:
        print(f"took along what `codetr decide` keeps of {quantity(len(done.looks), 'grid')}")
    told = {"taken": done.taken, "here already": done.same, "kept": done.kept, "refused": done.refused}
    counts = ", ".join(f"{len(ids)} {what}" for what, ids in told.items() if ids)
    print(f"{store.root}: {counts or 'no records there'}")
    if done.taken:
        print("`codetr sync FILE` brings them to MLflow")
    return 1 if done.refused or done.kept else 0


def ui(args: argparse.Namespace) -> int:
    """Serve the MLflow pages of the tracking store until interrupted."""
    from harness.tracking.ui import serve

    return serve(args.host, args.port, say=lambda line: print(line, flush=True))


def doctor(args: argparse.Namespace) -> int:
    """Show which operators run here, and prove them by a comparison with the reference."""
    from harness.doctor import examine

    return 0 if examine() else 1
