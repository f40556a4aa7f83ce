"""Reading what people write: strict YAML, strict types, every mistake with its place.

YAML is read with the rules of YAML 1.2 (`no` is a word, `1e-4` is a number) and duplicate keys are
mistakes. Values meet the frozen dataclasses of `model.config` and `harness.config` through pydantic;
nothing is converted by guessing. Mistakes are collected, so that a person sees all of them at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from harness.errors import UserError
from model.checks import Conflict

Location = tuple[str | int, ...]


class Mistakes:
    """Collects one line per mistake; `check` raises them together."""

    def __init__(self) -> None:
        self.lines: dict[str, None] = {}  # a mistake met by several trials is told once
        self.met = 0  # mistakes, repeated ones among them

    def add(self, where: str, what: str) -> None:
        """Note what is wrong at a place (`file:key.path`); names of several lines become one."""
        self.lines[" ".join(f"{where}: {what}".splitlines())] = None
        self.met += 1

    def check(self) -> None:
        """Raise `UserError` with all lines, if there are any."""
        if self.lines:
            raise UserError("\n".join(self.lines))


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars and only the values of JSON, that remembers what is wrong with keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.key_mistakes: list[tuple[int, str]] = []
        self._open: list[str] = []  # anchors of the mappings and lists that are being read

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        anchor = str(getattr(event, "anchor", None) or "")
        if isinstance(event, yaml.AliasEvent) and anchor in self._open:
            problem = f"*{anchor} stands inside what it repeats"
            mark: Any = event.start_mark
            raise yaml.composer.ComposerError(None, None, problem, mark)
        self._open.append(anchor)
        try:
            return super().compose_node(parent, index)
        finally:
            self._open.pop()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.tag != "tag:yaml.org,2002:str":
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "of several values"
                self.key_mistakes.append((line, f"key {shown} is no text; write it in quotes if it is meant so"))
            elif key_node.value in seen:
                first = seen[key_node.value]
                self.key_mistakes.append(
                    (line, f"duplicate key '{key_node.value}' (first on line {first}); remove one")
                )
            else:
                seen[key_node.value] = line
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))


def _text(node: Any) -> str:
    """What is written at a node that must be one plain value."""
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag} needs a plain value", node.start_mark)
    return str(node.value)


def _refuse(_: Any, node: Any) -> Any:
    raise yaml.constructor.ConstructorError(None, None, f"values of {node.tag} have no use here", node.start_mark)


for _tag in ("binary", "omap", "pairs", "set", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _refuse)
# the inherited constructors know YAML 1.1: an octal 010 and a sexagesimal 1:30 would become other numbers
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(_text(node)))
_Loader.add_constructor(
    "tag:yaml.org,2002:float",
    lambda _, node: float(_text(node).lower().replace(".inf", "inf").replace(".nan", "nan")),
)


def read_yaml(text: str, where: str, mistakes: Mistakes) -> Any:
    """The value of a YAML text; None after a mistake that leaves nothing to read."""
    try:
        loader = _Loader(text)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        place = f"{where}:{text.count(chr(10), 0, error.position) + 1}"
        mistakes.add(place, f"not valid YAML: the character {text[error.position]!r} is not allowed")
        return None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:  # the last two: a tag that does not fit
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        mistakes.add(f"{where}{line}", f"not valid YAML: {problem}")
        return None
    for line_number, what in loader.key_mistakes:
        mistakes.add(f"{where}:{line_number}", what)
    return value


def read_yaml_file(path: Path, mistakes: Mistakes) -> dict[str, Any]:
    """The mapping in a YAML file; empty after a mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        mistakes.add(str(path), f"cannot be read: {reason}")
        return {}
    before = len(mistakes.lines)
    value = read_yaml(text, str(path), mistakes)
    if isinstance(value, dict):
        return value
    if len(mistakes.lines) == before:
        mistakes.add(str(path), f"must hold a mapping (key: value lines), got {show(value)}")
    return {}


def show(value: Any) -> str:
    """A value as a person wrote it, shortened."""
    if isinstance(value, str):
        return f"the text {value!r}"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the known words when none is near."""
    words = list(known)
    near = difflib.get_close_matches(str(word), words, 1, 0.6)
    shown = [f"'{each}'" for each in words] if any("," in each for each in words) else words
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(shown) or 'none'}"


def dotted(location: Iterable[str | int]) -> str:
    """`("rows", 1, "set")` as `rows.1.set`."""
    return ".".join(map(str, location))


def non_finite(value: Any) -> bool:
    """Whether infinity, not-a-number or a whole number beyond all floats hides in a value read from YAML."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, int):
        return abs(value) > sys.float_info.max
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(non_finite(child) for child in children)


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def field_names(kind: type) -> list[str]:
    """Names of a dataclass's or pydantic model's fields."""
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    return list(getattr(kind, "model_fields", {}))


def _kind_at(kind: type, location: Iterable[str | int]) -> type | None:
    """The dataclass or model found by walking from `kind` along field names; None elsewhere."""
    here: Any = kind
    for name in location:
        if isinstance(name, int):  # an item of `tuple[Model, ...]`
            here = next(iter(get_args(here)), None)
        elif isinstance(here, type) and name in field_names(here):
            here = get_type_hints(here).get(name)
            optional = [part for part in get_args(here) if part is not type(None)]
            here = optional[0] if len(optional) == 1 and type(None) in get_args(here) else here
        else:
            return None
    return here if isinstance(here, type) and field_names(here) else None


def _explain(error: Mapping[str, Any], kind: type) -> tuple[Location, str]:
    """Where and what of one pydantic error, in words for a person."""
    location: Location = tuple(error["loc"])
    value, name = error["input"], error["type"]
    if name == "value_error":
        what = str(error["ctx"]["error"])
        first = re.match(r"\w+", what)
        owner = _kind_at(kind, location)
        if first and owner and first[0] in field_names(owner):
            location = (*location, first[0])
        return location, what
    if name in ("unexpected_keyword_argument", "extra_forbidden"):
        owner = _kind_at(kind, location[:-1])
        known = field_names(owner) if owner else []
        if location and location[-1] in known:
            return location, f"must be a mapping (key: value), got {show(value)}"
        return location, f"unknown key{suggest(str(location[-1]), known)}"
    if name == "missing":
        if isinstance(location[-1], int):  # a list of fixed length
            return location[:-1], f"has too few values: {show(value)}"
        return location, "missing; add it"
    if name == "literal_error":
        return location, f"must be {error['ctx']['expected']}, got {show(value)}"
    if name in ("int_type", "float_type", "int_parsing", "float_parsing", "int_from_float"):
        hint = "; remove the quotes" if isinstance(value, str) and _is_number(value) else ""
        wanted = "a number" if name.startswith("float") else "a whole number"
        return location, f"must be {wanted}, got {show(value)}{hint}"
    wanted = {
        "bool_type": "true or false",
        "string_type": "a text",
        "tuple_type": "a list like [1, 2]",
        "dict_type": "a mapping (key: value)",
        "dataclass_type": "a mapping (key: value)",
        "model_type": "a mapping (key: value)",
    }.get(name, "")
    what = f"must be {wanted}" if wanted else str(error["msg"])[:1].lower() + str(error["msg"])[1:]
    return location, f"{what}, got {show(value)}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def validate(
    kind: type,
    tree: Any,
    tell: Callable[[Location, str], None],
    blame: Callable[[Conflict, Sequence[Location]], int] | None = None,
) -> Any | None:
    """An instance of a dataclass or pydantic model from YAML values, strictly.

    Each mistake is told with its location; the mistaken values (of a missing one, what should hold it)
    are then taken out and the rest is checked again, because one mistake can hide others. Returns what is
    left (so that checks that need other parts can go on), or None when nothing can be built.

    Args:
        kind: the dataclass or model.
        tree: the values.
        tell: takes a mistake's location and what it is.
        blame: tells of settings that do not go together, given their locations, and returns the index of the one to
            take out; None tells it of the first.
    """
    tree = json.loads(json.dumps(tree))  # a copy we may cut
    removed: list[Location] = []
    while True:
        try:
            return _adapter(kind).validate_json(json.dumps(tree), strict=True)
        except ValidationError as error:
            found = error.errors(include_url=False)
        before = len(removed)
        for item in found:
            conflict = (item.get("ctx") or {}).get("error")
            if isinstance(conflict, Conflict):
                own = [(*item["loc"], *name.split(".")) for name in conflict.values]
                removed += _settle(conflict, own, tree, removed, tell, blame)
                continue
            where, what = _explain(item, kind)
            if where in removed:
                continue  # a message about a value that was taken out speaks of its default, which nobody wrote
            tell(where, what)
            removed += next(([where[:end]] for end in range(len(where), 0, -1) if _cut(tree, where[:end])), [])
        if len(removed) == before:
            return None


def _settle(
    conflict: Conflict,
    own: Sequence[Location],
    tree: Any,
    removed: Sequence[Location],
    tell: Callable[[Location, str], None],
    blame: Callable[[Conflict, Sequence[Location]], int] | None,
) -> list[Location]:
    """Tell of settings at the locations `own` that do not go together; returns what was taken out of `tree`."""
    if not any(where in removed for where in own):  # else one of them is a default, which nobody wrote
        if blame is None:
            tell(own[0], str(conflict))
        first = own[blame(conflict, own) if blame else 0]
        own = sorted(own, key=lambda where: where != first)
    return next(([where] for where in own if _cut(tree, where)), [])


def _cut(tree: Any, location: Location) -> bool:
    """Take the value at `location` (of a list: the whole list) out of `tree`; False when it is not there."""
    holder, key = None, None
    for name in location:
        inside = name in tree if isinstance(tree, dict) else isinstance(tree, list) and isinstance(name, int)
        if not inside:
            return False
        if isinstance(tree, dict):
            holder, key = tree, name
        tree = tree[name]
    if holder is None:
        return False
    del holder[key]
    return True
