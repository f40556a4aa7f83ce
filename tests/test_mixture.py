"""The mixtures of PAA against scikit-learn's, which fits one at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from model.mixture import fit_mixtures, log_probabilities, low_loss_component

COUNTS = (2, 5, 9, 30, 45)


def rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending samples of two clusters, of different counts, and which of them are present."""
    random = np.random.default_rng(seed)
    samples, present = np.zeros((len(COUNTS), max(COUNTS))), np.zeros((len(COUNTS), max(COUNTS)), bool)
    for row, count in enumerate(COUNTS):
        cluster = random.random(count) < random.uniform(0.2, 0.8)
        samples[row, :count] = np.sort(random.normal(np.where(cluster, 0.5, random.uniform(0.6, 2)), 0.2))
        present[row, :count] = True
    return samples, present


def fit_one(samples: np.ndarray) -> GaussianMixture:
    ends = np.array([[samples.min()], [samples.max()]])
    start = {"weights_init": [0.5, 0.5], "means_init": ends, "precisions_init": np.ones((2, 1))}
    return GaussianMixture(2, covariance_type="diag", **start).fit(samples[:, None])


@pytest.mark.parametrize("seed", range(3))
def test_all_rows_at_once_are_each_row_alone(seed: int) -> None:
    samples, present = rows(seed)
    mixture = fit_mixtures(samples, present)
    likelihood = np.logaddexp(*log_probabilities(samples, mixture))
    for row, count in enumerate(COUNTS):
        own = samples[row, :count]
        expected = fit_one(own)
        assert mixture.num_iterations[row] == expected.n_iter_
        np.testing.assert_allclose(mixture.weights[row], expected.weights_, rtol=1e-6)
        np.testing.assert_allclose(mixture.means[row], expected.means_[:, 0], rtol=1e-6)
        np.testing.assert_allclose(mixture.variances[row], expected.covariances_[:, 0], rtol=1e-6)
        np.testing.assert_allclose(likelihood[row, :count], expected.score_samples(own[:, None]), rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_positive_are_the_low_component_up_to_its_peak(seed: int) -> None:
    samples, present = rows(seed)
    found = low_loss_component(torch.from_numpy(np.where(present, samples, np.inf)))
    for row, count in enumerate(COUNTS):
        own = samples[row, :count, None]
        expected = fit_one(own[:, 0])
        low = (expected.predict(own) == 0).nonzero()[0]
        scores = expected.score_samples(own)[low]
        if count > 2:  # the likelihoods of two samples are equal up to rounding
            assert found[row].nonzero().flatten().tolist() == low[: scores.argmax() + 1].tolist()
        assert not found[row, count:].any()


@pytest.mark.parametrize(
    "losses",
    [  # the two most likely ones differ by 2.9e-6 and 9.4e-6
        [0.1529, 0.3886, 0.4261, 0.4265, 0.5622, 0.5837, 1.0446, 1.1726, 1.5033, 1.7048, 2.6633],
        [0.2239, 0.2545, 0.7333, 0.8913, 0.8918, 1.0334, 1.1758, 1.3066, 1.5871, 1.8042, 1.8095, 2.2417, 3.5432],
    ],
)
def test_likelihoods_that_are_close_are_no_tie(losses: list[float]) -> None:
    own = np.array(losses)
    expected = fit_one(own)
    low = (expected.predict(own[:, None]) == 0).nonzero()[0]
    first, second = np.sort(expected.score_samples(own[low, None]))[::-1][:2]
    assert 1e-6 < first - second < 1e-5
    peak = low[expected.score_samples(own[low, None]).argmax()]
    assert low_loss_component(torch.tensor(losses)).nonzero().flatten().tolist() == list(range(peak + 1))
