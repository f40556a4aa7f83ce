"""What a trial works with: data, detector and optimiser, brought to the point where the trial was left."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.data import open_splits
from harness.data.coco import CocoDataset
from harness.data.loader import Loader
from harness.results import RunStore
from harness.train import Progress, build_optimizer, load_checkpoint
from model.detector import Detector
from model.heads import needs_masks
from model.ops import implementation

if TYPE_CHECKING:
    from harness.grid import Trial

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
    should_stop: Callable[[], bool]

    @property
    def folder(self) -> Path:
        """Where the trial's files live."""
        return self.store.dir(self.trial.trial_id)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return -(-len(self.train_loader) // self.trial.config.train.accumulate_steps)

    @property
    def epochs(self) -> int:
        """Epochs of the whole training: `train.epochs`, or as many as `train.min_steps` takes."""
        config = self.trial.config.train
        return max(config.epochs, -(-config.min_steps // self.steps_per_epoch))

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


def build_trial(trial: Trial, store: RunStore, report: Report, should_stop: Callable[[], bool]) -> TrialState:
    """Data, detector and optimiser of a trial, at the point where it was left."""
    from harness.grid import config_to_dict

    config = trial.config
    clock = time.monotonic()

    def tell(kind: str, message: str) -> None:
        report({"kind": kind, "trial_id": trial.trial_id, "label": trial.label, "message": message})

    device = choose_device(trial.runtime.device)
    reset_peak_memory(device)
    with _forwarded("codetr", tell):
        implementation(device)  # builds the kernels, or says that it cannot
    train_data, val_data = open_splits(
        config.data, progress=lambda message: tell("data", message), with_masks=needs_masks(config.model.heads)
    )
    torch.manual_seed(config.seed)
    detector = Detector(config.model, train_data.num_classes).to(device)
    optimizer = build_optimizer(detector, config.train)
    store.write_config(trial.trial_id, config_to_dict(config))
    progress, warnings = load_checkpoint(store.dir(trial.trial_id) / "checkpoint", detector, optimizer)
    for warning in warnings:
        tell("warning", warning)
    store.restore_metrics(trial.trial_id, progress.history if progress else [])
    workers = trial.runtime.num_workers
    divisor = detector.size_divisor
    return TrialState(
        trial,
        store,
        device,
        Loader(
            train_data,
            config.data,
            batch_size=config.train.batch_size // config.train.accumulate_steps,
            training=True,
            seed=config.seed,
            size_divisor=divisor,
            num_workers=workers,
        ),
        Loader(
            val_data,
            config.data,
            batch_size=max(1, config.train.batch_size // config.train.accumulate_steps),
            training=False,
            seed=0,
            size_divisor=divisor,
            num_workers=workers,
        ),
        val_data,
        detector,
        optimizer,
        progress or Progress(),
        datetime.now(UTC).isoformat(timespec="seconds"),
        clock,
        report,
        should_stop,
    )


def choose_device(wanted: str) -> torch.device:
    """`auto` takes the accelerator where there is one.

    Raises:
        ValueError: `cuda` is wanted and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ValueError("runtime.device: cuda is asked for, but torch sees no GPU here; use auto or cpu")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


# ---- memory -------------------------------------------------------------------------------------------------------


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak of what ran in this process before, where the system allows it (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Peak of allocated GPU memory, or of this process's resident memory, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
