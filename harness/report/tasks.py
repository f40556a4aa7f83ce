"""What a row gains over several data sets together: tasks x seeds (Agarwal et al. 2021, arXiv 2108.13264).

The *interquartile mean* is of the gains, paired by seed, of all tasks together: the mean of what is left without a
quarter of them at either end. It is of gains, not of AP, since the levels of data sets do not compare. The *probability
of improvement* is the chance that a training of the row is better than one of its baseline, of any two seeds, in the
mean over tasks; ties count half, and all pairs of seeds that there are count, equal ones too. Intervals are a bootstrap
stratified by task: of each its seeds are drawn anew, for the probability those of the row and of the baseline apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FEWEST_TASKS, FEWEST_SEEDS = 3, 5
DRAWS = 10_000
TRIMMED = 0.25  # of the gains, at either end
CHUNK = 2_000_000  # comparisons held at once

Values = Mapping[int, float]  # by seed


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OverTasks:
    """A row against its baseline, over T data sets with S seeds each."""

    gain: Estimate  # interquartile mean
    better: Estimate  # probability of improvement
    seeds: int


def why_not(tasks: Sequence[tuple[Values, Values]]) -> str:
    """Why there are too few results of a row and its baseline, by data set, to be summarised; empty otherwise."""
    seeds = len(shared_seeds(tasks))
    if len(tasks) >= FEWEST_TASKS and seeds >= FEWEST_SEEDS:
        return ""
    return (
        f"no interquartile mean: that takes {FEWEST_TASKS} data sets and {FEWEST_SEEDS} seeds that all of them have, "
        f"here are {len(tasks)} and {seeds}"
    )


def shared_seeds(tasks: Sequence[tuple[Values, Values]]) -> list[int]:
    """The seeds that a row and its baseline have on every data set."""
    return sorted(set.intersection(*(own.keys() & other.keys() for own, other in tasks))) if tasks else []


def over_tasks(tasks: Sequence[tuple[Values, Values]], sign: float = 1.0) -> OverTasks:
    """Summarise a row.

    Args:
        tasks: results of the row and of its baseline by seed, of each data set; `why_not` has nothing against them.
        sign: -1 where lower is better.
    """
    seeds = shared_seeds(tasks)
    own, other = (np.array([[pair[side][seed] for seed in seeds] for pair in tasks]) for side in (0, 1))  # [T, S]
    rng = np.random.default_rng(0)
    drawn, apart = (rng.integers(0, len(seeds), (DRAWS, *own.shape)) for _ in range(2))
    every = np.arange(len(seeds))[None].repeat(len(tasks), 0)[None]  # [1, T, S], as observed
    signed = sign * own, sign * other
    return OverTasks(
        _estimate(_middle(own - other, every), _middle(own - other, drawn)),
        # pairs of one seed would be drawn too often if both sides had the same seeds, and such pairs are alike
        _estimate(_improved(*signed, every, every), _improved(*signed, drawn, apart)),
        len(seeds),
    )


def _estimate(observed: np.ndarray, drawn: np.ndarray) -> Estimate:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(observed[0]), float(low), float(high))


def _middle(gains: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """[N] interquartile means of gains [T, S] whose seeds are drawn as `drawn` [N, T, S] says."""
    from scipy.stats import trim_mean

    chosen = np.take_along_axis(gains[None], drawn, axis=2)
    found: np.ndarray = trim_mean(chosen.reshape(len(drawn), -1), TRIMMED, axis=1)
    return found


def _improved(own: np.ndarray, other: np.ndarray, drawn: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """[N] probabilities of improvement, with seeds of `own` drawn as `drawn` and of `other` as `apart` says [N, T, S].

    Higher is better.
    """
    size = max(1, CHUNK // (own.size * own.shape[1]))
    found = []
    for start in range(0, len(drawn), size):
        sides = (own, drawn), (other, apart)
        first, second = (np.take_along_axis(side[None], of[start : start + size], axis=2) for side, of in sides)
        gaps = first[..., :, None] - second[..., None, :]
        found.append((np.sign(gaps).mean((1, 2, 3)) + 1) / 2)
    return np.concatenate(found)
