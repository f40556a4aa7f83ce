"""What several commands share: how one begins, and options that more than one takes."""

from __future__ import annotations

import argparse
from typing import Any

from harness.arguments.kinds import at_least_one, whole_numbers


def add_command(commands: Any, name: str, *, help: str, **options: Any) -> argparse.ArgumentParser:
    """A command whose own help begins with what the list of all says of it."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}.", **options
    )
    return parser


def store_options() -> argparse.ArgumentParser:
    """Where the records lie."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--store", metavar="DIR", help="folder of the records (default: $CODETR_STORE or ~/codetr)")
    return options


def settings_options() -> argparse.ArgumentParser:
    """What stands above the settings of an ablation file."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--preset", metavar="NAME", default=None, help="scale: a preset's name or file (default: digits)"
    )
    options.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="change a setting; repeatable"
    )
    options.add_argument(
        "--data",
        metavar="PATH",
        action="append",
        help="a folder (COCO, YOLO, VOC) instead of the preset's (`preset`); several: every row on each of them",
    )
    return options


def grid_options() -> argparse.ArgumentParser:
    """What decides the trials of an ablation file."""
    options = argparse.ArgumentParser(add_help=False, parents=[settings_options()])
    options.add_argument("--seeds", metavar="0,1,2", type=whole_numbers, help="instead of the file's seeds")
    return options


def only_options() -> argparse.ArgumentParser:
    """Which of the trials."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--only",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="trials with this factor, seed or row alone (heads=atss, seed=0, row='no head'); repeatable",
    )
    return options


def means_options() -> argparse.ArgumentParser:
    """What a trial gets of the machine."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--cpus-per-trial", metavar="N", help="CPU cores of a trial; fractions allowed")
    options.add_argument("--gpus-per-trial", metavar="N", help="GPUs of a trial; fractions allowed")
    options.add_argument("--accelerator-type", metavar="NAME", help="kind of GPU on a mixed cluster, such as H100")
    options.add_argument(
        "--ranks", metavar="N", type=at_least_one, help="processes that share a trial's batches, CPUs and GPUs"
    )
    return options


def add_reading(command: argparse.ArgumentParser) -> None:
    """How a file of weights is read."""
    command.add_argument(
        "--entry", metavar="KEY", help="of a file with several state dicts: which (default: the average)"
    )
    command.add_argument(
        "--drop",
        metavar="NAME",
        action="append",
        default=[],
        help="of a file: leave out names that begin so; repeatable",
    )


def add_class_rows(command: argparse.ArgumentParser) -> None:
    """Which class each row of a file of weights stands for."""
    command.add_argument(
        "--class-rows",
        choices=("classes", "ids"),
        default="classes",
        help="of a file: what its rows of classes are (ids: DETR's 91, one for each COCO category id)",
    )
