"""A trained detector found again, wherever it is kept: a trial of the store, its MLflow run, or a file of weights.

Files may be of the official implementation; their names are translated (`model.official`). Weights are read when the
detector is built, not before.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config import TrialConfig
from harness.errors import UserError
from harness.files import is_file
from harness.spec.identity import config_from_dict
from harness.store.results import RunStore
from harness.trial.checkpoint import WEIGHTS
from model import weights as files
from model.backbones.configs import without_weights
from model.detector import Detector
from model.official import convert

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHT_FILES = (".safetensors", ".pth", ".pt")
REGION_HEADS = ("faster_rcnn", "mask_rcnn")  # in official checkpoints they come before the dense heads
CLASS_BRANCH = "decoder.class_branches.0.weight"


@dataclass(frozen=True)
class Found:
    """A trained detector, before it is built."""

    name: str  # the trial's id, or the file's name
    config: TrialConfig
    weights: Path
    epoch: int | None
    where: str  # for messages
    remedy: str = "give the configuration they were trained with (--preset, --set)"  # when the weights do not fit


def find_trial(store: RunStore, name: str) -> str:
    """The trial that `name` means: its id, an unambiguous beginning of it, or the id of its MLflow run.

    Raises:
        UserError: none is meant, or several are.
    """
    known = store.trials()
    fitting = [trial_id for trial_id in known if trial_id.startswith(name)] if name else []
    if name in known or len(fitting) == 1:
        return name if name in known else fitting[0]
    if fitting:
        raise UserError(
            f"'{name}' is the beginning of {len(fitting)} trials: {', '.join(fitting[:5])}; give more of it"
        )
    if len(name) == 32 and set(name) <= set("0123456789abcdef"):
        from harness.tracking.tracking import trial_of_run

        trial_id = trial_of_run(name)
        if trial_id in known:
            return trial_id
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else f" in {store.root}; `codetr status --all` lists them"
    raise UserError(f"'{name}': no trial, MLflow run or file of weights of this name{hint}")


def read_trial(store: RunStore, trial_id: str) -> Found:
    """A finished trial of the store.

    Raises:
        UserError: it has not finished, its weights are gone, or its configuration is of another version.
    """
    status, record = store.status(trial_id), store.read(trial_id) or {}
    if status != "finished":
        raise UserError(f"trial {trial_id} is {status}: only a finished one has weights to analyse")
    weights = store.dir(trial_id) / "checkpoint" / WEIGHTS
    if not is_file(weights):
        raise UserError(f"trial {trial_id}: its weights are gone ({weights}); train it again")
    history = record.get("history") or [{}]
    config = config_from_dict(record.get("config") or {})
    commit = str((record.get("provenance") or {}).get("commit") or "unknown")[:10]
    remedy = f"another version of this code trained them (commit {commit}): analyse them with that one, or train again"
    return Found(trial_id, config, weights, history[-1].get("epoch"), f"trial {trial_id}", remedy)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors file or of what `torch.save` wrote.

    Raises:
        UserError: it holds something else.
    """
    try:
        tensors = files.read_weights(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    return {name.removeprefix("model."): value for name, value in tensors.items()}


def build(found: Found, device: torch.device) -> Detector:
    """The detector with its weights, official names translated.

    Raises:
        UserError: the weights are of another detector than the configuration.
    """
    weights = _translated(read_weights(found.weights), found)
    if CLASS_BRANCH not in weights:
        raise UserError(f"{found.where}: no tensor {CLASS_BRANCH}; these are not the weights of a Co-DETR detector")
    model = found.config.model  # its backbone's pretrained weights are part of `weights` and need not be here
    model = replace(model, backbone=without_weights(model.backbone))
    detector = Detector(model, len(weights[CLASS_BRANCH]))
    own = detector.state_dict()
    strange = sorted(weights.keys() - own.keys())
    missing = sorted(own.keys() - weights.keys())
    shapes = sorted(name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape)
    for what, names in (("lack", missing), ("have besides", strange), ("have in another shape", shapes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{found.where}: the weights {what} {', '.join(names[:3])}{more}; {found.remedy}")
    detector.load_state_dict(weights)
    return detector.to(device).eval()


def _translated(weights: dict[str, Tensor], found: Found) -> dict[str, Tensor]:
    """The weights under our names."""
    if not any(name.startswith("query_head.") for name in weights):
        return weights
    from model.heads import HEADS

    model = found.config.model
    names = HEADS.instance_names(model.heads)
    regions = [name for name, head in zip(names, model.heads, strict=True) if HEADS.name_of(head) in REGION_HEADS]
    ordered = [*regions, *(name for name in names if name not in regions)]
    return convert(weights, ordered, num_roi_heads=len(regions), scalar_embedding=model.compatibility == "official")
