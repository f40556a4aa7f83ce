"""What the optimiser does with each parameter of a detector, told before anything trains: `codetr plan --verbose`.

The detector is built on torch's meta device: names, shapes and groups are those of the training, and no number is drawn
or read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from harness.config import TrainConfig, TrialConfig
from harness.data.classes import num_classes_of
from harness.system.console import remark, table
from harness.trial.train import parameter_groups
from model.backbones.configs import without_weights
from model.config import DetectorConfig
from model.detector import Detector

if TYPE_CHECKING:
    from harness.spec.grid import Trial

COLUMNS = dict.fromkeys(("learning rate", "weight decay", "tensors", "parameters"), False) | {"of": True}


@dataclass(frozen=True)
class Group:
    """Parameters that are treated alike."""

    learning_rate: float | None  # the peak; None: these are frozen
    weight_decay: float | None
    num_tensors: int
    num_parameters: int
    where: str  # beginnings of their names


@dataclass(frozen=True)
class Setting:
    """All that decides the groups; trials with equal ones have the same."""

    model: DetectorConfig
    train: TrainConfig
    num_classes: int


def setting_of(config: TrialConfig, num_classes: int) -> Setting:
    """Of a trial; what the optimiser does not read of its training is left out."""
    told, default = config.train, TrainConfig()
    names = (
        *("learning_rate", "backbone_lr_factor", "sampling_lr_factor", "layer_decay"),
        *("weight_decay", "weight_decay_of"),
    )
    train = replace(default, **{name: getattr(told, name) for name in names})
    return Setting(replace(config.model, backbone=without_weights(config.model.backbone)), train, num_classes)


def groups_of(setting: Setting) -> list[Group]:
    """The optimiser's groups in their order, and last what is frozen, if anything is.

    Raises:
        Exception: a part cannot be built without numbers, or not at all.
    """
    with torch.device("meta"):
        detector = Detector(setting.model, setting.num_classes)
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    groups = []
    for group in parameter_groups(detector, setting.train):
        decay = float(group.get("weight_decay", setting.train.weight_decay))
        groups.append(_group(group["params"], names, float(group["lr"]), decay))
    frozen = [parameter for parameter in detector.parameters() if not parameter.requires_grad]
    return groups + ([_group(frozen, names, None, None)] if frozen else [])


def print_groups(trials: Sequence[Trial], width: int) -> None:
    """A table of the groups for each detector that differs, below the rows that have it; `width` as in `table`."""
    counts = {data: num_classes_of(data) for data in dict.fromkeys(trial.config.data for trial in trials)}
    rows: dict[Setting, dict[str, None]] = {}
    for trial in trials:
        setting = setting_of(trial.config, counts[trial.config.data])
        rows.setdefault(setting, {})[trial.row] = None
    for setting, labels in rows.items():
        try:
            groups = groups_of(setting)
        except Exception as error:  # noqa: BLE001 - a part of somebody else's may fail in any way; a plan goes on
            first = next(iter(str(error).splitlines()), type(error).__name__)
            remark(f"note: {', '.join(labels)}: the groups of parameters are not known before it trains ({first})")
            continue
        parameters, tensors = sum(own.num_parameters for own in groups), sum(own.num_tensors for own in groups)
        title = f"{', '.join(labels)}: {parameters:,} parameters in {tensors:,} tensors, {setting.num_classes} classes"
        table(title, COLUMNS, [_cells(group) for group in groups], width)


def _cells(group: Group) -> list[str]:
    rate = "frozen" if group.learning_rate is None else f"{group.learning_rate:.3g}"
    decay = "" if group.weight_decay is None else f"{group.weight_decay:g}"
    return [rate, decay, f"{group.num_tensors:,}", f"{group.num_parameters:,}", group.where]


def _group(parameters: Sequence[torch.Tensor], names: dict[int, str], rate: float | None, decay: float | None) -> Group:
    where = _beginnings(names[id(parameter)] for parameter in parameters)
    return Group(rate, decay, len(parameters), sum(parameter.numel() for parameter in parameters), where)


def _beginnings(names: Iterable[str]) -> str:
    """The parts of the detector that these lie in; of a single one the parts below it. One kind of module is named."""
    parts = [name.split(".") for name in names]
    tops = list(dict.fromkeys(part[0] for part in parts))
    modules = {part[-2] for part in parts if len(part) > 2}
    if len(tops) == 1:
        tops = list(dict.fromkeys(".".join(part[:2]) for part in parts))
    same = f" (all {modules.pop()})" if len(modules) == 1 and len(parts) > 2 else ""
    return ", ".join(tops) + same
