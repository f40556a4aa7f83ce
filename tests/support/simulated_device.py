"""A device that is none, for tests without a GPU: its tensors are the CPU's, and it counts when the host waits for it.

`install()` registers the device type `simulated` for the whole process and cannot be taken back, so this runs in a
process of its own. Every operator of its tensors is computed on the CPU, hence equal numbers. What the host would wait
for on a GPU is counted as waits, copies from the host as copies, each with the line of this project that asked. Tensors
of two devices in one operator are an error, as on a GPU. The operators of `model/ops` are one kernel each.
"""

from __future__ import annotations

import sys
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
ROOT = Path(__file__).parents[2]
# What cannot be known before the device is done: numbers, and sizes of results.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique2", "unique_dim"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
COPYING = {"_to_copy", "copy_", "_copy_from"}

WAITS: Counter[str] = Counter()  # "<operator> <file>:<line>"
COPIES: Counter[str] = Counter()
REDUCTIONS: Counter[str] = Counter()  # over ranks


class SimulatedTensor(torch.Tensor):
    """A tensor of the simulated device around one of the CPU."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> SimulatedTensor:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls, raw.shape, raw.stride(), raw.storage_offset(), dtype=raw.dtype, device=f"{NAME}:0"
        )

    def __init__(self, raw: Tensor):
        self.raw = raw

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"SimulatedTensor({self.raw})"

    def tolist(self) -> Any:
        """Through one copy to the host."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, kinds: Any, arguments: Any = (), options: Any = None) -> Any:
        return computed(function, arguments, options or {})


def place() -> str:
    """The line of this project that is at work, or what is known instead."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("model", "harness"):
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def computed(function: Any, arguments: Any, options: Any) -> Any:
    """What an operator gives, on the simulated device unless the host asked for it."""
    name = function._schema.name.removeprefix("aten::")
    given = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, Tensor)]
    if name.startswith("c10d::"):  # the ranks' own business: the result is in place
        REDUCTIONS[f"{name} {place()}"] += 1
        return function(*tree_map(raw_of, arguments), **options)
    device = None if options.get("device") is None else torch.device(options["device"]).type
    if name in COPYING:
        to_host = device == "cpu" or (name == "copy_" and not isinstance(arguments[0], SimulatedTensor))
        _count_copy(name, given, to_host)
    else:
        to_host = device == "cpu"
        _check_devices(name, given)
        if _waits(name, arguments, options):
            WAITS[f"{name} {place()}"] += 1
    result = function(
        *tree_map(raw_of, arguments), **{**tree_map(raw_of, options), **({"device": "cpu"} if device else {})}
    )
    if to_host:
        return arguments[0] if name == "copy_" else result
    if function._schema.is_mutable:
        return None if result is None else arguments[0] if "out" not in options else options["out"]
    return tree_map(lambda leaf: SimulatedTensor(leaf) if isinstance(leaf, Tensor) else leaf, result)


def raw_of(value: Any) -> Any:
    """The CPU's tensor behind one of the simulated device; anything else as it is."""
    return value.raw if isinstance(value, SimulatedTensor) else value


def _count_copy(name: str, given: list[Tensor], to_host: bool) -> None:
    on_device = [isinstance(tensor, SimulatedTensor) for tensor in given]
    if to_host and any(on_device):
        WAITS[f"{name} {place()}"] += 1
    elif not to_host and not all(on_device):
        COPIES[place()] += 1


def _waits(name: str, arguments: Any, options: Any) -> bool:
    if name in INDEXING:  # a mask is turned into indices, except where one number is written
        masks = [index for index in arguments[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
        return bool(masks) and (name in ("index", "_unsafe_index") or arguments[2].numel() > 1)
    if name == "repeat_interleave":  # by a tensor of numbers
        return options.get("output_size") is None
    return name in WAITING


def _check_devices(name: str, given: list[Tensor]) -> None:
    strange = [tensor for tensor in given if not isinstance(tensor, SimulatedTensor) and tensor.dim()]
    if strange and len(strange) < len(given):
        raise RuntimeError(f"{name}: tensors of the simulated device and of the CPU, at {place()}")


class _Factories(TorchDispatchMode):
    """Tensors that are made on the simulated device."""

    def __torch_dispatch__(self, function: Any, kinds: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        device = options.get("device")
        here = any(isinstance(leaf, SimulatedTensor) for leaf in tree_leaves((arguments, options)))
        if here or (device is not None and torch.device(device).type == NAME):
            return computed(function, arguments, options)
        return function(*arguments, **options)


_library = torch.library.Library("aten", "IMPL")


def install() -> None:
    """Register the device type, once for this process."""
    _setup_privateuseone_for_python_backend(NAME)
    module = getattr(torch, NAME, None) or types.ModuleType(NAME)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]  # type: ignore[attr-defined]
    module.is_available = lambda: True  # type: ignore[attr-defined]
    module.current_device = lambda: 0  # type: ignore[attr-defined]
    module.device_count = lambda: 1  # type: ignore[attr-defined]
    module._is_in_bad_fork = lambda: False  # type: ignore[attr-defined]
    module.manual_seed_all = lambda seed: None  # type: ignore[attr-defined]
    if not hasattr(torch, NAME):
        torch._register_device_module(NAME, module)
    # What is made or copied where no Python mode is asked (`torch.tensor`, the backward pass).
    _library.impl("empty.memory_format", _empty, "PrivateUse1")
    _library.impl("empty_strided", _empty_strided, "PrivateUse1")
    _library.impl("_copy_from", _copy_from, "PrivateUse1")


def _empty(size: Any, dtype: Any = None, *_: Any, **__: Any) -> Tensor:
    return SimulatedTensor(torch.empty(size, dtype=dtype or torch.get_default_dtype()))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, *_: Any, **__: Any) -> Tensor:
    return SimulatedTensor(torch.empty_strided(size, stride, dtype=dtype or torch.get_default_dtype()))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    to_host = not isinstance(target, SimulatedTensor)
    _count_copy("copy_", [source, target], to_host)
    raw_of(target).copy_(raw_of(source))
    return target


@contextmanager
def counted() -> Iterator[tuple[Counter[str], Counter[str]]]:
    """The device is there within; gives what is counted in the meantime, when it is over: waits and copies."""
    WAITS.clear(), COPIES.clear()
    waits: Counter[str] = Counter()
    copies: Counter[str] = Counter()
    with _Factories():
        yield waits, copies
    waits.update(WAITS), copies.update(COPIES)


def moved(value: Any) -> Any:
    """A tensor, or what the fields of a dataclass hold, on the simulated device."""
    if isinstance(value, Tensor):
        return SimulatedTensor(value.detach().clone())
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: moved(getattr(value, field.name)) for field in fields(value)})
    return value


def move_module(module: nn.Module) -> nn.Module:
    """A module with its parameters and buffers on the simulated device; `Module.to` cannot put wrappers in place."""
    known: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                new = nn.Parameter(moved(parameter), requires_grad=parameter.requires_grad)
                part._parameters[name] = known.setdefault(id(parameter), new)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = moved(buffer)
    return module
