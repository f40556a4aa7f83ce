"""The command line: `codetr` and `python -m harness`.

Only the arguments are described here; `harness.commands` does the work and is loaded after they are read,
so that help comes at once. Exit codes: 0 done, 1 a trial failed, 2 a mistake of the user, 130 interrupted.
"""

from __future__ import annotations

if __name__ == "__main__":  # `python -m harness`: before anything is imported that the working folder may hold as well
    from harness.system.entrance import come_first

    come_first()

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from keyword import iskeyword
from typing import Any, TextIO

DESCRIPTION = "Ablations of Co-DETR: one YAML file per paper table, trained with Ray, compared in MLflow."
EXAMPLES = """\
examples:
  codetr plan   ablations/quickstart.yaml                       what would run, and what is done already
  codetr run    ablations/quickstart.yaml                       run what is missing, print the table
  codetr run    ablations/quickstart.yaml --preset digits_fast  the same in seconds, to see it work
  codetr run    ablations/quickstart.yaml --data my_coco_folder --set train.epochs=20 --seeds 0,1,2
  codetr submit --store /shared/codetr ablations/quickstart.yaml   the same on a Ray cluster
  codetr decide ablations/quickstart.yaml --budget 6h           seeds where claims are open, until all are settled
  codetr plan   ablations/quickstart.yaml --cost                what is left will take, from what was measured
  codetr plan   ablations/quickstart.yaml --memory              what a training step takes of a GPU's memory
  codetr run    ablations/quickstart.yaml --only heads=atss     some of its trials
  codetr status                                                 each grid: done, running, failed and why
  codetr logs   a1b2                                            one trial, by the beginning of its id
  codetr diff   a1b2 c3d4                                       what differs between two trials
  codetr retry                                                  failed trials are pending again
  codetr report ablations/*.yaml --out reports                  one page, tables and figures
  codetr export --out records.zip                               finished records, for `codetr import` elsewhere
  codetr analyse a1b2c3                                         conflict, discriminability and queries of a trial
  codetr import-weights released.pth --model co_dino_5scale_r50_1x_coco   official weights
  codetr evaluate released.safetensors --data data/coco         their AP beside the published one
  codetr detect a1b2c3 photos/                                  what it finds, drawn on images of your own
  codetr export-model a1b2c3 --onnx detector.onnx               the detector for onnxruntime
  codetr ui                                                     the MLflow pages
  codetr doctor                                                 are the fast operators at work here?

Records lie in $CODETR_STORE (default ~/codetr), generated data in $CODETR_CACHE (~/.cache/codetr);
MLFLOW_TRACKING_URI names another tracking store. What an ablation file may say: ablations/README.md
"""


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers like 0,1,2, got '{text}'") from None


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got '{text}'")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 65535, got '{text}'")
    return int(text)


def _score(text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0.0 <= score <= 1.0:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got '{text}'")
    return score


def _seconds(text: str) -> float:
    """`6h`, `90m` or `1200s`."""
    number, unit = text[:-1], {"h": 3600.0, "m": 60.0, "s": 1.0}.get(text[-1:].lower())
    try:
        value = float(number) * (unit or 0.0)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a time such as 6h, 90m or 1200s, got '{text}'")
    return value


def _words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _command(commands: Any, name: str, *, help: str, **options: Any) -> argparse.ArgumentParser:
    """A command whose own help begins with what the list of all says of it."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}.", **options
    )
    return parser


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="codetr", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    store = argparse.ArgumentParser(add_help=False)
    store.add_argument("--store", metavar="DIR", help="folder of the records (default: $CODETR_STORE or ~/codetr)")

    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument(
        "--preset", metavar="NAME", default=None, help="scale: a preset's name or file (default: digits)"
    )
    settings.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="change a setting; repeatable"
    )
    settings.add_argument(
        "--data",
        metavar="PATH",
        action="append",
        help="a folder (COCO, YOLO, VOC) instead of the preset's (`preset`); several: every row on each of them",
    )
    grid = argparse.ArgumentParser(add_help=False, parents=[settings])
    grid.add_argument("--seeds", metavar="0,1,2", type=_numbers, help="instead of the file's seeds")

    only = argparse.ArgumentParser(add_help=False)
    only.add_argument(
        "--only",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="trials with this factor, seed or row alone (heads=atss, seed=0, row='no head'); repeatable",
    )

    means = argparse.ArgumentParser(add_help=False)
    means.add_argument("--cpus-per-trial", metavar="N", help="CPU cores of a trial; fractions allowed")
    means.add_argument("--gpus-per-trial", metavar="N", help="GPUs of a trial; fractions allowed")
    means.add_argument("--accelerator-type", metavar="NAME", help="kind of GPU on a mixed cluster, such as H100")
    means.add_argument(
        "--ranks", metavar="N", type=_at_least_one, help="processes that share a trial's batches, CPUs and GPUs"
    )

    plan = _command(
        commands, "plan", parents=[grid, only, means, store], help="show every trial: id, what differs, done or not"
    )
    plan.add_argument("files", nargs="+", metavar="FILE", help="ablation file")
    plan.add_argument("--cost", action="store_true", help="what is left of each, from measured seconds per step")
    plan.add_argument(
        "--memory", action="store_true", help="what a training step of each takes, carried on from small images"
    )
    plan.add_argument(
        "--verbose", action="store_true", help="learning rate, weight decay and size of every group of parameters"
    )

    plan.add_argument("--decide", action="store_true", help="the claims, and what their next looks need")

    decide = _command(
        commands,
        "decide",
        parents=[settings, means, store],
        help="train seeds where they decide: look by look, until every claim is settled",
    )
    decide.add_argument("files", nargs="+", metavar="FILE", help="ablation file with claims")
    decide.add_argument("--seeds", type=_numbers, help=argparse.SUPPRESS)  # refused, with what it takes instead
    decide.add_argument(
        "--budget", metavar="6h", type=_seconds, help="device time for all looks together, such as 6h or 90m"
    )
    decide.add_argument(
        "--max-seeds",
        metavar="N",
        type=_at_least_one,
        help="at the last look (default: the file's decide.max_seeds, or 12); fixed with the first look",
    )
    decide.add_argument(
        "--allow-mixed", action="store_true", help="look at trainings of different code or operators all the same"
    )
    decide.add_argument("--executor", choices=("ray", "local"), default="ray", help="as for run")
    decide.add_argument("--concurrent", metavar="N", type=_at_least_one, help="as for run")

    run = _command(
        commands,
        "run",
        parents=[grid, only, means, store],
        help="run what is missing; resumes, never repeats; failed ones once more",
    )
    run.add_argument("files", nargs="+", metavar="FILE", help="ablation file")
    run.add_argument(
        "--executor", choices=("ray", "local"), default="ray", help="local: on this machine, one by one (default: ray)"
    )
    run.add_argument("--concurrent", metavar="N", type=_at_least_one, help="trials at a time (default: what fits)")
    run.add_argument("--limit", metavar="N", type=_at_least_one, help="run at most N trials now")
    run.add_argument("--fail-fast", action="store_true", help="stop at the first failure; the others leave checkpoints")

    submit = _command(commands, "submit", parents=[store], help="run on a Ray cluster, by `ray job submit`")
    submit.add_argument("--address", metavar="URL", help="the cluster's dashboard (default: as Ray finds it)")
    submit.add_argument("--no-wait", action="store_true", help="do not follow the job's output")
    submit.add_argument(
        "run",
        nargs=argparse.REMAINDER,
        metavar="FILE ...",
        help="files, then options of run (--address and --no-wait stand before the files)",
    )

    status = _command(commands, "status", parents=[grid, store], help="what is running, done, failed, and why")
    status.add_argument("files", nargs="*", metavar="FILE", help="only the trials of these ablation files")
    status.add_argument("--all", action="store_true", help="list finished and pending trials too")

    report = _command(
        commands, "report", parents=[grid, store], help="one page, tables and figures, ours beside the paper"
    )
    report.add_argument("files", nargs="+", metavar="FILE", help="ablation file; or a trial, for a page of its own")
    report.add_argument("--out", metavar="DIR", default="reports", help="folder for the files (default: reports)")
    report.add_argument(
        "--format",
        metavar="LIST",
        type=_words,
        dest="formats",
        help="of html,md,tex,csv,png,pdf,parquet (default: all but parquet); csv and parquet: the trials as data, too",
    )
    report.add_argument(
        "--from",
        choices=("auto", "tracking", "records"),
        default="auto",
        dest="source",
        help="where numbers come from (auto: the tracking store, or the records where there is none)",
    )
    report.add_argument(
        "--allow-mixed", action="store_true", help="tables of trials from different code, data or operators, too"
    )
    report.add_argument(
        "--images",
        action="store_true",
        help="gains on one seed get an interval over images (needs detections and data)",
    )
    report.add_argument(
        "--score",
        metavar="X",
        type=_score,
        help="lowest score of a detection on the worst images (default: that with the best F1 of the split)",
    )
    report.add_argument("--wide", action="store_true", help="LaTeX with every column (default: AP and its gain)")

    pairs = _command(
        commands, "pairs", parents=[grid, store], help="which numbers of single heads tell which two help most together"
    )
    pairs.add_argument("files", nargs=1, metavar="FILE", help="ablation file with each head alone and each pair")
    pairs.add_argument(
        "--from",
        choices=("auto", "tracking", "records"),
        default="auto",
        dest="source",
        help="where numbers come from, as for report",
    )
    pairs.add_argument("--allow-mixed", action="store_true", help="of different code, data or operators, too")
    pairs.add_argument("--out", metavar="FILE.csv", help="write all numbers, too")

    analyse = _command(commands, "analyse", parents=[grid, store], help="what the heads of a trained detector look at")
    analyse.add_argument(
        "names",
        nargs="+",
        metavar="RUN",
        help="trial (the beginning of its id will do), MLflow run, file of weights, or ablation file",
    )
    analyse.add_argument(
        "--metrics",
        metavar="LIST",
        type=_words,
        help="of conflict,discriminability,queries,gradient,transfer (all); errors (old trials); evaluation (weights)",
    )
    analyse.add_argument(
        "--images", metavar="N", type=_at_least_one, help="of the validation split (default: 200; evaluation: all)"
    )
    analyse.add_argument(
        "--max-detections",
        metavar="N",
        type=_at_least_one,
        help="of an image, more than 100: adds AP@N, AP50@N and the like to a trial that has them not",
    )
    analyse.add_argument(
        "--variant", metavar="LIST", type=_words, help="further definitions (default: cam-v1; or: all)"
    )
    analyse.add_argument("--floor", metavar="RUN", help="a trial with the same heads and another seed, as an anchor")
    analyse.add_argument("--out", metavar="DIR", help="folder for the files (default: the trial's own)")
    analyse.add_argument("--verbose", action="store_true", help="of a file of weights: what became of every name")
    _add_reading(analyse)
    _add_class_rows(analyse)
    analyse.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")

    _add_weights_commands(commands, store)

    sync = _command(commands, "sync", parents=[grid, store], help="replay in the tracking store what it missed")
    sync.add_argument("files", nargs="+", metavar="FILE", help="ablation file")

    export = _command(commands, "export", parents=[grid, store], help="write finished records for another machine")
    export.add_argument("what", nargs="*", metavar="FILE|TRIAL", help="ablation files or trials (default: all)")
    export.add_argument("--out", metavar="PATH", required=True, help="an archive (name.zip) or a folder")
    export.add_argument("--checkpoints", action="store_true", help="weights as well")
    export.add_argument("--detections", action="store_true", help="detections on the validation images as well")

    take = _command(commands, "import", parents=[store], help="take records of another machine, checked")
    take.add_argument("path", metavar="PATH", help="what `codetr export` wrote, or another store")
    take.add_argument("--replace", action="store_true", help="finished records that differ are overwritten")
    take.add_argument("--checkpoints", action="store_true", help="weights as well")

    ui = _command(commands, "ui", parents=[store], help="serve the MLflow pages on this machine")
    ui.add_argument("--host", metavar="NAME", default="127.0.0.1", help="address to serve on")
    ui.add_argument("--port", metavar="N", type=_port, default=5000, help="a free one (default: 5000)")

    _add_store_commands(commands, grid, store)
    _command(commands, "doctor", help="which operators run on which device, compared with the reference")
    return parser


def _add_store_commands(commands: Any, grid: argparse.ArgumentParser, store: argparse.ArgumentParser) -> None:
    """Those of `harness.store_commands` but status."""
    trial = "id of a trial, or enough of its beginning"
    logs = _command(commands, "logs", parents=[store], help="a trial's epochs, where it is now, why it failed")
    logs.add_argument("trial", metavar="TRIAL", help=trial)
    logs.add_argument("--follow", action="store_true", help="go on until the trial has ended")

    diff = _command(commands, "diff", parents=[store], help="what differs between two trials, results included")
    diff.add_argument("first", metavar="A", help=f"{trial}, or of its MLflow run")
    diff.add_argument("second", metavar="B", help="likewise")

    retry = _command(commands, "retry", parents=[grid, store], help="set failed trials back to pending")
    retry.add_argument("what", nargs="*", metavar="FILE|TRIAL", help="ablation files or trials (default: all failed)")
    retry.add_argument("--from-scratch", action="store_true", help="drop their checkpoints too")

    rm = _command(commands, "rm", parents=[store], help="remove trials from the store and from MLflow")
    rm.add_argument("trials", nargs="+", metavar="TRIAL", help=trial)
    rm.add_argument("--yes", action="store_true", help="do not ask")

    gc = _command(commands, "gc", parents=[store], help="list leftovers of killed processes; --yes deletes them")
    gc.add_argument("--yes", action="store_true", help="delete them")


def _add_weights_commands(commands: Any, store: argparse.ArgumentParser) -> None:
    """Those about released weights."""
    take = _command(commands, "import-weights", help="a released file under our names, checked name by name")
    take.add_argument("file", metavar="FILE", help="what an official program saved (.pth or .safetensors)")
    take.add_argument("--out", metavar="FILE", help="to write (default: the file's name with .safetensors, here)")
    take.add_argument("--force", action="store_true", help="replace another file that is there")
    evaluate = _command(
        commands, "evaluate", parents=[store], help="AP of trained weights, the published numbers beside it"
    )
    evaluate.add_argument("weights", metavar="WEIGHTS", help="imported or official file, or a trial")
    evaluate.add_argument("--data", metavar="PATH", help="a folder (COCO, YOLO, VOC) instead of the preset's")
    evaluate.add_argument("--branches", metavar="LIST", type=_words, help="decoder and names of heads (default: all)")
    evaluate.add_argument("--max-detections", metavar="N", type=_at_least_one, help="of an image, from 100 on")
    evaluate.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    evaluate.add_argument("--out", metavar="DIR", help="folder for the files (default: evaluation/NAME)")
    detect = _command(commands, "detect", parents=[store], help="draw what trained weights find on image files")
    detect.add_argument("weights", metavar="WEIGHTS", help="a trial (the beginning of its id will do), or a file")
    detect.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or a folder of them")
    detect.add_argument(
        "--threshold", metavar="X", type=_score, help="lowest score (default: a trial's best F1, or 0.5)"
    )
    detect.add_argument("--branch", metavar="NAME", default="decoder", help="decoder, or the name of a head")
    detect.add_argument("--data", metavar="PATH", help="a folder whose classes these are, where a file does not say")
    detect.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    detect.add_argument("--out", metavar="DIR", help="folder for pictures and JSON (default: detections/NAME)")
    onnx = _command(
        commands, "export-model", parents=[store], help="trained weights as an ONNX file: images in, boxes out"
    )
    onnx.add_argument("weights", metavar="WEIGHTS", help="a trial (the beginning of its id will do), or a file")
    onnx.add_argument("--onnx", metavar="FILE", required=True, help="to write")
    onnx.add_argument("--data", metavar="PATH", help="a folder whose classes these are, where a file does not say")
    onnx.add_argument("--force", action="store_true", help="replace a file that is there")
    for command in (take, evaluate, detect, onnx):
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
        _add_reading(command)
    for command in (evaluate, detect, onnx):
        _add_class_rows(command)


def _add_reading(command: argparse.ArgumentParser) -> None:
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


def _add_class_rows(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--class-rows",
        choices=("classes", "ids"),
        default="classes",
        help="of a file: what its rows of classes are (ids: DETR's 91, one for each COCO category id)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. Without `argv` this process is the command's own."""
    if argv is None:
        from harness.system.entrance import come_first

        come_first()
        from harness.system.console import begin_process

        begin_process()
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.version:
        from harness.store.source import code_version, version_of

        print(f"codetr {version_of() or 'not installed'}, commit {code_version()[0] or 'unknown'}")
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    if args.command == "submit":
        args.asked = parser.parse_args(["run", *args.run])  # mistakes are told here, not on the cluster
        if args.store and args.asked.store and args.store != args.asked.store:
            parser.error(f"submit: --store {args.store} and --store {args.asked.store}: name one")
        args.store = args.store or args.asked.store
    if getattr(args, "store", None):
        os.environ["CODETR_STORE"] = os.path.abspath(os.path.expanduser(args.store))  # for workers as well
    from harness import commands, store_commands
    from harness.errors import StorageError, UserError
    from harness.passwords import masked
    from harness.revisit import commands as revisit_commands
    from harness.store.lease import LeaseLost
    from harness.system.console import remark
    from harness.system.places import settle
    from harness.system.process import let_segments_grow, wait_politely

    name = f"{args.command}_" if iskeyword(args.command) else args.command.replace("-", "_")
    room = next(own for own in (commands, store_commands, revisit_commands) if hasattr(own, name))
    wait_politely()  # and so for every process that this one starts
    let_segments_grow()
    try:
        if argv is None:
            for note in settle():
                if args.command == "run":
                    remark(f"note: {note}")
        code = int(getattr(room, name)(args))
        sys.stdout.flush()  # what cannot be written is told here
        return code
    except (StorageError, UserError, LeaseLost) as error:
        for line in masked(str(error)).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `codetr plan … | head`
        _drop_output()
        return 0
    except OSError as error:
        told = f"{error.filename or 'the system'}: {error.strerror or error}"  # what no room has words of its own for
        if error.filename is None and _is_lost(sys.stdout):
            _drop_output()
            told = f"standard output cannot be written ({error.strerror})"
        print(f"error: {told}", file=sys.stderr)
        return 2


def _is_lost(stream: TextIO) -> bool:
    """Does the output take no more? An empty line is tried: what failed before is not kept."""
    try:
        os.write(stream.fileno(), b"\n")
    except OSError:
        return True
    return False


def _drop_output() -> None:
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
