"""Commands that plan and run the trials of ablation files."""

from __future__ import annotations

import argparse
from typing import Any

from harness.arguments.common import (
    add_command,
    grid_options,
    means_options,
    only_options,
    settings_options,
    store_options,
)
from harness.arguments.kinds import at_least_one, seconds, whole_numbers


def add_grids(commands: Any) -> None:
    """In the order of the help."""
    _add_plan(commands)
    _add_decide(commands)
    _add_run(commands)
    _add_submit(commands)
    _add_status(commands)


def _add_plan(commands: Any) -> None:
    command = add_command(
        commands,
        "plan",
        parents=[grid_options(), only_options(), means_options(), store_options()],
        help="show every trial: id, what differs, done or not",
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="ablation file")
    command.add_argument("--cost", action="store_true", help="what is left of each, from measured seconds per step")
    command.add_argument(
        "--memory", action="store_true", help="what a training step of each takes, carried on from small images"
    )
    command.add_argument(
        "--verbose", action="store_true", help="learning rate, weight decay and size of every group of parameters"
    )

    command.add_argument("--decide", action="store_true", help="the claims, and what their next looks need")


def _add_decide(commands: Any) -> None:
    command = add_command(
        commands,
        "decide",
        parents=[settings_options(), means_options(), store_options()],
        help="train seeds where they decide: look by look, until every claim is settled",
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="ablation file with claims")
    command.add_argument("--seeds", type=whole_numbers, help=argparse.SUPPRESS)  # refused, with what it takes instead
    command.add_argument(
        "--budget", metavar="6h", type=seconds, help="device time for all looks together, such as 6h or 90m"
    )
    command.add_argument(
        "--max-seeds",
        metavar="N",
        type=at_least_one,
        help="at the last look (default: the file's decide.max_seeds, or 12); fixed with the first look",
    )
    command.add_argument(
        "--allow-mixed", action="store_true", help="look at trainings of different code or operators all the same"
    )
    command.add_argument("--executor", choices=("ray", "local"), default="ray", help="as for run")
    command.add_argument("--concurrent", metavar="N", type=at_least_one, help="as for run")


def _add_run(commands: Any) -> None:
    command = add_command(
        commands,
        "run",
        parents=[grid_options(), only_options(), means_options(), store_options()],
        help="run what is missing; resumes, never repeats; failed ones once more",
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="ablation file")
    command.add_argument(
        "--executor", choices=("ray", "local"), default="ray", help="local: on this machine, one by one (default: ray)"
    )
    command.add_argument("--concurrent", metavar="N", type=at_least_one, help="trials at a time (default: what fits)")
    command.add_argument("--limit", metavar="N", type=at_least_one, help="run at most N trials now")
    command.add_argument(
        "--fail-fast", action="store_true", help="stop at the first failure; the others leave checkpoints"
    )


def _add_submit(commands: Any) -> None:
    command = add_command(
        commands, "submit", parents=[store_options()], help="run on a Ray cluster, by `ray job submit`"
    )
    command.add_argument("--address", metavar="URL", help="the cluster's dashboard (default: as Ray finds it)")
    command.add_argument("--no-wait", action="store_true", help="do not follow the job's output")
    command.add_argument(
        "run",
        nargs=argparse.REMAINDER,
        metavar="FILE ...",
        help="files, then options of run (--address and --no-wait stand before the files)",
    )


def _add_status(commands: Any) -> None:
    command = add_command(
        commands, "status", parents=[grid_options(), store_options()], help="what is running, done, failed, and why"
    )
    command.add_argument("files", nargs="*", metavar="FILE", help="only the trials of these ablation files")
    command.add_argument("--all", action="store_true", help="list finished and pending trials too")
