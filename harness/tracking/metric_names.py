"""Names of metrics as MLflow takes them: safe, distinct, and read back as what they were.

MLflow refuses characters (`AP@300`), names that are no proper path (a class `.` or `/`) and more than 250 letters. A
name that it takes stays as it is. Any other is mended, and where that makes two equal (classes `+` and `*`), or where
two differ in nothing that every database tells apart (`Car` and `car`), a digest of the name is added.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

GROUPS = ("losses", "cost", "per_class")  # parts of a record that become metrics `<group>/<name>`
BY_LAYER = re.compile(r"losses/(decoder|queries\.[^/]+)\.(\d+)/(.+)")  # layers of a loss stand side by side
MAX_NAME = 250  # letters; MLflow's own limit
UNTOLD = ("time", "step")  # of an epoch's entry: no metrics of their own


def flat_metrics(entry: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of an epoch's entry or of a record by MLflow's name; undefined ones, time and step are left out.

    MLflow draws a section for whatever stands before the last slash: `losses/decoder/giou.0`, not one for each layer.
    """
    values = _values(entry)
    names = safe_names(values)
    numbers = ((name, value) for name, (_, value) in values.items() if isinstance(value, int | float))
    return {names[name]: float(value) for name, value in numbers if not isinstance(value, bool)}


def renamed(entry: Mapping[str, Any]) -> dict[str, str]:
    """MLflow's names of an entry's metrics that have another one here, and that one. Losses are not read back."""
    values = _values(entry)
    names = {safe: values[name][0] for name, safe in safe_names(values).items() if not name.startswith("losses/")}
    return {safe: own for safe, own in names.items() if safe != own}


def _values(entry: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Metrics by a name with its group: their name here, and the number."""
    values: dict[str, tuple[str, Any]] = {}
    for key, value in entry.items():
        if key in GROUPS and isinstance(value, Mapping):
            values |= {f"{key}/{name}": (f"{key}/{name}", number) for name, number in value.items()}
        elif key not in UNTOLD:
            head, slash, rest = key.partition("/")
            # A head may be called `cost`: its AP is no cost.
            values[f"{head}_{slash}{rest}" if slash and head in GROUPS else key] = (key, value)
    return values


def safe_name(name: str) -> str:
    """One name as MLflow takes it; the same where it takes that."""
    return safe_names([name])[name]


def safe_names(names: Iterable[str]) -> dict[str, str]:
    """Names as MLflow takes them, each another one, by those that they have here.

    A name's own depends on nothing but the names that it is told with, not on their order (but for names that differ
    in case alone: the first keeps its own).
    """
    mended = {name: _mended(name) for name in names}
    counts = Counter(map(_folded, mended.values()))
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(mended, key=lambda name: mended[name] != name):  # names that stay as they are come first
        safe = mended[name]
        unique = counts[_folded(safe)] == 1 or (safe == name and _folded(safe) not in taken)
        letters = 8
        while not unique or _folded(safe) in taken:
            digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:letters]
            safe, unique, letters = f"{mended[name][: MAX_NAME - 1 - letters]}-{digest}", True, letters + 8
        found[name] = safe
        taken.add(_folded(safe))
    return {name: found[name] for name in mended}


def _mended(name: str) -> str:
    by_layer = BY_LAYER.sub(r"losses/\1/\3.\2", name)
    parts = re.sub(r"[^\w./: -]", "_", by_layer).split("/")
    safe = "/".join("_" * max(1, len(part)) if part in ("", ".", "..") else part for part in parts)
    if len(safe) <= MAX_NAME:
        return safe
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe[: MAX_NAME - 9]}-{digest}"


def _folded(name: str) -> str:
    """What some databases keep of a name: no case, no spaces at its end."""
    return unicodedata.normalize("NFKC", name).casefold().rstrip(" .")
