"""The trials of a section: a line for each cell that something asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from harness.report.cells import written
from harness.report.frames import recorded
from harness.report.notes import plural
from harness.report.section import Record, Section, asked_cells, status_of
from harness.report.tables import metric_of
from harness.store.agreement import short


def trials_tally(section: Section) -> str:
    """How many trials have each status."""
    ids = {key for _, _, key in asked_cells(section)}
    counts = Counter(status_of(section.records.get(key)) for key in ids)
    return f"{len(ids)} {plural('trial', len(ids))}: " + ", ".join(f"{counts[name]} {name}" for name in sorted(counts))


def trial_lines(section: Section, links: Callable[[Record], list[tuple[str, str]]]) -> list[dict[str, Any]]:
    """A line for each trial of each row."""
    metric = metric_of(section.table.metrics[0].name)
    lines = []
    for label, seed, key in asked_cells(section):
        record = section.records.get(key)
        made = (record or {}).get("provenance") or {}
        finished = record if record is not None and record.get("status") == "finished" else None
        value = recorded(finished, metric.name) if finished else None
        seconds = recorded(finished, "wall_seconds") if finished else None
        lines.append(
            {
                "id": key,
                "row": label,
                "seed": seed,
                "status": status_of(record),
                "value": "" if value is None else written(value, metric),
                "minutes": "" if seconds is None else f"{seconds / 60:.1f}",
                "code": short(made.get("code")) or str(made.get("commit") or "")[:10],
                "links": [{"href": href, "ending": words} for href, words in (links(record) if record else [])],
            }
        )
    return lines
