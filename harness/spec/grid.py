"""An ablation file under a preset as an exact list of trials.

Rows x axes (rows.py) x seeds become `Trial`s (trials.py), each once.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from harness.spec.claims import claims_of
from harness.spec.data_sets import by_data_set, check_contents, check_names, crossed, is_own, narrowed
from harness.spec.detection_metrics import unmeasured
from harness.spec.labels import Factor
from harness.spec.parts import Setting
from harness.spec.presets import DETECTOR, Presets, file_settings, open_presets
from harness.spec.resolve import Resolved, overruled_epochs, resolve
from harness.spec.rows import Listed, baseline_of, of_another_detector, published_preset, rows_of
from harness.spec.search import open_search
from harness.spec.space import drawn
from harness.spec.spec import (
    DEFAULT_PRESET,
    AblationSpec,
    RowSpec,
    check_said_once,
    check_seeds,
    override_settings,
    read_spec,
)
from harness.spec.strict import Mistakes
from harness.spec.training_length import num_training_images
from harness.spec.trial_grid import Grid, variant_of_trials
from harness.spec.trials import (
    Draft,
    Row,
    Trial,
    assemble,
    canonical,
    fingerprints_of,
    id_of,
    weights_hashes,
    weights_of,
)


def open_grid(
    path: str | Path,
    preset: str = DEFAULT_PRESET,
    overrides: Sequence[str] = (),
    *,
    data: str | Sequence[str] | None = None,
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
    words += [word for folder in _folders(data) for word in ("--data", folder)]
    words += ["--seeds", ",".join(map(str, seeds))] if seeds is not None else []
    return replace(grid, command=shlex.join(words))


def expand(
    spec: AblationSpec,
    preset: str = DEFAULT_PRESET,
    overrides: Sequence[str] = (),
    *,
    data: str | Sequence[str] | None = None,
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
        data: folder of a data set instead of the preset's; several make an axis of the grid (data_sets.py).
        seeds: instead of the file's.
        options: texts of further options of the command line (`harness.spec.spec.OPTIONS`), which win over `overrides`.
        require_data: False lets a data set or file of weights that is not there pass; its trials have no final id.
        mistakes: found so far; they are raised with those found here.

    Raises:
        UserError: with one line per mistake.
    """
    mistakes = mistakes or Mistakes()
    notes: list[str] = []
    asked = _asked(spec, preset, overrides, _folders(data), seeds, options or {}, notes, mistakes)
    of_kind = _expand_listed if spec.search is None else _expand_search
    return of_kind(asked, require_data, notes, mistakes)


@dataclass(frozen=True)
class _Asked:
    """The file, the preset and the command line as they are read, before any row is."""

    spec: AblationSpec
    presets: Presets
    below: list[Setting]  # the file's own
    above: list[Setting]  # of the command line
    over: list[Setting]  # those of `above` that no axis took up
    seeds: tuple[int, ...]
    crossed: bool  # the command line names data sets that are an axis


def _asked(
    spec: AblationSpec,
    preset: str,
    overrides: Sequence[str],
    folders: list[str],
    seeds: Sequence[int] | None,
    options: Mapping[str, str],
    notes: list[str],
    mistakes: Mistakes,
) -> _Asked:
    presets = open_presets(preset, spec, mistakes)
    below = file_settings(spec, presets, mistakes)
    above = override_settings(overrides, options, mistakes)
    for name in [*folders]:
        if (folder := str(Path(name).absolute())) != (said := _in_utf8(folder)):
            mistakes.add("--data", f"{said} is no UTF-8 name, so no record can hold it; rename it, or link to it")
            folders.remove(name)
    several = len(folders) > 1
    if several:
        spec = crossed(spec, folders, [*presets.scale, *below], above, notes, mistakes)
    above += [(("data", "path"), name, "--data") for name in folders if not several]
    check_said_once(above, mistakes)
    spec, over = (spec, above) if several else narrowed(spec, above, notes)
    check_names(spec, mistakes)
    chosen = tuple(seeds) if seeds is not None else spec.seeds
    try:
        check_seeds(chosen)
    except ValueError as error:
        mistakes.add("--seeds", str(error))
    return _Asked(spec, presets, below, above, over, chosen, several)


def _expand_listed(asked: _Asked, require_data: bool, notes: list[str], mistakes: Mistakes) -> Grid:
    """The grid of rows and axes."""
    spec, presets, below, above = asked.spec, asked.presets, asked.below, asked.above
    listed = rows_of(spec, presets, asked.over, notes, mistakes)
    layered = [presets.layered([*below, *each.settings, *above], mistakes) for each in listed]
    resolved = [resolve(each.settings, spec.path, mistakes) for each in layered]
    listed = _renamed(listed, resolved, presets, below, above, notes)
    baseline = baseline_of(spec, listed, mistakes)
    labels = [each.row.label for each in listed]
    claims = claims_of(spec.claims, labels, spec.metrics, spec.path, mistakes, by_data_set(listed))
    mistakes.check()
    images = cache(num_training_images)
    pairs = [(each.settings, r) for each, r in zip(layered, resolved, strict=True) if r is not None]
    notes += filter(None, (overruled_epochs(settings, r, images) for settings, r in pairs))
    notes += _waiting_words([each.row.needs for each in listed])
    here = Path.cwd()
    drafts = [
        Draft(each.row, canonical(r, here), below)
        for each, below, r in zip(listed, layered, resolved, strict=True)
        if r is not None and not each.row.needs
    ]
    trials, rows = _trials_and_rows(drafts, asked, require_data, notes)
    running = [each for each in listed if not each.row.needs]
    shown = published_preset(spec, presets.name)

    def whole(row: Row, each: Listed) -> Row:
        published = each.row.published.get(shown, each.row.published.get("", {}))
        gained = baseline.labels.get(row.label, "")
        return replace(row, published=published, own=each.own, along=each.along, baseline=gained)

    return Grid(
        name=spec.name,
        title=spec.title or spec.name,
        paper=spec.paper,
        preset=presets.name,
        trials=trials,
        metrics=spec.metrics,
        rows=tuple(whole(row, each) for row, each in zip(rows, running, strict=True)),
        seeds=asked.seeds,
        baseline=baseline.words,
        held=baseline.held,
        published_preset=shown,
        description=spec.description,
        figures=spec.figures,
        claims=claims,
        max_seeds=spec.decide.max_seeds,
        notes=tuple(dict.fromkeys(notes)),
        variant=variant_of_trials(above, trials, several=asked.crossed),
        above=tuple(above),
        crossed=asked.crossed,
        waiting=tuple(
            (sum(not other.row.needs for other in listed[:index]), whole(_waiting_row(each.row), each))
            for index, each in enumerate(listed)
            if each.row.needs
        ),
    )


def _trials_and_rows(
    drafts: list[Draft], asked: _Asked, require_data: bool, notes: list[str]
) -> tuple[tuple[Trial, ...], tuple[Row, ...]]:
    """Of drafts x seeds, with what their data sets and files of weights hold."""
    notes += unmeasured(asked.spec.metrics, [draft.resolved.evaluate.max_detections for draft in drafts])
    fingerprints = fingerprints_of([draft.resolved.data for draft in drafts], require_data, notes)
    check_contents(asked.spec, {draft.resolved.data.path: fingerprints[draft.resolved.data] for draft in drafts})
    hashes = weights_hashes([weights_of(draft.resolved.model) for draft in drafts], require_data, notes)
    return assemble(drafts, asked.seeds, fingerprints, hashes)


def _renamed(
    listed: Sequence[Listed],
    resolved: Sequence[Resolved | None],
    presets: Presets,
    below: list[Setting],
    above: list[Setting],
    notes: list[str],
) -> list[Listed]:
    """The rows; those whose detector the command line made another one say so, and lose their published numbers."""
    others = [setting for setting in above if setting[0] != DETECTOR]
    if len(others) == len(above):
        return list(listed)
    found = []
    for each, now in zip(listed, resolved, strict=True):
        settings = presets.layered([*below, *each.settings, *others], Mistakes()).settings
        of_file = resolve(settings, "", Mistakes())
        same = now is None or (of_file is not None and of_file.model == now.model)
        found.append(each if same else of_another_detector(each, above, notes))
    return found


def _waiting_row(row: RowSpec) -> Row:
    return Row(label=row.label, factors={}, trial_ids=(), published={}, note=row.note, needs=row.needs)


def _waiting_words(needs: Sequence[str]) -> list[str]:
    """A line for each thing that rows need and that is not here yet."""
    return [
        f"rows left out, {needs.count(what)} of {len(needs)}: they need {what}, which is not here yet"
        for what in dict.fromkeys(filter(None, needs))
    ]


def _expand_search(asked: _Asked, require_data: bool, notes: list[str], mistakes: Mistakes) -> Grid:
    """The grid of a search, with the trials that are known before anything ran."""
    spec, presets, seeds = asked.spec, asked.presets, asked.seeds
    here = Path.cwd()  # a worker that makes a trial of a suggestion may be elsewhere,
    hashes: dict[str | None, str | None] = {}  # and finds the weights that the driver found, or refuses

    def make(row: RowSpec, resolved: Resolved, factors: dict[str, Factor], detector: str) -> tuple[Trial, Row]:
        draft = canonical(resolved, here)
        fingerprint = fingerprints_of([draft.data], require_data, notes)[draft.data]
        config, path = draft.trial(seeds[0]), weights_of(draft.model)
        if path not in hashes:
            hashes.update(weights_hashes([path], require_data, notes))
        key = id_of(config, fingerprint, hashes[path])
        full = {**factors, "seed": seeds[0]}
        trial = Trial(
            trial_id=key,
            config=config,
            runtime=draft.runtime,
            label=row.label,
            row=row.label,
            factors=full,
            fingerprint=fingerprint,
            weights_hash=hashes[path],
            detector=detector,
        )
        return trial, Row(label=row.label, factors=factors, trial_ids=(key,), published={})

    search = open_search(spec, presets, asked.below, asked.above, seeds, make, mistakes)
    metrics = tuple(dict.fromkeys((search.spec.metric, *spec.metrics)))
    grid = Grid(
        name=spec.name,
        title=spec.title or spec.name,
        paper=spec.paper,
        preset=presets.name,
        trials=(),
        metrics=metrics,
        rows=(),
        seeds=seeds,
        description=spec.description,
        search=search,
    )
    for values in (first := drawn(search.spec)):
        grid = grid.suggest(values)
    for line in unmeasured([search.spec.metric], [trial.config.evaluate.max_detections for trial in grid.trials]):
        mistakes.add(f"{spec.path}:search.metric", line)
    mistakes.check()
    notes += unmeasured(spec.metrics, [trial.config.evaluate.max_detections for trial in grid.trials])
    wanted = search.spec.num_trials if search.spec.algorithm == "random" else len(first)
    if len(grid.trials) < wanted:
        notes.append(f"{spec.path}: search.space holds only {len(grid.trials)} trials that differ")
    return replace(grid, notes=tuple(dict.fromkeys(notes)), variant=variant_of_trials(asked.above, grid.trials))


def _folders(data: str | Sequence[str] | None) -> list[str]:
    """The data sets of the command line."""
    folders = [] if data is None else [str(data)] if isinstance(data, str | Path) else [str(each) for each in data]
    return [] if is_own(folders) else folders


def _in_utf8(text: str) -> str:
    """The text as UTF-8 can hold it; what it cannot is escaped."""
    return text.encode(errors="backslashreplace").decode()
