"""`codetr analyse`: which detectors are meant, what is wanted of them, and where it goes.

A trial of the store gets the analysis that it lacks into its own record, as if it had made it itself; anything else is
written to a folder. Nothing is trained here.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from harness.analyse import Analysed, analyse, write_tables
from harness.config import AnalyseConfig, Analysis, ConflictVariant
from harness.data import open_dataset
from harness.errors import UserError
from harness.files import is_file, read_bytes
from harness.spec.grid import expand, open_grid
from harness.spec.spec import DEFAULT_PRESET, AblationSpec, RowSpec
from harness.spec.strict import Mistakes, validate
from harness.store.results import RunStore
from harness.trained import WEIGHT_FILES, Found, build, find_trial, read_trial
from harness.trial.build import choose_device
from model.detector import Detector

if TYPE_CHECKING:
    import torch

    from harness.data.coco import CocoDataset

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What `codetr analyse` was asked for."""

    settings: AnalyseConfig
    data: str | None = None  # another data set than the detector's own
    floor: str | None = None  # a trial with the same heads
    out: Path | None = None  # instead of the trial's own folder
    device: str = "auto"


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
            found.append((_file(Path(name), args), _request(args, AnalyseConfig())))
        else:
            found.append((read_trial(store, find_trial(store, name)), _request(args, AnalyseConfig())))
    return found


def _request(args: argparse.Namespace, settings: AnalyseConfig) -> Request:
    """The command line's options over what an ablation file says; all analyses where neither names any."""
    mistakes = Mistakes()
    variants = list(get_args(ConflictVariant)) if args.variant == ["all"] else args.variant
    given = {"metrics": args.metrics, "num_images": args.images, "variants": variants}
    options = {"metrics": "--metrics", "num_images": "--images", "variants": "--variant"}
    tree = {**settings.as_dict(), **{name: value for name, value in given.items() if value is not None}}
    tree["metrics"] = tree["metrics"] or list(get_args(Analysis))
    made = validate(AnalyseConfig, tree, lambda where, what: mistakes.add(options.get(str(where[0]), "--"), what))
    mistakes.check()
    assert made is not None
    return Request(made, args.data, args.floor, Path(args.out) if args.out else None, args.device)


def _file(path: Path, args: argparse.Namespace) -> Found:
    """A file of weights under the configuration of a preset."""
    spec = AblationSpec(name=path.stem, rows=(RowSpec(label=path.stem),))
    grid = expand(spec, args.preset or DEFAULT_PRESET, args.overrides, data=args.data, require_data=False)
    if not is_file(path):
        raise UserError(f"{path}: there is no such file of weights")
    return Found(path.stem, grid.trials[0].config, path, None, str(path))


# ---- looking at them ----------------------------------------------------------------------------------------------


def analyse_found(found: Found, request: Request, store: RunStore, say: Say) -> Analysed:
    """Analyse one detector on its own validation split, or on that of `request.data`.

    Raises:
        UserError: weights and configuration, data set and classes, or the two detectors of a floor do not fit.
    """
    device = choose_device(request.device)
    data = found.config.data if request.data is None else replace(found.config.data, path=request.data)
    detector = build(found, device)
    dataset = open_dataset(data, "val", progress=say)
    if dataset.num_classes != detector.num_classes:
        raise UserError(
            f"{found.where} knows {detector.num_classes} classes, {dataset.annotation_file} has "
            f"{dataset.num_classes}; give the data set it was trained on, or one with the same classes"
        )
    floor = _floor(request, found, detector, store, device)
    said = time.monotonic()

    def on_batch(done: int, count: int) -> None:
        nonlocal said
        if time.monotonic() - said >= 5:
            said = time.monotonic()
            say(f"{found.name}  analysed {done / count:.0%}")

    return analyse(
        detector,
        dataset,
        data,
        request.settings,
        device,
        batch_size=2 * max(1, found.config.train.batch_size // found.config.train.accumulate_steps),
        epoch=found.epoch,
        floor=floor,
        on_batch=on_batch,
    )


def _floor(
    request: Request, found: Found, detector: Detector, store: RunStore, device: torch.device
) -> tuple[str, Detector] | None:
    if request.floor is None:
        return None
    trial_id = find_trial(store, request.floor)
    if trial_id == found.name:
        raise UserError(f"--floor {request.floor}: this is the same trial; name one trained from another seed")
    other = build(read_trial(store, trial_id), device)
    names = [[name for name, _ in one.named_heads()] for one in (detector, other)]
    if names[0] != names[1] or other.num_classes != detector.num_classes:
        heads = [", ".join(own) or "none" for own in names]
        raise UserError(
            f"--floor {trial_id}: its heads ({heads[1]}) and classes must be those of {found.name} ({heads[0]})"
        )
    return trial_id, other


def is_own(found: Found, request: Request, store: RunStore) -> bool:
    """Whether this is a trial of the store on its own data, so that the result belongs into its record."""
    return found.name in store.trials() and request.data is None and request.out is None


def keep(found: Found, analysed: Analysed, request: Request, store: RunStore) -> list[Path]:
    """Write the tables; of a trial on its own data also into its record. Returns the files.

    Raises:
        UserError: somebody works on the trial at the moment, or it is finished no more.
        ReadError: the storage does not give its record, which stays as it is.
    """
    if not is_own(found, request, store):
        folder = request.out or Path("analysis") / found.name
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
