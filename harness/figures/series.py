"""What the seeds of one label say together: a mean, and the range from the lowest to the highest.

Figures take a list of (label, table); tables that share a label are seeds of one model. No matplotlib here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Table = TypeVar("Table")
History = Sequence[Mapping[str, Any]]  # `history` of a record: one entry per epoch


@dataclass(frozen=True)
class AxisPoint:
    """A mean over seeds at one value of an axis."""

    value: Any  # on the axis
    mean: float
    interval: tuple[float, float] | None  # of the mean; None on one seed
    n: int


@dataclass(frozen=True)
class Change:
    """A mean difference over seeds that two rows share."""

    mean: float
    interval: tuple[float, float] | None  # 95 %; None on one seed
    n: int


@dataclass(frozen=True)
class ErrorChanges:
    """What one row changes of its baseline's errors, in points of AP."""

    label: str
    kinds: Mapping[str, Change]  # by `harness.spec.error_metrics.COSTS`
    total: Change  # of their sum


def grouped(labelled: Iterable[tuple[str, Table]]) -> dict[str, list[Table]]:
    """Tables by label, in the order in which the labels come first."""
    groups: dict[str, list[Table]] = {}
    for label, table in labelled:
        groups.setdefault(label, []).append(table)
    return groups


@dataclass(frozen=True)
class Curve:
    """One label over epochs: `values[e]` holds a number per seed at `epochs[e]`."""

    label: str
    epochs: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]

    @property
    def means(self) -> list[float]:
        """Mean over seeds at each epoch."""
        return [math.fsum(seeds) / len(seeds) for seeds in self.values]

    @property
    def num_seeds(self) -> int:
        """Seeds behind every point."""
        return len(self.values[0])


def epoch_curves(runs: Iterable[tuple[str, History]], metric: str) -> list[Curve]:
    """A curve for each label that has numbers of `metric`, over the epochs at which all its seeds have one."""
    found = []
    for label, histories in grouped(runs).items():
        seeds = [
            {entry["epoch"]: float(entry[metric]) for entry in history if entry.get(metric) is not None}
            for history in histories
        ]
        epochs = sorted(set.intersection(*map(set, seeds)))
        if epochs:
            found.append(Curve(label, tuple(epochs), tuple(tuple(seed[epoch] for seed in seeds) for epoch in epochs)))
    return found


@dataclass(frozen=True)
class Estimate:
    """A number with its range: over several seeds the lowest to the highest, of one seed its own interval."""

    mean: float
    low: float | None
    high: float | None
    std: float | None  # sample deviation over seeds
    n: int


def estimate(
    values: Sequence[float | None], intervals: Sequence[Sequence[float | None] | None] = ()
) -> Estimate | None:
    """Sum up seeds that have a number; None where none has.

    Args:
        values: one per seed; None where it is missing.
        intervals: (low, high) of each seed, used where there is only one.
    """
    there = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not there:
        return None
    mean = math.fsum(there) / len(there)
    if len(there) > 1:
        return Estimate(mean, min(there), max(there), statistics.stdev(there), len(there))
    known = [interval for interval in intervals if interval is not None and None not in interval]
    low, high = known[0] if len(known) == 1 else (None, None)
    return Estimate(mean, low, high, None, 1)


def seed_note(counts: Sequence[int], line: str = "line", spread: str = "band") -> str:
    """Say what line and band stand for; empty where there is one seed only."""
    most, fewest = max(counts, default=1), min(counts, default=1)
    if most == 1:
        return ""
    number = str(most) if fewest == most else f"{fewest} to {most}"
    return f"{line}: mean of {number} seeds; {spread}: lowest to highest"


def lacking_note(number: str, asked: Mapping[str, Sequence[Any]], shown: Mapping[str, Sequence[Any]]) -> str:
    """Name the labels of which some seeds, or all, have no such number; empty where none lacks any.

    Args:
        number: what is missing, such as `distance`.
        asked: by label one entry a seed.
        shown: those that are drawn.
    """
    words = []
    for label, seeds in asked.items():
        there = len(shown.get(label, ()))
        if there < len(seeds):
            words.append(f"{label} ({there} of {len(seeds)} seeds)" if there else label)
    return f"without {number}: {'; '.join(words)}" if words else ""


def bar_note(counts: Sequence[int]) -> str:
    """Say what point and bar stand for where the bar of one seed is its interval over images."""
    seeds, images = seed_note(counts, "point", "bar"), "95 % interval over images"
    if min(counts, default=1) > 1:
        return seeds
    return f"{seeds} (of one seed: {images})" if seeds else f"bar: {images}"
