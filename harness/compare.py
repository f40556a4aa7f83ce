"""What differs between two trials: settings, data, provenance, and what came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.spec.identity import newer_defaults
from harness.spec.labels import show_value
from harness.spec.parts import NAME, SINGLE
from harness.store import agreement

ABSENT = "-"


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, its value in the first, in the second) of two records, only where they differ.

    Settings first (`model.num_queries`), then the data's fingerprint, the hash of pretrained weights, provenance (of
    the code its short digest, and that of each file that keeps the two from agreeing), metrics and costs.
    """
    flat = [dict(_flat(record)) for record in (first, second)]
    codes = [(record.get("provenance") or {}).get("code") for record in (first, second)]
    for file in (found for found in agreement.differences(*codes) if found.file):
        for side, digest in zip(flat, (file.first, file.second), strict=True):
            side[f"provenance.code.{file.file}"] = digest
    for side, record in zip(flat, (first, second), strict=True):
        for key, default in newer_defaults().items() if record.get("config") else ():
            side.setdefault(key, default)  # a record of before the setting does not name it
    heads = [{key for key in side if key.endswith(".")} for side in flat]
    unmatched = tuple(heads[0] ^ heads[1])  # of a head that one has alone, `model.heads` tells
    parts = [(f"model.{field}.", [side.get(f"model.{field}.{NAME}") for side in flat]) for field in SINGLE]
    unmatched += tuple(path for path, names in parts if names[0] != names[1])  # likewise the names of other parts
    found = []
    for key in sorted(dict.fromkeys([*flat[0], *flat[1]]), key=_place):
        one, other = (side.get(key) for side in flat)
        if one != other and (not key.startswith(unmatched) or key.endswith(f".{NAME}")):
            found.append((key, _shown(one), _shown(other)))
    return found


_SECTIONS = ("config", "fingerprint", "weights_hash", "status", "error", "provenance", "metrics", "cost")


def _place(key: str) -> int:
    return next((index for index, name in enumerate(_SECTIONS[1:], 1) if key.partition(".")[0] == name), 0)


def _flat(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings go by their own dotted keys, everything else by the section's name and theirs."""
    for name in _SECTIONS:
        value = record.get(name)
        if name == "provenance" and value:
            value = {**value, "code": agreement.short(value.get("code")) or None}
        if isinstance(value, dict):
            yield from _leaves(value, "" if name == "config" else f"{name}.")
        elif value is not None:
            yield name, value


def _leaves(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        elif f"{path}{key}" in ("model.heads", "model.groups") and isinstance(value, list):
            yield from _listed(f"{path}{key}", value)
        else:
            yield f"{path}{key}", value


def _listed(field: str, parts: list[Any]) -> Iterator[tuple[str, Any]]:
    """Names of heads as one value, and their settings by name (`model.heads.atss.top_k`, a second one `atss.2`)."""
    names = [str(part.get(NAME)) if isinstance(part, dict) else str(part) for part in parts]
    yield field, names
    for index, (name, part) in enumerate(zip(names, parts, strict=True)):
        number = names[:index].count(name) + 1
        if isinstance(part, dict):
            path = f"{field}.{name}{f'.{number}' if number > 1 else ''}."
            yield path, True
            yield from _leaves({key: value for key, value in part.items() if key != NAME}, path)


def _shown(value: Any) -> str:
    if value is None:
        return ABSENT
    return f"{value:.6g}" if isinstance(value, float) else show_value(value)
