"""What a trial works with: data, detector and optimiser, brought to the point where the trial was left."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.data import open_splits
from harness.data.coco import CocoDataset
from harness.data.loader import Loader, evaluated_at_once
from harness.errors import UserError
from harness.spec.pretrained import by_path, check_norms, check_start
from harness.spec.training_length import epochs_of
from harness.store.results import CHECKPOINTS, RunStore
from harness.system.memory import await_free_memory, check_fits
from harness.system.precision import set_precision
from harness.system.process import keep_freed_memory
from harness.trial.checkpoint import Progress, drop_torn, load_checkpoint
from harness.trial.ema import MovingAverage
from harness.trial.footprint import footprint_or_none, largest_of
from harness.trial.ranks import ALONE, Ranks
from harness.trial.train import build_optimizer, recompute
from harness.trial.writer import CheckpointWriter
from model.backbones.configs import asked
from model.detector import Detector
from model.heads import needs_masks
from model.ops import implementation

if TYPE_CHECKING:
    from harness.spec.grid import Trial

Report = Callable[[dict[str, Any]], None]


@dataclass
class TrialState:
    """What a trial works with while it runs."""

    trial: Trial
    store: RunStore
    device: torch.device
    train_loader: Loader
    val_loader: Loader
    val_data: CocoDataset
    detector: Detector
    optimizer: torch.optim.Optimizer
    progress: Progress
    started: str
    clock: float  # when `progress.wall_seconds` was last brought up to date
    report: Report
    should_stop: Callable[[], bool]  # tells all ranks the same, so all must ask at the same points
    ranks: Ranks = ALONE
    average: MovingAverage | None = None  # None: `train.ema_decay` asks for none
    writer: CheckpointWriter = field(default_factory=CheckpointWriter)
    analysis: dict[str, Any] = field(default_factory=dict)  # of the record: what was analysed when; empty: nothing

    @property
    def folder(self) -> Path:
        """Where the trial's files live."""
        return self.store.dir(self.trial.trial_id)

    def as_evaluated(self) -> AbstractContextManager[None]:
        """Within, the detector is the one that the trial's numbers are about: its moving average where it has one."""
        return nullcontext() if self.average is None else self.average.in_place()

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return -(-len(self.train_loader) // self.trial.config.train.accumulate_steps)

    @property
    def epochs(self) -> int:
        """Epochs of the whole training: `train.epochs`, or as many as `train.min_steps` takes."""
        return epochs_of(self.trial.config.train, self.steps_per_epoch)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.steps_per_epoch * self.epochs


@contextmanager
def _forwarded(name: str, tell: Callable[[str, str], None]) -> Iterator[None]:
    """What is logged there becomes a warning event: the output of a worker is seen by nobody."""

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell("warning", record.getMessage())

    handler = Forward(logging.WARNING)
    logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger(name).removeHandler(handler)


def build_trial(
    trial: Trial, store: RunStore, report: Report, should_stop: Callable[[], bool], ranks: Ranks = ALONE
) -> TrialState:
    """Data, detector and optimiser of a trial, at the point where it was left.

    Raises:
        UserError: the data cannot be used, the file of pretrained weights is another one by now, or several ranks would
            not train the detector that one process trains.
        OutOfMemory: less GPU memory is free than the trial demands, or the GPU has less than a step takes.
    """
    from harness.spec.identity import config_to_dict

    config = trial.config
    clock = time.monotonic()

    def tell(kind: str, message: str) -> None:
        report({"kind": kind, "trial_id": trial.trial_id, "label": trial.label, "message": message})

    keep_freed_memory()
    device = choose_device(trial.runtime.device, ranks.rank)
    if device.type == "cpu" and trial.runtime.gpus_per_trial and ranks.is_first:
        asked = trial.runtime.gpus_per_trial
        tell("warning", f"gpus_per_trial is {asked:g}, and torch sees no GPU here: this trains on the CPU")
    set_precision(config.train.precision)
    await_free_memory(device, trial.runtime, lambda message: tell("warning", message))
    reset_peak_memory(device)
    with _forwarded("codetr", tell):
        implementation(device)  # builds the kernels, or says that it cannot
    train_data, val_data = open_splits(
        config.data, progress=lambda message: tell("data", message), with_masks=needs_masks(config.model.heads)
    )
    if device.type == "cuda":
        sharing = -(-ranks.size // torch.cuda.device_count())
        options = {"ranks": ranks.size, "sharing": sharing, "size": largest_of(train_data.image_hw, config.data)}
        check_fits(footprint_or_none(config, train_data.num_classes, **options), trial, device)
    torch.manual_seed(config.seed)
    detector = Detector(by_path(config.model), train_data.num_classes).to(device)
    check_norms(detector, ranks.size)
    recompute(detector, config.train)
    check_start(trial)  # again: reading the data may have taken minutes
    optimizer = build_optimizer(detector, config.train)
    average = MovingAverage(detector) if config.train.ema_decay else None
    if ranks.is_first:
        store.write_config(trial.trial_id, config_to_dict(config))
    checkpoints = store.dir(trial.trial_id) / CHECKPOINTS
    progress, warnings = load_checkpoint(checkpoints, detector, optimizer, average)
    for warning in warnings:
        tell("warning", warning)
    went_back = bool(warnings) and progress is not None
    if progress is not None:
        take_costs(progress, store.read(trial.trial_id) or {})
    progress = progress or Progress()
    ranks.check_same("the step to continue from", progress.step)
    if went_back and ranks.is_first:  # not before all ranks have read it
        store.check_lease(trial.trial_id)
        drop_torn(checkpoints)
    ranks.take_random_state(device)
    if ranks.is_first:
        store.restore_metrics(trial.trial_id, progress.history)
    batch_size = config.train.batch_size // config.train.accumulate_steps
    return TrialState(
        trial,
        store,
        device,
        Loader(
            train_data,
            config.data,
            batch_size=batch_size,
            step_size=config.train.batch_size,
            slice_size=config.model.positive_query_images,
            training=True,
            seed=config.seed,
            size_divisor=detector.size_divisor,
            num_workers=trial.runtime.num_workers,
            rank=ranks.rank,
            num_ranks=ranks.size,
            with_masks=needs_masks(config.model.heads),
        ),
        Loader(
            val_data,
            config.data,
            batch_size=evaluated_at_once(
                max(1, batch_size // ranks.size), config.data, sees_padding=detector.sees_padding
            ),
            training=False,
            seed=0,
            size_divisor=detector.size_divisor,
            num_workers=trial.runtime.num_workers,
            rank=ranks.rank,
            num_ranks=ranks.size,
        ),
        val_data,
        detector,
        optimizer,
        progress,
        datetime.now(UTC).isoformat(timespec="seconds"),
        clock,
        report,
        should_stop,
        ranks,
        average,
    )


def take_costs(progress: Progress, record: Mapping[str, Any]) -> None:
    """Add what the newest checkpoint took itself, which it cannot hold: the record written after it tells."""
    cost = record.get("cost") or {}
    if len(record.get("history") or ()) != len(progress.history):
        return  # of another checkpoint
    for name in ("checkpoint_seconds", "wall_seconds"):
        if isinstance(known := cost.get(name), int | float):
            setattr(progress, name, max(getattr(progress, name), float(known)))


def check_ranks(trial: Trial) -> None:
    """Raise `UserError` where several ranks would not train the detector that one process trains."""
    if trial.runtime.ranks > 1 and asked(trial.config.model.backbone, "norm") == "batch":
        raise UserError(
            "runtime.ranks: model.backbone.norm: batch takes its statistics from the images of one process, so several "
            "ranks would train another detector; use norm: group or frozen_batch, or runtime.ranks: 1"
        )


def choose_device(wanted: str, rank: int = 0) -> torch.device:
    """`auto` takes the accelerator where there is one; each rank has its own, as far as there are enough.

    Raises:
        ValueError: `cuda` is wanted and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ValueError("runtime.device: cuda is asked for, but torch sees no GPU here; use auto or cpu")
    if not available or wanted == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


# ---- memory -------------------------------------------------------------------------------------------------------


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak of what ran in this process before, where the system allows it (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory_mb(device: torch.device) -> float:
    """Peak of allocated GPU memory, or of this process's resident memory, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
