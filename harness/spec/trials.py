"""The trials of a grid: rows with checked settings become configurations, ids and labels.

A trial *is* its resolved configuration: the id is a hash of all of it, of the data set's content and of that of
pretrained weights, so a changed default is a new trial, two rows (or two files) that ask for the same thing share one,
and nothing about where or how fast it runs matters. Labels show only what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.config import AnalyseConfig, DataConfig, RuntimeConfig, TrialConfig
from harness.errors import UserError
from harness.spec.identity import canonical_model, config_to_dict, trial_id
from harness.spec.labels import Factor, different_parts, factors_label, factors_of, settings_of, short_names
from harness.spec.named_files import is_named
from harness.spec.presets import Layered
from harness.spec.resolve import Resolved, resolve
from harness.spec.spec import RowSpec
from harness.spec.strict import Mistakes
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
    detector: str = ""  # the name of its detector's preset; "" where none was named

    @property
    def has_id(self) -> bool:
        """Whether the id is final: it is not while the data set or the file of pretrained weights is not there."""
        return bool(self.fingerprint) and self.weights_hash != ""


def identity_fields(trial: Trial) -> dict[str, Any]:
    """The part of a record that is known before anything ran: what the trial is."""
    return {
        "schema": 1,
        "trial_id": trial.trial_id,
        "label": trial.label,
        "config": config_to_dict(trial.config),
        "fingerprint": trial.fingerprint,
        "weights_hash": trial.weights_hash,
        "factors": dict(trial.factors),
    }


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
    needs: str = ""  # what is not here yet, so that it has no trials; "" for all others


@dataclass(frozen=True)
class Draft:
    """A row before its seeds."""

    row: RowSpec
    resolved: Resolved
    layered: Layered


def assemble(
    drafts: list[Draft],
    seeds: tuple[int, ...],
    fingerprints: Mapping[DataConfig, str],
    hashes: Mapping[str | None, str | None],
) -> tuple[tuple[Trial, ...], tuple[Row, ...]]:
    """Trials, each once in order of first mention, and the rows that refer to them."""
    varied = _factors(drafts)
    short = short_names([*dict.fromkeys(key for factors in varied for key in factors), "seed"])
    trials: dict[str, Trial] = {}
    first: dict[tuple[str, ...], str] = {}  # label of the first row with these trials
    rows: list[Row] = []
    for draft, factors in zip(drafts, varied, strict=True):
        row, resolved = draft.row, draft.resolved
        fingerprint, weights_hash = fingerprints[resolved.data], hashes[weights_of(resolved.model)]
        ids = []
        for seed in seeds:
            config = resolved.trial(seed)
            key = id_of(config, fingerprint, weights_hash)
            ids.append(key)
            full = {**factors, "seed": seed}
            label = factors_label(full if len(seeds) > 1 else factors, short) or row.label
            made = Trial(
                trial_id=key,
                config=config,
                runtime=resolved.runtime,
                label=label,
                row=row.label,
                factors=full,
                fingerprint=fingerprint,
                analyse=resolved.analyse,
                weights_hash=weights_hash,
                detector=draft.layered.detector,
            )
            if not trials.setdefault(key, made).detector:  # a row may name the preset of what another spells out
                trials[key] = replace(trials[key], detector=made.detector)
        same = first.setdefault(tuple(ids), row.label)
        rows.append(
            Row(
                label=row.label,
                factors=factors,
                trial_ids=tuple(ids),
                published={},  # the paper's follow with the preset
                note=row.note,
                same_as="" if same == row.label else same,
            )
        )
    return tuple(trials.values()), tuple(rows)


def _factors(drafts: Sequence[Draft]) -> list[dict[str, Factor]]:
    """By row what tells it from the others."""
    different = different_parts(draft.resolved.model for draft in drafts)

    def flat(resolved: Resolved) -> dict[str, Any]:
        return settings_of(resolved.trial(0), resolved.head_defaults, different)

    presets: list[tuple[str, dict[str, Any]]] = [("", {})] * len(drafts)
    if any(draft.layered.detector for draft in drafts):
        presets = []
        for draft in drafts:
            heads = [setting for setting in draft.layered.settings if setting[0][:2] == ("model", "heads")]
            alone = resolve([*draft.layered.below, *heads], "", Mistakes())
            presets.append((draft.layered.detector, flat(canonical(alone, Path.cwd())) if alone else {}))
    return factors_of([flat(draft.resolved) for draft in drafts], presets)


def canonical(resolved: Resolved, here: Path) -> Resolved:
    """Absolute paths, those that were given relative to `here`, and one form for settings without effect."""
    data, model = resolved.data, canonical_model(resolved.model)
    if data.path is not None:
        data = replace(data, path=_absolute("data.path", data.path, here))
    if (path := weights_of(model)) is not None and not is_named(path):
        weights = _absolute("model.backbone.weights", path, here)
        model = replace(model, backbone=replace(model.backbone, weights=weights))
    return replace(resolved, data=data, model=model)


def weights_of(model: DetectorConfig) -> str | None:
    """The path, or the name on the Hub, of the backbone's file of pretrained weights."""
    path: str | None = asked(model.backbone, "weights")
    return path


def fingerprints_of(datas: Iterable[DataConfig], required: bool, notes: list[str]) -> dict[DataConfig, str]:
    """Of each data set's content; "" where it is not there and need not be, which `notes` tell then."""
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


def weights_hashes(paths: Iterable[str | None], required: bool, notes: list[str]) -> dict[str | None, str | None]:
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


def id_of(config: TrialConfig, fingerprint: str, weights_hash: str | None) -> str:
    """The trial's id; while the data set or the file of weights is not there, one that no trial has."""
    unknown = f"not there: {weights_of(config.model)}"
    content = fingerprint or f"not there: {config.data.path}"
    return trial_id(config, content, unknown if weights_hash == "" else weights_hash)


def _absolute(key: str, path: str, here: Path) -> str:
    try:
        return str(here / Path(path).expanduser())
    except RuntimeError as error:  # nobody of that name, or nobody knows the home of this user
        raise UserError(f"{key}: {path}: {str(error).rstrip('.')}; write the path without ~") from error
