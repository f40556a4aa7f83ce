"""Whether trials were made by the same code, from what their records say of it. No source is read here.

A record holds the digests of a core of files and of the files of each part that its configuration names (closure.py).
Two trials agree if their cores have the same files with the same contents, and so have the parts that both name; a file
that one of them uses alone is no matter. A moved or a split file is a difference. A table agrees if all pairs do:
trials of two versions of a head both agree with one without heads, and not with each other. Older records hold one
digest of all files and agree with their like alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

Record = Mapping[str, Any]
Code = Any  # {"core": digests by file, "parts": {part: digests by file}}; of older records a text
Sides = dict[str, dict[str, str] | None]  # digests by file of the core (by the name CORE) and of each part
CORE = ""
PACKED = "deflate;"
FEW = 3  # differences told one by one


class Difference(NamedTuple):
    """A file that is not the same in two codes. Without `file` the files of `part` are not known, or of neither."""

    part: str
    file: str = ""
    first: str | None = None  # digest of its content; None: it is not there
    second: str | None = None

    def __str__(self) -> str:
        return f"{self.file} ({self.part})" if self.file and self.part else self.file or self.part


class Group(NamedTuple):
    """Records that agree with each other."""

    name: str  # `code 1a2b3c4d5e6f`; `commit …` of records without digests
    records: list[Record]
    differing: str = ""  # files and parts that are others than the largest group's, as far as they are known

    @property
    def commits(self) -> str:
        """The commits that had a code; empty for records that go by their commit."""
        commits = {str(_provenance(record).get("commit") or "")[:10] for record in self.records} - {""}
        return ", ".join(sorted(commits)) if self.name.startswith("code ") else ""


def agree(first: Code, second: Code) -> bool:
    """Whether numbers made by these codes compare. Nothing agrees with a code that is empty or not known."""
    return not differences(first, second)


def differences(first: Code, second: Code) -> list[Difference]:
    """What keeps two codes from agreeing, the core's files first; empty where they agree."""
    if isinstance(first, str) and first and first == second:
        return []
    one, other = _sides(first), _sides(second)
    if not one[CORE] or not other[CORE]:
        return [Difference(CORE)]
    found: dict[str, Difference] = {}
    for part in (part for part in one if part in other):
        for difference in _of_part(part, one[part], other[part]):
            found.setdefault(difference.file or part, difference)
    for difference in _of_files(one, other):
        found.setdefault(difference.file, difference)
    return [*found.values()]


def _sides(code: Code) -> Sides:
    whole = code if isinstance(code, Mapping) else {}
    parts = whole.get("parts")
    sides = {CORE: whole.get("core"), **(parts if isinstance(parts, Mapping) else {})}
    return {part: dict(files) if isinstance(files, Mapping) else None for part, files in sides.items()}


def _of_part(part: str, one: dict[str, str] | None, other: dict[str, str] | None) -> Iterator[Difference]:
    if one is None or other is None:
        yield Difference(part)
        return
    for file in sorted(one.keys() | other.keys()):
        if one.get(file) != other.get(file):
            yield Difference(part, file, one.get(file), other.get(file))


def _of_files(one: Sides, other: Sides) -> Iterator[Difference]:
    """Files that different parts use, as `heads.atss` here and `heads.gfl` there, with different contents."""
    mine, theirs = (
        {file: (digest, part) for part, files in sides.items() for file, digest in (files or {}).items()}
        for sides in (one, other)
    )
    for file in sorted(mine.keys() & theirs.keys()):
        (first, part), (second, _) = mine[file], theirs[file]
        if first != second:
            yield Difference(part, file, first, second)


def short(code: Code) -> str:
    """A code as 12 hex digits for people: of its core, alike for all that agree; an older one's own; empty for none."""
    if not isinstance(code, Mapping):
        return str(code or "")
    core = _sides(code)[CORE]
    return hashlib.sha256(json.dumps(core, sort_keys=True).encode()).hexdigest()[:12] if core else ""


def packed(code: Code) -> Code:
    """A code as a text that a tag of MLflow has room for, which the digests of some hundred files are too long for."""
    if not isinstance(code, Mapping):
        return code
    return PACKED + base64.b64encode(zlib.compress(json.dumps(code, sort_keys=True).encode(), 9)).decode()


def unpacked(code: Code) -> Code:
    """The code that `packed` made a text of; any other as it is."""
    if not isinstance(code, str) or not code.startswith(PACKED):
        return code
    with suppress(ValueError, zlib.error):
        return json.loads(zlib.decompress(base64.b64decode(code.removeprefix(PACKED))))
    return code


def parts_of(code: Code) -> tuple[str, ...]:
    """Names of the parts that a code tells of."""
    return tuple(part for part in _sides(code) if part != CORE)


def words(found: Iterable[Difference]) -> str:
    """`model/boxes.py, model/detector.py, model/heads/atss.py (heads.atss) and 2 more`; empty where none is named."""
    named = [*dict.fromkeys(filter(None, map(str, found)))]
    return ", ".join(named[:FEW]) + (f" and {len(named) - FEW} more" if len(named) > FEW else "")


def code_groups(records: Sequence[Record]) -> list[Group]:
    """Records in groups within which all pairs agree, the largest group first; one group if they all do."""
    codes = _codes(records)
    texts = [json.dumps(code, sort_keys=True) for code in codes]  # few are distinct
    by_text = dict(zip(texts, codes, strict=True))

    @cache
    def between(first: str, second: str) -> list[Difference]:
        return differences(by_text[first], by_text[second])

    groups: list[list[str]] = []  # of distinct codes, which all agree
    for text in by_text:
        group = next((group for group in groups if not any(between(other, text) for other in group)), [])
        if not group:
            groups.append(group)
        group.append(text)
    numbers = Counter(texts)
    sizes = [sum(numbers[text] for text in group) for group in groups]
    order = sorted(range(len(groups)), key=lambda index: (-sizes[index], _name(by_text[groups[index][0]])))
    found = []
    for group in (groups[index] for index in order):
        largest = groups[order[0]]
        pairs = [] if group is largest else [(first, second) for first in largest for second in group]
        told = (difference for pair in pairs for difference in between(*pair))
        own = set(group)
        ordered = [record for record, text in zip(records, texts, strict=True) if text in own]
        found.append(Group(_name(by_text[group[0]]), ordered, words(told)))
    return found


def _codes(records: Sequence[Record]) -> list[Code]:
    """The code behind each record: its digests, so that a commit of documentation makes no difference.

    A record from before there were digests takes those of a record of the same commit without changes; failing that it
    goes by its commit.
    """
    known: dict[str, Code] = {}
    for made in map(_provenance, records):
        if made.get("code") and made.get("commit") and made.get("dirty") is False:
            known[str(made["commit"])] = made["code"]
    codes = []
    for made in map(_provenance, records):
        commit, changed = str(made.get("commit") or ""), made.get("dirty") in (True, "true", "True")
        code = made.get("code") or (None if changed else known.get(commit))
        if code is None:
            code = (f"commit {commit[:10]}" if commit else "unknown") + (" with changes" if changed else "")
        elif not isinstance(code, Mapping):
            code = f"code {code}"
        codes.append(code)
    return codes


def _provenance(record: Record) -> Mapping[str, Any]:
    return record.get("provenance") or {}


def _name(code: Code) -> str:
    return code if isinstance(code, str) else f"code {short(code) or 'unknown'}"
