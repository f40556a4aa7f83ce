"""What the seeds of one label say together: a mean, and the range from the lowest to the highest.

Figures take a list of (label, table); tables that share a label are seeds of one model. No matplotlib here.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
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
    """A curve for each label that has numbers of `metric`, over the epochs at which all its seeds have one.

    Seeds without any are left out; where the others share no epoch, so are those that have none at the epoch that most
    have, the later one of equals.
    """
    found = []
    for label, histories in grouped(runs).items():
        known = [
            {entry["epoch"]: float(entry[metric]) for entry in history if entry.get(metric) is not None}
            for history in histories
        ]
        counts = Counter(epoch for seed in known for epoch in seed)
        if counts:
            common = max(counts, key=lambda epoch: (counts[epoch], epoch))
            seeds = [seed for seed in known if common in seed]
            epochs = sorted(set.intersection(*map(set, seeds)))
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


def lacking_note(what: str, asked: Mapping[str, int], shown: Mapping[str, int]) -> str:
    """Name the labels of which some seeds, or all, are not drawn; empty where none lacks any.

    Args:
        what: is missing, such as `distance`.
        asked: seeds by label.
        shown: those of them that are drawn.
    """
    lacking = {label: shown.get(label, 0) for label, number in asked.items() if shown.get(label, 0) < number}
    words = [f"{label} ({there} of {asked[label]} seeds drawn)" if there else label for label, there in lacking.items()]
    return f"without {what}: {'; '.join(words)}" if words else ""


def bar_note(counts: Sequence[int]) -> str:
    """Say what point and bar stand for where the bar of one seed is its interval over images."""
    seeds, images = seed_note(counts, "point", "bar"), "95 % interval over images"
    if min(counts, default=1) > 1:
        return seeds
    return f"{seeds} (of one seed: {images})" if seeds else f"bar: {images}"
