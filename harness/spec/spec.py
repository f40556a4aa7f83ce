"""What an ablation file may say, and what the command line sets.

An ablation file is one paper table: `base` settings on top of a preset, `rows` and/or `axes` that vary
them (or a `search` that draws them, harness/spec/space.py), and `seeds`. This room reads and checks the file
itself; the settings in it are checked when `harness.spec.resolve` layers them. The format is described in
ablations/README.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from harness.spec.claims import ClaimSpec
from harness.spec.detection_metrics import METRICS, is_detection_metric, own_name, trouble
from harness.spec.error_metrics import ERROR_METRICS, is_error_metric
from harness.spec.parts import Setting, names_first
from harness.spec.resolve import leaves
from harness.spec.space import SearchSpec
from harness.spec.strict import Mistakes, dotted, non_finite, read_yaml, read_yaml_file, show, suggest, validate
from model.checks import require

COST_METRICS = (
    *("loss", "wall_seconds", "train_seconds", "eval_seconds", "checkpoint_seconds", "seconds_per_step"),
    *("device_hours", "peak_memory_mb", "num_parameters"),
)
FIGURES = ("ap", "instability", "discriminability", "conflict", "conflict_matrix", "queries", "influence", "errors")
# a number of harness/analyse: of a head (conflict/atss), of two (conflict/atss-gfl), of another variant than the rule
ANALYSIS_METRIC = re.compile(
    r"conflict(\.[\w-]+)?/[\w.-]+|discriminability(\.(v1|concatenated))?/(encoder|attention)_auc|instability(_gt)?"
    r"|queries/[\w.]+/(positives_per_gt|distance_to_(positives|negatives))"
    r"|gradient(\.shared|\.(shared_)?(below_zero|magnitude))?/[\w.-]+|transfer(\.far)?/[\w.-]+"
)
SHIPPED = Path(__file__).resolve().parents[2] / "ablations"
DEFAULT_PRESET = "digits"

Published = dict[str, float]


def _published(value: Any) -> dict[str, Published]:
    """`{AP: 37.1}` or `{coco_r50_12e: {AP: 37.1}, …}` in the second form; the key '' fits every preset."""
    require(isinstance(value, dict), f"must be a mapping of metrics, got {show(value)}")
    nested = any(isinstance(numbers, dict) for numbers in value.values())
    settings = value if nested else {"": value}
    for numbers in settings.values():
        require(isinstance(numbers, dict), f"must be metrics, or metrics for each preset, got {show(value)}")
        for metric, number in numbers.items():
            _metric(metric)
            is_number = isinstance(number, int | float) and not isinstance(number, bool) and not non_finite(number)
            require(is_number, f"{metric} must be a number, got {show(number)}")
    return {str(name): {m: float(n) for m, n in numbers.items()} for name, numbers in settings.items() if numbers}


def _metric(name: str) -> None:
    if ANALYSIS_METRIC.fullmatch(name) or is_detection_metric(name) or is_error_metric(name):
        return
    known = (*METRICS, *COST_METRICS, *ERROR_METRICS)
    require(own_name(name) in known, trouble(name) or f"unknown metric '{name}'{suggest(name, known)}")


class RowSpec(BaseModel):
    """One row of the table: what it sets, and what the paper reports for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    label: str
    set: dict[str, Any] = {}
    presets: dict[str, dict[str, Any]] = {}  # settings of this row under one preset of scale, or at one size, only
    published: dict[str, Any] = {}
    note: str = ""
    baseline: str = ""  # label of the row that its gain is measured from, where that is not the file's
    needs: str = ""  # what is not here yet: the row is checked, its published numbers are shown, and it does not run

    _check = field_validator("published")(_published)


class DecideSpec(BaseModel):
    """How `codetr decide` settles the claims."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_seeds: int | None = None  # at the last look, from 3 to 24; None: 12

    @field_validator("max_seeds")
    @classmethod
    def _most(cls, number: int | None) -> int | None:
        require(number is None or 3 <= number <= 24, f"must be from 3 to 24, got {number}")
        return number


class AblationSpec(BaseModel):
    """An ablation file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = ""  # default: the file's name
    title: str = ""
    paper: str = ""  # key of the published table, such as table09
    description: str = ""
    base: dict[str, Any] = {}
    presets: dict[str, dict[str, Any]] = {}  # settings that apply under one preset of scale, or at one size, only
    rows: tuple[RowSpec, ...] = ()
    axes: dict[str, tuple[Any, ...]] = {}
    search: SearchSpec | None = None  # instead of rows and axes
    seeds: tuple[int, ...] = (0,)
    metrics: tuple[str, ...] = ("AP", "AP50", "AP75")
    figures: tuple[str, ...] = ("ap",)  # some of `FIGURES`, or numbers of an analysis, which are drawn over epochs
    baseline: Any = ""  # what gains are measured from: a row's label, or values on axes
    claims: tuple[ClaimSpec, ...] = ()  # what the rows are said to show
    decide: DecideSpec = DecideSpec()
    path: str = ""  # where the file lies; filled in by `read_spec`

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        good = re.fullmatch(r"[\w+-][\w .+-]{0,99}", name) or not name
        require(bool(good), f"must be up to 100 letters, digits and _ - + . since it names a folder, got {name!r}")
        return name

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        check_seeds(seeds)
        return seeds

    @field_validator("metrics")
    @classmethod
    def _metrics(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        require(len(metrics) > 0, "name at least one metric, such as [AP]")
        for name in metrics:
            _metric(name)
            require(metrics.count(name) == 1, f"{name} stands there twice; remove one")
        return metrics

    @field_validator("figures")
    @classmethod
    def _figures(cls, figures: tuple[str, ...]) -> tuple[str, ...]:
        for name in figures:
            is_curve = ANALYSIS_METRIC.fullmatch(name) is not None
            require(name in FIGURES or is_curve, f"unknown figure '{name}'{suggest(name, FIGURES)}")
        return tuple(dict.fromkeys(figures))

    @field_validator("baseline")
    @classmethod
    def _baseline(cls, baseline: Any) -> Any:
        good = isinstance(baseline, str | dict)
        require(good, f"must be the label of a row, or values on axes such as {{lambda1: 1}}, got {show(baseline)}")
        return baseline

    @field_validator("axes")
    @classmethod
    def _axes(cls, axes: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for key, values in axes.items():
            require(len(values) > 0, f"'{key}' has no values, so the grid is empty; list at least one")
        return axes


def check_seeds(seeds: Iterable[int]) -> None:
    """Raise `ValueError` unless there are seeds, each once and none negative."""
    listed = list(seeds)
    require(len(listed) > 0, "seeds are empty, so the grid is empty; write seeds: [0]")
    require(len(set(listed)) == len(listed), f"seeds must differ, got {listed}")
    require(min(listed) >= 0, f"seeds must not be negative, got {listed}")
    require(max(listed) < 2**63, f"seeds must be below 2^63, got {listed}")


def read_spec(path: str | Path, mistakes: Mistakes | None = None) -> AblationSpec:
    """Read and check an ablation file.

    With `mistakes` given, they are collected there and what can be understood is returned, for a report
    of everything at once; otherwise any mistake raises `UserError`.
    """
    found = mistakes if mistakes is not None else Mistakes()
    file = Path(path)
    if not file.exists():
        near = sorted(str(other) for other in file.parent.glob("*.yaml")) or sorted(map(str, SHIPPED.glob("*.yaml")))
        found.add(str(path), f"no such ablation file{suggest(str(path), near)}")
        tree = None
    else:
        tree = read_yaml_file(file, found)
    spec = AblationSpec()
    if tree:
        if "path" in tree:
            found.add(f"{path}:path", "unknown key; a data set is given by --data or data.path in base")
            del tree["path"]
        valid = validate(AblationSpec, tree, lambda where, what: found.add(f"{path}:{dotted(where)}", what))
        spec = valid or spec
        if any(tree.get(part) and not getattr(spec, part) for part in ("rows", "axes")):
            spec = spec.model_copy(update={"baseline": "", "claims": ()})  # labels of rows that cannot be read
        _check_whole(spec, tree, lambda where, what: found.add(f"{path}:{where}", what))
    elif not found.lines:
        found.add(str(path), "is empty; see ablations/README.md for what it may say")
    if mistakes is None:
        found.check()
    return spec.model_copy(update={"path": str(path), "name": spec.name or file.stem})


def _check_whole(spec: AblationSpec, tree: dict[str, Any], tell: Callable[[str, str], None]) -> None:
    """What concerns several parts of the file at once; `tree` is what was written, mistaken parts included."""
    if tree.get("search"):
        _check_search(spec, tree, tell)
    elif not tree.get("rows") and not tree.get("axes"):
        tell("rows", "the grid is empty; add rows or axes")
    varied: dict[str, Mapping[str, Any]] = {f"rows.{index}.set": row.set for index, row in enumerate(spec.rows)}
    for where, settings in {**varied, "axes": spec.axes}.items():
        if any(key.split(".")[0] == "analyse" for key in settings):
            tell(where, "analyse cannot differ between rows, which may share trials; set it in base")
    needs = list(dict.fromkeys(row.needs for row in spec.rows))
    if spec.rows and "" not in needs:
        tell("rows", f"every row needs what is not here yet ({', '.join(needs)})")
    labels = [row.label for row in spec.rows]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        tell("rows", f"each row needs a label of its own; used twice: {', '.join(twice)}")
    if spec.axes and any(row.published for row in spec.rows):
        tell("axes", "cannot cross rows that have published numbers; write each combination as a row")


def _check_search(spec: AblationSpec, tree: dict[str, Any], tell: Callable[[str, str], None]) -> None:
    for part in ("rows", "axes", "baseline"):
        if tree.get(part):
            tell(part, f"cannot stand beside search, whose table is a ranking; remove {part}, or search")
    if spec.search is None:
        return
    metric, mode = spec.search.metric, spec.search.mode
    if not is_detection_metric(metric) and metric != "loss":
        what = trouble(metric) or f"unknown metric '{metric}'{suggest(metric, (*METRICS, 'loss'))}"
        tell("search.metric", what)
    elif mode != ("min" if metric == "loss" else "max"):
        better = "lower" if metric == "loss" else "higher"
        tell("search.mode", f"a {better} {metric} is better; write mode: {'min' if metric == 'loss' else 'max'}")


OPTIONS = {  # of the command line, for settings that have one of their own
    "--cpus-per-trial": ("runtime", "cpus_per_trial"),
    "--gpus-per-trial": ("runtime", "gpus_per_trial"),
    "--accelerator-type": ("runtime", "accelerator_type"),
    "--ranks": ("runtime", "ranks"),
}


def override_settings(overrides: Iterable[str], options: Mapping[str, str], mistakes: Mistakes) -> list[Setting]:
    """What the command line sets: `--set key=value` texts, and `OPTIONS` with their texts, which win.

    The value after `--set` is YAML, so lists and mappings work.
    """
    settings: list[Setting] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            mistakes.add(f"--set {text}", "must be key=value, such as --set train.epochs=3")
            continue
        before = len(mistakes.lines)
        tree = {key.strip(): read_yaml(value, f"--set {key}", mistakes)}
        if len(mistakes.lines) == before:
            settings += leaves(tree, "--set ", mistakes)
    for option, text in options.items():
        number = option != "--accelerator-type"
        settings.append((OPTIONS[option], read_yaml(text, option, mistakes) if number else text, option))
    return names_first(settings)


def check_said_once(settings: Iterable[Setting], mistakes: Mistakes) -> None:
    """An option of the command line and a `--set` of the same setting must say the same."""
    given: dict[tuple[str, ...], tuple[str, Any]] = {}
    for path, value, origin in settings:
        known, before = given.get(path, ("", value))
        if before != value and not origin.startswith("--set "):
            mistakes.add(f"{origin} {value}", f"{known}={before} says something else; remove one of them")
        given[path] = origin, value
