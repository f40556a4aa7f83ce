"""Two Gaussians in one dimension, fitted by expectation maximisation: how PAA tells good anchors from bad.

All objects of a batch are fitted at once, each stopping by itself. The problem is small and runs many short steps, so
it is computed by numpy on the CPU in float64. Start, stopping rule and regularisation are scikit-learn's
`GaussianMixture`, which the official implementation calls object by object.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MAX_ITERATIONS = 100
TOLERANCE = 1e-3  # the mean log-likelihood gains less than this: converged
MIN_VARIANCE = 1e-6  # added to every variance
TIE = 1e-7  # log-likelihoods closer than this are equal: two samples lie evenly around their mean, up to rounding
MIN_COUNT = 10 * float(np.finfo(np.float64).eps)  # added to a component's number of samples


class Mixture(NamedTuple):
    """R fitted mixtures; component 0 starts at the smallest sample, component 1 at the largest."""

    weights: np.ndarray  # [R, 2]
    means: np.ndarray  # [R, 2]
    variances: np.ndarray  # [R, 2]
    num_iterations: np.ndarray  # [R] int64


def log_probabilities(samples: np.ndarray, mixture: Mixture) -> np.ndarray:
    """[2, R, N] log of component weight x density at each of `samples` [R, N]."""
    weights, means, variances = (values.T[..., None] for values in mixture[:3])  # [2, R, 1]
    constant = np.log(weights) - 0.5 * np.log(2 * np.pi * variances)
    return constant - 0.5 * np.square(samples - means) / variances


def fit_mixtures(samples: np.ndarray, present: np.ndarray) -> Mixture:
    """Fit a mixture to each row of `samples` [R, N] float64, of which `present` [R, N] bool says which count.

    Every row must hold at least one sample; absent ones may hold any finite number.
    """
    num_rows = len(samples)
    least = np.where(present, samples, np.inf).min(1)
    largest = np.where(present, samples, -np.inf).max(1)
    fitted = Mixture(
        np.full((num_rows, 2), 0.5),
        np.stack([least, largest], 1),
        np.ones((num_rows, 2)),
        np.zeros(num_rows, np.int64),
    )
    rows = np.arange(num_rows)  # those that have not converged
    count = present.sum(1)
    previous = np.full(num_rows, -np.inf)
    for _ in range(MAX_ITERATIONS):
        joint = log_probabilities(samples, Mixture(*(values[rows] for values in fitted)))
        total = np.logaddexp(joint[0], joint[1])
        share = np.exp(joint - total) * present  # [2, R, N]
        size = share.sum(-1) + MIN_COUNT  # [2, R]
        means = (share * samples).sum(-1) / size
        variances = (share * np.square(samples - means[..., None])).sum(-1) / size + MIN_VARIANCE
        fitted.weights[rows] = (size / size.sum(0)).T
        fitted.means[rows] = means.T
        fitted.variances[rows] = variances.T
        fitted.num_iterations[rows] += 1
        likelihood = (total * present).sum(1) / count
        going_on = ~(np.abs(likelihood - previous) < TOLERANCE)
        if not going_on.all():
            rows, samples, present, count = rows[going_on], samples[going_on], present[going_on], count[going_on]
            likelihood = likelihood[going_on]
        if not len(rows):
            break
        previous = likelihood
    return fitted


def low_loss_component(losses: Tensor) -> Tensor:
    """Which candidates are positive by their losses (PAA, Kim and Lee 2020, section 3.1; official separation).

    Of the candidates that the low-loss component explains better, those up to and including the most likely one, the
    first of equals.

    Args:
        losses: [..., N] ascending; infinity where there is no candidate.

    Returns:
        [..., N] bool; all False for fewer than two candidates.
    """
    samples = losses.detach().double().cpu().numpy().reshape(-1, losses.shape[-1])
    present = np.isfinite(samples)
    positive = np.zeros(samples.shape, bool)
    rows = (present.sum(1) >= 2).nonzero()[0]
    if len(rows):
        present = present[rows]
        samples = np.where(present, samples[rows], 0.0)
        joint = log_probabilities(samples, fit_mixtures(samples, present))
        low = (joint[0] >= joint[1]) & present
        likelihood = np.where(low, np.logaddexp(joint[0], joint[1]), -np.inf)
        peak = (likelihood >= likelihood.max(1, keepdims=True) - TIE).argmax(1)
        up_to_peak = np.arange(samples.shape[1]) <= peak[:, None]
        positive[rows] = low & up_to_peak
    return torch.from_numpy(positive).to(losses.device).view(losses.shape)
