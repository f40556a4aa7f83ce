"""Whether the rows of a table stand on the same ground: one code version, one data set, the same operators.

Numbers made by different code do not compare, and nothing in a table would show it. So a report refuses such a table,
names the groups, and says what to do; `--allow-mixed` writes it with a warning instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.store.agreement import Group, code_groups
from harness.system.words import plural, quantity

if TYPE_CHECKING:
    from harness.spec.grid import Grid

Record = Mapping[str, Any]
MANY = 4  # rows named one by one
MANY_IDS = 24  # trials named one by one


def finished_records(grid: Grid, records: Iterable[Record]) -> list[Record]:
    """The finished records of a grid's trials, each once, in the grid's order."""
    by_id = {record["trial_id"]: record for record in records if record.get("status") == "finished"}
    return [by_id[trial.trial_id] for trial in grid.trials if trial.trial_id in by_id]


def mixtures(grid: Grid, records: Sequence[Record]) -> dict[str, list[Group]]:
    """What the finished `records` of `grid` do not share.

    Returns:
        "code versions", "data sets" or "operators", as far as there are several, each with its groups, the largest
        first. Data that the rows themselves vary are meant to differ, and are left out.
    """
    found = {
        "code versions": code_groups(records),
        "data sets": _groups(records, lambda record: str(record.get("fingerprint") or "")[:12]),
        "operators": _groups(records, lambda record: str((record.get("provenance") or {}).get("ops") or "")),
    }
    if any(key.startswith("data.") for row in grid.rows for key in row.factors):
        del found["data sets"]
    return {what: groups for what, groups in found.items() if len(groups) > 1}


def _groups(records: Sequence[Record], name_of: Callable[[Record], str]) -> list[Group]:
    names = [name_of(record) or "unknown" for record in records]
    ordered = sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))
    return [Group(name, [r for r, own in zip(records, names, strict=True) if own == name]) for name, _ in ordered]


def check_ground(
    grids: Sequence[Grid],
    records: Sequence[Record],
    otherwise: str = "leave its rows or seeds out (--seeds), or say --allow-mixed to have the table with a warning",
) -> None:
    """Refuse tables whose trials do not stand on the same ground; `otherwise` says what can be done but train again.

    Raises:
        UserError: with the groups of each such table, what their code differs in, and what to do.
    """
    lines = []
    smaller: dict[str, None] = {}  # ids of the trials that are not of the largest group, in order
    for grid in grids:
        for what, groups in mixtures(grid, finished_records(grid, records)).items():
            lines.append(f"{grid.name}: its trials come from different {what}, so their numbers do not compare:")
            lines += [f"  {_named(group)}: {_members(grid, group.records)}" for group in groups]
            for group in groups[1:]:
                smaller |= {str(record["trial_id"]): None for record in group.records}
    if lines:
        ids = [*smaller][:MANY_IDS] + ["…"] * (len(smaller) > MANY_IDS)
        lines.append(
            f"run the smaller group again with what made the larger one (codetr rm {' '.join(ids)}, then run), "
            f"{otherwise}"
        )
        raise UserError("\n".join(lines))


def _named(group: Group) -> str:
    """A group's name; of a code also the commits that had it and what it differs in."""
    commits = f"commit {group.commits}" if group.commits else ""
    more = "; ".join(filter(None, (commits, group.differing and f"differs in {group.differing}")))
    return f"{group.name} ({more})" if more else group.name


def _members(grid: Grid, members: Sequence[Record]) -> str:
    """`4 trials: K = 0 (seeds 0, 1), ATSS (seed 0), …`."""
    ids = {str(record["trial_id"]) for record in members}
    rows = []
    for row in grid.rows:
        seeds = [str(seed) for seed, key in zip(grid.seeds, row.trial_ids, strict=True) if key in ids]
        if seeds:
            rows.append(f"{row.label} ({plural('seed', len(seeds))} {', '.join(seeds)})")
    shown = rows if len(rows) <= MANY else [*rows[: MANY - 1], f"and {len(rows) - MANY + 1} more rows"]
    return f"{quantity(len(members), 'trial')}: {', '.join(shown)}"
