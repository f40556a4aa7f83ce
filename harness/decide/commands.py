"""The command `decide`, and what `plan --decide` shows.

Both take the parsed arguments, and from `harness.commands` what opens the grids that these name.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace

from harness.decide import kept, told
from harness.errors import UserError
from harness.schedule.progress import duration
from harness.spec.grid import Grid
from harness.store.listing import WIDTH
from harness.store.results import RunStore
from harness.system.console import fitted, remark, table

OpenGrids = Callable[..., list[Grid]]


def decide(
    args: argparse.Namespace, open_grids: OpenGrids, tell_of_other_code: Callable[[RunStore, Sequence[str]], None]
) -> int:
    """Train seeds where they decide, until every claim of the files is settled or the budget is spent."""
    from harness.decide.rounds import NO_ROOM, counted
    from harness.decide.rounds import decide as settle
    from harness.decide.sound import check_measured, check_planned_alike
    from harness.schedule.schedule import run_grid

    store, is_short = RunStore(), False
    grids = _decided_grids(args, store, open_grids)
    read = [kept.read(grid, store, _max_seeds(args, grid)) for grid in grids]
    for grid, decision in zip(grids, read, strict=True):  # mistakes in any file are told before anything trains
        check_planned_alike(decision, grid, store)
        check_measured(decision, grid, store)
    for place, grid in enumerate(grids):
        tell_of_other_code(store, [trial.trial_id for trial in grid.trials])

        def run_trials(ids: Sequence[str], grid: Grid = grid) -> None:
            known = {*ids} | set().union(*(own.trials for own in kept.read(grid, store).questions))
            trials = tuple(trial for trial in grid.trials if trial.trial_id in known)
            own = replace(grid, trials=trials, command=_command(grid))  # others may never be asked for
            run_grid(own, store, executor=args.executor, concurrent=args.concurrent, only=set(ids))

        others = [counted(kept.read(other, store)) for other in grids[:place] + grids[place + 1 :]]
        decision, why = settle(
            *(grid, store, run_trials),
            max_seeds=_max_seeds(args, grid),
            budget=None if args.budget is None else float(args.budget),
            others=set().union(*others),
            allow_mixed=args.allow_mixed,
            say=remark,
        )
        held = ", which the budget has no room for" if why == NO_ROOM else ""
        table(f"{grid.title}: claims", told.COLUMNS, told.lines(decision, grid, store, held), WIDTH)
        for words in (told.tally(decision), told.hours_words(decision, grid, store), told.looks_words(decision)):
            if words:
                print(fitted(words, WIDTH))
        if why:
            remark(f"{grid.name}: stopped: {why}")
        failing = told.failing(decision, store)
        for words in failing:
            remark(f"{grid.name}: {words}")
        is_short |= bool(failing) or why.startswith("some trials")
    return 1 if is_short else 0


def _command(grid: Grid) -> str:
    """The command that goes on, which chooses seeds itself."""
    words = shlex.split(grid.command)
    if "--seeds" in words:
        place = words.index("--seeds")
        words[place : place + 2] = []
    return shlex.join(["codetr", "decide", *words[2:]])


def _decided_grids(
    args: argparse.Namespace, store: RunStore, open_grids: OpenGrids, *, require_data: bool = True
) -> list[Grid]:
    """The grids of the files with as many seeds as their last looks need.

    Raises:
        UserError: a file states no claim that can be decided, or seeds were named.
    """
    from harness.decide.questions import left_out, questions_of
    from harness.report.looks import DEFAULT, looks_for

    if args.seeds:
        raise UserError("decide takes the seeds 0, 1, 2 …: leave out --seeds")
    grids = []
    for file in args.files:
        one = argparse.Namespace(**{**vars(args), "files": [file], "seeds": [0]})
        (grid,) = open_grids(one, require_data=False, say=lambda note: None)
        if not questions_of(grid):
            if others := left_out(grid):
                raise UserError(f"{file}: none of its claims can be decided: of '{others[0][0]}', {others[0][1]}")
            raise UserError(f"{file}: states no claim about a metric that is better one way; `claims` would")
        most = looks_for(_max_seeds(args, grid) or kept.max_seeds_kept(grid, store) or DEFAULT).most
        one.seeds = list(range(max(most, kept.max_seeds_kept(grid, store) or 0)))
        grids += open_grids(one, require_data=require_data)
    return grids


def _max_seeds(args: argparse.Namespace, grid: Grid) -> int | None:
    """As the command line asks, or the file."""
    asked: int | None = getattr(args, "max_seeds", None)
    return grid.max_seeds if asked is None else asked


def plan_looks(args: argparse.Namespace, store: RunStore, open_grids: OpenGrids) -> int:
    """Show the claims, what their next looks need, and what that will take."""
    from harness.decide.rounds import next_round
    from harness.store.cost import Costs

    if args.only or args.seeds:
        raise UserError("plan --decide takes the seeds 0, 1, 2 … of all rows: leave out --seeds and --only")
    costs = Costs(store)
    for grid in _decided_grids(args, store, open_grids, require_data=False):
        decision = kept.read(grid, store, _max_seeds(args, grid))
        table(f"{grid.title}: claims", told.COLUMNS, told.lines(decision, grid, store), WIDTH)
        print(fitted(told.looks_words(decision), WIDTH))
        found = next_round(decision, grid, store)
        if found is None:
            print("every claim that can be decided is settled" if decision.left_out else "every claim is settled")
            continue
        left = [costs.left(grid.trial(key)) for key in found.trials]
        known = [own.seconds for own in left if own is not None]
        unknown = f", and {len(left) - len(known)} of unknown cost" if known and len(known) < len(left) else ""
        words = f"about {duration(sum(known))} of one device" if known else "their cost is unknown yet"
        print(fitted(f"next: {len(left)} trials for looks at {found.number} seeds, {words}{unknown}", WIDTH))
    return 0
