"""Tables of names: an official pattern beside ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


def compiled(table: Sequence[tuple[str, str]], parts: Mapping[str, str]) -> list[tuple[re.Pattern[str], str]]:
    """Each official pattern as an expression beside our format; `{part}` in both stands for what `parts` says."""
    rows = []
    for official, ours in table:
        pattern = re.escape(official)
        for part, expression in parts.items():
            pattern = pattern.replace(rf"\{{{part}\}}", f"(?P<{part}>{expression})")
        rows.append((re.compile(pattern), ours))
    return rows
