"""A grid over several data sets: an axis `data.path`, of the file or of `--data` given more than once.

Each row is trained on each of them, its gain is measured on the same one, and a claim about a row is one about it on
each. The paper's numbers belong to its own data set alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.spec.labels import DATA, shown_at
from harness.spec.strict import Mistakes

if TYPE_CHECKING:
    from harness.spec.parts import Setting
    from harness.spec.rows import Listed
    from harness.spec.spec import AblationSpec

OWN = "preset"  # `--data preset`: the preset's own data set


def is_own(folders: Sequence[str]) -> bool:
    """Whether `--data` names the grid's own data set alone."""
    return [*folders] == [OWN] and not Path(OWN).exists()


def crossed(
    spec: AblationSpec,
    folders: Sequence[str],
    below: Sequence[Setting],
    above: Sequence[Setting],
    notes: list[str],
    mistakes: Mistakes,
) -> AblationSpec:
    """The file with an axis of the data sets that `--data` names.

    Args:
        spec: the ablation file.
        folders: two or more; `preset` is the one that the grid has without, unless a folder is called so.
        below: settings of the preset of scale and of the file.
        above: settings of --set.
        notes: gets a line where published numbers are left out.
        mistakes: found so far.
    """
    if spec.search is not None:
        mistakes.add("--data", "a search takes one data set")
    if DATA in spec.axes:
        mistakes.add("--data", f"{spec.path} has an axis {DATA} itself; name none, or one")
    for path, value, _ in above:
        if ".".join(path) == DATA:
            mistakes.add("--data", f"--set {DATA}={value} says something else; remove one of them")
    own = next((value for path, value, _ in reversed(below) if ".".join(path) == DATA), None)
    paths: list[Any] = [own if name == OWN and not Path(name).exists() else name for name in folders]
    rows = spec.rows
    if any(row.published for row in rows):
        notes.append("several data sets: the paper's numbers, which are of one, are left out")
        rows = tuple(row.model_copy(update={"published": {}}) for row in rows)
    return spec.model_copy(update={"rows": rows, "axes": {**spec.axes, DATA: tuple(paths)}})


def narrowed(spec: AblationSpec, above: list[Setting], notes: list[str]) -> tuple[AblationSpec, list[Setting]]:
    """The file with the one data set that the command line names in place of its axis of them.

    Args:
        spec: the ablation file.
        above: settings of the command line.
        notes: gets a line where an axis is replaced.

    Returns:
        The file, and the settings that replace what rows set themselves.
    """
    named = [value for path, value, _ in above if ".".join(path) == DATA]
    if not named or DATA not in spec.axes:
        return spec, above
    notes.append(f"{shown_at(DATA, named[-1])} takes the place of the data sets of {spec.path}")
    others = [setting for setting in above if ".".join(setting[0]) != DATA]
    return spec.model_copy(update={"axes": {**spec.axes, DATA: (named[-1],)}}), others


def check_names(spec: AblationSpec, mistakes: Mistakes) -> None:
    """Data sets are told apart by the names of their folders."""
    names = [shown_at(DATA, value) for value in spec.axes.get(DATA, ())]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        where = f"{spec.path}:axes.{DATA}"
        mistakes.add(where, f"two data sets are called '{name}'; link to one of them by another name")


def check_contents(spec: AblationSpec, fingerprints: Mapping[str | None, str]) -> None:
    """A data set counts once, by whatever name.

    Args:
        spec: the ablation file.
        fingerprints: of the data sets by path; "" where one is not there.

    Raises:
        UserError: two of an axis hold the same.
    """
    if DATA not in spec.axes:
        return
    first: dict[str, str] = {}
    for path, content in fingerprints.items():
        name = shown_at(DATA, path)
        other = first.setdefault(content, name) if content else name
        if other != name:
            told = f"'{other}' and '{name}' are the same data set by two names; name it once"
            raise UserError(f"{spec.path}:axes.{DATA}: {told}")


def by_data_set(listed: Sequence[Listed]) -> dict[str, dict[str, str]]:
    """By data set: the label that a row has without it -> its label. Empty where data sets are no axis."""
    found: dict[str, dict[str, str]] = {}
    for each in listed:
        if DATA in each.along:
            found.setdefault(shown_at(DATA, each.along[DATA]), {})[each.apart] = each.row.label
    return found
