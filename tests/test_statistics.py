"""Statistics of seeds: closed forms worked by hand, exact small permutations, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from harness.report.statistics import (
    FEWEST_FOR_P,
    false_discovery_rates,
    paired_difference,
    sign_flip_p_value,
    summarise,
    t_quantile,
    t_test,
)


def test_mean_and_sample_deviation_by_hand():
    summary = summarise([2.0, 4.0, 9.0])  # mean 5, squares 9 + 1 + 16 = 26, 26 / 2 = 13
    assert summary.mean == pytest.approx(5.0)
    assert summary.std == pytest.approx(math.sqrt(13.0))
    assert summary.n == 3


def test_one_value_has_no_deviation():
    summary = summarise([47.1])
    assert (summary.mean, summary.std, summary.n) == (47.1, None, 1)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_nothing_or_not_finite_is_refused(values):
    with pytest.raises(ValueError, match="summarise needs"):
        summarise(values)


def test_quantiles_of_t_from_the_printed_tables():
    assert t_quantile(0.975, 1) == pytest.approx(12.706, abs=1e-3)
    assert t_quantile(0.975, 2) == pytest.approx(4.303, abs=1e-3)
    assert t_quantile(0.975, 4) == pytest.approx(2.776, abs=1e-3)


def test_interval_by_hand():
    # Differences 3, 5, 7: mean 5, deviation 2; half width 4.3027 * 2 / sqrt(3) = 4.9683.
    difference = paired_difference({0: 13.0, 1: 25.0, 2: 37.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    assert difference.mean == pytest.approx(5.0)
    assert difference.low == pytest.approx(5.0 - 4.9683, abs=1e-4)
    assert difference.high == pytest.approx(5.0 + 4.9683, abs=1e-4)
    assert difference.p_value is None  # of three pairs it cannot be below 0.25
    assert (difference.n, difference.deviation, difference.confidence) == (3, pytest.approx(2.0), 0.95)


def test_pairing_takes_out_what_a_seed_shares():
    """Values far apart between seeds, equal gains: the interval has no width."""
    difference = paired_difference({0: 11.0, 1: 51.0, 2: 91.0}, {0: 10.0, 1: 50.0, 2: 90.0})
    assert (difference.low, difference.high) == pytest.approx((1.0, 1.0))


def test_only_shared_seeds_are_paired():
    difference = paired_difference({0: 11.0, 2: 99.0, 3: 13.0}, {0: 10.0, 1: 50.0, 3: 10.0})
    assert difference.n == 2
    assert difference.mean == pytest.approx(2.0)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_one_pair_has_neither_interval_nor_p_value():
    difference = paired_difference({7: 48.7}, {7: 47.1})
    assert difference.mean == pytest.approx(1.6)
    assert (difference.low, difference.high, difference.p_value, difference.n) == (None, None, None, 1)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1.0], 1.0),
        ([1.0, 2.0], 2 / 4),  # |sum| >= 3: both or none flipped
        ([1.0, 2.0, 3.0], 2 / 8),
        ([1.0, -2.0, 3.0], 6 / 8),  # sums 2, -2, 6, -6, 0, 0, 4, -4: two are below 2
        ([0.1, 0.2, -0.3], 1.0),  # the mean is zero up to rounding
        ([0.0, 0.0, 0.0], 1.0),
        ([0.1, 0.1, 0.1, 0.1, 0.1], 2 / 32),
        ([0.3, 0.1, 0.2, -0.2, 0.4], 8 / 32),  # of 1.2 in all, at most 0.2 negative: none, 0.1, either 0.2
    ],
)
def test_p_value_of_small_cases(differences, expected):
    assert sign_flip_p_value(differences) == pytest.approx(expected)


def test_p_value_agrees_with_plain_enumeration():
    from itertools import product

    generator = np.random.default_rng(3)
    for n in range(1, 9):
        differences = list(generator.integers(-4, 6, size=n).astype(float))  # whole numbers: exact ties occur
        sums = [
            abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in product((-1, 1), repeat=n)
        ]
        expected = sum(value >= abs(sum(differences)) for value in sums) / 2**n
        assert sign_flip_p_value(differences) == expected


def test_many_differences_are_drawn_and_repeatable():
    differences = [0.2 + 0.1 * (-1) ** k for k in range(24)]
    assert sign_flip_p_value(differences) == sign_flip_p_value(differences)
    assert 0 < sign_flip_p_value(differences) < 1e-3
    assert sign_flip_p_value([(-1.0) ** k for k in range(24)]) == 1.0


@pytest.mark.parametrize("n", range(2, 9))
def test_a_p_value_is_given_where_it_can_reach_five_percent(n):
    gains = {seed: 1.0 + seed for seed in range(n)}
    found = paired_difference(gains, dict.fromkeys(gains, 0.0)).p_value
    assert found == (None if n < FEWEST_FOR_P else pytest.approx(2 / 2**n))
    assert 2 / 2**FEWEST_FOR_P < 0.05 <= 2 / 2 ** (FEWEST_FOR_P - 1)


def test_students_p_value_goes_with_the_interval():
    generator = np.random.default_rng(4)
    for values in generator.normal(0.8, 1.0, size=(200, 5)):
        found = paired_difference(dict(enumerate(values.tolist())), dict.fromkeys(range(5), 0.0))
        p = t_test(found.mean, found.deviation, 5)
        assert p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
        assert (p < 0.05) == (found.low > 0 or found.high < 0)
        within = t_test(found.mean, found.deviation, 5, margin=2.0)
        assert (within < 0.05) == (found.low > -2 and found.high < 2)
    assert t_test(0.0, 0.0, 5) == 1.0 and t_test(1.0, 0.0, 5) == 0.0 and t_test(0.0, 0.0, 5, margin=1.0) == 0.0


def test_q_values_are_those_of_benjamini_and_hochberg():
    generator = np.random.default_rng(9)
    for count in (1, 2, 7, 21):
        values = generator.random(count).tolist()
        assert false_discovery_rates(values) == pytest.approx(stats.false_discovery_control(values))
    assert false_discovery_rates([]) == []


@pytest.mark.parametrize("n", [3, 5])
def test_interval_covers_the_truth_in_95_of_100(n):
    """2,000 simulated comparisons: 95 % within 4 standard errors of the simulation (0.5 %)."""
    generator = np.random.default_rng(n)
    baseline = {seed: 40.0 for seed in range(n)}
    covered = 0
    for gains in generator.normal(1.5, 0.7, size=(2000, n)):
        difference = paired_difference({seed: 40.0 + gain for seed, gain in enumerate(gains)}, baseline)
        covered += difference.low <= 1.5 <= difference.high
    assert 0.93 < covered / 2000 < 0.97


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("law", ["normal", "laplace"])
def test_p_values_are_uniform_under_no_effect(n, law):
    """The p-value takes the values k / 2**(n - 1), each equally often when differences are symmetric about zero."""
    generator = np.random.default_rng(11)
    steps = 2 ** (n - 1)
    p_values = np.array([sign_flip_p_value(list(row)) for row in getattr(generator, law)(size=(200 * steps, n))])
    counts = np.array([np.isclose(p_values, k / steps).sum() for k in range(1, steps + 1)])
    assert counts.sum() == 200 * steps
    assert np.abs(counts - 200).max() < 4 * math.sqrt(200 * (1 - 1 / steps))
    # so at any level no more than that share is called significant, whatever the number of seeds
    for level in (0.05, 0.25, 0.5):
        assert np.mean(p_values <= level) < level + 4 * math.sqrt(level * (1 - level) / len(p_values))
