"""A search as a source of trials: what stands in `search:` becomes settings, and each draw a row of the grid.

`grid.py` makes trials of rows; here is what a search adds to that. What Optuna suggests while the grid runs is noted in
the store (harness/store/suggestions.py), and Ray Tune's part is in harness/schedule/tuner.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.spec.labels import Factor, factor_of, short_names, show_value
from harness.spec.parts import Setting, names_first, whole_path
from harness.spec.presets import Layered, Presets
from harness.spec.resolve import Resolved, leaves, resolve
from harness.spec.space import SearchSpec, Values, corners, values_text
from harness.spec.spec import AblationSpec, RowSpec
from harness.spec.strict import Mistakes

if TYPE_CHECKING:
    from harness.spec.grid import Row, Trial

Assemble = Callable[[RowSpec, Resolved, dict[str, Factor], str], "tuple[Trial, Row]"]


@dataclass(frozen=True)
class Search:
    """Where a grid's trials come from when they are drawn, not listed."""

    spec: SearchSpec
    key: str  # the same for the same search: what it suggested is kept under this name
    make: Callable[[Values], tuple[Trial, Row]]  # what a suggestion is in this grid
    values: Mapping[str, Values]  # what was suggested, by trial id


def open_search(
    spec: AblationSpec,
    presets: Presets,
    below: Sequence[Setting],
    above: Sequence[Setting],
    seeds: Sequence[int],
    assemble: Assemble,
    mistakes: Mistakes,
) -> Search:
    """The search of an ablation file, checked at every end of its ranges.

    Args:
        spec: the ablation file.
        presets: of scale, and of detectors that can be named.
        below: settings of the file's base.
        above: settings of the command line.
        seeds: what each suggestion is trained with: one seed.
        assemble: makes a trial and its row of checked settings.
        mistakes: found so far.

    Raises:
        UserError: with one line per mistake.
    """
    search = spec.search
    assert search is not None
    if len(seeds) != 1:
        place = f"{spec.path}:seeds" if list(seeds) == list(spec.seeds) else "--seeds"
        mistakes.add(place, f"a search trains each suggestion once: give one seed, not {list(seeds)}")
    for path, _, origin in above:
        key = ".".join(whole_path(path))
        if any(drawn == key or drawn.startswith(f"{key}.") for drawn in search.space):
            mistakes.add(origin, f"{spec.path} searches over it; take it out of search.space")

    def layered(values: Values, found: Mistakes) -> Layered:
        place = f"{spec.path}:search.space."
        own = [setting for key, value in values.items() for setting in leaves({key: value}, place, found)]
        return presets.layered([*below, *names_first(own), *above], found)

    for values in corners(search):
        resolve(layered(values, mistakes).settings, spec.path, mistakes)
    mistakes.check()
    short = short_names(search.space)

    def make(values: Values) -> tuple[Trial, Row]:
        found = Mistakes()
        given = layered(values, found)
        resolved = resolve(given.settings, spec.path, found)
        found.check()
        assert resolved is not None
        row = RowSpec(label=" ".join(f"{short[key]}={show_value(value)}" for key, value in values.items()))
        factors = {key: factor_of(value) for key, value in values.items()}
        return assemble(row, resolved, factors, given.detector)

    first, _ = make(next(corners(search)))
    chosen = (search.algorithm, str(search.seed), search.metric, values_text(search.space), first.trial_id)
    digest = hashlib.sha256(" ".join(chosen).encode()).hexdigest()[:8]
    key = f"{re.sub(r'[^A-Za-z0-9_-]+', '_', spec.name)}-{digest}"
    return Search(search, key, make, {})
