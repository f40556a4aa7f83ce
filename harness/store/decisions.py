"""What `codetr decide` keeps of a grid, as a file: one for each grid and preset, `grids/<key>/decide.<preset>.json`.

`harness.decide.kept` says what it means; here is what reports, `status` and `export` need of it. A claim's `pairs`
hold, by row and in the order of seeds, the two trials that a look saw and the difference of their numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.files import listed, read_bytes, write_atomic
from harness.store import lease
from harness.store.parcel import Refused
from harness.store.results import RunStore

if TYPE_CHECKING:
    from harness.spec.grid import Grid

SCHEMA = 2
LEASE = ".lease.json"
NAME = re.compile(r"grids/(?!\.)[^/]+/decide\.[^/]+\.json")  # below a store
Kept = dict[str, Any]


def path_of(grid: Grid, store: RunStore) -> Path:
    """Where the file of a grid lies."""
    return store.grid_dir(grid.key) / f"decide.{grid.preset}.json"


def is_decision(name: str) -> bool:
    """Whether a file of this name below a store is one."""
    return bool(NAME.fullmatch(name)) and not name.endswith(LEASE)


def decisions(root: Path) -> dict[str, Path]:
    """All of a store by their names below it, in order."""
    paths = [path for folder in listed(root / "grids") for path in listed(folder)]
    return {name: path for path in sorted(paths) if is_decision(name := path.relative_to(root).as_posix())}


def load(path: Path) -> Kept | None:
    """A file as it is kept; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    data = read_bytes(path)
    if data is None:
        return None
    try:
        return parse(data)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); its trials are safe: move it away to plan looks anew") from error


def parse(data: bytes) -> Kept:
    """The content of a file.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    try:
        kept = json.loads(data)
        if kept["schema"] not in (1, SCHEMA):
            raise ValueError(f"schema {kept['schema']}")
        claims = {name: [_claim(own) for own in kept.get(name, ())] for name in ("claims", "aside")}
        told = [(str(text), str(why)) for text, why in kept.get("left_out", ())]
        return {**kept, **claims, "left_out": told, "max_seeds": int(kept["max_seeds"])}
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _claim(own: Mapping[str, Any]) -> dict[str, Any]:
    """A claim with its pairs. Schema 1 had the differences alone; which trials they are of is empty then."""
    if "differences" in own:
        pairs = {row: [("", "", value) for value in values] for row, values in own["differences"].items()}
    else:
        pairs = {row: [(str(a), str(b), value) for a, b, value in found] for row, found in own["pairs"].items()}
    for value in (value for found in pairs.values() for *_, value in found):
        if value is not None and not isinstance(value, int | float):
            raise TypeError(f"a difference is {value!r}")
    missing = {"text", "rows", "reference", "metric", "within", "sign"} - own.keys()
    if missing:
        raise KeyError(min(missing))
    return {**{key: value for key, value in own.items() if key != "differences"}, "pairs": pairs}


def pairs_of(kept: Kept) -> Iterator[tuple[str, str, float | None]]:
    """All pairs of trials that looks have seen, with their differences."""
    for own in (*kept["claims"], *kept["aside"]):
        for found in own["pairs"].values():
            yield from found


def seeds_looked_at(grid: Grid, store: RunStore) -> int:
    """How many seeds, from 0 on, looks have seen of any row of the grid's claims; 0 where nothing is kept."""
    kept = load(path_of(grid, store))
    claims = [] if kept is None else [*kept["claims"], *kept["aside"]]
    return max((len(found) for own in claims for found in own["pairs"].values()), default=0)


# ---- on their way from one machine to another


def of_trials(store: RunStore, trial_ids: Collection[str]) -> dict[str, Path]:
    """The files, by name, whose looks have seen any of these trials: their seeds were chosen by what was seen.

    Raises:
        UserError: one is damaged.
    """
    found = {name: (path, load(path)) for name, path in decisions(store.root).items()}
    asked = set(trial_ids)
    return {
        name: path
        for name, (path, kept) in found.items()
        if kept and any(asked & {trial, reference} for trial, reference, _ in pairs_of(kept))
    }


def take(store: RunStore, name: str, data: bytes, *, replace: bool = False) -> bool:
    """Take in a file that came from elsewhere; False where the looks that are here are the same, or go further.

    Raises:
        Refused: it is damaged, other looks were taken here (unless `replace`), or are being taken.
    """
    try:
        theirs = parse(data)
    except ValueError as error:
        raise Refused(f"is damaged: {error}") from error
    path = store.root / name
    store.prepare()
    path.parent.mkdir(parents=True, exist_ok=True)
    held = lease.claim(path.with_name(path.name.removesuffix(".json") + LEASE))
    if held is None:
        raise Refused("its claims are being decided here")
    with held:
        ours = load(path)
        if ours is not None and _goes_further(ours, theirs):
            return False
        if ours is not None and not replace and not _goes_further(theirs, ours):
            raise Refused("other looks were taken here; --replace takes these")
        write_atomic(path, data)
    return True


def _goes_further(longer: Kept, shorter: Kept) -> bool:
    """Whether the looks of one file begin with those of another, or are the same."""
    seen, others = _pairs_by_claim(longer), _pairs_by_claim(shorter)
    begins = all(seen.get(key, [])[: len(pairs)] == pairs for key, pairs in others.items())
    return begins and (not others or longer["max_seeds"] == shorter["max_seeds"])


def _pairs_by_claim(kept: Kept) -> dict[Any, list[tuple[str, str, float | None]]]:
    """Of claims that were looked at, by what they are about."""
    claims = [own for own in (*kept["claims"], *kept["aside"]) if any(own["pairs"].values())]
    return {
        (own["text"], own["metric"], own["within"], row, pairs[0][0]): pairs
        for own in claims
        for row, pairs in own["pairs"].items()
        if pairs
    }
