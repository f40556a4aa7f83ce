"""How sure a mean over images is: the percentile bootstrap (Efron 1979), always with the same draws."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95


@lru_cache(maxsize=4)
def resamples(num_images: int) -> np.ndarray:
    """[NUM_RESAMPLES, num_images] share of each image in samples drawn with replacement; rows sum to 1."""
    rng = np.random.default_rng(0)
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), NUM_RESAMPLES) / num_images


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the central 95 % of `values` [NUM_RESAMPLES, ...]."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return low, high


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of the mean over images of `values` [num_images, ...]."""
    means = resamples(len(values)) @ values.reshape(len(values), -1)
    low, high = interval(means)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])
