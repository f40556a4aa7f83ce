"""Whether the rows of a table stand on the same ground: one code version, one data set, the same operators.

Numbers made by different code do not compare, and nothing in a table would show it. So a report refuses such a table,
names the groups, and says what to do; `--allow-mixed` writes it with a warning instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import UserError

if TYPE_CHECKING:
    from harness.spec.grid import Grid

Record = Mapping[str, Any]
MANY = 4  # rows named one by one
MANY_IDS = 24  # trials named one by one


def finished_records(grid: Grid, records: Iterable[Record]) -> list[Record]:
    """The finished records of a grid's trials, each once, in the grid's order."""
    by_id = {record["trial_id"]: record for record in records if record.get("status") == "finished"}
    return [by_id[trial.trial_id] for trial in grid.trials if trial.trial_id in by_id]


def mixtures(grid: Grid, records: Sequence[Record]) -> dict[str, dict[str, list[Record]]]:
    """What the finished `records` of `grid` do not share.

    Returns:
        "code versions", "data sets" or "operators", as far as there are several, each with its groups by name, the
        largest first. Data that the rows themselves vary are meant to differ, and are left out.
    """
    codes = _code_names(records)
    names = {
        "code versions": [codes[index] for index in range(len(records))],
        "data sets": [str(record.get("fingerprint") or "")[:12] or "unknown" for record in records],
        "operators": [str(_provenance(record).get("ops") or "unknown") for record in records],
    }
    if any(key.startswith("data.") for row in grid.rows for key in row.factors):
        del names["data sets"]
    found = {}
    for what, own in names.items():
        groups: dict[str, list[Record]] = {}
        for name, record in zip(own, records, strict=True):
            groups.setdefault(name, []).append(record)
        if len(groups) > 1:
            found[what] = dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))
    return found


def _provenance(record: Record) -> Mapping[str, Any]:
    return record.get("provenance") or {}


def _code_names(records: Sequence[Record]) -> list[str]:
    """The code behind each record: by its digest, so that a commit of documentation makes no difference.

    A record from before there were digests takes that of a record of the same commit without changes; failing that it
    goes by its commit.
    """
    digests: dict[str, str] = {}
    for record in records:
        made = _provenance(record)
        if made.get("code") and made.get("commit") and made.get("dirty") is False:
            digests[str(made["commit"])] = str(made["code"])
    names = []
    for record in records:
        made = _provenance(record)
        commit = str(made.get("commit") or "")
        changed = made.get("dirty") in (True, "true", "True")
        digest = made.get("code") or (None if changed else digests.get(commit))
        if digest:
            names.append(f"code {digest}")
        else:
            names.append((f"commit {commit[:10]}" if commit else "unknown") + (" with changes" if changed else ""))
    return names


def check_ground(grids: Sequence[Grid], records: Sequence[Record]) -> None:
    """Refuse tables whose trials do not stand on the same ground.

    Raises:
        UserError: with the groups of each such table, and what to do.
    """
    lines = []
    smaller: dict[str, None] = {}  # ids of the trials that are not of the largest group, in order
    for grid in grids:
        for what, groups in mixtures(grid, finished_records(grid, records)).items():
            lines.append(f"{grid.name}: its trials come from different {what}, so their numbers do not compare:")
            for name, members in groups.items():
                lines.append(f"  {_named(name, members)}: {_members(grid, members)}")
            for members in list(groups.values())[1:]:
                smaller |= {str(record["trial_id"]): None for record in members}
    if lines:
        ids = [*smaller][:MANY_IDS] + ["…"] * (len(smaller) > MANY_IDS)
        lines.append(
            f"run the smaller group again with what made the larger one (codetr rm {' '.join(ids)}, then run), leave "
            "its rows or seeds out (--seeds), or say --allow-mixed to have the table with a warning"
        )
        raise UserError("\n".join(lines))


def _named(name: str, members: Sequence[Record]) -> str:
    """A group's name; of a digest also the commits that had it."""
    commits = sorted({str(_provenance(record).get("commit") or "")[:10] for record in members} - {""})
    return f"{name} (commit {', '.join(commits)})" if name.startswith("code ") and commits else name


def _members(grid: Grid, members: Sequence[Record]) -> str:
    """`4 trials: K = 0 (seeds 0, 1), ATSS (seed 0), …`."""
    ids = {str(record["trial_id"]) for record in members}
    rows = []
    for row in grid.rows:
        seeds = [str(seed) for seed, key in zip(grid.seeds, row.trial_ids, strict=True) if key in ids]
        if seeds:
            rows.append(f"{row.label} (seed{'s'[: len(seeds) != 1]} {', '.join(seeds)})")
    shown = rows if len(rows) <= MANY else [*rows[: MANY - 1], f"and {len(rows) - MANY + 1} more rows"]
    return f"{len(members)} trial{'s'[: len(members) != 1]}: {', '.join(shown)}"
