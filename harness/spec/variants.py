"""A grid under another data set or other settings: what keeps its trials apart from those of the plain grid.

`--data` and `--set` make other trials of the same rows. So they belong to the grid's key, beside the file's name and
the preset: `quickstart (digits, cards 1f3c, train.epochs=2)` has a folder, a view and tags of its own. What changes no
trial (`runtime` and `analyse`, the order of the settings, how a path is written) takes no part; seeds are seeds of the
same rows. A grid without either is known by its name and preset alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.spec.labels import DATA, show_value, shown_at
from harness.spec.parts import Setting, whole_path

IDLE = ("analyse", "runtime")  # sections that change no trial
LONGEST_WORDS = 60  # letters of all words together
LONGEST_WORD = 32
LONGEST_KEY = 120  # bytes, so that folders and tags take it whatever the language
WEIGHTS = "model.backbone.weights"  # a path, which as that of a data set counts by what lies there


@dataclass(frozen=True)
class Variant:
    """What tells a grid from the plain one of the same file and preset; both are empty for that one."""

    words: str = ""  # for people: "cards 1f3c, train.epochs=2"
    digest: str = ""  # of all of it


def variant_of(
    overrides: Iterable[Setting],
    fingerprint: str = "",
    weights_hash: str = "",
    data_sets: Mapping[str | None, str] | None = None,
) -> Variant:
    """The variant that settings of the command line make.

    Args:
        overrides: settings of --set and --data, in order: the last one wins.
        fingerprint: of the data set that they name; a path alone says little of what lies there.
        weights_hash: of the file of weights, likewise.
        data_sets: fingerprints by path, where the command line names several.
    """
    chosen = _chosen(overrides)
    if not chosen and not data_sets:
        return Variant()
    words, identity = [], dict(chosen)
    if data_sets:
        identity[DATA] = sorted(content or _whole(path) for path, content in data_sets.items())
        named = sorted((shown_at(DATA, path), content) for path, content in data_sets.items())  # in whatever order
        words += [" ".join((_plain(name), content[:4])).strip() for name, content in named]
    for key, content in ((DATA, fingerprint), (WEIGHTS, weights_hash)):
        if chosen.get(key) is not None:
            path = Path(_whole(chosen.pop(key)))
            identity[key] = content or str(path)
            words.append(" ".join(filter(None, (_plain(path.name or str(path)), content[:4]))))
    exact = all(map(_is_exact, chosen.values()))
    shown = {".".join(whole_path(tuple(key.split(".")))): value for key, value in sorted(chosen.items())}
    words += [_plain(f"{key}={show_value(value)}") for key, value in shown.items()]
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Variant(_shortened(words, digest, exact), digest)


def _whole(path: Any) -> str:
    return os.path.abspath(os.path.expanduser(str(path)))


def _chosen(overrides: Iterable[Setting]) -> dict[str, Any]:
    """Dotted keys and their last values, without those that change no trial."""
    chosen: dict[str, Any] = {}
    for path, value, _ in overrides:
        key = ".".join(path)
        if path[0] not in IDLE:
            # A value in place of a mapping replaces what was set inside it.
            chosen = {known: own for known, own in chosen.items() if not known.startswith(f"{key}.")} | {key: value}
    return {key: value for key, value in chosen.items() if (key, value) != (DATA, None)}


def _plain(word: str) -> str:
    """A word in one line, without what would part it from the others."""
    word = re.sub(r"[\s,()]+", "_", "".join(letter if letter.isprintable() else "_" for letter in word)).strip("_")
    return word if len(word) <= LONGEST_WORD else f"{word[: LONGEST_WORD - 1]}…"


def _is_exact(value: Any) -> bool:
    """Whether people read the whole value: `show_value` rounds numbers, and long words are cut."""
    if isinstance(value, float):
        return float(show_value(value)) == value
    if isinstance(value, Mapping):
        return all(map(_is_exact, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_exact, value))
    return len(show_value(value)) <= LONGEST_WORD // 2


def _shortened(words: list[str], digest: str, exact: bool) -> str:
    """As many words as fit, and how many more there are, with the first letters of the digest where some are cut."""
    text = ", ".join(words)
    if len(text) <= LONGEST_WORDS and exact and "…" not in text:
        return text
    kept: list[str] = []
    for word in words:
        if len(", ".join([*kept, word])) > LONGEST_WORDS - 12:
            break
        kept.append(word)
    more = f"+{len(words) - len(kept)} " if len(kept) < len(words) else ""
    return ", ".join([*kept, f"{more}{digest[:4]}"])


def heading(name: str, preset: str, words: str) -> str:
    """What people read: `quickstart (digits, cards 1f3c)`."""
    return f"{name} ({', '.join(filter(None, (preset, words)))})"


def key_of(name: str, preset: str, variant: Variant) -> str:
    """The name of a grid's folder and tags: the file's, or one that takes in preset and variant."""
    if not variant.digest:
        return name
    text = re.sub(r"[^\w.-]+", "-", f"{name}-{preset}-{variant.words}").strip("-.")
    return f"{text.encode()[:LONGEST_KEY].decode(errors='ignore')}-{variant.digest}"
