"""Commands that compare what was run: tables, figures, pages."""

from __future__ import annotations

from typing import Any

from harness.arguments.common import add_command, grid_options, store_options
from harness.arguments.kinds import score, words


def add_reports(commands: Any) -> None:
    """In the order of the help."""
    _add_report(commands)
    _add_pairs(commands)


def _add_report(commands: Any) -> None:
    command = add_command(
        commands,
        "report",
        parents=[grid_options(), store_options()],
        help="one page, tables and figures, ours beside the paper",
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="ablation file; or a trial, for a page of its own")
    command.add_argument("--out", metavar="DIR", default="reports", help="folder for the files (default: reports)")
    command.add_argument(
        "--format",
        metavar="LIST",
        type=words,
        dest="formats",
        help="of html,md,tex,csv,png,pdf,parquet (default: all but parquet); csv and parquet: the trials as data, too",
    )
    command.add_argument(
        "--from",
        choices=("auto", "tracking", "records"),
        default="auto",
        dest="source",
        help="where numbers come from (auto: the tracking store, or the records where there is none)",
    )
    command.add_argument(
        "--allow-mixed", action="store_true", help="tables of trials from different code, data or operators, too"
    )
    command.add_argument(
        "--images",
        action="store_true",
        help="gains on one seed get an interval over images (needs detections and data)",
    )
    command.add_argument(
        "--score",
        metavar="X",
        type=score,
        help="lowest score of a detection on the worst images (default: that with the best F1 of the split)",
    )
    command.add_argument("--wide", action="store_true", help="LaTeX with every column (default: AP and its gain)")


def _add_pairs(commands: Any) -> None:
    command = add_command(
        commands,
        "pairs",
        parents=[grid_options(), store_options()],
        help="which numbers of single heads tell which two help most together",
    )
    command.add_argument("files", nargs=1, metavar="FILE", help="ablation file with each head alone and each pair")
    command.add_argument(
        "--from",
        choices=("auto", "tracking", "records"),
        default="auto",
        dest="source",
        help="where numbers come from, as for report",
    )
    command.add_argument("--allow-mixed", action="store_true", help="of different code, data or operators, too")
    command.add_argument("--out", metavar="FILE.csv", help="write all numbers, too")
