"""Commands that look at trained weights: trials, and files that official programs saved."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from harness.arguments.common import add_class_rows, add_command, add_reading, grid_options, store_options
from harness.arguments.kinds import at_least_one, score, words


def add_weights(commands: Any) -> None:
    """In the order of the help."""
    _add_analyse(commands)
    _add_import_weights(commands)
    _add_evaluate(commands)
    _add_detect(commands)
    _add_export_model(commands)


def _add_analyse(commands: Any) -> None:
    command = add_command(
        commands,
        "analyse",
        parents=[grid_options(), store_options()],
        help="what the heads of a trained detector look at",
    )
    command.add_argument(
        "names",
        nargs="+",
        metavar="RUN",
        help="trial (the beginning of its id will do), MLflow run, file of weights, or ablation file",
    )
    command.add_argument(
        "--metrics",
        metavar="LIST",
        type=words,
        help="of conflict,discriminability,queries,gradient,transfer (all); errors (old trials); evaluation (weights)",
    )
    command.add_argument(
        "--images", metavar="N", type=at_least_one, help="of the validation split (default: 200; evaluation: all)"
    )
    command.add_argument(
        "--max-detections",
        metavar="N",
        type=at_least_one,
        help="of an image, more than 100: adds AP@N, AP50@N and the like to a trial that has them not",
    )
    command.add_argument("--variant", metavar="LIST", type=words, help="further definitions (default: cam-v1; or: all)")
    command.add_argument("--floor", metavar="RUN", help="a trial with the same heads and another seed, as an anchor")
    command.add_argument("--out", metavar="DIR", help="folder for the files (default: the trial's own)")
    command.add_argument("--verbose", action="store_true", help="of a file of weights: what became of every name")
    add_reading(command)
    add_class_rows(command)
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def _add_import_weights(commands: Any) -> None:
    command = add_command(commands, "import-weights", help="a released file under our names, checked name by name")
    command.add_argument("file", metavar="FILE", help="what an official program saved (.pth or .safetensors)")
    command.add_argument("--out", metavar="FILE", help="to write (default: the file's name with .safetensors, here)")
    command.add_argument("--force", action="store_true", help="replace another file that is there")
    _add_detector(command)


def _add_evaluate(commands: Any) -> None:
    command = add_command(
        commands, "evaluate", parents=[store_options()], help="AP of trained weights, the published numbers beside it"
    )
    command.add_argument("weights", metavar="WEIGHTS", help="imported or official file, or a trial")
    command.add_argument("--data", metavar="PATH", help="a folder (COCO, YOLO, VOC) instead of the preset's")
    command.add_argument("--branches", metavar="LIST", type=words, help="decoder and names of heads (default: all)")
    command.add_argument("--max-detections", metavar="N", type=at_least_one, help="of an image, from 100 on")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--out", metavar="DIR", help="folder for the files (default: evaluation/NAME)")
    _add_detector(command)
    add_class_rows(command)


def _add_detect(commands: Any) -> None:
    command = add_command(
        commands, "detect", parents=[store_options()], help="draw what trained weights find on image files"
    )
    command.add_argument("weights", metavar="WEIGHTS", help="a trial (the beginning of its id will do), or a file")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or a folder of them")
    command.add_argument(
        "--threshold", metavar="X", type=score, help="lowest score (default: a trial's best F1, or 0.5)"
    )
    command.add_argument("--branch", metavar="NAME", default="decoder", help="decoder, or the name of a head")
    command.add_argument("--data", metavar="PATH", help="a folder whose classes these are, where a file does not say")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--out", metavar="DIR", help="folder for pictures and JSON (default: detections/NAME)")
    _add_detector(command)
    add_class_rows(command)


def _add_export_model(commands: Any) -> None:
    command = add_command(
        commands,
        "export-model",
        parents=[store_options()],
        help="trained weights as an ONNX file: images in, boxes out",
    )
    command.add_argument("weights", metavar="WEIGHTS", help="a trial (the beginning of its id will do), or a file")
    command.add_argument("--onnx", metavar="FILE", required=True, help="to write")
    command.add_argument("--data", metavar="PATH", help="a folder whose classes these are, where a file does not say")
    command.add_argument("--force", action="store_true", help="replace a file that is there")
    _add_detector(command)
    add_class_rows(command)


def _add_detector(command: ArgumentParser) -> None:
    """Which detector the weights belong to, and how a file of them is read."""
    command.add_argument(
        "--model",
        metavar="NAME",
        help="the detector: a released configuration (docs/detectors.md), or one of ablations/presets/models",
    )
    command.add_argument("--preset", metavar="NAME", help="scale below the detector (default: coco_r50_12e)")
    command.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="change a setting"
    )
    command.add_argument("--verbose", action="store_true", help="what became of every name")
    add_reading(command)
