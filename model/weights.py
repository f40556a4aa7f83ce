"""Files of weights: tensors by name, from what `torch.save` or safetensors wrote.

What stands in a file decides how it is read, not its suffix. A file that cannot be used is told in one line.
"""

from __future__ import annotations

import argparse
import os
import stat
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from model.looks import looks_like

if TYPE_CHECKING:  # loaded where a file is read: whether there is one can be asked without
    import torch
    from torch import Tensor

FEW = 3  # names of a kind that a message shows
CUT_SHORT = "it is cut short or damaged; fetch it again"
NO_WEIGHTS = "it holds no state dict, a mapping of names to tensors; save model.state_dict()"
# Keys below which training programs keep state dicts. A moving average comes first: it is what they evaluate.
ENTRIES = ("ema_model", "model_ema", "state_dict", "model", "module")
LFS_POINTER = b"version https://git-lfs"


class Checkpoint(NamedTuple):
    """The tensors of a file."""

    tensors: dict[str, Tensor]
    entry: str = ""  # the key that they stand under; empty: the file is the state dict itself
    others: tuple[str, ...] = ()  # keys of the state dicts that stand beside it


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU (see `read_checkpoint`)."""
    return read_checkpoint(path).tensors


@contextmanager
def of_backbone() -> Iterator[None]:
    """Within, what is wrong with a file is told as a mistake in the setting that names a backbone's."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"model.backbone.weights: {error}") from error


def read_checkpoint(path: Path, entry: str | None = None) -> Checkpoint:
    """The tensors of a file, on the CPU: its state dict, or the one below the first of `ENTRIES` that it has.

    Args:
        path: what `torch.save` or safetensors wrote.
        entry: the key of the state dict to take instead.

    Raises:
        ValueError: the file is missing, cannot be read, is cut short, or holds something else; one line.
    """
    if trouble := file_trouble(path):
        raise ValueError(f"{path} {trouble}")
    try:
        content = _read(path)
    except _NoWeights as error:
        raise ValueError(f"{path} cannot be read as weights: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read as weights: {error.strerror or error}") from error
    except Exception as error:  # a broken file may fail in any way
        raise ValueError(f"{path} cannot be read as weights: {CUT_SHORT} ({_first_line(error)})") from error
    keys = ENTRIES if isinstance(content, dict) else ()
    found = {"": content} if _is_state(content) else {key: content[key] for key in keys if _is_state(content.get(key))}
    if entry is not None and entry not in found:
        raise ValueError(f"{path} has no state dict '{entry}'; it has {', '.join(filter(None, found)) or 'no key'}")
    if not found:
        raise ValueError(f"{path} cannot be read as weights: {NO_WEIGHTS}")
    key = next(iter(found)) if entry is None else entry
    if strange := [name for name, value in found[key].items() if not _is_plain(value)]:
        kind = "sparse, quantised or without numbers"
        raise ValueError(f"{path} cannot be read as weights: its {_few(strange)} are {kind}")
    return Checkpoint(dict(found[key]), key, tuple(own for own in found if own != key))


class _NoWeights(Exception):
    """Says what a file is instead."""


def file_trouble(path: Path) -> str:
    """Why nothing can be read from a path; empty when it is a file. Looks at its entry in the folder alone."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        dangling = " (a link that leads nowhere)" if path.is_symlink() else ""
        return f"does not exist{dangling}"
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    if stat.S_ISDIR(mode):
        return "is a folder; name the file in it"
    return "" if stat.S_ISREG(mode) else "is no ordinary file"


def _read(path: Path) -> Any:
    with open(path, "rb") as file:
        head, size = file.read(len(LFS_POINTER)), os.fstat(file.fileno()).st_size
    if size == 0:
        raise _NoWeights("it is empty; fetch it again")
    if head.startswith(LFS_POINTER):
        raise _NoWeights("it is a pointer of Git LFS; fetch the file itself with `git lfs pull`")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        from safetensors.torch import load_file

        return load_file(path)
    if head.startswith(b"PK"):
        _check_archive(path)
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # of a path, torch would go by the suffix; DETR's files hold the options of their command line
            with open(path, "rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            if type(error).__name__ != "UnpicklingError" or "truncated" in str(error):
                raise
            raise _NoWeights(f"{NO_WEIGHTS} (another kind of file, or Python objects besides tensors)") from error


def _check_archive(path: Path) -> None:
    """Raise where the archive that `torch.save` writes is not whole: torch itself checks no sums."""
    if not zipfile.is_zipfile(path):
        raise _NoWeights(CUT_SHORT)
    with zipfile.ZipFile(path) as archive:
        if (name := archive.testzip()) is not None:
            raise _NoWeights(f"{CUT_SHORT} (its part {name} has changed)")


def _is_state(content: Any) -> bool:
    """Whether this is a state dict with something in it."""
    import torch

    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())
    )


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor's numbers are all there, one after the other."""
    import torch

    return value.layout is torch.strided and not value.is_quantized and not value.is_nested and not value.is_meta


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


def misfits(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """How weights differ from what a module's state dict asks for: names and shapes; empty when they fit.

    The last thing told is what they look like, where that is another architecture than the module's.

    Counts of batches, which only an average over all of them would need, may be missing or there.
    """
    shapes = {name: tuple(value.shape) for name, value in expected.items() if not _is_count(name)}
    there = {name: weights[name] for name in shapes if name in weights}
    missing = [name for name in shapes if name not in weights]
    strange = [name for name in weights if name not in expected and not _is_count(name)]
    other = [
        f"{name} ({_sides(value.shape)} instead of {_sides(shapes[name])})"
        for name, value in there.items()
        if tuple(value.shape) != shapes[name]
    ]
    prefix = _prefix(missing, strange)
    told = [f"lacks {_few(missing)}, {len(missing)} of {len(shapes)} names"] if missing else []
    told += [f"whose names begin with '{prefix}' there"] if prefix else []
    told += [f"has another shape for {_few(other)}"] if other else []
    told += [f"has besides {_few(strange)}"] if strange and not prefix else []
    told += [numbers] if (numbers := wrong_numbers(there)) else []
    if told and (look := _look(weights)) and look != _look(expected):
        told.append(f"looks like {look}")
    return ", ".join(told)


def _look(weights: Mapping[str, Tensor]) -> str:
    return looks_like({name: tuple(value.shape) for name, value in weights.items()})


def below_prefix(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights below the one prefix, such as `backbone.`, below which all expected names are; else all of them.

    Nothing is guessed: where all names are there without a prefix, or below several ones, nothing is taken off.
    """
    names = [name for name in expected if not _is_count(name)]
    first = names[0] if names else ""
    beginnings = {name.removesuffix(first) for name in weights if name == first or name.endswith(f".{first}")}
    fitting = [own for own in beginnings if all(f"{own}{name}" in weights for name in names)]
    if len(fitting) != 1:
        return dict(weights)
    [prefix] = fitting
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def wrong_numbers(weights: Mapping[str, Tensor]) -> str:
    """Which of these are no weights by their numbers, to stand behind a file's name; empty where all are.

    Counts of batches are whole numbers. Floating-point ones of 8 bits mean nothing without the scales beside them.
    """
    own = {name: value for name, value in weights.items() if not _is_count(name)}
    kinds = {name: str(value.dtype).removeprefix("torch.") for name, value in own.items() if not _is_float(value)}
    broken = [
        name if not value.isfinite().all() else f"{name} (beyond 32 bits)"
        for name, value in own.items()
        if name not in kinds and not value.float().isfinite().all()
    ]
    others = [f"{name} ({kind})" for name, kind in kinds.items()]
    told = [f"has other numbers than floating-point ones of 16 to 64 bits in {_few(others)}"] if others else []
    told += [f"has no finite numbers in {_few(broken)}"] if broken else []
    return ", ".join(told)


def _is_float(value: Tensor) -> bool:
    return value.is_floating_point() and value.element_size() > 1


def _is_count(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _sides(shape: torch.Size | tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _few(names: list[str]) -> str:
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def _prefix(missing: list[str], strange: list[str]) -> str:
    """The beginning that most missing names have in a file, as after training in a wrapper; empty when none has one."""
    wanted, found = set(missing), Counter[str]()
    for name in strange:
        parts = name.split(".")
        found.update(".".join([*parts[:cut], ""]) for cut in range(1, len(parts)) if ".".join(parts[cut:]) in wanted)
    prefix, number = found.most_common(1)[0] if found else ("", 0)
    return prefix if 2 * number >= len(missing) else ""
