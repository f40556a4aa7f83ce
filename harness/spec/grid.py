"""An ablation file under a preset as an exact list of trials.

rows x axes (rows.py) x seeds become `Trial`s. A trial *is* its resolved configuration: the id is a hash of all
of it, of the data set's content and of that of pretrained weights, so a changed default is a new trial, two rows (or
two files) that ask for the same thing share one, and nothing about where or how fast it runs matters. Labels show only
what differs.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from harness.config import AnalyseConfig, DataConfig, RuntimeConfig, TrialConfig
from harness.errors import UserError
from harness.spec.claims import Claim, claims_of
from harness.spec.detection_metrics import unmeasured
from harness.spec.identity import canonical_model, trial_id
from harness.spec.labels import Factor, different_parts, factor_of, factors_label, settings_of, short_names
from harness.spec.parts import Setting
from harness.spec.resolve import Resolved, overruled_epochs, resolve
from harness.spec.rows import baseline_of, published_preset, rows_of
from harness.spec.search import Search, open_search
from harness.spec.space import Values, drawn
from harness.spec.spec import (
    DEFAULT_PRESET,
    AblationSpec,
    RowSpec,
    check_said_once,
    check_seeds,
    override_settings,
    preset_settings,
    read_spec,
)
from harness.spec.strict import Mistakes
from harness.spec.training_length import num_training_images
from harness.spec.variants import Variant, heading, key_of, variant_of
from model.backbones.configs import asked
from model.config import DetectorConfig


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
    # SHA-256 of the file of pretrained weights; None: there are none; "": the file is not there
    weights_hash: str | None = None

    @property
    def has_id(self) -> bool:
        """Whether the id is final: it is not while the data set or the file of pretrained weights is not there."""
        return bool(self.fingerprint) and self.weights_hash != ""


@dataclass(frozen=True)
class Row:
    """One row of the table: its trials differ in the seed only."""

    label: str
    factors: dict[str, Factor]  # without the seed
    trial_ids: tuple[str, ...]  # by seed
    published: dict[str, float]  # the paper's numbers, by metric
    note: str = ""
    own: str = ""  # its label in the file, without the values on axes
    along: dict[str, Any] = field(default_factory=dict)  # by axis (a dotted key), its value
    baseline: str = ""  # label of the row that its gain is measured from; "": the grid's
    same_as: str = ""  # label of the first row that has the same trials; "" where it is itself


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
    baseline: str = ""  # the row that gains are measured from, or what the baselines of all rows share
    held: tuple[str, ...] = ()  # names of what a row has in common with its baseline
    published_preset: str = ""  # the preset whose published numbers the rows hold; "" when they name none
    description: str = ""
    figures: tuple[str, ...] = ("ap",)  # which figures its report draws
    claims: tuple[Claim, ...] = ()  # what its rows are said to show
    notes: tuple[str, ...] = ()  # what a person should know before running
    command: str = ""  # runs what is missing of it; "" when it was not read from a file
    search: Search | None = None  # None: all trials are listed
    variant: Variant = Variant()  # which data set and settings of the command line it has

    @property
    def key(self) -> str:
        """The name of its folder in the store and of its tags in MLflow; unlike others of the same file and preset."""
        return key_of(self.name, self.preset, self.variant)

    @property
    def heading(self) -> str:
        """What people read: `quickstart (digits)`, and the data set and settings of the command line."""
        return heading(self.name, self.preset, self.variant.words)

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

    @property
    def axes(self) -> tuple[str, ...]:
        """The dotted keys of the axes that rows are crossed with."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row.along))

    def baseline_of(self, row: Row) -> Row | None:
        """The row that gains of `row` are measured from, which may be itself; None where there is none."""
        label = row.baseline or self.baseline
        return next((other for other in self.rows if label and other.label == label), None)

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
    options: Mapping[str, str] | None = None,
    require_data: bool = True,
) -> Grid:
    """Read an ablation file and expand it; see `expand`.

    Raises:
        UserError: with one line per mistake of the file, the preset and the overrides together.
    """
    mistakes = Mistakes()
    spec = read_spec(path, mistakes)
    given = options or {}
    grid = expand(
        spec, preset, overrides, data=data, seeds=seeds, options=given, require_data=require_data, mistakes=mistakes
    )
    words = ["codetr", "run", str(path), *(() if preset == DEFAULT_PRESET else ("--preset", preset))]
    words += [word for text in overrides for word in ("--set", text)]
    words += [word for option in given.items() for word in option]
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
    options: Mapping[str, str] | None = None,
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
        options: texts of further options of the command line (`harness.spec.spec.OPTIONS`), which win over `overrides`.
        require_data: False lets a data set or file of weights that is not there pass; its trials have no final id.
        mistakes: found so far; they are raised with those found here.

    Raises:
        UserError: with one line per mistake.
    """
    mistakes = mistakes or Mistakes()
    below = preset_settings(preset, spec, mistakes)
    above = override_settings(overrides, options or {}, mistakes)
    if data is not None and (folder := str(Path(data).absolute())) != (said := _in_utf8(folder)):
        mistakes.add("--data", f"{said} is no UTF-8 name, so no record can hold it; rename it, or link to it")
    elif data is not None:
        above.append((("data", "path"), str(data), "--data"))
    check_said_once(above, mistakes)
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
    layered = [[*below, *each.settings, *above] for each in listed]
    resolved = [resolve(settings, spec.path, mistakes) for settings in layered]
    labels = [each.row.label for each in listed]
    baseline = baseline_of(spec, listed, mistakes)
    claims = claims_of(spec.claims, labels, spec.metrics, spec.path, mistakes)
    mistakes.check()
    images = cache(num_training_images)
    pairs = [(settings, r) for settings, r in zip(layered, resolved, strict=True) if r is not None]
    notes += filter(None, (overruled_epochs(settings, r, images) for settings, r in pairs))
    here = Path.cwd()
    drafts = [(each.row, _canonical(r, here)) for each, r in zip(listed, resolved, strict=True) if r is not None]
    notes += unmeasured(spec.metrics, [draft.evaluate.max_detections for _, draft in drafts])
    fingerprints = _fingerprints([draft.data for _, draft in drafts], require_data, notes)
    hashes = _weights_hashes([_weights(draft.model) for _, draft in drafts], require_data, notes)
    trials, rows = _assemble(drafts, chosen, fingerprints, hashes)
    shown = published_preset(spec, preset_name)
    return Grid(
        name=spec.name,
        title=spec.title or spec.name,
        paper=spec.paper,
        preset=preset_name,
        trials=trials,
        metrics=spec.metrics,
        rows=tuple(
            replace(
                row,
                published=each.row.published.get(shown, each.row.published.get("", {})),
                own=each.own,
                along=each.along,
                baseline=baseline.labels.get(row.label, ""),
            )
            for row, each in zip(rows, listed, strict=True)
        ),
        seeds=chosen,
        baseline=baseline.words,
        held=baseline.held,
        published_preset=shown,
        description=spec.description,
        figures=spec.figures,
        claims=claims,
        notes=tuple(dict.fromkeys(notes)),
        variant=_variant(above, trials),
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
    here = Path.cwd()  # a worker that makes a trial of a suggestion may be elsewhere,
    hashes: dict[str | None, str | None] = {}  # and finds the weights that the driver found, or refuses

    def assemble(row: RowSpec, resolved: Resolved, factors: dict[str, Factor]) -> tuple[Trial, Row]:
        draft = _canonical(resolved, here)
        fingerprint = _fingerprints([draft.data], require_data, notes)[draft.data]
        config, path = draft.trial(seeds[0]), _weights(draft.model)
        if path not in hashes:
            hashes.update(_weights_hashes([path], require_data, notes))
        key = _trial_id(config, fingerprint, hashes[path])
        full = {**factors, "seed": seeds[0]}
        trial = Trial(key, config, draft.runtime, row.label, row.label, full, fingerprint, weights_hash=hashes[path])
        return trial, Row(row.label, factors, (key,), {})

    search = open_search(spec, below, above, seeds, assemble, mistakes)
    metrics = tuple(dict.fromkeys((search.spec.metric, *spec.metrics)))
    title, name = spec.title or spec.name, _preset_name(preset)
    grid = Grid(spec.name, title, spec.paper, name, (), metrics, (), seeds, description=spec.description, search=search)
    for values in (first := drawn(search.spec)):
        grid = grid.suggest(values)
    for line in unmeasured([search.spec.metric], [trial.config.evaluate.max_detections for trial in grid.trials]):
        mistakes.add(f"{spec.path}:search.metric", line)
    mistakes.check()
    notes += unmeasured(spec.metrics, [trial.config.evaluate.max_detections for trial in grid.trials])
    wanted = search.spec.num_trials if search.spec.algorithm == "random" else len(first)
    if len(grid.trials) < wanted:
        notes.append(f"{spec.path}: search.space holds only {len(grid.trials)} trials that differ")
    return replace(grid, notes=tuple(dict.fromkeys(notes)), variant=_variant(above, grid.trials))


def _variant(above: list[Setting], trials: Sequence[Trial]) -> Variant:
    first = trials[0] if trials else None
    return variant_of(above, first.fingerprint, first.weights_hash or "") if first else variant_of(above)


def _canonical(resolved: Resolved, here: Path) -> Resolved:
    """Absolute paths, those that were given relative to `here`, and one form for settings without effect."""
    data, model = resolved.data, canonical_model(resolved.model)
    if data.path is not None:
        data = replace(data, path=_absolute("data.path", data.path, here))
    if (path := _weights(model)) is not None:
        weights = _absolute("model.backbone.weights", path, here)
        model = replace(model, backbone=replace(model.backbone, weights=weights))
    return replace(resolved, data=data, model=model)


def _weights(model: DetectorConfig) -> str | None:
    path: str | None = asked(model.backbone, "weights")
    return path


def _absolute(key: str, path: str, here: Path) -> str:
    try:
        return str(here / Path(path).expanduser())
    except RuntimeError as error:  # nobody of that name, or nobody knows the home of this user
        raise UserError(f"{key}: {path}: {str(error).rstrip('.')}; write the path without ~") from error


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


def _weights_hashes(paths: Iterable[str | None], required: bool, notes: list[str]) -> dict[str | None, str | None]:
    """By path: SHA-256 of the file; "" where it is not there and need not be."""
    from harness.spec.pretrained import content_hash

    found: dict[str | None, str | None] = {None: None}
    for path in paths:
        if path is None or path in found:
            continue
        try:
            found[path] = content_hash(path)
        except UserError as error:
            if required:
                raise
            notes.append(f"{error} (ids are known once the file is there)")
            found[path] = ""
    return found


def _trial_id(config: TrialConfig, fingerprint: str, weights_hash: str | None) -> str:
    """The trial's id; while the file of weights is not there, one that no trial has."""
    unknown = f"not there: {_weights(config.model)}"
    return trial_id(config, fingerprint, unknown if weights_hash == "" else weights_hash)


def _assemble(
    drafts: list[tuple[RowSpec, Resolved]],
    seeds: tuple[int, ...],
    fingerprints: Mapping[DataConfig, str],
    hashes: Mapping[str | None, str | None],
) -> tuple[tuple[Trial, ...], tuple[Row, ...]]:
    """Trials, each once in order of first mention, and the rows that refer to them."""
    different = different_parts(resolved.model for _, resolved in drafts)
    flats = [settings_of(resolved.trial(0), resolved.head_defaults, different) for _, resolved in drafts]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    varied = [key for key in keys if len({repr(flat[key]) for flat in flats if key in flat}) > 1]
    short = short_names([*varied, "seed"])
    trials: dict[str, Trial] = {}
    first: dict[tuple[str, ...], str] = {}  # label of the first row with these trials
    rows: list[Row] = []
    for (row, resolved), flat in zip(drafts, flats, strict=True):
        factors: dict[str, Factor] = {key: factor_of(flat[key]) for key in varied if key in flat}
        ids = []
        for seed in seeds:
            config = resolved.trial(seed)
            fingerprint, weights_hash = fingerprints[resolved.data], hashes[_weights(resolved.model)]
            key = _trial_id(config, fingerprint, weights_hash)
            ids.append(key)
            shown = {**factors, "seed": seed} if len(seeds) > 1 else factors
            label = factors_label(shown, short)
            full = {**factors, "seed": seed}
            named = label or row.label
            made = Trial(
                key, config, resolved.runtime, named, row.label, full, fingerprint, resolved.analyse, weights_hash
            )
            trials.setdefault(key, made)
        same = first.setdefault(tuple(ids), row.label)
        rows.append(Row(row.label, factors, tuple(ids), {}, row.note, same_as="" if same == row.label else same))
    return tuple(trials.values()), tuple(rows)


def _preset_name(preset: str) -> str:
    return Path(preset).stem if preset.endswith((".yaml", ".yml")) else preset
