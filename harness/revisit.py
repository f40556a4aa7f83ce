"""`codetr analyse`: which detectors are meant, what is wanted of them, and where it goes.

A trial of the store gets the analysis that it lacks into its own record, as if it had made it itself; anything else is
written to a folder. Nothing is trained here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from harness.analyse import Analysed, write_tables
from harness.config import AnalyseConfig, Analysis, ConflictVariant
from harness.data import open_dataset
from harness.errors import UserError
from harness.files import is_file, read_bytes, to_json, write_atomic
from harness.key_report import as_json
from harness.spec.grid import expand, open_grid
from harness.spec.spec import DEFAULT_PRESET, AblationSpec, RowSpec
from harness.spec.strict import Mistakes, validate
from harness.store.results import RunStore
from harness.trained import WEIGHT_FILES, Built, Found, Reading, find_trial, read_trial
from harness.trial.evaluate import evaluator_version

if TYPE_CHECKING:
    from harness.data.coco import CocoDataset
    from harness.trial.evaluate import Evaluation

Say = Callable[[str], None]
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


# ---- what is asked for --------------------------------------------------------------------------------------------


def jobs(args: argparse.Namespace, store: RunStore) -> list[tuple[Found, Request]]:
    """Every detector that the command line names, with what is wanted of it.

    An ablation file stands for its finished trials that lack something. A name is that of a trial, or of a file of
    weights; the configuration of the latter comes from `--preset` and `--set`.

    Raises:
        UserError: an option or a name is mistaken.
    """
    found: list[tuple[Found, Request]] = []
    for name in args.names:
        if name.endswith((".yaml", ".yml")):
            grid = open_grid(name, args.preset or DEFAULT_PRESET, args.overrides, seeds=args.seeds)
            for trial in grid.trials:
                request = _request(args, trial.analyse)
                if request.data or request.out or lacks(store, trial.trial_id, request.settings.metrics):
                    found.append((read_trial(store, trial.trial_id), request))
        elif Path(name).suffix in WEIGHT_FILES:
            found.append((_file(Path(name), args), _request(args, AnalyseConfig(), is_file=True)))
        else:
            found.append((read_trial(store, find_trial(store, name)), _request(args, AnalyseConfig())))
    for own, request in found:
        _check_options(own, request, args, store)
    return found


def _request(args: argparse.Namespace, settings: AnalyseConfig, *, is_file: bool = False) -> Request:
    """The command line's options over what an ablation file says; everything where neither names any analysis.

    A trial has evaluated itself, a file has not.
    """
    mistakes = Mistakes()
    variants = list(get_args(ConflictVariant)) if args.variant == ["all"] else args.variant
    asked = None if args.metrics is None else [name for name in args.metrics if name != EVALUATION]
    given = {"num_images": args.images, "variants": variants}
    options = {"metrics": "--metrics", "num_images": "--images", "variants": "--variant"}
    tree = {**settings.as_dict(), **{name: value for name, value in given.items() if value is not None}}
    tree["metrics"] = asked if asked is not None else tree["metrics"] or list(get_args(Analysis))
    made = validate(AnalyseConfig, tree, lambda where, what: mistakes.add(options.get(str(where[0]), "--"), what))
    mistakes.check()
    assert made is not None
    return Request(
        made,
        evaluate=is_file if args.metrics is None else EVALUATION in args.metrics,
        data=args.data,
        floor=args.floor,
        out=Path(args.out) if args.out else None,
        device=args.device,
        verbose=args.verbose,
    )


def _file(path: Path, args: argparse.Namespace) -> Found:
    """A file of weights under the configuration of a preset."""
    spec = AblationSpec(name=path.stem, rows=(RowSpec(label=path.stem),))
    grid = expand(spec, args.preset or DEFAULT_PRESET, args.overrides, data=args.data, require_data=False)
    if not is_file(path):
        raise UserError(f"{path}: there is no such file of weights")
    reading = Reading(args.entry, tuple(args.drop), args.class_rows == "ids")
    return Found(path.stem, grid.trials[0].config, path, None, str(path), reading=reading)


def _check_options(found: Found, request: Request, args: argparse.Namespace, store: RunStore) -> None:
    """Refuse what has no meaning for a trial."""
    if request.evaluate and is_own(found, request, store):
        raise UserError(f"--metrics {EVALUATION}: {found.where} has evaluated itself; name another data set (--data)")
    of_files = {"--entry": args.entry, "--drop": args.drop, "--class-rows": args.class_rows == "ids"}
    if found.reading is None and (given := [option for option, value in of_files.items() if value]):
        raise UserError(f"{given[0]} is about files of weights, and {found.where} is none")


# ---- where it goes -----------------------------------------------------------------------------------------------


def is_own(found: Found, request: Request, store: RunStore) -> bool:
    """Whether this is a trial of the store on its own data, so that the result belongs into its record."""
    return found.name in store.trials() and request.data is None and request.out is None


def folder_of(found: Found, request: Request) -> Path:
    """Where everything about a detector goes that is no trial on its own data."""
    return request.out or Path("analysis") / found.name


def keep_keys(found: Found, built: Built, request: Request) -> list[Path]:
    """Write what became of the names in a file of weights; returns the file, and none for a trial."""
    if found.reading is None:
        return []
    path = folder_of(found, request) / "keys.json"
    table = {"schema": 1, "file": str(found.weights), "entry": built.entry, **as_json(built.translation)}
    write_atomic(path, to_json(table) + "\n")
    return [path]


def keep_evaluation(found: Found, evaluation: Evaluation, num_images: int, request: Request) -> list[Path]:
    """Write the metrics and the detections; returns the files."""
    evaluator = evaluator_version(found.config.evaluate.evaluator)
    numbers = {"metrics": evaluation.metrics, "per_class": evaluation.per_class, "evaluator": evaluator}
    texts = {
        "evaluation.json": to_json({"schema": 1, "num_images": num_images, **numbers}) + "\n",
        "detections.json": json.dumps(evaluation.detections),
    }
    paths = [folder_of(found, request) / name for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_atomic(path, text)
    return paths


def keep(found: Found, analysed: Analysed, request: Request, store: RunStore) -> list[Path]:
    """Write the tables; of a trial on its own data also into its record. Returns the files.

    Raises:
        UserError: somebody works on the trial at the moment, or it is finished no more.
        ReadError: the storage does not give its record, which stays as it is.
    """
    if not is_own(found, request, store):
        folder = folder_of(found, request)
        return write_tables(analysed, folder) + _draw(folder, found.where, analysed)
    held = store.claim(found.name)
    if held is None:
        raise UserError(f"trial {found.name} is being worked on; try again when it has ended")
    with held:
        store = store.fenced(held.token)
        record, lines = store.read(found.name) or {}, store.metrics(found.name)
        if record.get("status") != "finished":
            raise UserError(f"trial {found.name} is finished no more: it was set back or damaged; nothing was written")
        store.check_lease(found.name)
        paths = write_tables(analysed, store.dir(found.name) / "analysis")
        if lines:
            store.append_metrics(found.name, lines[-1] | analysed.scalars)
        record["metrics"] = (record.get("metrics") or {}) | analysed.scalars
        if record.get("history"):
            record["history"][-1] |= analysed.scalars
        before = record.get("analysis") or {}
        done = [*before.get("metrics", ()), *request.settings.metrics]
        own = analysed.for_record(request.settings)
        record["analysis"] = {**before, **own, "metrics": list(dict.fromkeys(done))}
        store.write_result(found.name, record)
        dataset = open_dataset(found.config.data, "val", progress=lambda line: None)
        store.check_lease(found.name)
        paths += _draw(store.dir(found.name) / "analysis", record.get("label") or found.name, analysed, record, dataset)
    return paths


def _draw(
    folder: Path,
    label: str,
    analysed: Analysed,
    record: Mapping[str, Any] | None = None,
    dataset: CocoDataset | None = None,
) -> list[Path]:
    from harness.report.trial_figures import save_trial_figures

    kept = read_bytes(folder.parent / "detections.json") if record else None
    try:
        detections = None if kept is None else json.loads(kept)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder.parent / 'detections.json'} is damaged ({error}): no figure is drawn") from error
    return save_trial_figures(
        folder,
        label,
        analysed.tables,
        maps=analysed.maps,
        examples=analysed.examples,
        history=(record or {}).get("history") or (),
        dataset=dataset,
        detections=detections,
    )


def lacks(store: RunStore, trial_id: str, metrics: Iterable[str]) -> bool:
    """Whether a trial is finished and some of these analyses are missing or failed."""
    record = store.read(trial_id) or {}
    made = record.get("analysis") or {}
    missing = made.get("error") or not set(metrics) <= set(made.get("metrics") or ())
    return bool(missing) and store.status(trial_id) == "finished"


def mirror_trials(store: RunStore, trial_ids: Sequence[str], say: Say) -> None:
    """Bring the tracking store up to date, if there is one."""
    from harness.tracking import mirror, tracking

    uri = tracking.tracking_uri(store.root)
    if not trial_ids or not tracking.available() or tracking.is_missing(uri):
        return
    try:
        count = mirror.sync_trials(store, trial_ids, uri, say)
    except UserError as error:
        say(f"note: {error}; `codetr sync` brings it up to date later")
        return
    if count:
        say(f"the tracking store has the analysis of {count} trial{'s'[: count != 1]}")
