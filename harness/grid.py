"""An ablation file under a preset as an exact list of trials.

rows x axes (harness/rows.py) x seeds become `Trial`s. A trial *is* its resolved configuration: the id is a hash of all
of it and of the data set's content, so a changed default is a new trial, two rows (or two files) that ask for the same
thing share one, and nothing about where or how fast it runs matters. Labels show only what differs.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.claims import Claim, claims_of
from harness.config import AnalyseConfig, DataConfig, RuntimeConfig, TrialConfig
from harness.errors import UserError
from harness.identity import canonical_model, trial_id
from harness.labels import Factor, factor_of, settings_of, short_names, show_value
from harness.resolve import Resolved, Setting, overruled_epochs, resolve
from harness.rows import baseline_label, published_preset, rows_of
from harness.search import Search, open_search
from harness.space import Values, drawn
from harness.spec import (
    DEFAULT_PRESET,
    AblationSpec,
    RowSpec,
    check_seeds,
    override_settings,
    preset_settings,
    read_spec,
)
from harness.strict import Mistakes


@dataclass(frozen=True)
class Trial:
    """One training and evaluation."""

    trial_id: str  # first 12 hex digits of SHA-256 over `identity`
    config: TrialConfig
    runtime: RuntimeConfig
    label: str  # what differs within the grid: "heads=atss positive_queries=false seed=1"
    row: str  # label of the (first) row it belongs to
    factors: dict[str, Factor]  # varied dotted keys and their values, and the seed
    fingerprint: str  # of the data set's content; "" when the data set is not there
    analyse: AnalyseConfig = AnalyseConfig()  # no part of the identity either


@dataclass(frozen=True)
class Row:
    """One row of the table: its trials differ in the seed only."""

    label: str
    factors: dict[str, Factor]  # without the seed
    trial_ids: tuple[str, ...]  # by seed
    published: dict[str, float]  # the paper's numbers, by metric
    note: str = ""


@dataclass(frozen=True)
class Grid:
    """All trials of an ablation file, each once."""

    name: str
    title: str
    paper: str  # key of the published table, or ""
    preset: str
    trials: tuple[Trial, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0,)
    baseline: str = ""  # label of the row that gains are measured from
    published_preset: str = ""  # the preset whose published numbers the rows hold; "" when they name none
    description: str = ""
    figures: tuple[str, ...] = ("ap",)  # which figures its report draws
    claims: tuple[Claim, ...] = ()  # what its rows are said to show
    notes: tuple[str, ...] = ()  # what a person should know before running
    command: str = ""  # runs what is missing of it; "" when it was not read from a file
    search: Search | None = None  # None: all trials are listed

    @property
    def num_unknown(self) -> int:
        """Trials that a search has still to suggest, from what becomes of those before them."""
        grows = self.search is not None and self.search.spec.algorithm == "optuna"
        return max(0, self.search.spec.num_trials - len(self.trials)) if self.search and grows else 0

    def suggest(self, values: Values) -> Grid:
        """This grid with one more suggestion of its search; itself where the trial is there already."""
        assert self.search is not None
        trial, row = self.search.make(values)
        if trial.trial_id in self.search.values:
            return self
        search = replace(self.search, values={**self.search.values, trial.trial_id: values})
        return replace(self, trials=(*self.trials, trial), rows=(*self.rows, row), search=search)

    def trial(self, trial_id: str) -> Trial:
        """The trial with this id.

        Raises:
            KeyError: it is not in the grid.
        """
        for trial in self.trials:
            if trial.trial_id == trial_id:
                return trial
        raise KeyError(trial_id)


def open_grid(
    path: str | Path,
    preset: str = DEFAULT_PRESET,
    overrides: Sequence[str] = (),
    *,
    data: str | None = None,
    seeds: Sequence[int] | None = None,
    require_data: bool = True,
) -> Grid:
    """Read an ablation file and expand it; see `expand`.

    Raises:
        UserError: with one line per mistake of the file, the preset and the overrides together.
    """
    mistakes = Mistakes()
    spec = read_spec(path, mistakes)
    grid = expand(spec, preset, overrides, data=data, seeds=seeds, require_data=require_data, mistakes=mistakes)
    words = ["codetr", "run", str(path), *(() if preset == DEFAULT_PRESET else ("--preset", preset))]
    words += [word for text in overrides for word in ("--set", text)]
    words += ["--data", data] if data is not None else []
    words += ["--seeds", ",".join(map(str, seeds))] if seeds is not None else []
    return replace(grid, command=shlex.join(words))


def expand(
    spec: AblationSpec,
    preset: str = DEFAULT_PRESET,
    overrides: Sequence[str] = (),
    *,
    data: str | None = None,
    seeds: Sequence[int] | None = None,
    require_data: bool = True,
    mistakes: Mistakes | None = None,
) -> Grid:
    """The exact grid of `spec` under `preset`.

    Args:
        spec: the ablation file.
        preset: a preset's name, or the path of its YAML file.
        overrides: `key=value` texts as given to --set; they win over everything.
        data: folder of a COCO-layout data set instead of the preset's.
        seeds: instead of the file's.
        require_data: False lets a data set that is not there pass; its trials then have no final id.
        mistakes: found so far; they are raised with those found here.

    Raises:
        UserError: with one line per mistake.
    """
    mistakes = mistakes or Mistakes()
    below = preset_settings(preset, spec, mistakes)
    above = override_settings(overrides, mistakes)
    if data is not None and (folder := str(Path(data).absolute())) != (said := _in_utf8(folder)):
        mistakes.add("--data", f"{said} is no UTF-8 name, so no record can hold it; rename it, or link to it")
    elif data is not None:
        above.append((("data", "path"), str(data), "--data"))
    chosen = tuple(seeds) if seeds is not None else spec.seeds
    try:
        check_seeds(chosen)
    except ValueError as error:
        mistakes.add("--seeds", str(error))

    if spec.search is not None:
        return _expand_search(spec, preset, below, above, chosen, require_data, mistakes)
    notes: list[str] = []
    preset_name = _preset_name(preset)
    listed = rows_of(spec, preset_name, above, notes, mistakes)
    layered = [[*below, *own, *above] for _, own in listed]
    resolved = [resolve(settings, spec.path, mistakes) for settings in layered]
    labels = [row.label for row, _ in listed]
    baseline = baseline_label(spec, labels, mistakes)
    claims = claims_of(spec.claims, labels, spec.metrics, spec.path, mistakes)
    mistakes.check()
    notes += filter(None, (overruled_epochs(s, r) for s, r in zip(layered, resolved, strict=True) if r is not None))
    drafts = [(row, _canonical(r)) for (row, _), r in zip(listed, resolved, strict=True) if r is not None]
    fingerprints = _fingerprints([draft.data for _, draft in drafts], require_data, notes)
    trials, rows = _assemble(drafts, chosen, fingerprints)
    shown = published_preset(spec, preset_name)
    return Grid(
        name=spec.name,
        title=spec.title or spec.name,
        paper=spec.paper,
        preset=preset_name,
        trials=trials,
        metrics=spec.metrics,
        rows=tuple(
            replace(row, published=draft.published.get(shown, draft.published.get("", {})))
            for row, (draft, _) in zip(rows, drafts, strict=True)
        ),
        seeds=chosen,
        baseline=baseline,
        published_preset=shown,
        description=spec.description,
        figures=spec.figures,
        claims=claims,
        notes=tuple(dict.fromkeys(notes)),
    )


def _expand_search(
    spec: AblationSpec,
    preset: str,
    below: list[Setting],
    above: list[Setting],
    seeds: tuple[int, ...],
    require_data: bool,
    mistakes: Mistakes,
) -> Grid:
    """The grid of a search, with the trials that are known before anything ran."""
    notes: list[str] = []

    def assemble(row: RowSpec, resolved: Resolved, factors: dict[str, Factor]) -> tuple[Trial, Row]:
        draft = _canonical(resolved)
        fingerprint = _fingerprints([draft.data], require_data, notes)[draft.data]
        config = draft.trial(seeds[0])
        key = trial_id(config, fingerprint)
        full = {**factors, "seed": seeds[0]}
        trial = Trial(key, config, draft.runtime, row.label, row.label, full, fingerprint)
        return trial, Row(row.label, factors, (key,), {})

    search = open_search(spec, below, above, seeds, assemble, mistakes)
    metrics = tuple(dict.fromkeys((search.spec.metric, *spec.metrics)))
    title, name = spec.title or spec.name, _preset_name(preset)
    grid = Grid(spec.name, title, spec.paper, name, (), metrics, (), seeds, description=spec.description, search=search)
    for values in (first := drawn(search.spec)):
        grid = grid.suggest(values)
    wanted = search.spec.num_trials if search.spec.algorithm == "random" else len(first)
    if len(grid.trials) < wanted:
        notes.append(f"{spec.path}: search.space holds only {len(grid.trials)} trials that differ")
    return replace(grid, notes=tuple(dict.fromkeys(notes)))


def _canonical(resolved: Resolved) -> Resolved:
    """Absolute data path, and one form for settings without effect."""
    data = resolved.data
    if data.path is not None:
        data = replace(data, path=str(Path(data.path).expanduser().absolute()))
    return replace(resolved, data=data, model=canonical_model(resolved.model))


def _in_utf8(text: str) -> str:
    """The text as UTF-8 can hold it; what it cannot is escaped."""
    return text.encode(errors="backslashreplace").decode()


def _fingerprints(datas: Iterable[DataConfig], required: bool, notes: list[str]) -> dict[DataConfig, str]:
    from harness.data import fingerprint

    found: dict[DataConfig, str] = {}
    by_source: dict[Any, str] = {}
    missing: list[str] = []
    for data in datas:
        source = data.path or data.digits
        if source not in by_source:
            try:
                by_source[source] = fingerprint(data)
            except UserError as error:
                missing.append(str(error))
                by_source[source] = ""
        found[data] = by_source[source]
    if missing and required:
        raise UserError("\n".join(missing))
    for text in missing:
        first, *rest = text.splitlines()
        notes += [f"{first} (ids are known once the data set is there; --data PATH names another)", *rest]
    return found


def _assemble(
    drafts: list[tuple[RowSpec, Resolved]], seeds: tuple[int, ...], fingerprints: Mapping[DataConfig, str]
) -> tuple[tuple[Trial, ...], tuple[Row, ...]]:
    """Trials, each once in order of first mention, and the rows that refer to them."""
    flats = [settings_of(resolved.trial(0), resolved.head_defaults) for _, resolved in drafts]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    varied = [key for key in keys if len({repr(flat[key]) for flat in flats if key in flat}) > 1]
    short = short_names([*varied, "seed"])
    trials: dict[str, Trial] = {}
    rows = []
    for (row, resolved), flat in zip(drafts, flats, strict=True):
        factors: dict[str, Factor] = {key: factor_of(flat[key]) for key in varied if key in flat}
        ids = []
        for seed in seeds:
            config = resolved.trial(seed)
            fingerprint = fingerprints[resolved.data]
            key = trial_id(config, fingerprint)
            ids.append(key)
            shown = {**factors, "seed": seed} if len(seeds) > 1 else factors
            label = " ".join(f"{short[name]}={show_value(value)}" for name, value in shown.items())
            full = {**factors, "seed": seed}
            named = label or row.label
            made = Trial(key, config, resolved.runtime, named, row.label, full, fingerprint, resolved.analyse)
            trials.setdefault(key, made)
        rows.append(Row(row.label, factors, tuple(ids), {}, row.note))
    return tuple(trials.values()), tuple(rows)


def _preset_name(preset: str) -> str:
    return Path(preset).stem if preset.endswith((".yaml", ".yml")) else preset
