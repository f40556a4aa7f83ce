"""Training: one optimiser step on one screen, its parameter groups, schedule and exact checkpoints.

Nothing here logs or evaluates; `trial.py` does, around it. A run is a pure function of (configuration, seed):
the loader's order and augmentation follow from (seed, epoch), and everything else that moves is in the checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.config import TrainConfig
from harness.errors import NonFiniteLoss, ReadError, StorageError
from harness.files import exists
from harness.trial.ranks import ALONE, Ranks
from model.detector import Detector
from model.types import Batch

CHECKPOINT, PREVIOUS, WEIGHTS = "state.safetensors", "previous.safetensors", "model.safetensors"


# ---- one step -----------------------------------------------------------------------------------------------------


def train_step(
    detector: Detector,
    batches: list[Batch],
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    *,
    step: int,
    total_steps: int,
    steps_per_epoch: int,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """One optimiser step over `batches` (more than one: gradient accumulation).

    Args:
        detector: in training mode, on the batches' device.
        batches: the parts of one batch, or this rank's shares of them; their gradients are averaged.
        optimizer: with groups from `parameter_groups`.
        config: precision, clipping and schedule.
        step: 0-based number of this step.
        total_steps: of the whole training.
        steps_per_epoch: for the step schedule.
        ranks: that take this step together.

    Returns:
        Every unweighted loss by name and the weighted total as `total`, averaged over the parts.

    Raises:
        NonFiniteLoss: names the terms, the step and the images; the parameters are left as they were.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * learning_rate_factor(step, total_steps, steps_per_epoch, config)
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    for batch in batches:
        mixed = torch.autocast(batch.images.device.type, torch.bfloat16, enabled=config.precision == "bf16")
        with mixed, ranks.sharing(batch.share):
            total, losses = _forward(detector, batch, step)
        values = _check_finite(total, losses, step, batch.image_ids)
        borrowed = batch.share is not None and batch.share.borrowed
        (0 * total if borrowed else total / len(batches)).backward()
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + (0.0 if borrowed else value / len(batches))
    sums = ranks.add(sums)
    ranks.add_gradients(detector.parameters())
    norm = torch.nn.utils.clip_grad_norm_(detector.parameters(), config.clip_grad_norm or math.inf)
    if not torch.isfinite(norm):
        own = [image for batch in batches for image in batch.image_ids]
        images = [image for images in ranks.gather(own) for image in images] or own
        raise NonFiniteLoss(f"the gradient is not finite at step {step}, images {images}; losses were {_short(sums)}")
    optimizer.step()
    return sums


def _forward(detector: Detector, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    try:
        return detector(batch)
    except FloatingPointError as error:  # from matching, which sees the predictions first
        raise NonFiniteLoss(f"{error} (step {step}, images {list(batch.image_ids)})") from error


def _check_finite(total: Tensor, losses: dict[str, Tensor], step: int, image_ids: tuple[int, ...]) -> dict[str, float]:
    """The losses as numbers, with one transfer for all."""
    names = ["total", *losses]
    values = torch.stack([total.detach().float(), *(loss.detach().float() for loss in losses.values())]).tolist()
    numbers = dict(zip(names, values, strict=True))
    bad = [name for name, value in numbers.items() if not math.isfinite(value) and name != "total"]
    if bad or not math.isfinite(numbers["total"]):
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        raise NonFiniteLoss(
            f"loss not finite at step {step}: {', '.join(bad) or 'total'}; images {list(image_ids)}; "
            f"finite ones: {_short(finite)}; lower train.learning_rate or use train.precision: fp32"
        )
    return numbers


def _short(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name}={value:.3g}" for name, value in numbers.items())


# ---- optimiser and schedule ---------------------------------------------------------------------------------------


def parameter_groups(detector: Detector, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW groups: all, the backbone, and what says where attention looks at their own rates (official)."""
    factors = {"backbone": config.backbone_lr_factor, "sampling": config.sampling_lr_factor}
    roles = detector.parameter_roles()
    groups: dict[float, list[Tensor]] = {}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(factors.get(roles[name].name, 1.0), []).append(parameter)
    rate = config.learning_rate
    return [{"params": p, "lr": rate * factor, "base_lr": rate * factor} for factor, p in groups.items()]


def build_optimizer(detector: Detector, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW, one fused kernel for all parameters."""
    groups = parameter_groups(detector, config)
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


def learning_rate_factor(step: int, total_steps: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Learning rate at a 0-based step, relative to its peak.

    `one_cycle`: a linear rise over `warmup_fraction` of all steps, then a cosine to zero.
    `step`: the same rise, then 1, times 0.1 after each of `drop_epochs`.
    """
    warmup = config.warmup_fraction * total_steps
    if step + 1 < warmup:
        return (step + 1) / warmup
    if config.schedule == "one_cycle":
        progress = (step + 1 - warmup) / max(total_steps - warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * progress))
    return float(0.1 ** sum(step >= epoch * steps_per_epoch for epoch in config.drop_epochs))


# ---- exact checkpoints --------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """Where a training stands; with the tensors in the checkpoint it is all that a resumed run needs."""

    step: int = 0  # optimiser steps done
    epoch: int = 0  # epochs done, with their evaluation
    loss_sums: dict[str, float] = field(default_factory=dict)  # over the steps of the epoch at work
    history: list[dict[str, Any]] = field(default_factory=list)  # an entry per epoch done
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    checkpoint_seconds: float = 0.0  # of checkpoints, which are in no other of these but the last
    wall_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    # [N, 2, Q] of the last evaluation (see `harness.trial.evaluate.Evaluation`); None before the first
    matching: Tensor | None = field(default=None, compare=False)


def save_checkpoint(
    folder: Path,
    detector: Detector,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    confirm: Callable[[], object] = lambda: None,
) -> None:
    """Write weights, optimiser, random state and progress as one file, keeping the one before until it is whole.

    `confirm` is called when all is written and before anything is replaced; what it raises keeps things as they are.

    Raises:
        StorageError: it could not be written; the one before is untouched.
    """
    tensors = {f"model.{name}": value for name, value in detector.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if progress.matching is not None:
        tensors["matching"] = progress.matching
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    tensors = {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}
    text = json.dumps({name: value for name, value in progress.__dict__.items() if name != "matching"})
    temporary = folder / f".{CHECKPOINT}.{os.getpid()}.tmp"
    _save(tensors, temporary, {"progress": text, "checksum": _checksum(tensors, text)}, confirm)
    if (folder / CHECKPOINT).exists():
        os.replace(folder / CHECKPOINT, folder / PREVIOUS)
    os.replace(temporary, folder / CHECKPOINT)


def _save(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None, confirm: Callable[[], object]
) -> None:
    """Write tensors to a file that reaches the disk, or leave none; the latter also where `confirm` raises."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        confirm()
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError | SafetensorError) and not isinstance(error, StorageError):
            raise StorageError(path.parent, error) from error
        raise


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    """Of all that a checkpoint holds: safetensors itself does not notice a changed byte."""
    value = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def load_checkpoint(
    folder: Path, detector: Detector, optimizer: torch.optim.Optimizer
) -> tuple[Progress | None, list[str]]:
    """Continue from the newest whole checkpoint, if there is one.

    Returns:
        progress (None: start from the beginning), and a warning for each checkpoint that is damaged.

    Raises:
        ReadError: the storage does not give a checkpoint that may be whole.
    """
    warnings = []
    for name in (CHECKPOINT, PREVIOUS):
        if not exists(folder / name):
            continue
        try:
            tensors, progress = _read(folder / name)
        except OSError as error:  # the storage: the checkpoint may be whole
            raise ReadError(folder / name, error) from error
        except Exception as error:  # noqa: BLE001 - a torn file may fail in any way; the one before is tried
            before = name == CHECKPOINT and exists(folder / PREVIOUS)
            then = "going on from the one before" if before else "starting from the beginning"
            warnings.append(f"checkpoint {folder / name} cannot be read ({error}); {then}")
            continue
        _restore(tensors, detector, optimizer)
        return progress, warnings
    return None, warnings


def drop_torn(folder: Path) -> None:
    """Put the checkpoint before in the place of a torn one, or the next save would push the whole one out.

    To be called after `load_checkpoint` went on from the one before, by one process.
    """
    if exists(folder / PREVIOUS):
        os.replace(folder / PREVIOUS, folder / CHECKPOINT)


def _read(path: Path) -> tuple[dict[str, Tensor], Progress]:
    from safetensors import safe_open

    open(path, "rb").close()  # an error of the storage: safetensors calls each of them a missing file
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if _checksum(tensors, metadata["progress"]) != metadata["checksum"]:
        raise ValueError("its checksum is wrong: a byte has changed")
    return tensors, Progress(**json.loads(metadata["progress"]), matching=tensors.get("matching"))


def _restore(tensors: dict[str, Tensor], detector: Detector, optimizer: torch.optim.Optimizer) -> None:
    detector.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            states.setdefault(int(index), {})[key] = tensor
    current = optimizer.state_dict()
    optimizer.load_state_dict({"state": states, "param_groups": current["param_groups"]})
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])


def save_weights(folder: Path, detector: Detector, confirm: Callable[[], object] = lambda: None) -> None:
    """Keep the trained weights; `confirm` as in `save_checkpoint`.

    Raises:
        StorageError: they could not be written.
    """
    temporary = folder / f".{WEIGHTS}.{os.getpid()}.tmp"
    _save({name: value.contiguous() for name, value in detector.state_dict().items()}, temporary, None, confirm)
    os.replace(temporary, folder / WEIGHTS)


def drop_checkpoints(folder: Path) -> None:
    """Remove what only a continuation would need; called once the record says finished."""
    for path in (folder / CHECKPOINT, folder / PREVIOUS, *folder.glob(".*.tmp")):  # the latter of killed processes
        path.unlink(missing_ok=True)
