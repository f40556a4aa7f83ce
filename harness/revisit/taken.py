"""`codetr import-weights`: a released file becomes one of ours, which says of itself what it is.

Nothing that lies there is lost: the file is written whole or not at all, and another one is replaced only by `--force`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.files import exists, is_folder
from harness.revisit.classes import of_released
from harness.revisit.described import Description, described
from harness.revisit.trained import Found, read_translated
from harness.trial.checkpoint import save_file_atomic
from model.weights import file_trouble

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Taken:
    """What was written."""

    path: Path
    description: Description
    num_parameters: int


def target(source: Path, out: str | None, force: bool) -> Path:
    """The file to write: `out`, or the source's name with the suffix of our files, in the working folder.

    Raises:
        UserError: it is the source itself or a folder, has another suffix, lies where nothing can be written, or is
            there and may not be replaced.
    """
    path = Path(out) if out is not None else Path(f"{source.stem}{SUFFIX}")
    if path.suffix != SUFFIX:
        raise UserError(f"--out {path}: must end in {SUFFIX}")
    if exists(path) and exists(source) and os.path.samefile(path, source):
        raise UserError(f"{path} is the file that is read; name another one by --out")
    if is_folder(path):
        raise UserError(f"--out {path} is a folder; name the file in it")
    above = next(own for own in path.absolute().parents if exists(own))
    if not is_folder(above):
        raise UserError(f"--out {path}: {above} is a file, and no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"--out {path}: nothing can be written in {above}; see to the rights there, or name another")
    if exists(path) and not force and _said(path) is None:
        raise UserError(f"{path} is there already, and no imported weights; --out names another, --force replaces it")
    return path


def take(
    found: Found, model: str, path: Path, *, force: bool = False, verbose: bool = False, say: Callable[[str], None]
) -> Taken:
    """Read a file, translate its names and write it for the configuration of `found`.

    Args:
        found: the file and the detector that it must fit.
        model: the name of that detector's preset, to be kept.
        path: of `target`.
        force: replace another file that is there.
        verbose: tell every name.
        say: takes the report on the names.

    Raises:
        UserError: the file cannot be read or does not fit, or another one is there.
        StorageError: it could not be written; what was there is whole.
    """
    made, _ = read_translated(found, verbose=verbose, say=say)
    with open(found.weights, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    description = Description(model, found.weights.name, digest, made.family, made.num_classes, found.config)

    def confirm() -> None:
        if not force and exists(path) and not _is_same(_said(path), description):
            raise UserError(f"{path} is there already, of other weights; --out names another file, --force replaces it")

    confirm()
    classes = found.classes or of_released(model, made.num_classes)
    metadata = description.to_metadata() | ({} if classes is None else classes.to_metadata())
    save_file_atomic(path, _apart(made.tensors), metadata, confirm)
    return Taken(path, description, sum(tensor.numel() for tensor in made.tensors.values()))


def _said(path: Path) -> Description | None:
    """What the file at a path says of itself; None where that is nothing that this version can read."""
    try:
        return None if file_trouble(path) else described(path)
    except UserError:
        return None


def _is_same(one: Description | None, other: Description) -> bool:
    return one is not None and one.to_metadata() == other.to_metadata()


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers in single precision where they have a fraction, each tensor in memory of its own."""
    import torch

    owners: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        own = tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype).contiguous()
        memory = own.untyped_storage()
        if memory.data_ptr() in owners or memory.nbytes() != own.nbytes:
            own = own.clone()
        owners.add(own.untyped_storage().data_ptr())
        found[name] = own
    return found
