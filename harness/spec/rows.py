"""The rows of an ablation file with their settings: crossed with its axes, and what the command line replaced.

Settings are not checked here; `grid.py` resolves them and makes trials of them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.spec.labels import DATA, short_names, show_value, shown_at
from harness.spec.parts import Setting, names_first, whole_path
from harness.spec.presets import DETECTOR, Presets
from harness.spec.resolve import leaves
from harness.spec.spec import AblationSpec, RowSpec
from harness.spec.strict import Mistakes, suggest

ROW = "row"  # names the rows of a file beside its axes
OWN_BASELINES = "each row's own baseline"  # in place of a label where rows name different ones


@dataclass(frozen=True)
class Listed:
    """A row of the grid: one of the file's, at one combination of its axes."""

    row: RowSpec  # its label tells the combination too
    settings: list[Setting]
    own: str  # the label in the file; "" where the file has axes alone
    along: dict[str, Any] = field(default_factory=dict)  # by axis, its value
    apart: str = ""  # its label without the data set, where these are an axis

    @property
    def place(self) -> dict[str, str]:
        """Where it stands among the others: the file's row and the value on each axis, as text."""
        return {ROW: self.own, **{key: shown_at(key, value) for key, value in self.along.items()}}


def rows_of(
    spec: AblationSpec, presets: Presets, above: list[Setting], notes: list[str], mistakes: Mistakes
) -> list[Listed]:
    """Every row that a file has under a preset, with its own settings.

    Args:
        spec: the ablation file.
        presets: of scale, and of detectors that rows name.
        above: settings of the command line, which win over the rows'.
        notes: gets a line for what those replace.
        mistakes: found so far.
    """
    return [
        replace(listed, row=_overridden(listed.row, presets.own_of(listed.settings, mistakes), above, notes))
        for listed in _combinations(spec, presets, mistakes)
    ]


def _combinations(spec: AblationSpec, presets: Presets, mistakes: Mistakes) -> Iterator[Listed]:
    """Every row with its settings under a preset, crossed with every combination of the axes."""
    rows = spec.rows or (RowSpec(label=""),)
    short = short_names(spec.axes)
    for index, row in enumerate(rows):
        where = f"{spec.path}:rows.{index}"
        settings = list(leaves(row.set, f"{where}.set.", mistakes))
        for path, _, written in settings:
            if DATA in spec.axes and ".".join(whole_path(path)) == DATA:  # of other settings the axis wins, as layered
                mistakes.add(written, f"{DATA} is an axis of this grid; take one of them out")
        settings += presets.chosen(row.presets, f"{where}.presets.", mistakes)
        for values in itertools.product(*spec.axes.values()):
            along = dict(zip(spec.axes, values, strict=True))
            words = {key: f"{short[key]}={shown_at(key, value)}" for key, value in along.items()}
            apart = " ".join(text for key, text in words.items() if key != DATA)
            extra = [
                setting
                for key, value in along.items()
                for setting in leaves({key: value}, f"{spec.path}:axes.", mistakes)
            ]
            label = ", ".join(filter(None, (row.label, " ".join(words.values()))))
            together = row.model_copy(update={"label": label})
            apart = ", ".join(filter(None, (row.label, apart)))
            yield Listed(together, [*settings, *names_first(extra)], row.label, along, apart)


@dataclass(frozen=True)
class Baseline:
    """What gains are measured from."""

    words: str = ""  # a row's label, or what the baselines of all rows share; "" where there is none
    held: tuple[str, ...] = ()  # names of what a row has in common with its baseline, such as an axis
    labels: Mapping[str, str] = field(default_factory=dict)  # by a row's label, that of its baseline


def baseline_of(spec: AblationSpec, listed: Sequence[Listed], mistakes: Mistakes) -> Baseline:
    """The baseline of each row: the row at the place that `baseline` names, and otherwise where the row itself is.

    `baseline` names a row of the file, values on axes (`lambda1=1`, or a mapping), or with a row's full label all of
    it; then every row has the same baseline. A row may name another one, which then is its own.
    """
    at = {tuple(each.place.items()): each.row.label for each in listed}
    own = _own_baselines(spec, listed, at, mistakes)
    chosen = _named(spec, listed, mistakes) if spec.baseline else None
    if chosen is None:
        return Baseline(OWN_BASELINES, labels=own) if own else Baseline()
    labels = {each.row.label: at[tuple({**each.place, **chosen}.items())] for each in listed}
    if own:
        return Baseline(OWN_BASELINES, labels=labels | own)
    short = short_names(spec.axes)
    held = [name for name in listed[0].place if name not in chosen and len({each.place[name] for each in listed}) > 1]
    words = ", ".join(
        filter(None, (chosen.get(ROW), " ".join(f"{short[k]}={v}" for k, v in chosen.items() if k != ROW)))
    )
    if len(set(labels.values())) == 1:
        words = next(iter(labels.values()))  # as it is marked in this grid
    return Baseline(words, tuple(short.get(name, name) for name in held), labels)


def _own_baselines(
    spec: AblationSpec, listed: Sequence[Listed], at: Mapping[tuple[tuple[str, str], ...], str], mistakes: Mistakes
) -> dict[str, str]:
    """By the label of a row, that of the baseline which it names itself; a row named so is its own."""
    known = list(dict.fromkeys(each.own for each in listed if each.own))
    found: dict[str, str] = {}
    for index, row in enumerate(spec.rows):
        if row.baseline and row.baseline not in known:
            where = f"{spec.path}:rows.{index}.baseline"
            mistakes.add(where, f"'{row.baseline}' is not the label of a row{suggest(row.baseline, known)}")
    for each in listed:
        if each.row.baseline in known:
            label = at[tuple({**each.place, ROW: each.row.baseline}.items())]
            found |= {each.row.label: label}
            found.setdefault(label, label)
    return found


def _named(spec: AblationSpec, listed: Sequence[Listed], mistakes: Mistakes) -> dict[str, str] | None:
    """What `baseline` names, as a part of `Listed.place`; None after a mistake."""
    where, baseline = f"{spec.path}:baseline", spec.baseline
    short = short_names(spec.axes)
    axes = {**{key: key for key in spec.axes}, **{name: key for key, name in short.items()}}
    labels = [each.row.label for each in listed]
    owns = list(dict.fromkeys(each.own for each in listed))
    if isinstance(baseline, dict):
        named = leaves(baseline, f"{where}.", mistakes, whole=spec.axes)
        parts = {".".join(path): shown_at(".".join(path), value) for path, value, _ in named}
    else:
        for each in listed:
            if each.row.label == baseline or each.row.label.startswith(f"{baseline} ["):  # see `_overridden`
                return each.place
        own = next((own for own in owns if own and (baseline == own or baseline.startswith(f"{own}, "))), "")
        texts = re.split(r"[,\s]+(?=[\w.]+=)", f" {baseline.removeprefix(own)}")  # a folder's name may hold both
        pairs = [pair.partition("=") for pair in map(str.strip, texts) if pair]
        parts = {name: value for name, _, value in pairs} | ({ROW: own} if own else {})
        if not parts or not parts.keys() <= {ROW, *axes}:
            known = dict.fromkeys([*(own for own in owns if own), *labels])
            mistakes.add(where, f"'{baseline}' is not the label of a row{suggest(baseline, known)}")
            return None
    chosen = {}
    for name, value in parts.items():
        key = name if name == ROW else axes.get(name)
        if key is None:
            mistakes.add(f"{where}.{name}", f"is no axis of this file{suggest(name, [*spec.axes, ROW])}")
            return None
        known = dict.fromkeys(each.place[key] for each in listed)
        if value not in known:
            what = "is not the label of a row" if key == ROW else f"is not on the axis {key}"
            mistakes.add(where, f"'{value}' {what}{suggest(value, known)}")
            return None
        chosen[key] = value
    return chosen


def _overridden(row: RowSpec, settings: list[Setting], above: list[Setting], notes: list[str]) -> RowSpec:
    """A row whose own setting was replaced from the command line says so, and loses its published numbers."""
    own = [whole_path(path) for path, _, _ in settings]
    over = [(whole_path(path), value) for path, value, _ in above]
    hit = [(path, v) for path, v in over if any(o[: len(path)] == path or path[: len(o)] == o for o in own)]
    if not hit:
        return row
    told = _told(hit)
    notes.append(f"{told} replaces what rows set themselves; their published numbers are left out")
    return _as_other(row, told)


def of_another_detector(listed: Listed, above: list[Setting], notes: list[str]) -> Listed:
    """A row of which the command line made another detector (`--set model.preset=…`): its words are of the file's."""
    told = _told([(path, value) for path, value, _ in above if path == DETECTOR])
    if listed.row.label.endswith("]") and told in listed.row.label:
        return listed  # the row names a detector itself: see `_overridden`
    notes.append(f"{told} is another detector than that of the rows; their published numbers are left out")
    return replace(listed, row=_as_other(listed.row, told))


def _told(settings: Iterable[tuple[tuple[str, ...], Any]]) -> str:
    return ", ".join(f"{'.'.join(path)}={show_value(value)}" for path, value in settings)


def _as_other(row: RowSpec, told: str) -> RowSpec:
    return row.model_copy(update={"label": f"{row.label} [{told}]".strip(), "published": {}})


def published_preset(spec: AblationSpec, preset: str) -> str:
    """This preset where the paper's numbers are given for it, else the first that they are given for."""
    given = list(dict.fromkeys(name for row in spec.rows for name in row.published if name))
    return preset if preset in given else next(iter(given), "")
