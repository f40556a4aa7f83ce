"""What `search:` in an ablation file may say, and how values are drawn from its space.

A search draws settings instead of listing them. Values are rounded, so that a suggestion written down and read
again is the same trial, and the n-th draw depends on the seed and n alone: a longer search begins as the shorter one.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from harness.spec.strict import non_finite, show, suggest
from model.checks import require

KINDS = ("uniform", "log_uniform", "integer", "choice")
STARTUP = 10  # trials drawn at random before Optuna's sampler has enough to model; its own default
MOST_TRIALS = 5000  # of a search; more take a plan too long to draw
STEPS = 1000  # at least so many different values in a uniform range
DIGITS = 4  # significant digits of a log-uniform value
TRIES = 50  # draws for each trial wanted, before the space counts as exhausted

Values = dict[str, Any]  # dotted key -> value


@dataclass(frozen=True)
class Dimension:
    """One setting that a search draws: its dotted key, the kind of its range, and the range."""

    key: str
    kind: str  # one of KINDS
    range: tuple[Any, ...]  # (low, high), both included; of a choice: the values

    def at(self, position: float) -> Any:
        """The value at a position in [0, 1) of the range."""
        if self.kind == "choice":
            return self.range[int(position * len(self.range))]
        low, high = self.range
        if self.kind == "integer":
            return low + int(position * (high - low + 1))
        if self.kind == "log_uniform":
            return self.rounded(low * (high / low) ** position)
        return self.rounded(low + (high - low) * position)

    def rounded(self, value: float) -> float:
        """A float as it is written down, within the range."""
        low, high = self.range
        if self.kind == "log_uniform":
            value = float(f"{value:.{DIGITS - 1}e}")
        else:
            value = round(value, math.ceil(math.log10(STEPS / (high - low))))
        return min(max(value, low), high)


class SearchSpec(BaseModel):
    """The `search:` part of an ablation file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    space: dict[str, dict[str, tuple[Any, ...]]]  # dotted key -> {kind: range}
    num_trials: int = 16
    metric: str = "AP"  # a column of the table or `loss`
    mode: Literal["max", "min"] = "max"
    algorithm: Literal["random", "optuna"] = "random"
    seed: int = 0  # of the draws; what is trained with is the file's `seeds`
    scheduler: Literal["none", "asha"] = "none"  # asha: stop trials early that lag behind
    grace_epochs: int = 1  # asha: no trial is stopped before
    reduction_factor: int = 3  # asha: of so many trials one is let on at each rung

    @field_validator("space")
    @classmethod
    def _space(cls, space: dict[str, dict[str, tuple[Any, ...]]]) -> dict[str, dict[str, tuple[Any, ...]]]:
        require(len(space) > 0, "is empty; name a setting, such as model.lambda1: {uniform: [0.5, 2.0]}")
        for key, entry in space.items():
            require(not key.startswith("runtime."), f"{key}: runtime settings change no result; search over others")
            require(len(entry) == 1, f"{key}: must have one range, such as {{uniform: [0.5, 2.0]}}, got {show(entry)}")
            for kind, values in entry.items():
                require(kind in KINDS, f"{key}: unknown range '{kind}'{suggest(kind, KINDS)}")
                _check_range(key, kind, values)
        return {
            key: {kind: values if kind == "choice" else _numbers(kind, values) for kind, values in entry.items()}
            for key, entry in space.items()
        }

    @field_validator("num_trials", "grace_epochs")
    @classmethod
    def _at_least_one(cls, number: int) -> int:
        require(number >= 1, f"must be at least 1, got {number}")
        return number

    @field_validator("num_trials")
    @classmethod
    def _drawn_in_seconds(cls, number: int) -> int:
        require(number <= MOST_TRIALS, f"must be at most {MOST_TRIALS:,}, got {number}")
        return number

    @field_validator("reduction_factor")
    @classmethod
    def _at_least_two(cls, number: int) -> int:
        require(number >= 2, f"must be at least 2, got {number}")
        return number

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The settings that are drawn, in the order of the file."""
        return tuple(
            Dimension(key, kind, values) for key, entry in self.space.items() for kind, values in entry.items()
        )


def _numbers(kind: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    return values if kind == "integer" else tuple(float(value) for value in values)


def _check_range(key: str, kind: str, values: tuple[Any, ...]) -> None:
    """Raise `ValueError` unless `values` can be the range of this kind."""
    shown = show(list(values))
    if kind == "choice":
        require(len(values) > 1, f"{key}: a choice needs at least two values, got {shown}")
        require(not non_finite(list(values)), f"{key}: must be finite, got {shown}")
        told = [json.dumps(value) for value in values]
        require(len(set(told)) == len(told), f"{key}: the values of a choice must differ, got {shown}")
        return
    kinds = (int,) if kind == "integer" else (int, float)
    numbers = all(isinstance(value, kinds) and not isinstance(value, bool) for value in values)
    wanted = "whole numbers" if kind == "integer" else "numbers"
    require(numbers and len(values) == 2, f"{key}: {kind} needs two {wanted} [low, high], got {shown}")
    require(not non_finite(list(values)), f"{key}: must be finite, got {shown}")
    require(values[0] < values[1], f"{key}: the range is empty; low must be below high, got {shown}")
    require(kind != "log_uniform" or values[0] > 0, f"{key}: log_uniform needs a positive range, got {shown}")


def drawn(search: SearchSpec) -> list[Values]:
    """What is drawn at random, in order and each once: all trials, or those before Optuna has enough to go by.

    Fewer where the space has not so many.
    """
    wanted = search.num_trials if search.algorithm == "random" else min(STARTUP, search.num_trials)
    found: dict[str, Values] = {}
    numbers = random.Random(search.seed)
    for _ in range(TRIES * wanted):
        values = {dimension.key: dimension.at(numbers.random()) for dimension in search.dimensions}
        found.setdefault(json.dumps(values), values)
        if len(found) == wanted:
            break
    return list(found.values())


def corners(search: SearchSpec) -> Iterator[Values]:
    """Values that reach every end of every range and every choice: what can be wrong with a space shows there."""
    most = max(len(dimension.range) for dimension in search.dimensions)
    for index in range(most):
        yield {d.key: d.range[min(index, len(d.range) - 1)] for d in search.dimensions}


def describe(search: SearchSpec) -> str:
    """The search in words."""
    ranges = [
        f"{d.key} {d.kind} {show(list(d.range))}" if d.kind != "choice" else f"{d.key} of {show(list(d.range))}"
        for d in search.dimensions
    ]
    text = f"{search.num_trials} trials, {'drawn at random' if search.algorithm == 'random' else 'chosen by Optuna'}"
    if search.algorithm == "optuna":
        text += f" after {min(STARTUP, search.num_trials)} drawn at random"
    text += f" (seed {search.seed}) from {', '.join(ranges)}; {search.mode} of {search.metric}"
    if search.scheduler == "asha":
        rung = f"from epoch {search.grace_epochs} on, the best 1 in {search.reduction_factor} go on at each rung"
        text += f"; stopped early by ASHA ({rung})"
    return text


def values_text(values: Mapping[str, Any]) -> str:
    """Values in one canonical text."""
    return json.dumps(values, sort_keys=True)
