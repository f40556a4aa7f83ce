"""What a command line asks for: which detectors are meant, and what is wanted of them.

`jobs` is that of `codetr analyse`, `imported` and `evaluation` are those of the two commands about released weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

from harness.config import AnalyseConfig, Analysis, ConflictVariant, DiscriminabilityVariant, EvaluateConfig
from harness.data.content import file_hash
from harness.errors import UserError
from harness.files import exists
from harness.revisit.configured import Asked, of_file, of_presets, of_stem
from harness.revisit.described import classes_of
from harness.revisit.kept import is_own, lacks
from harness.revisit.trained import WEIGHT_FILES, Found, Reading, named_trial, read_trial
from harness.spec.detection_metrics import STANDARD_LIMIT
from harness.spec.grid import open_grid
from harness.spec.hub import title
from harness.spec.named_files import check_content, is_named, is_settings_file, local_file
from harness.spec.spec import DEFAULT_PRESET
from harness.spec.strict import Mistakes, suggest, validate
from harness.store.results import RunStore
from model.backbones.configs import without_weights
from model.weights import file_trouble

if TYPE_CHECKING:
    from harness.spec.grid import Grid

DECODER = "decoder"  # the branch that is no head
ERRORS = "errors"  # of what `--metrics` can name: what AP does not say; an evaluation has it anyway
EVALUATION = "evaluation"  # of what `--metrics` can name: COCO's metrics of the detections, on the whole split


@dataclass(frozen=True)
class Request:
    """What `codetr analyse` was asked for."""

    settings: AnalyseConfig
    evaluate: bool = False
    data: str | None = None  # another data set than the detector's own
    floor: str | None = None  # a trial with the same heads
    out: Path | None = None  # instead of the trial's own folder
    device: str = "auto"
    verbose: bool = False
    max_detections: int | None = None  # of an image, in the evaluation; None: as configured
    errors: bool = False  # of a trial, where it has not measured them itself


def jobs(args: argparse.Namespace, store: RunStore) -> tuple[list[tuple[Found, Request]], list[UserError]]:
    """Every detector that the command line names, with what is wanted of it.

    An ablation file stands for its finished trials that lack something; what is wrong with one of them is returned. A
    name is that of a trial, or of a file of weights; the configuration of the latter comes from `--preset` and `--set`.

    Raises:
        UserError: an option or a name is mistaken.
    """
    found: list[tuple[Found, Request]] = []
    refused: list[UserError] = []
    for read, request in _wanted(args, store):
        try:
            own = read()
            several = len(args.names) > 1 or is_settings_file(args.names[0])
            asked = _still_lacking(own, request, store) if several else request
            _check_options(own, asked, args, store)
            found.append((own, asked))
        except UserError as error:
            refused.append(error)
    return found, refused


def _wanted(args: argparse.Namespace, store: RunStore) -> Iterator[tuple[Callable[[], Found], Request]]:
    """What the names stand for, each read when it is asked for, with what is wanted of it."""
    for name in args.names:
        if is_settings_file(name):
            for trial in _opened(name, args, store).trials:
                request = _request(args, trial.analyse)
                if _is_wanted(trial.trial_id, request, store):
                    yield partial(read_trial, store, trial.trial_id), request
        elif is_named(name) or Path(name).suffix in WEIGHT_FILES:
            yield partial(_file, name, args), _request(args, AnalyseConfig(), is_file=True)
        else:
            yield partial(named_trial, store, name), _request(args, AnalyseConfig())


def _opened(file: str, args: argparse.Namespace, store: RunStore) -> Grid:
    """A file's grid, with the seeds that looks of `codetr decide` took unless some are named."""
    from harness.report.reading import with_looks

    def opened(seeds: Sequence[int] | None) -> Grid:
        return open_grid(file, args.preset or DEFAULT_PRESET, args.overrides, seeds=seeds)

    grid = opened(args.seeds)
    return with_looks(grid, opened, store) if args.seeds is None else grid


def _still_lacking(found: Found, request: Request, store: RunStore) -> Request:
    """Without the errors that one of several trials has already."""
    has_errors = request.errors and not lacks(store, found.name, AnalyseConfig(), errors=True)
    return replace(request, errors=False) if has_errors and request.settings.metrics else request


def _is_wanted(trial_id: str, request: Request, store: RunStore) -> bool:
    """Whether a trial of an ablation file is finished, and lacks what would go into its record."""
    if request.data or request.out:
        return store.status(trial_id) == "finished"
    return lacks(store, trial_id, request.settings, request.max_detections, request.errors)


def _request(args: argparse.Namespace, settings: AnalyseConfig, *, is_file: bool = False) -> Request:
    """The command line's options over what an ablation file says; everything where neither names any analysis.

    A trial has evaluated itself, a file has not.
    """
    mistakes = Mistakes()
    every = [*get_args(ConflictVariant), *get_args(DiscriminabilityVariant)]
    variants = every if args.variant == ["all"] else args.variant
    known = (*get_args(Analysis), ERRORS, EVALUATION)
    for name in [name for name in args.metrics or () if name not in known]:
        mistakes.add("--metrics", f"unknown '{name}'{suggest(name, known)}")
    mistakes.check()
    asked = None if args.metrics is None else [name for name in args.metrics if name not in (ERRORS, EVALUATION)]
    elsewhere = is_file or args.data is not None or args.out is not None
    errors = ERRORS in (args.metrics or ())
    given = {"num_images": args.images, "variants": variants}
    options = {"metrics": "--metrics", "num_images": "--images", "variants": "--variant"}
    tree = {**settings.as_dict(), **{name: value for name, value in given.items() if value is not None}}
    tree["metrics"] = asked if asked is not None else tree["metrics"] or list(get_args(Analysis))
    made = validate(AnalyseConfig, tree, lambda where, what: mistakes.add(options.get(str(where[0]), "--"), what))
    mistakes.check()
    assert made is not None
    if args.max_detections is not None and asked is None:  # nothing but the evaluation is asked for
        made = replace(made, metrics=())
    return Request(
        made,
        evaluate=args.max_detections is not None
        or (is_file if args.metrics is None else EVALUATION in args.metrics)
        or (errors and elsewhere),
        data=args.data,
        floor=args.floor,
        out=Path(args.out) if args.out else None,
        device=args.device,
        verbose=args.verbose,
        max_detections=args.max_detections,
        errors=errors and not elsewhere,
    )


class _File(NamedTuple):
    """A file of weights."""

    path: Path
    where: str  # for messages
    name: str  # of its results


def _located(name: str) -> _File:
    """The file of a path, or of a name on the Hub or of a package.

    Raises:
        UserError: it is empty, cannot be fetched, or is another one than its name says.
    """
    if not name.strip():
        raise UserError("the name of the weights is empty; name a file, or a trial")
    path = local_file(name)
    if is_named(name):
        check_content(name, path, file_hash(path))
    return _File(path, name if is_named(name) else str(path), Path(title(name)).stem)


def _file(name: str, args: argparse.Namespace) -> Found:
    """A file of weights under the configuration that it tells of, or of a preset."""
    asked = Asked(None, args.preset, tuple(args.overrides), args.data)
    file = _located(name)
    config, model = of_file(file.path, asked, DEFAULT_PRESET)
    classes, reading = classes_of(file.path), _reading(args)
    return Found(file.name, config, file.path, None, file.where, reading=reading, model=model, classes=classes)


def _reading(args: argparse.Namespace) -> Reading:
    return Reading(args.entry, tuple(args.drop), args.class_rows == "ids")


def imported(args: argparse.Namespace) -> Found:
    """The file that is to be imported, and the detector that it must fit.

    Raises:
        UserError: the file is none, or a name or a setting is mistaken.
    """
    file, asked = _located(args.file), Asked(args.model, args.preset, tuple(args.overrides))
    if trouble := file_trouble(file.path):
        raise UserError(f"{file.where} {trouble}")
    if args.model is None:
        raise UserError(f"--model is missing: give the detector that {file.where} is of{of_stem(file.path)}")
    config = of_presets(asked)
    model = replace(config.model, backbone=without_weights(config.model.backbone))
    remedy = "give the detector that it is of (--model, --set)"
    reading = Reading(args.entry, tuple(args.drop))
    config, classes = replace(config, model=model), classes_of(file.path)
    return Found(file.name, config, file.path, None, file.where, remedy, reading, args.model, classes)


def evaluation(args: argparse.Namespace, store: RunStore) -> tuple[Found, Request]:
    """The detector that `codetr evaluate` names, with its branches, and where to. Nothing of a trial is changed.

    Raises:
        UserError: an option or a name is mistaken.
    """
    found = detector(args, store)
    settings = found.config.evaluate
    branches = branches_of(args.branches, (DECODER, *found.config.model.head_names))
    limit = settings.max_detections if args.max_detections is None else args.max_detections
    try:
        settings = replace(settings, branches=branches, max_detections=limit)
    except ValueError as error:
        raise UserError(f"--max-detections: {error}") from error
    out = Path(args.out) if args.out else Path("evaluation") / found.name
    request = Request(AnalyseConfig(), True, args.data, None, out, args.device, args.verbose)
    return replace(found, config=replace(found.config, evaluate=settings)), request


def detector(args: argparse.Namespace, store: RunStore) -> Found:
    """The detector that `args.weights` names: a file of weights, whatever says its configuration, or a trial.

    Raises:
        UserError: an option or a name is mistaken.
    """
    path, asked = Path(args.weights), Asked(args.model, args.preset, tuple(args.overrides), args.data)
    if is_named(args.weights) or path.suffix in WEIGHT_FILES or exists(path):
        file = _located(args.weights)
        config, model = of_file(file.path, asked)
        remedy = "give the detector that it is of (--model, --set)"
        classes = classes_of(file.path)
        return Found(file.name, config, file.path, None, file.where, remedy, _reading(args), model, classes)
    found = named_trial(store, args.weights)
    if asked.names_any or asked.overrides:
        raise UserError(f"{found.where} has a configuration of its own; leave out --model, --preset and --set")
    _check_reading(found, args)
    return found


def branches_of(names: list[str] | None, known: tuple[str, ...], option: str = "--branches") -> tuple[str, ...]:
    """All that the detector has, unless some are named."""
    mistakes = Mistakes()
    chosen = tuple(dict.fromkeys(known if names in (None, ["all"]) else names or ()))
    for name in chosen:
        if name not in known:
            mistakes.add(option, f"unknown '{name}'{suggest(name, known)}")
    if not chosen:
        mistakes.add(option, f"must name at least one of {', '.join(known)}")
    mistakes.check()
    return chosen


def _check_options(found: Found, request: Request, args: argparse.Namespace, store: RunStore) -> None:
    """Refuse what has no meaning for a trial."""
    limit = request.max_detections
    if request.errors and not lacks(store, found.name, AnalyseConfig(), errors=True):
        raise UserError(f"--metrics {ERRORS}: {found.where} has them already; a report's `metrics` show them")
    if request.errors and args.images is not None and not request.settings.metrics:
        raise UserError(f"--images: errors are of the whole split, which --metrics {ERRORS} asks for; leave it out")
    if limit is not None and args.images is not None and not request.settings.metrics:
        raise UserError("--images: an evaluation is of the whole split, which --max-detections asks for; leave it out")
    if limit is not None and limit <= STANDARD_LIMIT:
        raise UserError(f"--max-detections {limit}: AP counts {STANDARD_LIMIT} detections of an image; name more")
    if limit is not None:
        try:
            EvaluateConfig(max_detections=limit)
        except ValueError as error:
            raise UserError(f"--max-detections: {error}") from error
    if limit is not None and is_own(found, request, store):
        if f"AP@{limit}" in ((store.read(found.name) or {}).get("metrics") or {}):
            raise UserError(f"--max-detections {limit}: {found.where} has AP@{limit} already")
    elif request.evaluate and is_own(found, request, store):
        raise UserError(f"--metrics {EVALUATION}: {found.where} has evaluated itself; name another data set (--data)")
    _check_reading(found, args)


def _check_reading(found: Found, args: argparse.Namespace) -> None:
    """Refuse what has no meaning but for files."""
    of_files = {"--entry": args.entry, "--drop": args.drop, "--class-rows": args.class_rows == "ids"}
    if found.reading is None and (given := [option for option, value in of_files.items() if value]):
        raise UserError(f"{given[0]} is about files of weights, and {found.where} is none")
