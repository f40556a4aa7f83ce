"""What `codetr decide` keeps of a grid, as a file: one for each grid and preset, `grids/<key>/decide.<preset>.json`.

`harness.decide.kept` says what it means; here is what reports, `status` and `export` need of it. A claim's `pairs`
hold, by row and in the order of seeds, the two trials that a look saw and the difference of their numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
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
MOST_SPENT = 0.05 + 1e-9  # of error, by all looks of a comparison
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
        names = {name: str(kept[name]) for name in ("grid", "preset", "started")}
        before = [str(key) for key in kept["before"]]
        most, looks = int(kept["max_seeds"]), _looks(kept["looks"])
        if looks["seeds"][-1] != most:
            raise ValueError(f"its last look is at {looks['seeds'][-1]} seeds, and max_seeds is {most}")
        own = {"before": before, "left_out": told, "max_seeds": most, "looks": looks}
        return {**kept, **claims, **names, **own}
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _looks(own: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The planned looks: numbers of seeds that rise, and the share of the error that each spends."""
    seeds, alphas = [int(number) for number in own["seeds"]], [float(share) for share in own["alphas"]]
    if not seeds or seeds != sorted({*seeds}) or len(alphas) != len(seeds):
        raise ValueError(f"looks at {seeds} with {len(alphas)} shares of the error")
    if not all(share > 0 for share in alphas) or not sum(alphas) < MOST_SPENT:
        raise ValueError(f"its looks spend {sum(alphas):g}, where 0.05 may be spent")
    return {"seeds": seeds, "alphas": alphas}


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


def looked_at(grid: Grid, store: RunStore) -> tuple[int, frozenset[str]]:
    """How many seeds, from 0 on, looks have seen of any row, and the trials that they saw; 0 where nothing is kept."""
    kept = load(path_of(grid, store))
    claims = [] if kept is None else [*kept["claims"], *kept["aside"]]
    number = max((len(found) for own in claims for found in own["pairs"].values()), default=0)
    return number, frozenset(key for trial, other, _ in (pairs_of(kept) if kept else ()) for key in (trial, other))


# ---- on their way from one machine to another


def of_trials(store: RunStore, trial_ids: Collection[str]) -> dict[str, Path]:
    """The files, by name, whose looks have seen any of these trials: their seeds were chosen by what was seen.

    Damaged ones are left out (see `damaged`); of schema 1, which does not tell its trials, all are there.
    """
    asked, found = {*trial_ids, ""}, {}
    for name, path in decisions(store.root).items():
        with suppress(UserError):
            kept = load(path)
            if kept and any(asked & {trial, reference} for trial, reference, _ in pairs_of(kept)):
                found[name] = path
    return found


def damaged(store: RunStore) -> list[str]:
    """What is wrong with files of a store that cannot be read."""
    wrong = []
    for path in decisions(store.root).values():
        try:
            load(path)
        except UserError as error:
            wrong.append(str(error))
    return wrong


def take(
    store: RunStore,
    name: str,
    data: bytes,
    *,
    replace: bool = False,
    contradiction: Callable[[Kept], str] = lambda kept: "",
) -> bool:
    """Take in a file that came from elsewhere; False where the looks that are here are the same, or go further.

    `contradiction` says why its looks do not fit the records that are here; empty where they do.

    Raises:
        Refused: it is damaged, does not fit, other looks were taken here (unless `replace`), or are being taken.
    """
    try:
        theirs = parse(data)
    except ValueError as error:
        raise Refused(f"is damaged: {error}") from error
    if why := contradiction(theirs):
        raise Refused(why)
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
    """Of claims that were looked at, by what they are about: trials of the first seed, metric and margin, not words."""
    found = {}
    for own in (own for own in (*kept["claims"], *kept["aside"]) if any(own["pairs"].values())):
        first = tuple(own["pairs"][row][0][:2] for row in own["rows"] if own["pairs"].get(row))
        for row, pairs in own["pairs"].items():
            found[first, own["metric"], own["within"], own["rows"].index(row)] = pairs
    return found
