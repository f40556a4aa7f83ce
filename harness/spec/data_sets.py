"""A grid over several data sets: an axis `data.path`, of the file or of `--data` given more than once.

Each row is trained on each of them, its gain is measured on the same one, and a claim about a row is one about it on
each. The paper's numbers belong to its own data set alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    spec: AblationSpec, folders: Sequence[str], below: Sequence[Setting], notes: list[str], mistakes: Mistakes
) -> AblationSpec:
    """The file with an axis of the data sets that `--data` names.

    Args:
        spec: the ablation file.
        folders: two or more; `preset` is the one that the grid has without, unless a folder is called so.
        below: settings of the preset of scale and of the file.
        notes: gets a line where published numbers are left out.
        mistakes: found so far.
    """
    if spec.search is not None:
        mistakes.add("--data", "a search takes one data set")
    if DATA in spec.axes:
        mistakes.add("--data", f"{spec.path} has an axis {DATA} itself; name none, or one")
    own = next((value for path, value, _ in reversed(below) if ".".join(path) == DATA), None)
    paths: list[Any] = [own if name == OWN and not Path(name).exists() else name for name in folders]
    rows = spec.rows
    if any(row.published for row in rows):
        notes.append("several data sets: the paper's numbers, which are of one, are left out")
        rows = tuple(row.model_copy(update={"published": {}}) for row in rows)
    return spec.model_copy(update={"rows": rows, "axes": {**spec.axes, DATA: tuple(paths)}})


def check_names(spec: AblationSpec, mistakes: Mistakes) -> None:
    """Data sets are told apart by the names of their folders."""
    names = [shown_at(DATA, value) for value in spec.axes.get(DATA, ())]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        where = f"{spec.path}:axes.{DATA}"
        mistakes.add(where, f"two data sets are called '{name}'; link to one of them by another name")


def by_data_set(listed: Sequence[Listed]) -> dict[str, dict[str, str]]:
    """By data set: the label that a row has without it -> its label. Empty where data sets are no axis."""
    found: dict[str, dict[str, str]] = {}
    for each in listed:
        if DATA in each.along:
            found.setdefault(shown_at(DATA, each.along[DATA]), {})[each.apart] = each.row.label
    return found
