"""Which figures a grid has: its finished trials, row by row, given to the functions of `harness.figures`.

The seeds of a row share its label and become a line with a band. A figure without data is left out. matplotlib is
imported only when a figure is drawn: a table needs none of it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from harness.figures.series import AxisPoint, Change, ErrorChanges
from harness.report.frames import recorded
from harness.report.pivot import across, axis_values, baseline_there, is_numeric, line_label
from harness.report.published import PUBLISHED_CONFLICT, published_conflict
from harness.report.statistics import Difference, mean_interval, paired_difference
from harness.report.tables import Metric, metric_of
from harness.report.tasks import over_tasks, why_not
from harness.spec.error_metrics import COSTS, PREFIX
from harness.spec.labels import DATA, short_names, shown_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from harness.spec.grid import Grid, Row

Record = Mapping[str, Any]
Made = TypeVar("Made")  # figures, or their files
HISTORY = {"ap": ("AP",), "instability": ("instability", "instability_gt")}  # figure -> what it needs per epoch
ERRORS = "errors"  # the figure of what rows remove
TABLES = {  # figure -> the table of the analysis that it needs, or another that it takes where no trial has that one
    "discriminability": ("discriminability", "discriminability.v1"),
    "conflict": ("conflict",),
    "conflict_matrix": ("conflict",),
    "queries": ("queries",),
    "influence": ("gradient",),
}


def analysis_figures(grid: Grid, records: Iterable[Record], notes: list[str] | None = None) -> dict[str, Figure]:
    """Draw what `grid.figures` asks for, as far as the records hold it.

    Args:
        grid: rows, seeds, and the names of its figures (see `harness.spec.spec.FIGURES`).
        records: shaped like result.json, with the small tables of the analysis below `analysis` where it was asked
            for; only finished trials count, for a mean over fewer seeds from some epoch on would show a step that
            nobody trained.
        notes: gets a line for each figure that cannot be drawn, and for rows that lack what a figure shows.

    Returns:
        Figures by name, in the order asked for, then the first metric against an axis where the grid has one or two.
        `conflict_matrix` gives one a row with heads, beside the paper's where it has the same heads; its name then
        ends in the row's label.
    """
    by_id = {record["trial_id"]: record for record in records if record["status"] == "finished"}
    runs = [(row.label, by_id[key]) for row in grid.rows for key in row.trial_ids if key in by_id]
    figures: dict[str, Figure] = {}
    notes = [] if notes is None else notes

    def say(text: str) -> None:
        notes.append(f"{grid.name}: {text}")

    histories = [(label, record.get("history") or ()) for label, record in runs]
    analyses = [(label, record.get("analysis") or {}) for label, record in runs]
    for name in grid.figures:
        if name == ERRORS:
            figures |= attempt(name, partial(_errors, grid, by_id), say)
        elif name in HISTORY:
            figures |= attempt(name, partial(_over_epochs, name, grid.title, histories), say)
        elif name in TABLES:
            made = attempt(name, partial(figures_of_analyses, name, analyses), say)
            if made and (lacking := lacking_tables(name, analyses)):
                say(f"figure {name} is {lacking}")
            figures |= made
        else:
            figures |= attempt(name, partial(_curve, name, grid.title, histories), say)
    return figures | (attempt("axis", partial(_against_axis, grid, by_id), say) if grid.figures else {})


def attempt(name: str, draw: Callable[[], dict[str, Made]], say: Callable[[str], None]) -> dict[str, Made]:
    """What `draw` gives. Where it fails there is a line instead: one figure is no reason to lose the others."""
    try:
        return draw()
    except Exception as error:  # noqa: BLE001 - whatever it was, tables and other figures do not depend on it
        say(f"figure {name} could not be drawn: {type(error).__name__}: {' '.join(str(error).split())}")
        return {}


def over_epochs(names: Iterable[str]) -> list[str]:
    """The metrics whose course over the epochs these figures show."""
    own = (HISTORY.get(name, (name,)) for name in names if name not in TABLES and name != ERRORS)
    return list(dict.fromkeys(metric for metrics in own for metric in metrics))


def _curve(metric: str, title: str, runs: list[tuple[str, Any]]) -> dict[str, Figure]:
    """A number of the analysis after each epoch that had one (`analyse.every_epochs`)."""
    if not any(entry.get(metric) is not None for _, history in runs for entry in history):
        return {}
    from harness.figures.epochs import draw_curves

    return {curve_name(metric): draw_curves(runs, metric, title)}


def curve_name(metric: str) -> str:
    """The figure of a metric over the epochs, as its file is named."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", metric)


def figures_of_analyses(name: str, analyses: list[tuple[str, Mapping[str, Any]]]) -> dict[str, Figure]:
    """The figure `name` (a key of `TABLES`) of (label, tables by name); none where nobody has what it shows."""
    if name != "influence":
        return figures_of_tables(name, tables_for(name, analyses))
    both = [
        [(label, own[kind]) for label, own in analyses if len((own.get(kind) or {}).get("heads") or ()) > 1]
        for kind in ("gradient", "transfer")
    ]
    if not any(both):
        return {}
    from harness.figures.influence import draw_influence

    return {name: draw_influence(*both)}


def tables_for(name: str, analyses: Iterable[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, Any]]:
    """What the figure `name` (a key of `TABLES`) shows of (label, analysis): all of one definition."""
    analyses = list(analyses)
    for kind in TABLES[name]:
        if found := [(label, own[kind]) for label, own in analyses if own.get(kind)]:
            return found
    return []


def lacking_tables(name: str, analyses: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """In words, which labels are not in the figure `name` since some of their seeds lack its table; "" where none do.

    Such a table is of another definition than the one that is shown, or was not made at all.
    """
    analyses = list(analyses)
    kind = next((kind for kind in TABLES[name] if any(own.get(kind) for _, own in analyses)), "")
    if not kind:
        return ""
    seeds, lacking = Counter(label for label, _ in analyses), Counter[tuple[str, str]]()
    for label, own in analyses:
        if not own.get(kind):
            lacking[label, next((other for other in TABLES[name] if own.get(other)), "")] += 1
    words = [
        f"{label} ({f'{number} of {seeds[label]} seeds, ' if number < seeds[label] else ''}"
        f"{f'has {other} instead' if other else 'not analysed'})"
        for (label, other), number in lacking.items()
    ]
    return f"of {kind}, which some lack: {'; '.join(words)}; `codetr analyse` adds it" if words else ""


def _against_axis(grid: Grid, by_id: Mapping[str, Record]) -> dict[str, Figure]:
    """The first metric against the axis of a grid with one or two, a line for each other combination."""
    axis = across(grid)
    if axis == DATA:
        return _on_data_sets(grid, by_id)
    metric = metric_of(grid.metrics[0])
    lines: dict[str, list[AxisPoint]] = {}
    for number, row in enumerate(grid.rows if axis else ()):
        values = list(_by_seed(grid, row, metric, by_id).values())
        if values:
            point = AxisPoint(row.along[axis], math.fsum(values) / len(values), mean_interval(values), len(values))
            lines.setdefault(line_label(grid, number, axis), []).append(point)
    if not any(len(points) > 1 for points in lines.values()):
        return {}
    from harness.figures.against import draw_against

    name = short_names(grid.axes)[axis]
    places = axis_values(grid, axis)
    figure = draw_against(lines, places, is_numeric(places), name, metric.heading, grid.title)
    return {f"axis_{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}": figure}


def _by_seed(grid: Grid, row: Row, metric: Metric, by_id: Mapping[str, Record]) -> dict[int, float]:
    keys = {seed: key for seed, key in zip(grid.seeds, row.trial_ids, strict=True) if key in by_id}
    found = {seed: recorded(by_id[key], metric.name) for seed, key in keys.items()}
    return {seed: value * metric.scale for seed, value in found.items() if value is not None}


ALL = "all (IQM)"


def _on_data_sets(grid: Grid, by_id: Mapping[str, Record]) -> dict[str, Figure]:
    """The gain of each row on each data set, and over all of them where there are enough."""
    metric = metric_of(grid.metrics[0])
    lines: dict[str, list[AxisPoint]] = {}
    tasks: dict[str, list[tuple[dict[int, float], dict[int, float]]]] = {}
    for number, row in enumerate(grid.rows):
        baseline, label = baseline_there(grid, row), line_label(grid, number, DATA)
        if baseline is None:
            continue
        own, other = (_by_seed(grid, line, metric, by_id) for line in (row, baseline))
        tasks.setdefault(label, []).append((own, other))  # one that has no results counts as in the table
        if gain := paired_difference(own, other):
            place, change = shown_at(DATA, row.along[DATA]), _change(gain)
            lines.setdefault(label, []).append(AxisPoint(place, change.mean, change.interval, change.n))
    if not any(len(points) > 1 for points in lines.values()):
        return {}
    from harness.figures.against import draw_against

    places: list[Any] = [shown_at(DATA, value) for value in axis_values(grid, DATA)]
    note = "95 % t intervals over seeds"
    for label in [label for label, pairs in tasks.items() if metric.better and not why_not(pairs)]:
        middle = over_tasks(tasks[label]).gain
        lines[label].append(AxisPoint(ALL, middle.value, (middle.low, middle.high), len(tasks[label])))
        places, note = [*dict.fromkeys((*places, ALL))], "95 % t intervals over seeds; IQM: bootstrap"
    name = f"gain of {metric.heading}"
    return {"gains_on_data": draw_against(lines, places, False, "data", name, grid.title, joined=False, note=note)}


def _errors(grid: Grid, by_id: Mapping[str, Record]) -> dict[str, Figure]:
    """What each row removes of its baseline's errors, as far as both have measured them on a seed."""
    rows, baselines = [], []
    for row in grid.listed:
        baseline = grid.baseline_of(row)
        if baseline is None or baseline.trial_ids == row.trial_ids or baseline.needs or row.needs:
            continue
        own, other = (_costs(grid, line.trial_ids, by_id) for line in (row, baseline))
        if changes := _changes(row.label, own, other):
            rows.append(changes)
            baselines.append(baseline.label)
    if not rows:
        return {}
    from harness.figures.errors import draw_error_changes

    words = baselines[0] if len(set(baselines)) == 1 else "that of each row"
    return {ERRORS: draw_error_changes(rows, words, grid.title)}


def _costs(grid: Grid, trial_ids: Sequence[str], by_id: Mapping[str, Record]) -> dict[str, dict[int, float]]:
    """By kind of error what it costs on each seed; a trial without one of them is left out."""
    costs: dict[str, dict[int, float]] = {kind: {} for kind in COSTS}
    for seed, key in zip(grid.seeds, trial_ids, strict=True):
        found = {kind: recorded(by_id[key], f"{PREFIX}{kind}") if key in by_id else None for kind in COSTS}
        for kind, value in found.items():
            if value is not None and None not in found.values():
                costs[kind][seed] = value
    return costs


def _changes(
    label: str, own: Mapping[str, Mapping[int, float]], other: Mapping[str, Mapping[int, float]]
) -> ErrorChanges | None:
    """None where both share no seed."""
    first, second = (
        {seed: math.fsum(costs[kind][seed] for kind in COSTS) for seed in costs[COSTS[0]]} for costs in (own, other)
    )
    found = {kind: paired_difference(own[kind], other[kind]) for kind in COSTS}
    total = paired_difference(first, second)
    if total is None:
        return None
    return ErrorChanges(label, {kind: _change(one) for kind, one in found.items() if one}, _change(total))


def _change(difference: Difference) -> Change:
    low, high = difference.low, difference.high
    return Change(difference.mean, None if low is None or high is None else (low, high), difference.n)


def _over_epochs(name: str, title: str, runs: list[tuple[str, Any]]) -> dict[str, Figure]:
    if not any(entry.get(key) is not None for _, history in runs for entry in history for key in HISTORY[name]):
        return {}
    from harness.figures.epochs import draw_curves, draw_instability

    return {name: draw_curves(runs, "AP", title) if name == "ap" else draw_instability(runs)}


def figures_of_tables(name: str, tables: list[tuple[str, Any]]) -> dict[str, Figure]:
    """The figure `name` (a key of `TABLES`) of (label, table); none where no table has what it shows.

    Models without auxiliary heads have no conflict and no customised queries, and are left out of those.
    """
    if name == "discriminability":
        tables = [(label, table) for label, table in tables if (table.get("encoder") or {}).get("auc") is not None]
    elif name == "queries":
        tables = [(label, table) for label, table in tables if table.get("distances")]
    else:
        tables = [(label, table) for label, table in tables if len(table["heads"]) > 1]
    if not tables:
        return {}
    if name == "conflict_matrix":
        return _matrices(name, tables)
    if name == "conflict":
        from harness.figures.conflict import draw_conflict_distances, has_distance

        if not any(has_distance(table) for _, table in tables):
            return {}
        known = [("paper (from its Figures 8 and 9)", table) for table in PUBLISHED_CONFLICT.values()]
        return {name: draw_conflict_distances(tables, known)}
    if name == "queries":
        from harness.figures.queries import draw_query_distances

        return {name: draw_query_distances(tables)}
    from harness.figures.discriminability import draw_discriminability

    return {name: draw_discriminability(tables)}


def _matrices(name: str, tables: list[tuple[str, Any]]) -> dict[str, Figure]:
    from harness.figures.matrices import draw_conflict_matrices

    figures: dict[str, Figure] = {}
    labels = list(dict.fromkeys(label for label, _ in tables))
    for label, ending in zip(labels, _endings(labels), strict=True):
        own = [(label, table) for other, table in tables if other == label]
        paper = published_conflict(own[0][1]["heads"])
        figures[f"{name}_{ending}"] = draw_conflict_matrices([*own, *([paper] if paper else [])])
    return figures


def _endings(labels: Sequence[str]) -> list[str]:
    """Labels as parts of file names; of those that would be the same, the later ones are numbered."""
    plain = [re.sub(r"[^\w.-]+", "_", label).strip("_") for label in labels]
    endings: list[str] = []
    for number, ending in enumerate(plain):
        if ending in plain[:number]:
            taken = {*plain, *endings}
            ending = next(name for turn in count(2) if (name := f"{ending}_{turn}") not in taken)
        endings.append(ending)
    return endings
