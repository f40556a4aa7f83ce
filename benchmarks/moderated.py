"""How often do intervals hold whose variances the rows of a table lend each other (Smyth 2004)?

    python -m benchmarks moderated [--tables 20000]

A table has G rows, each with n paired differences to one baseline. Its moderated variance is a row's own, drawn to what
all rows have in common: (d0 s0² + d s²) / (d0 + d), d = n - 1, with d0 and s0² from mean and variance of log s² over
the rows, and the interval Student's with d0 + d degrees of freedom, at most G d. Differences are simulated: normal or
t₃, with equal deviations or some that range over a factor of 4 in equal steps of their logarithm, and with a baseline
whose own scatter (as large as a row's) all of a table's differences share. Printed is the share of 95 % intervals that
hold the truth, over all rows and for the row that scatters most, and their width beside Student's own.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.special import digamma, polygamma, stdtrit

RANGE = 4.0  # largest deviation of a table by its smallest, where they differ
CASES = [(noise, spread, shared) for noise in ("normal", "t3") for spread in (1.0, RANGE) for shared in (False, True)]


def moderated(variances: np.ndarray, degrees: int) -> tuple[np.ndarray, np.ndarray]:
    """[T, G] moderated variances of T tables, and [T, 1] their degrees of freedom, at most those of all rows."""
    logs = np.log(variances)
    centred = logs - digamma(degrees / 2) + np.log(degrees / 2)
    mean = centred.mean(1, keepdims=True)
    excess = centred.var(1, ddof=1, keepdims=True) - polygamma(1, degrees / 2)
    prior = 2 * _inverse_trigamma(np.maximum(excess, 1e-8))
    alike = excess <= 1e-8
    common = np.exp(mean + np.where(alike, 0.0, digamma(prior / 2) - np.log(prior / 2)))
    drawn = (prior * common + degrees * variances) / (prior + degrees)
    together = float(degrees * variances.shape[1])
    return np.where(alike, common, drawn), np.where(alike, together, np.minimum(prior + degrees, together))


def _inverse_trigamma(values: np.ndarray) -> np.ndarray:
    """By Newton's method, from a start that is never too large."""
    found = 0.5 + 1 / values
    for _ in range(50):
        trigamma = polygamma(1, found)
        found += trigamma * (1 - trigamma / values) / polygamma(2, found)
    return found


def differences(
    rng: np.random.Generator, shape: tuple[int, int, int], noise: str, spread: float, shared: bool
) -> np.ndarray:
    """[T, G, n] paired differences without an effect."""

    def draw(size: tuple[int, ...]) -> np.ndarray:
        return rng.normal(size=size) if noise == "normal" else rng.standard_t(3, size=size)

    tables, rows, seeds = shape
    deviations = np.geomspace(1.0, spread, rows)[None, :, None]
    made = deviations * draw(shape)
    return made - draw((tables, 1, seeds)) if shared else made


def coverage(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """By row how often 95 % intervals of values [T, G, n] hold zero: Student's, moderated; and the latter's width."""
    seeds = values.shape[2]
    means, variances = values.mean(2), values.var(2, ddof=1)
    own, degrees = moderated(variances, seeds - 1)
    plain = stdtrit(seeds - 1, 0.975) * np.sqrt(variances / seeds)
    half = stdtrit(degrees, 0.975) * np.sqrt(own / seeds)
    return (np.abs(means) < plain).mean(0), (np.abs(means) < half).mean(0), float(half.mean() / plain.mean())


def main(argv: list[str]) -> int:
    """Simulate and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks moderated", description=__doc__)
    parser.add_argument("--tables", type=int, default=20_000, metavar="N", help="simulated tables a line")
    args = parser.parse_args(argv)
    print("| differences | deviations | baseline | rows | seeds | Student's | moderated | its noisiest row | width |")
    print("|---|---|---|---|---|---|---|---|---|")
    for noise, spread, shared in CASES:
        for rows, seeds in ((7, 3), (7, 5)):
            rng = np.random.default_rng(0)
            values = differences(rng, (args.tables, rows, seeds), noise, spread, shared)
            plain, own, width = coverage(values)
            words = (noise, "equal" if spread == 1 else f"1 to {spread:g}", "shared" if shared else "of its own")
            shares = (f"{100 * share:.1f} %" for share in (plain.mean(), own.mean(), own[-1]))
            print(f"| {' | '.join(words)} | {rows} | {seeds} | {' | '.join(shares)} | {width:.2f} |")
    return 0
