"""Alternating measurements and the one table they end in, for all suites."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import torch


@dataclass(frozen=True)
class Row:
    """One comparison; times in milliseconds, `ratio` is how many times faster ours is."""

    name: str
    ours: float
    reference_name: str
    reference: float
    ratio: float
    note: str = ""


def compare(
    name: str,
    ours: Callable[[], object],
    reference: Callable[[], object],
    *,
    reference_name: str,
    repeats: int = 7,
    note: str = "",
) -> Row:
    """Medians of `repeats` measurements each, taken in turn so that a busy machine harms both alike.

    Each call that is measured follows one that is not: what the other left in caches and of waiting threads is its own.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for function, measured in zip((ours, reference), times, strict=True):
            function()
            measured.append(milliseconds(function))
    fast, slow = map(statistics.median, times)
    return Row(name, fast, reference_name, slow, slow / fast, note)


def milliseconds(function: Callable[[], object]) -> float:
    """One call; short ones are repeated for at least five milliseconds."""
    calls, begun = 0, time.perf_counter()
    while True:
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        calls += 1
        passed = (time.perf_counter() - begun) * 1e3
        if passed > 5:
            return passed / calls


def show(rows: Iterable[Row], heading: str) -> list[Row]:
    """Print the table line by line, as results come."""
    print(heading)
    print(f"{'':<52}{'ours':>10}  {'reference':<26}{'':>10}{'ratio':>8}")
    seen = []
    for row in rows:
        seen.append(row)
        print(
            f"{row.name:<52}{row.ours:>7.2f} ms  {row.reference_name:<26}{row.reference:>7.1f} ms{row.ratio:>7.1f}x"
            + (f"  {row.note}" if row.note else ""),
            flush=True,
        )
    return seen


def as_json(rows: list[Row], heading: str) -> str:
    """The same for machines, with date and place."""
    place = {"machine": platform.machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"title": heading, "date": when, **place, "rows": [asdict(row) for row in rows]}, indent=1)
