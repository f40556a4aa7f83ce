"""What seeds say: mean and sample deviation of a row, and its difference to another row, paired by seed.

A pair is two trials of one seed, which share data order and augmentation, so their difference varies less than
either number. The interval assumes normal differences (Student's t); the p-value only that they are symmetric
about zero when there is no effect. On one seed there is neither: a single number is given as what it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

CONFIDENCE = 0.95
POWER = 0.8
FEWEST_FOR_P = 6  # pairs whose sign-flip p-value can fall below 0.05
MAX_EXACT_PAIRS = 20  # 2**19 sums fit easily; beyond that signs are drawn
NUM_DRAWS = 100_000


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1) of `n` values; `std` is None on one value."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of `n` paired differences with its interval; None on one pair."""

    mean: float
    low: float | None
    high: float | None
    p_value: float | None  # of the sign flips, from `FEWEST_FOR_P` pairs on
    n: int
    deviation: float | None = None  # of the paired differences
    confidence: float = CONFIDENCE  # of the interval


def summarise(values: Sequence[float]) -> Summary:
    """Return the mean and sample standard deviation of at least one finite value."""
    if not values:
        raise ValueError("summarise needs at least one value")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"summarise needs finite values, got {list(values)}")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Summary(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Summary(mean, math.sqrt(variance), len(values))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Return the t interval of the mean of `values`; None on one value."""
    summary = summarise(values)
    if summary.std is None:
        return None
    half_width = t_quantile(0.5 + confidence / 2, summary.n - 1) * summary.std / math.sqrt(summary.n)
    return summary.mean - half_width, summary.mean + half_width


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], confidence: float = CONFIDENCE
) -> Difference | None:
    """Return `values - baseline` over the seeds (keys) that both have; None where they share none."""
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    differences = [values[seed] - baseline[seed] for seed in seeds]
    summary = summarise(differences)
    if summary.std is None:
        return Difference(summary.mean, None, None, None, 1)
    half_width = t_quantile(0.5 + confidence / 2, summary.n - 1) * summary.std / math.sqrt(summary.n)
    return Difference(
        mean=summary.mean,
        low=summary.mean - half_width,
        high=summary.mean + half_width,
        p_value=sign_flip_p_value(differences) if summary.n >= FEWEST_FOR_P else None,
        n=summary.n,
        deviation=summary.std,
        confidence=confidence,
    )


def t_quantile(probability: float, degrees_of_freedom: int) -> float:
    """Return the quantile of Student's t distribution."""
    from scipy.special import stdtrit  # scipy.stats would cost a second of import for the same number

    return float(stdtrit(degrees_of_freedom, probability))


def t_test(mean: float, deviation: float, n: int, margin: float | None = None) -> float:
    """Return Student's p-value of no difference (two-sided), or of one beyond the margin.

    The latter is twice the larger of two one-sided tests, so that it falls below 0.05 where the 95 % interval lies
    within the margin.
    """
    from scipy.special import stdtr

    error = deviation / math.sqrt(n)

    def tail(distance: float) -> float:
        """P(T > distance / error)."""
        if error == 0:
            return 0.0 if distance > 0 else 1.0 if distance < 0 else 0.5
        return float(stdtr(n - 1, -distance / error))

    if margin is None:
        return min(1.0, 2 * tail(abs(mean)))
    return min(1.0, 2 * max(tail(margin - mean), tail(margin + mean)))


def detectable(deviation: float, n: int, alpha: float = 1 - CONFIDENCE, power: float = POWER) -> float:
    """Return the smallest difference that `n` pairs with this deviation show with the given power (noncentral t)."""
    return _noncentrality(n, round(alpha, 12), power) * deviation / math.sqrt(n)


@lru_cache(maxsize=4096)
def _noncentrality(n: int, alpha: float, power: float) -> float:
    from scipy.special import nctdtrinc

    return float(nctdtrinc(n - 1, 1 - power, t_quantile(1 - alpha / 2, n - 1)))


def false_discovery_rates(p_values: Sequence[float]) -> list[float]:
    """Return the q-value of each p-value among all (Benjamini and Hochberg 1995)."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    found, lowest = [1.0] * len(p_values), 1.0
    for rank in range(len(order), 0, -1):
        place = order[rank - 1]
        lowest = min(lowest, p_values[place] * len(order) / rank)
        found[place] = lowest
    return found


def sign_flip_p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the mean under all 2**n sign flips of the differences.

    Exact up to 20 differences, then from 100,000 drawn flips with a fixed seed (counting the observed one).
    The smallest value possible is 2 / 2**n: 0.25 at n = 3, 0.0625 at n = 5.
    """
    import numpy as np

    if not differences:
        raise ValueError("sign_flip_p_value needs at least one difference")
    values = np.asarray(differences, dtype=np.float64)
    # Equal sums reached in another order differ by rounding, and must count as equal.
    threshold = abs(values.sum()) - 1e-9 * np.abs(values).sum()
    if len(values) > MAX_EXACT_PAIRS:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(NUM_DRAWS, len(values)))
        return float((1 + np.count_nonzero(np.abs(signs @ values) >= threshold)) / (1 + NUM_DRAWS))
    sums = values[:1]  # the first sign may stay: flipping all signs gives the same absolute sum
    for value in values[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.count_nonzero(np.abs(sums) >= threshold) / len(sums))
