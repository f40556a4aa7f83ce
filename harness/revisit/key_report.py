"""What became of each name of a file of weights, for a person and for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from model.official import Translation

FEW = 3  # names of a kind that one line shows
VERBS = {
    "missing": "lack",
    "not in this configuration": "have besides",
    "unknown": "have the unknown",
    "of another shape": "have in another shape",
}


def key_report(found: Translation, verbose: bool = False) -> list[str]:
    """One line for each kind of names, or every name."""
    moved = Counter(" → ".join(own.split(".")[0] for own in pair) for pair in found.renamed.items())
    lines = [_line("renamed", len(found.renamed), [f"{what} ({number})" for what, number in moved.items()])]
    lines += _full(found.renamed, " → ") if verbose else []
    reasons = Counter(found.dropped.values())
    lines.append(_line("left out", len(found.dropped), [f"{why} ({number})" for why, number in reasons.items()]))
    lines += _full(found.dropped, ": ") if verbose else []
    for kind, names, between in _troubles(found):
        short = [] if verbose else [*_told(names, between)[:FEW], *(["…"] if len(names) > FEW else [])]
        lines.append(_line(kind, len(names), short))
        lines += _full(names, between) if verbose else []
    return lines


def trouble(found: Translation) -> str:
    """How the weights differ from what the configuration asks for, in a line; empty where they do not."""
    told = []
    for kind, names, between in _troubles(found):
        more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
        told += [f"{VERBS[kind]} {', '.join(_told(names, between)[:FEW])}{more}"] if names else []
    return f"the weights {', '.join(told)}" if told else ""


def as_json(found: Translation) -> dict[str, Any]:
    """All names, by kind."""
    return {own.name: getattr(found, own.name) for own in fields(found) if own.name != "tensors"}


def _troubles(found: Translation) -> list[tuple[str, Mapping[str, str], str]]:
    return [
        ("missing", dict.fromkeys(found.missing, ""), ""),
        ("not in this configuration", found.unexpected, " → "),
        ("unknown", dict.fromkeys(found.unknown, ""), ""),
        ("of another shape", found.misshapen, ": "),
    ]


def _told(names: Mapping[str, str], between: str) -> list[str]:
    return [name if name == what else f"{name}{between}{what}" for name, what in names.items()]


def _full(names: Mapping[str, str], between: str) -> list[str]:
    return [f"    {line}" for line in _told(names, between)]


def _line(kind: str, number: int, what: list[str]) -> str:
    return f"  {kind} {number}{': ' if what else ''}{', '.join(what)}"
