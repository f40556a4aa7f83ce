"""The parts of a detector by name. A room (`model/<room>/`) lists its parts in one dict, name → `module:Class`.

A new part is one file in its room and one line there (docs/add-a-part.md). A class is loaded when it is asked for by
its name, and torch with it. What a part is set to needs neither, as far as its `Config` stands in the room's
`configs.py`; a part of one's own may keep its `Config` beside its class.
"""

from __future__ import annotations

import difflib
from collections import Counter, UserDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any, get_type_hints

from model.checks import FORBID_UNKNOWN

NAME = "name"  # under which a part stands in its room: no setting can be called so


class Parts(UserDict[str, Any]):
    """The parts of one room; `module:Class` becomes the class when it is looked up.

    Args:
        module: that holds the dict, `model.<room>`.
        kind: what one of them is, for messages: `head`, `decoder`.
        places: name → `module:Class`, or a class.
        configs: name → `Config`, of the parts whose settings can be read without loading them.
    """

    def __init__(self, module: str, kind: str, places: Mapping[str, Any], configs: Mapping[str, type[Any]]):
        super().__init__(places)
        self.room, self.kind, self.configs = module.rpartition(".")[2], kind, dict(configs)

    def __getitem__(self, name: str) -> Any:
        place = self.data[name]
        if isinstance(place, str):
            place = self.data[name] = self._load(name, place)
        return place

    def _load(self, name: str, place: str) -> Any:
        module, _, attribute = place.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except Exception as error:  # noqa: BLE001 - anything may stand in a file of one's own
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"the {self.kind} {name} cannot be loaded from {place} ({why})") from error

    def choose(self, name: str) -> Any:
        """The class of this name; a `ValueError` with the nearest one and the known ones otherwise."""
        if name not in self:
            raise ValueError(self.unknown(name))
        return self[name]

    def unknown(self, name: str) -> str:
        """The line that tells of a name which no part has."""
        close = difflib.get_close_matches(name, self.names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"unknown {self.kind} {name!r}; {hint}known: {', '.join(self.names) or 'none'}"

    @property
    def names(self) -> list[str]:
        """The names that can be chosen, sorted."""
        return sorted(name for name in self if not self.follows_from(name))

    def follows_from(self, name: str) -> str:
        """Which other settings call for the part of this name, so that nobody chooses it; empty for most."""
        return str(getattr(self.configs.get(name), "follows_from", ""))

    def config_of(self, name: str) -> type[Any]:
        """The `Config` of the part of this name; torch is loaded only for one that keeps it beside its class.

        Raises:
            ValueError: there is no such part, it cannot be loaded, or its `Config` is none; one line.
        """
        if name in self.configs:
            return self.configs[name]
        config: type[Any] = getattr(self.choose(name), "Config", None)  # type: ignore[assignment]
        if flaw := config_flaw(config):
            raise ValueError(f"the {self.kind} {name}: {flaw}")
        return config

    def name_of(self, config: Any) -> str:
        """The name under which the part of this `Config` is listed; a `ValueError` for anything else."""
        return self.name_of_kind(type(config))

    def name_of_kind(self, kind: type[Any]) -> str:
        """The name of the part that has this class as its `Config`; a `ValueError` for any other."""
        for name in sorted(self, key=lambda name: self._distance(name, kind)):
            with suppress(ValueError):  # another part's trouble is told where that one is named
                if kind is self.config_of(name):
                    return name
        raise ValueError(f"{kind.__qualname__} is not the Config of a {self.kind}; known: {', '.join(self)}")

    def _distance(self, name: str, kind: type[Any]) -> int:
        """How much must be loaded to see whether a part has this `Config`: nothing, its own file, somebody else's."""
        place = self.data[name]
        if name in self.configs or not isinstance(place, str):
            return 0
        return 1 if place.partition(":")[0] == kind.__module__ else 2

    def build(self, config: Any, **arguments: Any) -> Any:
        """The part of this `Config`, built with it and the arguments of its room's contract."""
        return self.choose(self.name_of(config))(config, **arguments)

    def instance_names(self, configs: Sequence[Any]) -> tuple[str, ...]:
        """A distinct name for each of several parts: a second ATSS is 'atss.2'; losses and branches are named so."""
        seen: Counter[str] = Counter()
        names = []
        for name in map(self.name_of, configs):
            seen[name] += 1
            names.append(name if seen[name] == 1 else f"{name}.{seen[name]}")
        return tuple(names)


def config_flaw(kind: Any) -> str:
    """Why a class cannot be the `Config` of a part, in words; empty when it can."""
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return "its class has no Config, a frozen dataclass of its settings"
    if any(field.name == NAME for field in fields(kind)):
        return f"its Config has a field called {NAME}, which is what the part itself goes by; call it otherwise"
    try:
        inner = [hint for hint in get_type_hints(kind).values() if isinstance(hint, type) and is_dataclass(hint)]
    except Exception as error:  # noqa: BLE001 - a type is an expression of somebody's file
        return f"the types of its {kind.__qualname__} cannot be read ({type(error).__name__}: {error})"
    for own in (kind, *inner):
        if getattr(own, "__pydantic_config__", None) != FORBID_UNKNOWN:
            line = "__pydantic_config__ = FORBID_UNKNOWN"
            return f"its {own.__qualname__} lacks the line `{line}`, without which a misspelt setting goes unnoticed"
    return ""
