"""The commands about trained detectors: analyse, evaluate, detect, import-weights, export-model.

As in `harness.commands`, every function takes the parsed arguments and returns the exit code.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.schedule.progress import duration
from harness.store.results import RunStore
from harness.system.console import remark, size, table
from harness.system.words import quantity

if TYPE_CHECKING:
    from harness.revisit.asked import Request
    from harness.revisit.trained import Found


def analyse(args: argparse.Namespace) -> int:
    """Look at trained detectors: trials of the store, all of an ablation file that lack it, or files of weights."""
    from harness.revisit import asked, kept, ready

    if args.data and len(args.data) > 1:
        raise UserError("analyse: takes one --data; name the others in commands of their own")
    args.data = args.data[0] if args.data else None
    store = RunStore()
    jobs, refused = asked.jobs(args, store)  # mistakes are told before anything is computed
    several = ready.Several(jobs, refused, remark)
    if not several.count:
        print("nothing to do: every finished trial has its analysis")
    contents = ready.contents(jobs, store)
    several.each(lambda found, request: ready.check(found, request, store, contents))
    several.each(lambda found, request: _analyse(found, request, store))
    done = [found.name for found, request in several.left if kept.is_own(found, request, store)]
    kept.mirror_trials(store, done, print)
    return several.code("could be analysed")


def _analyse(found: Found, request: Request, store: RunStore) -> None:
    """One detector; what is found out is written and printed."""
    from harness.revisit import kept, mistakes, opened

    if request.errors:
        metrics, paths = mistakes.add_errors(found, request, store, print)
        _numbers(f"{found.where}: errors", metrics, 2)
        print(f"wrote {paths[0].parent}: {', '.join(path.name for path in paths)}")
    if not (request.evaluate or request.settings.metrics):
        return
    shown = opened.open_found(found, request, print)
    paths = kept.keep_keys(found, shown.built, request)
    if request.evaluate:
        evaluation = opened.evaluate_found(found, shown, print, request.max_detections)
        paths += kept.keep_evaluation(found, evaluation, shown.dataset, request, store)
        _numbers(f"{found.where}: evaluated on {len(shown.dataset)} images", evaluation.metrics, 2)
    if request.settings.metrics:
        analysed = opened.analyse_found(found, shown, request, store, print)
        paths += kept.keep(found, analysed, request, store)
        where = f"{found.where}: {analysed.num_images} images in {duration(analysed.seconds)}"
        _numbers(where, analysed.scalars, 4)
    print(f"wrote {paths[0].parent}: {', '.join(path.name for path in paths)}")


def _numbers(title: str, numbers: Mapping[str, float | None], digits: int) -> None:
    from harness.revisit.beside import cell

    print(title)
    rows = [[name, cell(name, value, digits)] for name, value in numbers.items()]
    table("", {"metric": False, "value": False}, rows)


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate trained weights on a validation split, the published numbers beside ours."""
    from harness.report.protocols import protocol_of
    from harness.report.released import released
    from harness.revisit import asked, beside, kept, opened
    from harness.system.precision import ran_in

    store = RunStore()
    found, request = asked.evaluation(args, store)  # mistakes are told before anything is computed
    started = time.monotonic()
    shown = opened.open_found(found, request, print)
    paths = kept.keep_keys(found, shown.built, request)
    evaluation = opened.evaluate_found(found, shown, print)
    paths += kept.keep_evaluation(found, evaluation, shown.dataset, request, store)
    settings, published = found.config.evaluate, released(found.model)
    title = f"{found.where}: {len(shown.dataset)} images of {shown.dataset.annotation_file} in "
    columns = beside.headings(evaluation.metrics, published)
    rows = beside.rows(evaluation.metrics, settings.branches, settings.max_detections, published)
    print(title + duration(time.monotonic() - started))
    table("", {"": False} | dict.fromkeys(columns, False), rows)
    precision = ran_in(settings.computes_in(found.config.train), shown.device)
    federated = beside.is_federated(evaluation.metrics)
    protocol = protocol_of(found.config, precision, federated=federated)
    for line in beside.protocol_lines(protocol, published, found.model, federated=federated):
        print(line)
    print("what each kind of error costs, in points of AP (docs/metrics.md)")
    headings = {"": False} | dict.fromkeys(beside.ERROR_HEADINGS.values(), False)
    table("", headings, beside.error_rows(evaluation.metrics, settings.branches))
    print(f"wrote {paths[0].parent}: {', '.join(path.name for path in paths)}")
    return 0


def detect(args: argparse.Namespace) -> int:
    """Draw what a trained detector finds on image files; 1 where some of them could not be read."""
    from harness.revisit import detecting

    store = RunStore()
    wanted = detecting.wanted(args, store)  # mistakes are told before anything is computed
    started = time.monotonic()
    done, threshold = detecting.detect_files(wanted, store, remark)
    images = quantity(len(done.images), "image")
    seconds = duration(time.monotonic() - started)
    print(f"{wanted.found.where}: {len(done.annotations)} detections on {images} in {seconds}, {threshold}")
    print(f"wrote {wanted.out}: {detecting.RESULTS} and {'a picture' if len(done.images) == 1 else 'pictures'}")
    if done.broken:
        remark(f"{done.broken} of {len(wanted.files)} images could not be read")
    return 1 if done.broken else 0


def export_model(args: argparse.Namespace) -> int:
    """Write a trained detector's decoder branch as an ONNX file."""
    from harness.revisit import asked, onnx_file

    found = asked.detector(args, RunStore())
    path = onnx_file.target(args.onnx, args.force)
    made = onnx_file.write(found, path, data=args.data, say=remark)
    print(f"{found.where}: onnxruntime gives torch's numbers up to {made.difference:.1g}, on {made.checked}")
    print(f"wrote {path} ({size(path.stat().st_size)})")
    return 0


def import_weights(args: argparse.Namespace) -> int:
    """Write a released file of weights under our names, with all that an evaluation of it needs."""
    from harness.revisit import asked, taken

    found = asked.imported(args)
    path = taken.target(found.weights, args.out, args.force)
    made = taken.take(found, args.model, path, force=args.force, verbose=args.verbose, say=print)
    said = made.description
    print(f"{said.source}: SHA-256 {said.sha256[:12]}, {made.num_parameters:,} numbers, {said.num_classes} classes")
    print(f"wrote {path} ({size(path.stat().st_size)}); codetr evaluate {path} needs no --model")
    return 0
