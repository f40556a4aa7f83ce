"""Training: one optimiser step on one screen, its parameter groups and its schedule.

Nothing here logs or evaluates; `trial.py` does, around it. A run is a pure function of (configuration, seed):
the loader's order and augmentation follow from (seed, epoch), everything else that moves is in `checkpoint.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.config import TrainConfig
from harness.errors import NonFiniteLoss, UserError
from harness.trial.ranks import ALONE, Ranks
from model.detector import Detector
from model.share import largest
from model.types import Batch

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
    names, values = [], []
    for batch in batches:
        mixed = torch.autocast(batch.images.device.type, torch.bfloat16, enabled=config.precision == "bf16")
        with mixed, ranks.sharing(batch.share):
            total, losses = _forward(detector, batch, step)
        names.append(["total", *losses])
        values.append(torch.stack([total.detach().float(), *(loss.detach().float() for loss in losses.values())]))
        borrowed = batch.share is not None and batch.share.borrowed
        (0 * total if borrowed else total / len(batches)).backward()
    ranks.add_gradients(detector.parameters())
    norm = torch.nn.utils.clip_grad_norm_(detector.parameters(), config.clip_grad_norm or math.inf)
    # All that the host must know of the step, with one copy: nothing waits for the device before.
    numbers = iter(torch.cat([*values, norm.detach().float()[None]]).tolist())
    sums: dict[str, float] = {}
    for batch, terms in zip(batches, names, strict=True):
        found = _check_finite({term: next(numbers) for term in terms}, step, batch.image_ids)
        borrowed = batch.share is not None and batch.share.borrowed
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + (0.0 if borrowed else value / len(batches))
    sums = ranks.add(sums)
    if not math.isfinite(next(numbers)):
        own = [image for batch in batches for image in batch.image_ids]
        images = [image for images in ranks.gather(own) for image in images] or own
        raise NonFiniteLoss(f"the gradient is not finite at step {step}, images {images}; losses were {_short(sums)}")
    optimizer.step()
    return sums


def _forward(detector: Detector, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    if batch.share is not None:  # heads draw numbers for as many objects as the batch has rows for
        rows = largest(batch.targets.labels.shape[1])
        batch = replace(batch, targets=batch.targets.padded_to(rows))
    try:
        return detector(batch)
    except FloatingPointError as error:  # from matching, which sees the predictions first
        raise NonFiniteLoss(f"{error} (step {step}, images {list(batch.image_ids)})") from error


def _check_finite(numbers: dict[str, float], step: int, image_ids: tuple[int, ...]) -> dict[str, float]:
    """The same losses, if they are finite."""
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


def recompute(detector: Detector, config: TrainConfig) -> None:
    """What `train.checkpoint_…` asks of the detector.

    Raises:
        UserError: it cannot.
    """
    try:
        detector.recompute(encoder_layers=config.checkpoint_encoder_layers, backbone=config.checkpoint_backbone)
    except ValueError as error:
        raise UserError(f"train.checkpoint_encoder_layers, train.checkpoint_backbone: {error}") from error


# ---- optimiser and schedule ---------------------------------------------------------------------------------------


def parameter_groups(detector: Detector, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW groups: all, the backbone, and what says where attention looks at their own rates (official).

    With `layer_decay` each layer of the backbone has its own, and what is not decayed stands apart. Groups come in the
    order in which their first parameters do.
    """
    factors = {"backbone": config.backbone_lr_factor, "sampling": config.sampling_lr_factor}
    roles = detector.parameter_roles()
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            factor = factors.get(roles[name].name, 1.0) * config.layer_decay ** roles[name].depth
            groups.setdefault((factor, _is_decayed(name, parameter, config)), []).append(parameter)
    rate = config.learning_rate
    return [
        {"params": own, "lr": rate * factor, "base_lr": rate * factor, **({} if decayed else {"weight_decay": 0.0})}
        for (factor, decayed), own in groups.items()
    ]


def _is_decayed(name: str, parameter: Tensor, config: TrainConfig) -> bool:
    """Whether `weight_decay` shrinks a parameter."""
    return config.weight_decay_of == "all" or not (parameter.dim() == 1 or name.endswith(".bias"))


def build_optimizer(detector: Detector, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW, one fused kernel for all parameters."""
    groups = parameter_groups(detector, config)
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


def learning_rate_factor(step: int, total_steps: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Learning rate at a 0-based step, relative to its peak.

    `one_cycle`: a linear rise over `warmup_fraction` of all steps, then a cosine to zero.
    `step`: the same rise, then 1, times 0.1 after each of `drop_epochs`.
    With `warmup_steps` the rise is theirs, from `warmup_start` in the first step to 1 in the one after them (official).
    """
    warmup = config.warmup_steps or config.warmup_fraction * total_steps
    drops = (
        0 if config.schedule == "one_cycle" else sum(step >= epoch * steps_per_epoch for epoch in config.drop_epochs)
    )
    if step < config.warmup_steps:
        return float(0.1**drops) * (config.warmup_start + (1 - config.warmup_start) * step / warmup)
    if step + 1 < warmup:
        return (step + 1) / warmup
    if config.schedule == "one_cycle":
        progress = (step + 1 - warmup) / max(total_steps - warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * progress))
    return float(0.1**drops)
