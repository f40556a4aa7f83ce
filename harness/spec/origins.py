"""Where each setting was written, in the order of the layers: whoever wrote a mistake is told of it.

Of several settings that do not go together, the one written last is blamed: a person who changes one value for a run
is told of it, and of the value, in a preset perhaps, that it does not go with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from harness.spec.strict import Location, dotted
from model.checks import Conflict

LONGEST = 60  # characters of a value


class Origins:
    """Places by the path of what was written there.

    Args:
        where: names the file for mistakes that nobody wrote, such as a missing value.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._places: dict[tuple[str, ...], str] = {}
        self._empty: set[tuple[str, ...]] = set()  # set to an empty mapping, which says nothing of what is in it

    def wrote(self, path: tuple[str, ...], value: object, place: str) -> None:
        """Note that `path` was set at `place`; what was set at or below it before is forgotten."""
        if value == {}:
            self._empty.add(path)
        else:
            self._places = {known: p for known, p in self._places.items() if known[: len(path)] != path}
            self._empty.discard(path)
        self._places[path] = place

    def place(self, location: Location) -> str:
        """The place that set `location`: itself, a list it is in, or the last setting inside it."""
        names = tuple(map(str, location))
        for cut in range(len(names), 0, -1):
            if names[:cut] in self._places:
                return ".".join([self._places[names[:cut]], *names[cut:]])
        inside = [place for path, place in self._places.items() if path[: len(names)] == names]
        return inside[-1] if inside else f"{self._where}:{dotted(location)}"

    def blame(self, conflict: Conflict, locations: Sequence[Location | None]) -> tuple[int, str, str]:
        """Who is to blame for settings that do not go together.

        Args:
            conflict: of what a checked configuration says.
            locations: of its settings, in their order; None for one that nobody wrote.

        Returns:
            The index of the setting written last, its place with its value, and what is wrong, with the others'.
        """
        orders = [self._order(location) for location in locations]
        last = max(range(len(orders)), key=lambda index: orders[index])
        others, names = [], list(conflict.values)
        for index, (name, value) in enumerate(conflict.values.items()):
            if index != last:
                location = locations[index]
                place = self.place(location) if location is not None and orders[index] >= 0 else "the default"
                others.append(f"{name} is {_shown(value)} ({place})")
        location = locations[last]
        where = self._where if location is None else self.place(location)
        value = _shown(conflict.values[names[last]])
        told = f"{where}: {names[last]} is {value}" if self._is_inside(location) else f"{where}={value}"
        too = "; change it too" if len(others) == 1 else "; change them too"
        what = f"{conflict.rule}; {' and '.join(others)}{too}" if others else conflict.rule
        return last, told, what

    def _is_inside(self, location: Location | None) -> bool:
        """Whether only parts of it were written, so that its value stands at no place.

        A name alone (`neck: projection`) is written at the place of the whole.
        """
        names = tuple(map(str, location or ()))
        if any(names[:cut] in self._places for cut in range(len(names) + 1)):
            return False
        inside = [place for path, place in self._places.items() if path[: len(names)] == names]
        return bool(inside) and not inside[-1].endswith(names[-1])

    def _order(self, location: Location | None) -> int:
        """The higher, the later it was written; -1: nobody did."""
        if location is None:
            return -1
        names = tuple(map(str, location))
        orders = [
            order
            for order, path in enumerate(self._places)
            if (path == names[: len(path)] and path not in self._empty) or path[: len(names)] == names
        ]
        return max(orders, default=-1)


def _shown(value: object) -> str:
    """A value as it would be written, shortened."""
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value, default=_plain)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _plain(value: object) -> object:
    return getattr(value, "__dict__", None) or str(value)
