"""Which number of heads that were trained alone tells which two help most together?

A grid with a row without heads, one for each head and one for each pair is enough. For every measure of a head's own
training (K = 1) three features of a pair were fixed beforehand: the sum, the product and the smaller of the two heads'
values. Each is judged by Spearman's rank correlation with the pairs' gains in AP. docs/metrics.md has the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import UserError
from harness.report.frames import recorded
from harness.system.words import quantity

if TYPE_CHECKING:
    from harness.spec.grid import Grid

Record = Mapping[str, Any]
GAIN = "gain of AP"  # a head's own: the first baseline
MEASURES = (  # of a head's own training; * is the head
    *("transfer/*-decoder", "transfer.far/*-decoder"),
    *("gradient/decoder-*", "gradient.below_zero/decoder-*", "gradient.magnitude/decoder-*"),
    *("gradient.shared/decoder-*", "gradient.shared_below_zero/decoder-*", "gradient.shared_magnitude/decoder-*"),
    *("conflict/decoder-*", "discriminability/encoder_auc", "discriminability/attention_auc"),
    *("instability", "instability_gt", "queries/*/positives_per_gt", "queries/*/distance_to_positives"),
)
COMBINATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "sum": np.add,
    "product": np.multiply,
    "smaller": np.minimum,
}
MOST_HEADS = 8  # whose names can be permuted: 40,320 ways
MOST_DRAWS = 3125  # of seeds; all of them up to five seeds


@dataclass(frozen=True)
class Trainings:
    """Numbers of H heads, of their pairs and of the detector without a head; seeds are those that all have."""

    heads: tuple[str, ...]
    seeds: tuple[int, ...]
    plain: np.ndarray  # [S] AP without a head
    singles: dict[str, np.ndarray]  # measure -> [S, H]; AP among them
    pairs: np.ndarray  # [S, P] AP, in the order of `places`
    unfinished: tuple[int, ...] = ()  # seeds that some row lacks
    partial: tuple[str, ...] = ()  # measures that some head has on some seed, but not all on all
    lone: tuple[str, ...] = ()  # rows of pairs of which some head has no row of its own

    @property
    def places(self) -> np.ndarray:
        """[P, 2] the two heads of each pair."""
        return np.array(list(itertools.combinations(range(len(self.heads)), 2)))


@dataclass(frozen=True)
class Prediction:
    """How well a feature tells the order of the pairs."""

    measure: str
    combination: str
    correlation: float  # Spearman's
    interval: tuple[float, float] | None  # 95 %, over resampled seeds; None: of one seed
    without: tuple[float, float] | None  # lowest and highest with one head left out; None: that leaves a single pair
    p: float  # share of the permutations of the heads' names that correlate as much
    p_any: float  # the same of whatever feature correlates most


def read(grid: Grid, records: Sequence[Record], metric: str = "AP") -> Trainings:
    """The numbers of a grid's finished trials.

    Raises:
        UserError: a row is missing, two have the same heads, or no seed is finished in all rows.
    """
    by_id = {
        record["trial_id"]: record
        for record in records
        if record["status"] == "finished" and math.isfinite(_number(record, metric))
    }
    found: dict[tuple[str, ...], dict[int, Record]] = {}
    rows: dict[tuple[str, ...], str] = {}  # by heads the label
    for trial in grid.trials:
        names = tuple(sorted(name.partition(".")[0] for name in trial.config.model.head_names))
        if len(names) <= 2 and (other := rows.setdefault(names, trial.row)) != trial.row:
            raise UserError(
                f"{grid.name}: '{other}' and '{trial.row}' are both {_words(names)}: which one is meant? "
                f"Leave one of them out of a copy of the file"
            )
        if trial.trial_id in by_id:
            found.setdefault(names, {})[trial.config.seed] = by_id[trial.trial_id]
    heads = tuple(sorted(names[0] for names in rows if len(names) == 1))
    wanted = [(), *((head,) for head in heads), *itertools.combinations(heads, 2)]
    if missing := [names for names in wanted if names not in found]:
        raise UserError(f"{grid.name}: no finished trial of {_words(missing[0])}; `codetr run` it first")
    if len(heads) < 3:
        raise UserError(f"{grid.name}: {len(heads)} heads have a row of their own; an order of pairs needs 3 or more")
    if len(heads) > MOST_HEADS:
        raise UserError(f"{grid.name}: {len(heads)} heads have more orders than can be tried; leave some out")
    seeds = tuple(sorted(set.intersection(*(set(found[names]) for names in wanted))))
    if not seeds:
        raise UserError(f"{grid.name}: no seed is finished in every row; `codetr run` the rest first")

    def numbers(name: str, *rows: tuple[str, ...]) -> np.ndarray:
        return np.array(
            [[_number(found[row][seed], name.replace("*", "".join(row))) for row in rows] for seed in seeds]
        )

    alone = [(head,) for head in heads]
    singles = {name: numbers(name, *alone) for name in (metric, *MEASURES)}
    plain, together = numbers(metric, ())[:, 0], numbers(metric, *wanted[1 + len(heads) :])
    measured = {GAIN: singles.pop(metric) - plain[:, None]} | singles
    whole = {name: values for name, values in measured.items() if np.isfinite(values).all()}
    partial = tuple(name for name, values in measured.items() if name not in whole and np.isfinite(values).any())
    unfinished = tuple(seed for seed in sorted({trial.config.seed for trial in grid.trials}) if seed not in seeds)
    lone = tuple(label for names, label in rows.items() if len(names) == 2 and not {*names} <= {*heads})
    return Trainings(heads, seeds, plain, whole, together, unfinished, partial, lone)


def _number(record: Record, name: str) -> float:
    value = recorded(record, name)
    return math.nan if value is None else float(value)


def _words(heads: tuple[str, ...]) -> str:
    return f"the row with {' and '.join(heads)}" if heads else "the row without heads"


def predict(trainings: Trainings) -> list[Prediction]:
    """Judge every feature: the sum of the heads' own gains first, then the others by the size of their correlation."""
    gains = _gains(trainings, np.ones(len(trainings.seeds)))
    orders = np.array(list(itertools.permutations(range(len(trainings.heads)))))
    names = [(measure, way) for measure in trainings.singles for way in COMBINATIONS]
    permuted = np.stack(
        [
            spearman(_feature(trainings, measure, way, np.ones(len(trainings.seeds)), orders), gains)
            for measure, way in names
        ]
    )  # [F, H!], the first column as observed
    largest = np.abs(permuted).max(0)
    draws = _draws(len(trainings.seeds))
    found = []
    for (measure, way), own in zip(names, permuted, strict=True):
        observed = abs(own[0]) - 1e-12
        interval = _interval(trainings, measure, way, draws) if len(trainings.seeds) > 1 else None
        p, p_any = float((np.abs(own) >= observed).mean()), float((largest >= observed).mean())
        without = _without_each(trainings, measure, way, gains)
        found.append(Prediction(measure, way, float(own[0]), interval, without, p, p_any))
    baseline = (GAIN, "sum")
    return sorted(found, key=lambda own: ((own.measure, own.combination) != baseline, -abs(own.correlation)))


def chance(trainings: Trainings) -> float:
    """Size of the correlation of summed gains that 95 % of the permutations of the heads' names stay below."""
    ones = np.ones(len(trainings.seeds))
    orders = np.array(list(itertools.permutations(range(len(trainings.heads)))))
    found = spearman(_feature(trainings, GAIN, "sum", ones, orders), _gains(trainings, ones))
    return float(np.quantile(np.abs(found), 0.95))


def _gains(trainings: Trainings, weights: np.ndarray) -> np.ndarray:
    """[P] mean gain of each pair over the detector without a head, seeds weighted."""
    return weights @ (trainings.pairs - trainings.plain[:, None]) / weights.sum()


def _feature(
    trainings: Trainings, measure: str, way: str, weights: np.ndarray, orders: np.ndarray | None = None
) -> np.ndarray:
    """[P] of the pairs, or [N, P] with the heads' values in other orders [N, H]."""
    values = weights @ trainings.singles[measure] / weights.sum()
    first, second = trainings.places.T
    values = values if orders is None else values[orders]
    return COMBINATIONS[way](values[..., first], values[..., second])


def spearman(features: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """[...] rank correlation of each row [..., P] with `gains` [P]; 0 where all values of a row are equal."""
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=-1) for values in (features, gains)]
    first, second = (own - own.mean(-1, keepdims=True) for own in ranks)
    sizes = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    return np.divide((first * second).sum(-1), sizes, out=np.zeros(first.shape[:-1]), where=sizes > 0)


def _draws(count: int) -> np.ndarray:
    """[N, S] how often each seed is drawn: all ways to draw as many as there are, or so many at random."""
    if count**count <= MOST_DRAWS:
        chosen = np.array(list(itertools.product(range(count), repeat=count)))
    else:
        chosen = np.random.default_rng(0).integers(0, count, (MOST_DRAWS, count))
    return (chosen[..., None] == np.arange(count)).sum(1).astype(float)


def _interval(trainings: Trainings, measure: str, way: str, draws: np.ndarray) -> tuple[float, float]:
    found = [float(spearman(_feature(trainings, measure, way, own), _gains(trainings, own))) for own in draws]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def _without_each(trainings: Trainings, measure: str, way: str, gains: np.ndarray) -> tuple[float, float] | None:
    """The lowest and the highest correlation over the pairs that are left without one of the heads."""
    if len(trainings.heads) < 4:  # a single pair is left, which has no order
        return None
    feature = _feature(trainings, measure, way, np.ones(len(trainings.seeds)))
    kept = [(trainings.places != head).all(1) for head in range(len(trainings.heads))]
    found = [float(spearman(feature[own], gains[own])) for own in kept]
    return min(found), max(found)


def rows_of(found: Sequence[Prediction]) -> list[list[str]]:
    """Cells of a table for persons."""
    return [
        [
            own.measure,
            own.combination,
            f"{own.correlation:+.2f}",
            "–" if own.interval is None else "[{:+.2f}, {:+.2f}]".format(*own.interval),
            "–" if own.without is None else "{:+.2f} to {:+.2f}".format(*own.without),
            f"{own.p:.3f}",
            f"{own.p_any:.3f}",
        ]
        for own in found
    ]


def as_csv(found: Sequence[Prediction]) -> str:
    """All numbers, a line for each feature; an empty field is a number that is not there."""
    lines = ["measure,feature,spearman,low,high,lowest_without,highest_without,p,p_any"]
    for own in found:
        none = (None, None)
        numbers = (own.correlation, *(own.interval or none), *(own.without or none), own.p, own.p_any)
        fields = ("" if number is None else f"{number:.6g}" for number in numbers)
        lines.append(",".join([own.measure, own.combination, *fields]))
    return "\n".join(lines) + "\n"


def words(trainings: Trainings) -> list[str]:
    """What stands below the table."""
    gains = _gains(trainings, np.ones(len(trainings.seeds)))
    names = ["{} + {}".format(*(trainings.heads[head] for head in place)) for place in trainings.places]
    best, worst = int(gains.argmax()), int(gains.argmin())
    orders = math.factorial(len(trainings.heads))
    count = quantity(len(trainings.seeds), "seed")
    told = []
    if trainings.unfinished:
        numbers = ", ".join(map(str, trainings.unfinished))
        told.append(f"left out, as not finished in every row: seed{'s' * (len(trainings.unfinished) > 1)} {numbers}")
    if trainings.partial:
        told.append(f"left out, as not every training has it: {', '.join(trainings.partial)}")
    if trainings.lone:
        told.append(f"left out, as not each of their heads has a row of its own: {', '.join(trainings.lone)}")
    return [
        f"{len(gains)} pairs of {len(trainings.heads)} heads, {count}; best {names[best]} "
        f"({gains[best]:+.1f}), worst {names[worst]} ({gains[worst]:+.1f})",
        f"first line: the sum of the heads' own gains, a baseline; by chance 95 % of its {orders:,} orders of the "
        f"heads' names stay below {chance(trainings):.2f}",
        "p: share of these orders that correlate as much; p of any: share in which some feature of the table does",
        "without a head: lowest and highest over the pairs that are left; 95 %: seeds drawn with replacement",
        *told,
    ]
