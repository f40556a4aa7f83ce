"""A trained detector found again, wherever it is kept: a trial of the store, its MLflow run, or a file of weights.

Files may be of official implementations; their names are translated (`model.official`). Weights are read when the
detector is built, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.choose import find_trial
from harness.config import TrialConfig
from harness.data.categories import Categories, categories_of
from harness.errors import UserError
from harness.files import is_file
from harness.revisit.described import classes_of
from harness.revisit.key_report import key_report, trouble
from harness.spec.detection_metrics import limit_asked
from harness.spec.identity import config_from_dict
from harness.spec.presets import detector_names
from harness.store.results import CHECKPOINTS, WEIGHTS, RunStore
from model import weights as files
from model.backbones.configs import without_weights
from model.detector import Detector
from model.official import Translation, translate

if TYPE_CHECKING:
    import torch

    from model.config import DetectorConfig

WEIGHT_FILES = (".safetensors", ".pth", ".pt")
NO_WEIGHTS = f"; a file of weights ends in {', '.join(WEIGHT_FILES[:-1])} or {WEIGHT_FILES[-1]}"


@dataclass(frozen=True)
class Reading:
    """How a file of weights is to be read, where it leaves a choice."""

    entry: str | None = (
        None  # the key of its state dict, where it holds several; None: the moving average if there is one
    )
    drop: tuple[str, ...] = ()  # parameters whose official names begin so are left out
    by_category_id: bool = False  # a row of its class branches is a category id, not a class


@dataclass(frozen=True)
class Found:
    """A trained detector, before it is built."""

    name: str  # the trial's id, or the file's name
    config: TrialConfig
    weights: Path
    epoch: int | None
    where: str  # for messages
    remedy: str = "give the configuration they were trained with (--preset, --set)"  # when the weights do not fit
    reading: Reading | None = None  # None: of a trial
    model: str = ""  # name of its preset, where one is known
    classes: Categories | None = None  # of its labels, as the weights or their record tell; None: neither does
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)  # of a trial

    @property
    def max_detections(self) -> int:
        """How many detections of an image are kept: what counted when the trial was evaluated, or what is asked for."""
        protocol = (self.record.get("provenance") or {}).get("protocol") or "coco"
        return limit_asked(str(protocol), self.config.evaluate.max_detections)


def named_trial(store: RunStore, name: str) -> Found:
    """The finished trial that a name means where a file of weights could stand, too.

    Raises:
        UserError: none is meant, or several are; and as `read_trial`.
    """
    if name in detector_names():
        raise UserError(f"'{name}' is the name of a detector: name a file of its weights, and --model {name}")
    return read_trial(store, find_trial(store, name, NO_WEIGHTS))


def read_trial(store: RunStore, trial_id: str) -> Found:
    """A finished trial of the store; its weights may be gone (see `check_weights`).

    Raises:
        UserError: it has not finished, its configuration is of another version, or its weights name no classes.
    """
    status, record = store.status(trial_id), store.read(trial_id) or {}
    if status != "finished":
        raise UserError(f"trial {trial_id} is {status}: only a finished one has weights")
    weights = store.dir(trial_id) / CHECKPOINTS / WEIGHTS
    history = record.get("history") or [{}]
    config = config_from_dict(record.get("config") or {})
    commit = str((record.get("provenance") or {}).get("commit") or "unknown")[:10]
    remedy = f"another version of this code trained them (commit {commit}): analyse them with that one, or train again"
    classes = classes_of(weights) or _recorded(record, config)
    epoch, where = history[-1].get("epoch"), f"trial {trial_id}"
    return Found(trial_id, config, weights, epoch, where, remedy, classes=classes, record=record)


def check_weights(found: Found) -> None:
    """Make sure that a trial's weights are there.

    Raises:
        UserError: they are gone.
    """
    if found.reading is None and not is_file(found.weights):
        raise UserError(f"{found.where}: its weights are gone ({found.weights}); train it again")


def _recorded(record: Mapping[str, Any], config: TrialConfig) -> Categories | None:
    """The classes of weights that were written without: by the record's names, in the order of their labels.

    Their ids are those of the data set where that is here and has the same names, else the labels.
    """
    names = tuple(record.get("per_class") or ())
    if not names:
        return None
    data = categories_of(config.data)
    return data if data is not None and data.names == names else Categories(tuple(range(len(names))), names)


@dataclass(frozen=True)
class Built:
    """A trained detector, and how its weights came to it."""

    detector: Detector
    translation: Translation
    entry: str  # the key of the file that they stand under; empty: none


def build(
    found: Found,
    device: torch.device,
    *,
    category_ids: Sequence[int] = (),
    verbose: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Built:
    """The detector with its weights, official names translated.

    Args:
        found: what and where.
        device: for the detector.
        category_ids: of the data set's classes, for weights with a row for each id.
        verbose: tell every name.
        say: takes the report on the names, if they are not ours or not all of them are wanted.

    Raises:
        UserError: the file cannot be read, or its weights are of another detector than the configuration.
    """
    made, entry = read_translated(found, category_ids=category_ids, verbose=verbose, say=say)
    detector = Detector(_model(found), made.num_classes)
    detector.load_state_dict(made.tensors)
    return Built(detector.to(device).eval(), made, entry)


def read_translated(
    found: Found,
    *,
    category_ids: Sequence[int] = (),
    verbose: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Translation, str]:
    """The weights under our names, those of the configuration and no other, and the key that they stand under.

    Arguments and errors are those of `build`.
    """
    check_weights(found)
    model, reading = _model(found), found.reading or Reading()
    ids = tuple(category_ids) if reading.by_category_id else None
    try:
        checkpoint = files.read_checkpoint(found.weights, reading.entry)
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        made = translate(checkpoint.tensors, model, category_ids=ids, drop=reading.drop)
    except ValueError as error:
        raise UserError(f"{found.where}: {error}") from error
    if verbose or made.dropped or not made.is_own:
        for line in [_origin(found, made, checkpoint), *key_report(made, verbose)]:
            say(line)
    if told := trouble(made):
        more = "; --drop NAME leaves out what begins so" if made.unknown else ""
        raise UserError(f"{found.where}: {told}; {found.remedy}{more}")
    if numbers := files.wrong_numbers(made.tensors):
        remedy = "train it again" if found.reading is None else "fetch the file again, or another one"
        raise UserError(f"{found.where} {numbers}; {remedy}")
    return made, checkpoint.entry


def _model(found: Found) -> DetectorConfig:
    """Its backbone's pretrained weights are part of the trained ones and need not be here."""
    return replace(found.config.model, backbone=without_weights(found.config.model.backbone))


def _origin(found: Found, made: Translation, checkpoint: files.Checkpoint) -> str:
    """Whose names a file has, and which of its state dicts is meant."""
    whose = "our own names" if made.is_own else f"the names of {made.family}"
    entry = f", under '{checkpoint.entry}'" if checkpoint.entry else ""
    others = f"; --entry takes {' or '.join(checkpoint.others)} instead" if checkpoint.others else ""
    return f"{found.where}: {whose}{entry}{others}"
