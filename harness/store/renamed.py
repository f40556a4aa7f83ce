"""Numbers whose definition has changed since they were recorded, under the names that they have now.

A number never shares a name, and so a column, with one of another definition. Records and files stay as they are;
whoever reads them through the store gets the names of today. Until now there is one such change: the IoF-IoB area under
the plain name is that of version 2 (docs/metrics.md), which says so beside it; one without a version is of version 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PLAIN, FIRST = "discriminability", "discriminability.v1"
VERSION = f"{PLAIN}/version"


def renamed_numbers(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of a record, or an epoch's line, by their names of today."""
    if VERSION in numbers:
        return dict(numbers)
    prefix = f"{PLAIN}/"
    return {FIRST + name[len(PLAIN) :] if name.startswith(prefix) else name: own for name, own in numbers.items()}


def renamed_record(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the names of today: of its metrics, its epochs and its tables."""
    found = dict(record)
    if found.get("metrics"):
        found["metrics"] = renamed_numbers(found["metrics"])
    if found.get("history"):
        found["history"] = [renamed_numbers(line) if isinstance(line, dict) else line for line in found["history"]]
    analysis = found.get("analysis")
    table = analysis.get(PLAIN) if isinstance(analysis, dict) else None
    if isinstance(analysis, dict) and isinstance(table, dict) and "version" not in table:
        others = {name: own for name, own in analysis.items() if name != PLAIN}
        made = [name for name in analysis.get("metrics") or () if name != PLAIN]  # version 2 is still to be made
        found["analysis"] = {**others, "metrics": made, FIRST: {**table, "reading": FIRST}}
    return found
