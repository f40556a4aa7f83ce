"""The role of a parameter, as far as the optimiser treats it differently: parts declare it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn


class Role(NamedTuple):
    """Of a parameter: `backbone`, `sampling` (what says where attention looks), or nothing particular."""

    name: str = ""
    depth: int = 0  # layers between it and the output of its part (a backbone's `lr_depth`)


def declared_roles(module: nn.Module, prefix: str = "", role: str = "") -> Iterator[tuple[str, str]]:
    """The name of every parameter below `module`, and its role.

    A module declares the roles of its own parameters and children by their names, as a class attribute `roles`; the
    outermost declaration holds for everything inside.
    """
    own: dict[str, str] = getattr(module, "roles", {})
    for name, _ in module.named_parameters(recurse=False):
        yield prefix + name, role or own.get(name, "")
    for name, child in module.named_children():
        yield from declared_roles(child, f"{prefix}{name}.", role or own.get(name, ""))
