"""In which order trials start: the longest first, so that none of them runs last and alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.store.cost import Costs
from harness.store.results import RunStore

if TYPE_CHECKING:
    from harness.spec.grid import Trial


def longest_first(trials: Sequence[Trial], store: RunStore) -> list[Trial]:
    """The trials by what is left of them, the longest first; those that are equally long stay in their order.

    Seconds decide where trials with the settings of each were measured. An estimate from others says little about the
    order, so otherwise it goes by what makes a step long, the number of auxiliary heads (K) first.
    """
    costs = Costs(store)
    estimates = [costs.left(trial) for trial in trials]
    seconds = [found.seconds for found in estimates if found is not None and found.alike]
    if len(seconds) == len(trials):
        keys: list[tuple[float, ...]] = [(-value,) for value in seconds]
    else:
        keys = [tuple(-value for value in _size(trial)) for trial in trials]
    return [trial for _, trial in sorted(zip(keys, trials, strict=True), key=lambda pair: pair[0])]


def _size(trial: Trial) -> tuple[float, ...]:
    """What a trial's duration grows with, the most telling first."""
    model, data, train = trial.config.model, trial.config.data, trial.config.train
    side = data.square or max(*data.train_short_sides, data.eval_short_side)
    return (
        len(model.heads),
        model.positive_queries and bool(model.heads),
        model.num_queries,
        side,
        train.epochs,
        train.min_steps,
        train.batch_size,
    )
