"""Pretrained weights of a backbone: where the file is, what is in it, and whether a trial may start from it.

A trial's id holds the content of the file in place of its path, so what a trial starts from must still be what its id
says. Whether names and shapes fit is asked once, by the driver, before anything is started. So is whether a part that
is never trained would stay as it was drawn at random.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.disk import shown
from harness.errors import UserError, one_line
from harness.spec.hub import Say, again, is_hub
from harness.spec.named_files import check_content, is_named, local_file
from harness.spec.spec import SHIPPED
from harness.system.words import quantity
from model.backbones import BACKBONES
from model.backbones.configs import asked, without_weights
from model.weights import file_trouble

if TYPE_CHECKING:
    from torch.nn import Module

    from harness.spec.grid import Trial
    from model.config import DetectorConfig

KEY = "model.backbone.weights"
WANTED = (
    "name a state dict of this backbone, such as a torchvision ResNet's (.pth or .safetensors), also by hub:OWNER/NAME/"
    "FILE, or null for none"
)


def content_hash(name: str) -> str:
    """SHA-256 of a file of weights, 64 hex digits; remembered while the file stays as it is.

    Args:
        name: its path, or another name (`harness.spec.named_files`); from the Hugging Face Hub it is fetched.

    Raises:
        UserError: it is missing or no file, cannot be fetched or read, or is another one than the name says.
    """
    path = _found(name)
    from harness.data.content import file_hash

    try:
        found = file_hash(path)
    except OSError as error:
        raise UserError(
            f"{KEY}: {shown(name)} cannot be read ({one_line(error)}); make it readable, or {WANTED}"
        ) from error
    _check_content(name, path, found)
    return found


def _found(name: str, say: Say | None = None) -> Path:
    """The file of this name, fetched where it is on the Hub and not here."""
    try:
        path = local_file(name, say)
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from error
    if trouble := file_trouble(path):
        raise UserError(f"{KEY}: {shown(name)} {trouble}; {WANTED}")
    return path


def _check_content(name: str, path: Path, sha256: str) -> None:
    try:
        check_content(name, path, sha256)
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from error


def by_path(model: DetectorConfig) -> DetectorConfig:
    """The same detector, for `model/`, which knows files by their paths alone.

    Raises:
        UserError: its file of weights is on the Hub and cannot be fetched.
    """
    name = asked(model.backbone, "weights")
    if name is None or not is_named(name):
        return model
    return replace(model, backbone=replace(model.backbone, weights=str(_found(name))))


# ---- before anything is started -----------------------------------------------------------------------------------


def frozen_at_random(trials: Iterable[Trial]) -> str:
    """A line on the trials that would keep a random part of their backbone for ever; empty when none would."""
    told = [
        parts
        for backbone in (trial.config.model.backbone for trial in trials)
        if (parts := asked(backbone, "frozen_at_random")) and not asked(backbone, "random_frozen")
    ]
    if not told:
        return ""
    return (
        f"model.backbone: {quantity(len(told), 'trial')} would freeze random weights "
        f"({' / '.join(dict.fromkeys(told))}): give {KEY}=FILE, or train all of it (frozen_stages: -1 with norm: group "
        "or batch), or accept it with model.backbone.random_frozen: true"
    )


def notes(trials: Sequence[Trial]) -> list[str]:
    """Lines on backbones of these trials that are random where a person may not expect it."""
    words = [told for trial in trials if (told := asked(trial.config.model.backbone, "starts_at_random"))]
    lines = list(filter(None, [frozen_at_random(trials)]))
    if words:
        lines.append(
            f"model.backbone: {quantity(len(words), 'trial')} would start from random weights "
            f"({' / '.join(dict.fromkeys(words))}), and published results do not: give {KEY}=FILE, to the rows of one "
            "backbone at a time (--only)"
        )
    return lines


def check_backbones(trials: Sequence[Trial]) -> None:
    """Can these trials' backbones be what they are asked to be? Reads each file of weights once.

    One that a library builds is asked also without a file: the library may be missing, or refuse its settings. Where
    only the built one knows its strides, the whole detector is built, without numbers.

    Raises:
        UserError: a random part would stay frozen, a file cannot be read or does not fit, or a detector cannot be built
            or not be trained by several ranks; one line for each.
    """
    if line := frozen_at_random(trials):
        raise UserError(line)
    backbones = dict.fromkeys(trial.config.model.backbone for trial in trials)
    told = [own for own in backbones if asked(own, "weights") is not None or asked(own, "library")]
    lines = [line for backbone in told if (line := _misfit(backbone))]
    if not lines:
        cases = dict.fromkeys((trial.config.model, trial.runtime.ranks) for trial in trials)
        lines = [line for model, ranks in cases if _is_measured(model.backbone) and (line := _unfit(model, ranks))]
    if lines:
        raise UserError("\n".join(dict.fromkeys(lines)))


def _misfit(backbone: Any) -> str:
    """What the `check_weights` beside the backbone's class says, where there is one. Loads torch."""
    module = sys.modules[BACKBONES.choose(BACKBONES.name_of(backbone)).__module__]
    name = asked(backbone, "weights")
    path = str(_found(name)) if name is not None and is_named(name) else None
    try:
        own = backbone if path is None else replace(backbone, weights=path)
        getattr(module, "check_weights", lambda _: None)(own)
    except ValueError as error:
        told = str(error)
        return told if path is None else told.replace(path, f"{name} ({path})", 1)
    return ""


def _is_measured(backbone: Any) -> bool:
    """Whether a library builds it, and only then its strides are known."""
    return bool(asked(backbone, "library")) and not asked(backbone, "strides")


def _unfit(model: DetectorConfig, ranks: int) -> str:
    """Why no such detector can be built of its backbone, or not be trained by so many ranks. Loads torch."""
    import torch

    from model.detector import Detector

    try:
        with torch.device("meta"):
            detector = Detector(replace(model, backbone=without_weights(model.backbone)), num_classes=1)
        check_norms(detector, ranks)
    except UserError as error:
        return str(error)
    except ValueError as error:
        return f"model: {error}; model.backbone.stages chooses the stages that are handed on"
    return ""


def check_norms(detector: Module, ranks: int) -> None:
    """Raise `UserError` where several ranks would not train the detector that one process trains: by its modules."""
    from torch.nn import SyncBatchNorm
    from torch.nn.modules.batchnorm import _BatchNorm

    kinds = {name: own for name, own in detector.named_modules() if isinstance(own, _BatchNorm)}
    found = next((name for name, own in kinds.items() if not isinstance(own, SyncBatchNorm)), None)
    if ranks > 1 and found is not None:
        raise UserError(
            f"runtime.ranks: {found} is a batch norm, which takes its statistics from the images of one process, so "
            f"{ranks} ranks would train another detector; use runtime.ranks: 1, or a backbone without"
        )


# ---- where a trial starts -----------------------------------------------------------------------------------------


def with_file_here(trial: Trial) -> Trial:
    """The trial with the file that this installation has, where it comes with the program and the driver's is away.

    A worker on another machine may run another installation than the driver, with the same file at another place.
    """
    backbone = trial.config.model.backbone
    path = asked(backbone, "weights")
    if path is None or is_named(path) or not file_trouble(Path(path)):
        return trial
    own = SHIPPED / "presets" / Path(path).name
    if file_trouble(own) or content_hash(str(own)) != trial.weights_hash:
        return trial  # `check_start` tells
    model = replace(trial.config.model, backbone=replace(backbone, weights=str(own)))
    return replace(trial, config=replace(trial.config, model=model))


def check_start(trial: Trial, say: Say | None = None) -> None:
    """Is the file of weights still the one in the trial's id? Reads it whole: what is remembered may be older.

    Args:
        trial: that is to start.
        say: takes a line now and then while a file of the Hub is fetched; None prints it to standard error.

    Raises:
        UserError: it is not, or a random part of the backbone would stay frozen.
    """
    if line := frozen_at_random([trial]):
        raise UserError(line)
    name = asked(trial.config.model.backbone, "weights")
    if name is None or trial.weights_hash is None:
        return
    path = _found(name, say)
    try:
        with open(path, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{KEY}: {shown(name)} cannot be read ({one_line(error)}); make it readable") from error
    if found == trial.weights_hash:
        return
    _check_content(name, path, found)
    back = f"{again(path)}, or name a commit (@HEX)" if is_hub(name) else "put the file back"
    raise UserError(
        f"{KEY}: {shown(name)} has changed since trial {trial.trial_id} was planned "
        f"(SHA-256 {found[:12]} instead of {trial.weights_hash[:12]}); "
        f"{back}, or run again for the trial of the new one"
    )
