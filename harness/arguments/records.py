"""Commands about the store and the machine: records and their travel, MLflow, operators."""

from __future__ import annotations

from typing import Any

from harness.arguments.common import add_command, grid_options, store_options
from harness.arguments.kinds import port

TRIAL = "id of a trial, enough of its beginning, or the id of its MLflow run"


def add_records(commands: Any) -> None:
    """In the order of the help."""
    _add_sync(commands)
    _add_export(commands)
    _add_import(commands)
    _add_ui(commands)
    _add_logs(commands)
    _add_diff(commands)
    _add_retry(commands)
    _add_rm(commands)
    _add_gc(commands)
    add_command(commands, "doctor", help="which operators run on which device, compared with the reference")


def _add_sync(commands: Any) -> None:
    command = add_command(
        commands, "sync", parents=[grid_options(), store_options()], help="replay in the tracking store what it missed"
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="ablation file")


def _add_export(commands: Any) -> None:
    command = add_command(
        commands, "export", parents=[grid_options(), store_options()], help="write finished records for another machine"
    )
    command.add_argument("what", nargs="*", metavar="FILE|TRIAL", help="ablation files or trials (default: all)")
    command.add_argument("--out", metavar="PATH", required=True, help="an archive (name.zip) or a folder")
    command.add_argument("--checkpoints", action="store_true", help="weights as well")
    command.add_argument("--detections", action="store_true", help="detections on the validation images as well")


def _add_import(commands: Any) -> None:
    command = add_command(
        commands, "import", parents=[store_options()], help="take records of another machine, checked"
    )
    command.add_argument("path", metavar="PATH", help="what `codetr export` wrote, or another store")
    command.add_argument("--replace", action="store_true", help="finished records that differ are overwritten")
    command.add_argument("--checkpoints", action="store_true", help="weights as well")


def _add_ui(commands: Any) -> None:
    command = add_command(commands, "ui", parents=[store_options()], help="serve the MLflow pages on this machine")
    command.add_argument("--host", metavar="NAME", default="127.0.0.1", help="address to serve on")
    command.add_argument("--port", metavar="N", type=port, default=5000, help="a free one (default: 5000)")


def _add_logs(commands: Any) -> None:
    command = add_command(
        commands, "logs", parents=[store_options()], help="a trial's epochs, where it is now, why it failed"
    )
    command.add_argument("trial", metavar="TRIAL", help=TRIAL)
    command.add_argument("--follow", action="store_true", help="go on until the trial has ended")


def _add_diff(commands: Any) -> None:
    command = add_command(
        commands, "diff", parents=[store_options()], help="what differs between two trials, results included"
    )
    command.add_argument("first", metavar="A", help=TRIAL)
    command.add_argument("second", metavar="B", help="likewise")


def _add_retry(commands: Any) -> None:
    command = add_command(
        commands, "retry", parents=[grid_options(), store_options()], help="set failed trials back to pending"
    )
    command.add_argument("what", nargs="*", metavar="FILE|TRIAL", help="ablation files or trials (default: all failed)")
    command.add_argument("--from-scratch", action="store_true", help="drop their checkpoints too")


def _add_rm(commands: Any) -> None:
    command = add_command(
        commands, "rm", parents=[store_options()], help="remove trials from the store and from MLflow"
    )
    command.add_argument("trials", nargs="+", metavar="TRIAL", help=TRIAL)
    command.add_argument("--yes", action="store_true", help="do not ask")


def _add_gc(commands: Any) -> None:
    command = add_command(
        commands, "gc", parents=[store_options()], help="list leftovers of killed processes; --yes deletes them"
    )
    command.add_argument("--yes", action="store_true", help="delete them")
