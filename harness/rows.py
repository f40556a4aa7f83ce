"""The rows of an ablation file with their settings: crossed with its axes, and what the command line replaced.

Settings are not checked here; `grid.py` resolves them and makes trials of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from harness.labels import short_names, show_value
from harness.resolve import Setting, leaves
from harness.spec import AblationSpec, RowSpec
from harness.strict import Mistakes, suggest


def rows_of(
    spec: AblationSpec, preset: str, above: list[Setting], notes: list[str], mistakes: Mistakes
) -> list[tuple[RowSpec, list[Setting]]]:
    """Every row that a file has under a preset, with its own settings.

    Args:
        spec: the ablation file.
        preset: its name.
        above: settings of the command line, which win over the rows'.
        notes: gets a line for what those replace.
        mistakes: found so far.
    """
    return [(_overridden(row, own, above, notes), own) for row, own in _combinations(spec, preset, mistakes)]


def _combinations(spec: AblationSpec, preset: str, mistakes: Mistakes) -> Iterator[tuple[RowSpec, list[Setting]]]:
    """Every row with its settings under a preset, crossed with every combination of the axes."""
    rows = spec.rows or (RowSpec(label=""),)
    short = short_names(spec.axes)
    for index, row in enumerate(rows):
        where = f"{spec.path}:rows.{index}"
        settings = list(leaves(row.set, f"{where}.set.", mistakes))
        settings += leaves(row.presets.get(preset, {}), f"{where}.presets.{preset}.", mistakes)
        for values in itertools.product(*spec.axes.values()):
            along = dict(zip(spec.axes, values, strict=True))
            label = " ".join(f"{short[key]}={show_value(value)}" for key, value in along.items())
            extra = [
                setting
                for key, value in along.items()
                for setting in leaves({key: value}, f"{spec.path}:axes.", mistakes)
            ]
            together = row.model_copy(update={"label": ", ".join(filter(None, (row.label, label)))})
            yield together, [*settings, *extra]


def baseline_label(spec: AblationSpec, labels: list[str], mistakes: Mistakes) -> str:
    """The label that the baseline row has in this grid."""
    if spec.baseline and spec.baseline not in labels:
        marked = [label for label in labels if label.startswith(f"{spec.baseline} [")]  # see `_overridden`
        if marked:
            return marked[0]
        what = f"'{spec.baseline}' is not the label of a row{suggest(spec.baseline, labels)}"
        mistakes.add(f"{spec.path}:baseline", what)
    return spec.baseline


def _overridden(row: RowSpec, settings: list[Setting], above: list[Setting], notes: list[str]) -> RowSpec:
    """A row whose own setting was replaced from the command line says so, and loses its published numbers."""
    own = [path for path, _, _ in settings]
    hit = [s for s in above if any(path[: len(s[0])] == s[0] or s[0][: len(path)] == path for path in own)]
    if not hit:
        return row
    told = ", ".join(f"{'.'.join(path)}={show_value(value)}" for path, value, _ in hit)
    notes.append(f"{told} replaces what rows set themselves; their published numbers are left out")
    return row.model_copy(update={"label": f"{row.label} [{told}]", "published": {}})


def published_preset(spec: AblationSpec, preset: str) -> str:
    """This preset where the paper's numbers are given for it, else the first that they are given for."""
    given = list(dict.fromkeys(name for row in spec.rows for name in row.published if name))
    return preset if preset in given else next(iter(given), "")
