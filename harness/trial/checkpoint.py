"""Exact checkpoints: all that a training needs to go on as if it had never stopped, and its weights at the end."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.data.categories import Categories
from harness.errors import ReadError, StorageError
from harness.files import TEMPORARY, exists
from harness.store.results import CHECKPOINT, PREVIOUS, WEIGHTS
from harness.trial.ema import MovingAverage
from model.detector import Detector


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


@dataclass(frozen=True)
class Snapshot:
    """A training at one moment, apart from it: the training may go on while this is written."""

    tensors: dict[str, Tensor]  # on the CPU, shared with nothing
    progress: str  # JSON


def snapshot(
    detector: Detector, optimizer: torch.optim.Optimizer, progress: Progress, average: MovingAverage | None = None
) -> Snapshot:
    """Copy weights, moving average, optimiser, random state and progress."""
    tensors = {f"model.{name}": value for name, value in detector.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.tensors.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if progress.matching is not None:
        tensors["matching"] = progress.matching
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    text = json.dumps({name: value for name, value in progress.__dict__.items() if name != "matching"})
    return Snapshot({name: _copy(value) for name, value in tensors.items()}, text)


def _copy(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def write_checkpoint(folder: Path, taken: Snapshot, confirm: Callable[[], object] = lambda: None) -> None:
    """Write a snapshot as one file; the checkpoint before stays until it is whole.

    `confirm` is called when all is written and before anything is replaced; what it raises keeps things as they are.

    Raises:
        StorageError: it could not be written; the one before is untouched.
    """
    temporary = folder / f".{CHECKPOINT}.{os.getpid()}.tmp"
    metadata = {"progress": taken.progress, "checksum": _checksum(taken.tensors, taken.progress)}
    _save(taken.tensors, temporary, metadata, confirm)
    if (folder / CHECKPOINT).exists():
        os.replace(folder / CHECKPOINT, folder / PREVIOUS)
    os.replace(temporary, folder / CHECKPOINT)


def save_checkpoint(
    folder: Path,
    detector: Detector,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    confirm: Callable[[], object] = lambda: None,
    *,
    average: MovingAverage | None = None,
) -> None:
    """`write_checkpoint` of a `snapshot`."""
    write_checkpoint(folder, snapshot(detector, optimizer, progress, average), confirm)


def _save(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None, confirm: Callable[[], object]
) -> None:
    """Write tensors to a file that reaches the disk, or leave none; the latter also where `confirm` raises."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        open(path, "wb").close()  # safetensors' own error would not say what the system says
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
    folder: Path, detector: Detector, optimizer: torch.optim.Optimizer, average: MovingAverage | None = None
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
        if average is not None:
            average.load(_below("average.", tensors))
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


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore(tensors: dict[str, Tensor], detector: Detector, optimizer: torch.optim.Optimizer) -> None:
    detector.load_state_dict(_below("model.", tensors))
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


def save_weights(
    folder: Path, detector: Detector, confirm: Callable[[], object] = lambda: None, classes: Categories | None = None
) -> None:
    """Keep the trained weights, and the names of their classes; `confirm` as in `write_checkpoint`.

    Raises:
        StorageError: they could not be written.
    """
    tensors = {name: value.contiguous() for name, value in detector.state_dict().items()}
    save_file_atomic(folder / WEIGHTS, tensors, None if classes is None else classes.to_metadata(), confirm)


def save_file_atomic(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None, confirm: Callable[[], object]
) -> None:
    """Replace a safetensors file whole or not at all; `confirm` as in `write_checkpoint`.

    Raises:
        StorageError: it could not be written; the file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _save(tensors, temporary, metadata, confirm)
    os.replace(temporary, path)


def drop_checkpoints(folder: Path) -> None:
    """Remove what only a continuation would need; called once the record says finished."""
    killed = [path for pattern in TEMPORARY for path in folder.glob(pattern)]  # left by processes that were killed
    for path in (folder / CHECKPOINT, folder / PREVIOUS, *killed):
        path.unlink(missing_ok=True)
