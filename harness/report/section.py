"""A section of the page: what it shows of one ablation file, and what pictures and links are made of."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from harness.report.pivot import Pivot
from harness.report.tables import Table

if TYPE_CHECKING:
    from harness.report.detected import Detected
    from harness.spec.grid import Grid

Record = Mapping[str, Any]
Href = dict[str, str]  # `href` and `ending`, what the link says


@dataclass(frozen=True)
class Picture:
    """A figure to show: PNG bytes and the files of it beside the page."""

    title: str
    png: bytes
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """All that the page says of one ablation file."""

    grid: Grid
    table: Table
    records: Mapping[str, Record]  # by trial id; those of other grids are left aside
    pictures: tuple[Picture, ...] = ()
    files: tuple[str, ...] = ()  # the table in other formats, beside the page
    commands: tuple[str, ...] = ()
    detected: tuple[Detected, ...] = ()  # on each data set
    sheets: Mapping[str, Picture] = field(default_factory=dict)  # of the worst images, by the name of the data set
    pivot: Pivot | None = None


COLUMN_PIXELS = 900  # a wider figure was made for a whole page


def figure_of(picture: Picture) -> dict[str, Any]:
    """All that a template needs to show a picture."""
    width, height = struct.unpack(">II", picture.png[16:24])  # of the header that every PNG begins with
    return {
        "data": base64.b64encode(picture.png).decode(),
        "width": width,
        "height": height,
        "kind": "page" if width > COLUMN_PIXELS else "column",
        "alt": picture.title,
        "files": [file_link(name) for name in picture.files],
    }


def file_link(name: str) -> Href:
    """A link to a file beside the page."""
    stem, _, ending = name.rpartition(".")
    words = {"md": "Markdown", "tex": "LaTeX", "parquet": "Parquet"}.get(ending, ending.upper())
    part = next((part for part in ("trials", "epochs", "classes", "pivot") if stem.endswith(f"_{part}")), "")
    return {"href": quote(name), "ending": f"{part} ({words})" if part else words}


def anchor_of(grid: Grid) -> str:
    """The fragment of the page at which its section begins."""
    return re.sub(r"[^\w.-]+", "_", grid.name)


def asked_cells(section: Section) -> list[tuple[str, int, str]]:
    """Row, seed and trial of each cell that something asked for."""
    grid = section.grid
    cells = [(row.label, seed, key) for row in grid.rows for seed, key in zip(grid.seeds, row.trial_ids, strict=True)]
    return [cell for cell in cells if cell[:2] not in section.table.unasked]


def status_of(record: Record | None) -> str:
    """Of the trial that has this record, or none."""
    return "not run yet" if record is None else str(record.get("status", "failed"))


def minus(text: str) -> str:
    """A hyphen before a digit as the sign it stands for."""
    return text.replace("-", "−")
