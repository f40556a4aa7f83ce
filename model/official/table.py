"""Tables of names: an official pattern beside ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor


def compiled(table: Sequence[tuple[str, str]], parts: Mapping[str, str]) -> list[tuple[re.Pattern[str], str]]:
    """Each official pattern as an expression beside our format; `{part}` in both stands for what `parts` says."""
    rows = []
    for official, ours in table:
        pattern = re.escape(official)
        for part, expression in parts.items():
            pattern = pattern.replace(rf"\{{{part}\}}", f"(?P<{part}>{expression})")
        rows.append((re.compile(pattern), ours))
    return rows


def renamed(
    state: Mapping[str, Tensor], table: Sequence[tuple[str, str]], parts: Mapping[str, str]
) -> dict[str, Tensor]:
    """The values under the names of the first pattern that fits; those that none fits keep theirs."""
    rows = compiled(table, parts)
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        fits = ((match, ours) for pattern, ours in rows if (match := pattern.fullmatch(name)))
        match, ours = next(fits, (None, name))
        found[ours.format(**match.groupdict()) if match else ours] = tensor
    return found
