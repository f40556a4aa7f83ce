"""From a grid and the records of its trials to a table: one row per variant, seeds gathered into mean and deviation.

Nothing here reads a store or knows a file format: records are plain mappings (as `result.json` has them), and
`formats.py` writes the table out. A value that is not there stays not there: the cell is empty and says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.report.frames import trials_frame
from harness.report.notes import describe, listed, missing_reason, undefined_reason
from harness.report.statistics import Difference, Summary, paired_difference, summarise
from harness.report.verdicts import Verdict, judge_claims
from harness.spec.detection_metrics import is_detection_metric
from harness.spec.error_metrics import PREFIX, better, branch_of, error_name, is_error_metric
from harness.system.words import plural

if TYPE_CHECKING:
    import pandas as pd

    from harness.spec.claims import Claim
    from harness.spec.grid import Grid, Row

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """How a number of a record is headed and written."""

    name: str
    heading: str
    better: str = ""  # "higher", "lower" or "" where neither is
    decimals: int = 2
    scale: float = 1.0  # multiplies the recorded number where a person reads it
    varies: bool = True  # between seeds; False: no deviation is written
    whole_from: float = math.inf  # numbers this large are written without decimals


COSTS = (
    Metric("loss", "loss", "lower", 2),
    Metric("peak_memory_mb", "memory (MB)", "lower", 0),
    Metric("device_hours", "device hours", "lower", 2, whole_from=10),
    Metric("wall_seconds", "wall time (s)", "lower", 0),
    Metric("train_seconds", "training (s)", "lower", 0),
    Metric("eval_seconds", "evaluation (s)", "lower", 0),
    Metric("checkpoint_seconds", "checkpoints (s)", "lower", 0),
    Metric("seconds_per_step", "s/step", "lower", 3),
    Metric("num_parameters", "parameters (M)", "", 2, 1e-6, varies=False),
)
INSTABILITY = (
    Metric("instability", "instability", "lower", 2),
    Metric("instability_gt", "instability by ground truth", "lower", 2),
)
READINGS = {"discriminability.v1": ", version 1", "discriminability.concatenated": ", concatenated"}
KNOWN = {metric.name: metric for metric in (*COSTS, *INSTABILITY)}


def metric_of(name: str) -> Metric:
    """Return how to write the metric `name`; `atss/AP` is the AP of the branch `atss`."""
    branch, _, own = name.rpartition("/")
    if is_detection_metric(name):
        own = own.replace("segm_", "mask ")
        return Metric(name, f"{branch} {own}".strip(), "higher", 1)
    if is_error_metric(name):
        return _error_metric(name)
    if name.startswith("discriminability"):
        reading = READINGS.get(branch, "")
        return Metric(name, f"IoF-IoB area ({own.removesuffix('_auc')}){reading}", "higher", 3)
    if name.startswith("conflict"):
        bounds = own in ("floor", "ceiling", "left_out_share")  # of any variant
        return Metric(name, name.replace("/", " "), "" if bounds else "lower", 4)
    if name.startswith(("transfer", "gradient")):
        is_share = "below_zero" in name or "magnitude" in name
        better = "" if is_share or own in ("floor", "ceiling") else "higher"
        if name.startswith("transfer"):
            return Metric(name, f"{name.replace('/', ' ')} (%)", better, 3, 100)
        return Metric(name, name.replace("_", " ").replace("/", " "), better, 2 if is_share else 3)
    if name.startswith("queries/"):
        return Metric(name, f"{branch.removeprefix('queries/')} {own.replace('_', ' ')}", "", 2)
    return KNOWN.get(name, Metric(name, name))


def _error_metric(name: str) -> Metric:
    """`dAP duplicate` in points of AP, `best F1` in percent, its threshold as a score."""
    own = error_name(name)
    words = {
        f"{PREFIX}duplicate_gap": "duplicate gap",
        f"{PREFIX}best_regressed_recall": "best-regressed recall",
        "best_f1": "best F1",
        "best_f1_threshold": "threshold of best F1",
        "best_f1_precision": "precision at best F1",
        "best_f1_recall": "recall at best F1",
    }.get(own, f"dAP {own.removeprefix(PREFIX).replace('_', ' ')}")
    percent = own.startswith("best_f1") or own.endswith("recall")
    decimals = 3 if own == "best_f1_threshold" else 1 if percent else 2
    return Metric(name, f"{branch_of(name)} {words}".strip(), better(name), decimals)


@dataclass(frozen=True)
class Cell:
    """What one row says of one metric."""

    summary: Summary | None = None  # ours
    gain: Difference | None = None  # over the baseline row, paired by seed
    published: float | None = None  # the paper's number
    published_gain: float | None = None  # the paper's number less the paper's baseline
    marks: str = ""  # letters of the footnotes that say why `summary` or `gain` is missing


@dataclass(frozen=True)
class TableRow:
    """One variant."""

    label: str
    is_baseline: bool
    factors: Mapping[str, Any]
    num_finished: int  # trials, that is seeds
    num_trials: int
    cells: Mapping[str, Cell]  # by name of the metric
    is_baselines: bool = False  # its trials are its baseline's, so that there is nothing to gain
    label_marks: str = ""  # footnotes on the variant
    marks: str = ""  # footnotes on seeds that are missing while others are there
    values: Mapping[int, float] = field(default_factory=dict)  # the first metric by seed


@dataclass(frozen=True)
class Table:
    """A table in words and numbers, before any format."""

    name: str
    title: str
    metrics: tuple[Metric, ...]
    rows: tuple[TableRow, ...]
    footnotes: tuple[tuple[str, str], ...]  # (letter, reason)
    notes: tuple[str, ...]  # how the numbers were made
    verdicts: tuple[Verdict, ...] = ()  # on what the file claims
    unasked: Set[tuple[str, int]] = frozenset()  # rows and seeds that never ran, and that nothing asked for


@dataclass(frozen=True)
class Footnotes:
    """Letters in order of first use; one reason has one letter."""

    letters: dict[str, str] = field(default_factory=dict)  # reason -> letter

    def mark(self, reasons: Iterable[str]) -> str:
        """Return the letters of `reasons`, new ones added."""
        return ",".join(self.letters.setdefault(reason, _letter(len(self.letters))) for reason in reasons)


def _letter(index: int) -> str:
    """Return a, b, … z, aa, ab, …"""
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


@dataclass(frozen=True)
class Group:
    """The trials of one row, as far as they have finished."""

    row: Row
    trials: pd.DataFrame  # the row's part of `trials_frame`, those that have finished
    finished: Mapping[int, Record]  # by seed
    missing: tuple[str, ...]  # why the others are not there
    num_trials: int  # that were asked for

    def values(self, metric: Metric) -> dict[int, float]:
        """Return the defined numbers of `metric` by seed."""
        if metric.name not in self.trials:
            return {}
        numbers = zip(self.trials["seed"], self.trials[metric.name], strict=True)
        return {int(seed): float(number) for seed, number in numbers if not math.isnan(number)}

    def shares(self, other: Group) -> bool:
        """Whether both rows have the same trials."""
        return self.row.trial_ids == other.row.trial_ids


def make_table(grid: Grid, records: Iterable[Record], settled: Mapping[Claim, Verdict] | None = None) -> Table:
    """Return the table of `grid` from the records found for its trials; other records are left aside.

    Args:
        grid: rows, seeds, metrics and claims.
        records: shaped like result.json.
        settled: verdicts of claims that looks have settled (see `judge_claims`).
    """
    by_id = {record["trial_id"]: record for record in records}
    metrics = tuple(metric_of(name) for name in grid.metrics)
    unasked = _unasked(grid, by_id, settled or {})
    groups = _groups(grid, by_id, unasked)
    if grid.search is not None:
        groups = _ranked(groups, by_id, metrics[0], grid.search.spec.mode)
    labelled = {group.row.label: group for group in groups}
    footnotes = Footnotes()
    rows = []
    for group in groups:
        baseline = labelled.get(group.row.baseline or grid.baseline)
        same = group.row.same_as and f"same {plural('trial', len(group.row.trial_ids))} as '{group.row.same_as}'"
        note = footnotes.mark(filter(None, [group.row.note, same]))
        rows.append(
            TableRow(
                label=group.row.label,
                is_baseline=group is baseline,
                factors=group.row.factors,
                num_finished=len(group.finished),
                num_trials=group.num_trials,
                is_baselines=baseline is not None and group is not baseline and group.shares(baseline),
                cells={
                    metric.name: _cell(group, baseline, metric, footnotes, metric is metrics[0]) for metric in metrics
                },
                label_marks=note,
                marks=footnotes.mark(group.missing) if group.finished else "",
                values=group.values(metrics[0]),
            )
        )
    used = {record["trial_id"]: record for group in groups for record in group.finished.values()}
    return Table(
        name=grid.name,
        title=grid.title,
        metrics=metrics,
        rows=tuple(rows),
        footnotes=tuple((letter, reason) for reason, letter in footnotes.letters.items()),
        notes=describe(grid, rows, list(used.values())),
        verdicts=judge_claims(grid.claims, labelled, metric_of, settled),
        unasked=unasked,
    )


def _ranked(groups: list[Group], by_id: Mapping[str, Record], metric: Metric, mode: str) -> list[Group]:
    """The trials of a search: the best first, then those that were pruned, the farthest first, then the others."""

    def rank(group: Group) -> tuple[int, float]:
        values = list(group.values(metric).values())
        if values:
            return 0, values[0] if mode == "min" else -values[0]
        if group.finished:
            return 1, 0.0
        record = by_id.get(group.row.trial_ids[0]) or {}
        return (2, -len(record.get("history") or ())) if record.get("status") == "pruned" else (3, 0.0)

    return sorted(groups, key=rank)


def _unasked(grid: Grid, by_id: Mapping[str, Record], settled: Iterable[Claim]) -> frozenset[tuple[str, int]]:
    """Rows and seeds that never ran and are not missed, where looks said how many seeds a row takes.

    Those are all of the rows that settled claims name, and of other rows the seeds that looks took besides the file's.
    """
    if grid.looked is None:
        return frozenset()
    claimed = {label for claim in settled for label in (claim.reference, *claim.rows)}
    cells = ((row.label, seed, key) for row in grid.rows for seed, key in zip(grid.seeds, row.trial_ids, strict=True))
    never = ((label, seed) for label, seed, key in cells if key not in by_id and key not in grid.seen)
    return frozenset(cell for cell in never if cell[0] in claimed or cell[1] in grid.looked)


def _groups(grid: Grid, by_id: Mapping[str, Record], unasked: Set[tuple[str, int]]) -> list[Group]:
    """The rows of a grid with their finished trials, and reasons for the others; see `Table` for `unasked`."""
    trials = trials_frame(grid, by_id.values())
    count = len(grid.seeds)
    groups = []
    for number, row in enumerate(grid.rows):
        own = trials.iloc[number * count : (number + 1) * count]
        own = own[[(row.label, int(seed)) not in unasked for seed in own["seed"]]]
        there = own[own["status"] == "finished"]
        reasons: dict[str, list[int]] = {}
        for seed, trial_id, status in zip(own["seed"], own["trial_id"], own["status"], strict=True):
            if status != "finished":
                reasons.setdefault(missing_reason(by_id.get(trial_id)), []).append(int(seed))
        finished = {int(seed): by_id[key] for seed, key in zip(there["seed"], there["trial_id"], strict=True)}
        groups.append(Group(row, there, finished, _missing(reasons, alone=not finished), len(own)))
    for place, row in reversed(grid.waiting):
        groups.insert(place, Group(row, trials[:0], {}, (f"needs {row.needs}, which is not here yet",), 0))
    return groups


def _missing(reasons: Mapping[str, Sequence[int]], alone: bool) -> tuple[str, ...]:
    """Reasons by seed in words; one that holds for all of a row's trials needs no seeds."""
    if len(reasons) == 1 and alone:
        return tuple(reasons)
    return tuple(f"{plural('seed', len(missing))} {listed(missing)}: {why}" for why, missing in reasons.items())


def _cell(group: Group, baseline: Group | None, metric: Metric, footnotes: Footnotes, says_gain: bool) -> Cell:
    """Return what the row of `group` says of `metric`; with `says_gain` a missing gain needs a reason as well."""
    published = group.row.published.get(metric.name)
    published_baseline = baseline.row.published.get(metric.name) if baseline and baseline is not group else None
    published_gain = None if published is None or published_baseline is None else published - published_baseline
    cell = Cell(published=published, published_gain=published_gain)
    if not group.finished:
        return replace(cell, marks=footnotes.mark(group.missing))
    values = group.values(metric)
    if not values:
        return replace(cell, marks=footnotes.mark([undefined_reason(metric.name, list(group.finished.values()))]))
    cell = replace(cell, summary=summarise(list(values.values())))
    if baseline is None or group.shares(baseline):
        return cell
    gain = paired_difference(values, baseline.values(metric))
    if gain is None and says_gain:
        reason = f"no gain: the row '{baseline.row.label}' has no number from a shared seed"
        return replace(cell, marks=footnotes.mark([reason]))
    return replace(cell, gain=gain)
