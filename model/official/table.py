"""Tables of names: an official pattern beside ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from model.config import DetectorConfig

Table = Sequence[tuple[str, str]]  # official pattern → our name; `{part}` in both stands for what `PARTS` says
PARTS = {"N": r"\d+", "head": r"\d+", "dense": r"\d+", "stage": r"\d+", "part": "encoder|decoder", "rest": ".+"}


def unchanged(tensors: dict[str, Tensor], config: DetectorConfig) -> dict[str, Tensor]:
    """Each tensor is one of ours already."""
    del config
    return tensors


@dataclass(frozen=True)
class Family:
    """Detectors whose parameters are named alike."""

    name: str  # for messages
    includes: Callable[[Collection[str]], bool]  # whether these names are of this family
    # our name of each official one; those that it does not know are left out
    rename: Callable[[Mapping[str, Tensor], DetectorConfig], dict[str, str]]
    # tensors under our names, where an official one is several of ours or the other way round
    merge: Callable[[dict[str, Tensor], DetectorConfig], dict[str, Tensor]] = unchanged
    beyond: Mapping[str, str] = field(default_factory=dict)  # beginning of official names → what of it is not built


def mlp(official: str, ours: str) -> list[tuple[str, str]]:
    """The three linear layers of a box branch, among which we count the activations."""
    return [(f"{official}.layers.{layer}.{{rest}}", f"{ours}.{2 * layer}.{{rest}}") for layer in range(3)]


def compiled(table: Table) -> list[tuple[re.Pattern[str], str]]:
    """Each official pattern as an expression beside our format."""
    rows = []
    for official, ours in table:
        pattern = re.escape(official)
        for part, expression in PARTS.items():
            pattern = pattern.replace(rf"\{{{part}\}}", f"(?P<{part}>{expression})")
        rows.append((re.compile(pattern), ours))
    return rows


def our_names(
    names: Iterable[str],
    table: Table,
    named: Mapping[str, Sequence[str]] | None = None,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Our name of each official one, by the first pattern that fits; those that none fits are left out.

    Args:
        names: official ones.
        table: their patterns.
        named: parts that are numbers there and names here, in that order.
        fixed: parts of our names that stand in no official one.
    """
    named, fixed = named or {}, fixed or {}
    rows, found = compiled(table), {}
    for name in names:
        fits = ((match, ours) for pattern, ours in rows if (match := pattern.fullmatch(name)))
        if first := next(fits, None):
            match, ours = first
            parts = match.groupdict()
            parts |= {part: own[int(parts[part])] for part, own in named.items() if part in parts}
            found[name] = ours.format(**fixed, **parts)
    return found


def of_encoder(names: dict[str, str], num_layers: int) -> dict[str, str]:
    """The same, where the class and the box branch behind those of all decoder layers are the encoder's."""
    for branch, single in (("class_branches", "class_branch"), ("box_branches", "box_branch")):
        last = f"decoder.{branch}.{num_layers}."
        for official, ours in names.items():
            if ours.startswith(last):
                names[official] = ours.replace(last, f"queries.{single}.")
    return names


def unwrapped(state: Mapping[str, Tensor], wrappers: Sequence[str]) -> dict[str, Tensor]:
    """Without those of `wrappers` that stand before every name."""
    found = dict(state)
    while wrapper := next((own for own in wrappers if found and all(name.startswith(own) for name in found)), None):
        found = {name.removeprefix(wrapper): tensor for name, tensor in found.items()}
    return found


def num_layers(names: Iterable[str]) -> int:
    """How many decoder layers our names tell of."""
    return 1 + max((int(m[1]) for name in names if (m := re.match(r"decoder\.layers\.(\d+)\.", name))), default=-1)
