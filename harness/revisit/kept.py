"""Where what is found out about a trained detector goes: a trial's own record, or a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.analyse import Analysed, table_of, write_tables
from harness.config import AnalyseConfig
from harness.data import open_dataset
from harness.data.categories import Categories
from harness.errors import UserError
from harness.files import exists, read_bytes, to_json, write_atomic
from harness.revisit.key_report import as_json
from harness.revisit.trained import Built, Found
from harness.spec.detection_metrics import limit_of
from harness.spec.error_metrics import is_error_metric
from harness.store.results import ANALYSIS, CLASSES, DETECTIONS, RECORD, RunStore
from harness.system.console import remark
from harness.system.words import quantity
from harness.trial.evaluate import Evaluation, evaluator_version

if TYPE_CHECKING:
    from harness.data.coco import CocoDataset
    from harness.revisit.asked import Request

Say = Callable[[str], None]
Numbers = Mapping[str, float | None]


def is_own(found: Found, request: Request, store: RunStore) -> bool:
    """Whether this is a trial of the store on its own data, so that the result belongs into its record."""
    is_trial = found.reading is None and found.name in store.trials()
    return is_trial and request.data is None and request.out is None


def left_detections(found: Found, store: RunStore) -> Path | None:
    """The file of the detections that a trial left, where they are of all that it evaluated."""
    path = store.dir(found.name) / DETECTIONS
    is_whole = found.reading is None and len(set(found.config.evaluate.branches)) == 1
    return path if is_whole and exists(path) else None


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


def keep_evaluation(
    found: Found, evaluation: Evaluation, dataset: CocoDataset, request: Request, store: RunStore
) -> list[Path]:
    """Write the metrics and the detections; of a trial on its own data what it has not into its record.

    Returns:
        The files.
    """
    if is_own(found, request, store):
        return _add_protocol(found, evaluation, request, store)
    evaluator = evaluator_version(found.config.evaluate.evaluator)
    numbers: dict[str, Any] = {
        "metrics": evaluation.metrics,
        "per_class": evaluation.per_class,
        "classes": evaluation.classes,
        "categories": Categories(dataset.category_ids, dataset.category_names).rows(),
        "evaluator": evaluator,
    }
    texts: dict[str, bytes | str] = {
        "evaluation.json": to_json({"schema": 1, "num_images": len(dataset), **numbers}) + "\n",
        DETECTIONS: evaluation.detections.to_json(),
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
    with _finished(found, store) as (store, record):
        paths = write_tables(analysed, store.dir(found.name) / ANALYSIS)
        measured = {*analysed.tables, *(name.partition("/")[0] for name in analysed.scalars)}
        _add_numbers(found, store, record, analysed.scalars, measured)
        before = record.get("analysis") or {}
        done = [*before.get("metrics", ()), *request.settings.metrics]
        own = analysed.for_record(request.settings)
        record["analysis"] = {**before, **own, "metrics": list(dict.fromkeys(done))}
        store.write_result(found.name, record)
        dataset = open_dataset(found.config.data, "val", progress=lambda line: None)
        store.check_lease(found.name)
        paths += _draw(store.dir(found.name) / ANALYSIS, record.get("label") or found.name, analysed, record, dataset)
    return paths


def _add_protocol(found: Found, evaluation: Evaluation, request: Request, store: RunStore) -> list[Path]:
    """Numbers of another limit of detections beside those that a trial has; nothing that it has is changed."""
    added = {name: value for name, value in evaluation.metrics.items() if limit_of(name) == request.max_detections}
    with _finished(found, store) as (fenced, record):
        _add_numbers(found, fenced, record, added)
        fenced.write_result(found.name, record)
    return [store.dir(found.name) / RECORD]


def keep_errors(found: Found, metrics: Numbers, classes: dict[str, Any], store: RunStore) -> list[Path]:
    """Add the errors of a finished trial to its record, and its classes in columns; returns the files."""
    with _finished(found, store) as (fenced, record):
        fenced.write(found.name, CLASSES, json.dumps(classes))
        _add_numbers(found, fenced, record, dict(metrics))
        fenced.write_result(found.name, record | {"classes": classes})
    return [store.dir(found.name) / name for name in (RECORD, CLASSES)]


@contextmanager
def _finished(found: Found, store: RunStore) -> Iterator[tuple[RunStore, dict[str, Any]]]:
    """The store under a lease on a finished trial, and its record."""
    held = store.claim(found.name)
    if held is None:
        raise UserError(f"trial {found.name} is being worked on; try again when it has ended")
    with held:
        store = store.fenced(held.token)
        record = store.read(found.name) or {}
        if record.get("status") != "finished":
            raise UserError(f"trial {found.name} is finished no more: it was set back or damaged; nothing was written")
        store.check_lease(found.name)
        yield store, record


def _add_numbers(
    found: Found,
    store: RunStore,
    record: dict[str, Any],
    numbers: Mapping[str, Any],
    measured: Collection[str] = (),
) -> None:
    """Into the last line of the metrics, and into a record that is still to be written.

    Args:
        found: the trial.
        store: under a lease on it.
        record: its own.
        numbers: by name.
        measured: what stands before the slash of numbers that were measured anew: those that `numbers` lacks go, as an
            anchor of other images.
    """

    def renewed(known: Mapping[str, Any]) -> dict[str, Any]:
        return {name: own for name, own in known.items() if name.partition("/")[0] not in measured} | dict(numbers)

    lines = store.metrics(found.name)
    if lines:
        store.append_metrics(found.name, renewed(lines[-1]))
    record["metrics"] = renewed(record.get("metrics") or {})
    if record.get("history"):
        record["history"][-1] = renewed(record["history"][-1])


def _draw(
    folder: Path,
    label: str,
    analysed: Analysed,
    record: Mapping[str, Any] | None = None,
    dataset: CocoDataset | None = None,
) -> list[Path]:
    from harness.report.trial_figures import save_trial_figures

    kept = read_bytes(folder.parent / DETECTIONS) if record else None
    try:
        detections = None if kept is None else json.loads(kept)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder.parent / DETECTIONS} is damaged ({error}): no figure is drawn") from error
    return save_trial_figures(
        folder,
        label,
        analysed.tables,
        maps=analysed.maps,
        examples=analysed.examples,
        history=(record or {}).get("history") or (),
        dataset=dataset,
        detections=detections,
        say=lambda line: remark(f"note: {label}: {line}"),
    )


def lacks(
    store: RunStore, trial_id: str, settings: AnalyseConfig, max_detections: int | None = None, errors: bool = False
) -> bool:
    """Whether a trial is finished and some of these analyses, AP at so many detections, or errors are missing.

    An analysis of fewer images than the settings ask for, and than the data set has, is missing.
    """
    record = store.read(trial_id) or {}
    made = record.get("analysis") or {}
    wanted = set(settings.metrics)
    missing = bool(wanted) and (made.get("error") or not wanted <= set(made.get("metrics") or ()))
    missing = missing or _lacks_tables(made, settings)
    if max_detections is not None:
        missing = missing or f"AP@{max_detections}" not in (record.get("metrics") or {})
    if errors:
        missing = missing or not any(map(is_error_metric, record.get("metrics") or {}))
    return bool(missing) and store.status(trial_id) == "finished"


def _lacks_tables(made: Mapping[str, Any], settings: AnalyseConfig) -> bool:
    """Whether what a record keeps under `analysis` lacks a variant, or is of fewer images than there could be."""
    counts = [table["num_images"] for table in made.values() if isinstance(table, dict) and "num_images" in table]
    most = max(counts, default=0)
    is_whole = most < (made.get("num_images") or 0)  # the last analysis was to be of more images than there are
    wanted = min(settings.num_images, most) if is_whole else settings.num_images
    variants: dict[str, list[str]] = {
        "conflict": [table_of(variant) for variant in settings.conflict_variants],
        "discriminability": list(settings.discriminability_variants),
    }
    extra = [name for metric in settings.metrics for name in variants.get(metric, ())]
    tables = [made[name] for name in (*settings.metrics, *extra) if isinstance(made.get(name), dict)]
    return not set(extra) <= made.keys() or any(table.get("num_images", wanted) < wanted for table in tables)


def mirror_trials(store: RunStore, trial_ids: Sequence[str], say: Say) -> None:
    """Bring the tracking store up to date, if there is one."""
    from harness.tracking import mirror, tracking

    if not trial_ids or not tracking.available():
        return
    try:
        uri = tracking.tracking_uri(store.root)
        if tracking.is_missing(uri):
            return
        count = mirror.sync_trials(store, trial_ids, uri, say)
    except UserError as error:
        say(f"note: {error}; `codetr sync` brings it up to date later")
        return
    if count:
        say(f"the tracking store has the analysis of {quantity(count, 'trial')}")
