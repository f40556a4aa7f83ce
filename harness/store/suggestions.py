"""What a search has suggested so far: a list in the store, so that a search goes on where it was left.

`<store>/searches/<key>.json` holds the values that were not known beforehand, in order. What became of them stands in
the records of their trials: a suggestion is a trial like any other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.files import read_bytes, write_atomic
from harness.store.lease import file_lock
from harness.store.results import RunStore

if TYPE_CHECKING:
    from harness.spec.grid import Grid
    from harness.spec.space import Values


def suggestions_file(store: RunStore, grid: Grid) -> Path:
    """Where the suggestions of a grid's search are kept."""
    assert grid.search is not None
    return store.root / "searches" / f"{grid.search.key}.json"


def suggested(grid: Grid, store: RunStore) -> Grid:
    """`grid` with what its search has suggested so far; a grid whose trials are listed is returned as it is.

    Raises:
        UserError: the list is damaged.
        ReadError: the storage does not give it.
    """
    if grid.search is None or not all(trial.has_id for trial in grid.trials):
        return grid
    for values in _read(suggestions_file(store, grid)):
        grid = grid.suggest(values)
    return grid


def note_suggestion(grid: Grid, store: RunStore, values: Values) -> Grid:
    """Add a suggestion to the list and to `grid`, together with those that another process added.

    `values` are left out where the list is complete by then or has the trial already.
    """
    path = suggestions_file(store, grid)
    with file_lock(path.with_name(".lock")):
        grid = suggested(grid, store)
        grown = grid.suggest(values) if grid.num_unknown else grid
        if grown is not grid:
            write_atomic(path, json.dumps([*_read(path), values], indent=1) + "\n")
    return grown


def _read(path: Path) -> list[Values]:
    data = read_bytes(path)
    if data is None:
        return []
    try:
        found = json.loads(data)
        if not (isinstance(found, list) and all(isinstance(values, dict) for values in found)):
            raise ValueError("not a list of suggestions")
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: the suggestions of a search cannot be read ({error}); move the file away to let the search "
            "suggest anew (the trials' records are safe)"
        ) from error
    return found
