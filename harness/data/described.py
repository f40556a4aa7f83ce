"""What a file says of a YOLO data set: Ultralytics' data.yaml, or Darknet's obj.data with a `key = value` a line."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harness.data.checks import brief
from harness.data.foreign import lines_of, read_text
from harness.data.layout import SPLITS, Split

LARGEST = 4_000_000  # bytes of a description
NOTHING = ("", "~", "null", "None")  # how a key is left empty
MERGE = "<<"
KEYS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid")}


@dataclass
class Description:
    """What is said, as text; `problems` are what cannot be understood."""

    bases: list[Path]  # folders that entries are relative to, the likeliest first
    keys: set[str] = field(default_factory=set)
    entries: dict[Split, list[str]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    names: list[str] | None = None
    names_file: str | None = None  # that lists them
    count: int | None = None  # of classes
    is_pose: bool = False
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_one(self) -> bool:
        """Whether this describes a YOLO data set at all."""
        return bool(self.keys & {"train", "val", "valid"}) and bool(self.keys & {"names", "nc", "classes"})


class _Loader(yaml.BaseLoader):
    """All scalars are texts (a class may be called `no`), and a key that stands there twice is a mistake.

    What a merge key (`<<: *defaults`) leads to is taken where the mapping has no such key itself.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            self._merge(node)
        return super().construct_mapping(node, deep)

    def _merge(self, node: yaml.MappingNode) -> None:
        """Put what is merged in place of the merge key, once and for all places that name this mapping."""
        own: dict[str, tuple[yaml.ScalarNode, yaml.Node]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no text", key.start_mark)
            if key.value in own:
                told = f"{brief(key.value)} stands there twice"
                raise yaml.constructor.ConstructorError(None, None, told, key.start_mark)
            own[key.value] = key, value
        if MERGE in own and own[MERGE][0].style is None:  # no quotes around it
            key, value = own.pop(MERGE)
            for other in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(other, yaml.MappingNode):
                    raise yaml.constructor.ConstructorError(None, None, "<< must name a mapping", key.start_mark)
                self._merge(other)
                own = {inner.value: (inner, below) for inner, below in other.value} | own
        node.value = list(own.values())


def describe(path: Path) -> Description:
    """What the file says.

    Raises:
        UserError: it cannot be read.
    """
    found = Description([path.parent])
    content: Any = None
    if path.stat().st_size > LARGEST:
        found.problems.append(f"is larger than {LARGEST // 10**6} MB, which no description of a data set is")
        return found
    text = read_text(path)
    if path.suffix.lower() == ".data":
        pairs = [_pair(line) for _, line in lines_of(text) if line[0] != "#"]
        content = dict(pairs)
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        found.problems += [f"{brief(key)} stands there twice; correct it" for key in twice]
    else:
        try:
            content = yaml.load(text, _Loader)  # noqa: S506 - of BaseLoader, which makes texts alone
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            found.problems.append(_yaml_trouble(error))
            return found
    if not isinstance(content, dict):
        found.problems.append("must be a mapping with train:, val: and names:")
        return found
    _take(found, content, path)
    return found


def two_places(taken: str, split: Split, other: str) -> str:
    """What is noted where a data set names two places for one split."""
    return f"{taken} is taken for the {split} images; {other} is there too, which is not read"


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition("=")
    return key.strip(), value.strip()


def _yaml_trouble(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}" if mark is not None else ""
    told = getattr(error, "problem", None) or str(error) or type(error).__name__
    return f"is broken YAML{where}: {' '.join(str(told).split())}; correct it"


def _take(found: Description, content: dict[str, Any], path: Path) -> None:
    content = {key: value for key, value in content.items() if value not in NOTHING}
    found.keys = set(content)
    base = content.get("path")
    if isinstance(base, str):
        folder = Path(os.path.expanduser(base))
        found.bases = list(dict.fromkeys([path.parent / folder, Path.cwd() / folder, path.parent]))
    elif base is not None:
        found.problems.append(f"path: {brief(base)} is no folder's name; correct it")
    for split in SPLITS:
        taken = ""
        for key in KEYS[split]:
            value = content.get(key, [])
            entries = [value] if isinstance(value, str) else value
            if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
                found.problems.append(
                    f"{key}: {brief(value)} must be a folder, a list of images, or several; correct it"
                )
                continue
            entries = [entry for entry in entries if entry not in NOTHING]
            if not found.entries[split]:
                found.entries[split], taken = entries, key
            elif entries and entries != found.entries[split]:
                found.notes.append(two_places(f"{taken}:", split, f"{key}:"))
    found.is_pose = "kpt_shape" in content
    _take_names(found, content.get("names"))
    count = content.get("nc", content.get("classes"))
    if isinstance(count, str) and count.isdecimal() and count.isascii() and 0 < len(count) < 7:
        found.count = int(count)
    elif count is not None:
        found.problems.append(f"nc: {brief(count)} must be the number of classes; correct it")


def _take_names(found: Description, names: Any) -> None:
    """Names as a list, or by their numbers."""
    if isinstance(names, dict):
        numbers = [str(number) for number in range(len(names))]
        if set(names) != set(numbers):
            odd = next(iter(sorted(set(map(str, names)) ^ set(numbers))))
            found.problems.append(
                f"names: must have the numbers 0 to {len(names) - 1}, but {brief(odd)} is not so; correct it"
            )
            return
        names = [names[number] for number in numbers]
    if isinstance(names, str):
        found.names_file = names
    elif isinstance(names, list):
        wrong = [name for name in names if not isinstance(name, str) or not name.strip()]
        if wrong or not names:
            found.problems.append(f"names: {brief(wrong[0] if wrong else names)} is no name of a class; correct it")
        else:
            found.names = [name.strip() for name in names]
    elif names is not None:
        found.problems.append(f"names: {brief(names)} must be a list; correct it")
