"""The parts of a detector in what people write: their names and mappings become the `Config`s of their classes.

A part is its name (`neck: projection`) or a mapping (`decoder: {name: deformable, position: learned}`). A mapping or a
dotted key without the name sets the part that stands there from the layers below; a layer that names another part
starts afresh. Heads and query groups are lists of names and mappings. No torch is loaded, unless a part of one's own
keeps its `Config` beside its class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harness.spec.strict import Location, field_names, show, suggest, validate
from model.checks import Conflict
from model.config import DetectorConfig, default_proposals
from model.parts import NAME, Parts

Setting = tuple[tuple[str, ...], Any, str]  # path, value, where it was written
Tell = Callable[[Location, str], None]  # takes a mistake's place and what it is
# takes what does not go together and the locations of its settings (None: a default), returns which was written last
Blame = Callable[[Conflict, Sequence[Location | None]], int]

HEAD_DEFAULTS = "head_defaults"  # in `model`: what a preset sets for a head wherever it is named

FIELDS = {f.name: f for f in dataclasses.fields(DetectorConfig) if "parts" in f.metadata}
ROOMS: dict[str, Parts] = {name: field.metadata["parts"] for name, field in FIELDS.items()}
LISTS = tuple(name for name, field in FIELDS.items() if field.default == ())
SINGLE = tuple(name for name in FIELDS if name not in LISTS)


def default_part(field: str, two_stage: bool = True) -> Any:
    """The `Config` that stands in a field of the detector where nobody names a part."""
    if field == "proposals":
        return default_proposals(two_stage)
    factory: Any = FIELDS[field].default_factory
    return factory()


def part_name(field: str, config: Any, two_stage: bool = True) -> str:
    """The name of the part with this `Config`; of None, that of the part which stands there then."""
    return ROOMS[field].name_of(default_part(field, two_stage) if config is None else config)


# ---- layers -------------------------------------------------------------------------------------------------------


def part_path(path: tuple[str, ...], value: Any) -> tuple[str, ...]:
    """The path of a setting, that of the part's name where it is all that is written: `neck` as `neck.name`."""
    names_all = len(path) == 2 and path[0] == "model" and path[1] in SINGLE and isinstance(value, str)
    return (*path, NAME) if names_all else path


def whole_path(path: tuple[str, ...]) -> tuple[str, ...]:
    """The path of all that a setting replaces: who names a part replaces the part."""
    return path[:2] if _part_of(path) and path[2:] == (NAME,) else path


def _part_of(path: tuple[str, ...]) -> str:
    """The field of the part that a setting is about; empty for any other setting."""
    return path[1] if len(path) > 1 and path[0] == "model" and path[1] in SINGLE else ""


def _names_one(setting: Setting) -> bool:
    """Whether a setting chooses the part; what can be none, such as a number, does so too and is told later."""
    path, value, _ = setting
    return bool(_part_of(path)) and (path[2:] == (NAME,) or (len(path) == 2 and value != {}))


def names_first(layer: Sequence[Setting]) -> list[Setting]:
    """The settings of one layer, the name of a part before what else is said of it: options are of the part named."""
    first: dict[str, int] = {}
    for index, (path, _, _) in enumerate(layer):
        first.setdefault(_part_of(path), index)
    keys = [(first[_part_of(s[0])], 0) if _names_one(s) else (index, 1) for index, s in enumerate(layer)]
    return [layer[index] for index in sorted(range(len(layer)), key=keys.__getitem__)]


def without_replaced(settings: Iterable[Setting]) -> list[Setting]:
    """The settings that count: who names another part than stands there drops what was set for that one before."""
    kept: list[Setting] = []
    given = list(settings)
    two_stage = [value for path, value, _ in given if path == ("model", "two_stage")]
    standing: dict[str, Any] = {}
    for setting in given:
        path, value, _ = setting
        if _names_one(setting):
            field, default = path[1], part_name(path[1], None, two_stage[-1:] != [False])
            follows = value is None and FIELDS[field].default is None
            if follows or value != standing.get(field, default):
                kept = [other for other in kept if other[0][:2] != path[:2]]
            standing[field] = default if follows else value
            if follows:
                continue
        elif value == {} and _part_of(path) and any(other[0][: len(path)] == path for other in kept):
            continue  # it changes nothing of what stands there, be it a mistake
        kept.append(setting)
    return kept


# ---- reading ------------------------------------------------------------------------------------------------------


def read_detector(tree: dict[str, Any], tell: Tell, blame: Blame) -> tuple[DetectorConfig | None, dict[str, Any]]:
    """The detector of the section `model`, and what the preset makes of each head it has settings for.

    Args:
        tree: the section's values.
        tell: takes a mistake's location in the section and what it is.
        blame: takes settings that do not go together.
    """
    spoilt: list[Location] = []  # what is taken out after a mistake stands at its default, which nobody wrote

    def told(location: Location, what: str) -> None:
        spoilt.append(location)
        tell(location, what)

    def blamed(conflict: Conflict, locations: Sequence[Location | None]) -> int:
        spoilt.extend(location for location in locations if location is not None)
        return blame(conflict, locations)

    own = {key: value for key, value in tree.items() if key not in (*FIELDS, HEAD_DEFAULTS)}
    model = validate(DetectorConfig, own | dict.fromkeys(SINGLE), told, blamed)
    two_stage = model is None or model.two_stage
    parts = {field: _read_single(field, tree.get(field, {}), two_stage, told, blamed) for field in SINGLE}
    defaults = _head_defaults(tree.get(HEAD_DEFAULTS) or {}, told, blamed) if tree.get("heads") else {}
    for field in LISTS:
        parts[field] = _read_list(field, tree.get(field, []), defaults if field == "heads" else {}, told, blamed)
    detector: DetectorConfig | None = model
    for field, part in parts.items():
        if detector is None:
            break
        try:
            detector = dataclasses.replace(detector, **{field: part})
        except Conflict as conflict:
            locations: list[Location] = [tuple(name.split(".")) for name in conflict.values]
            if not any(_overlap(one, other) for one in locations for other in spoilt):
                blamed(conflict, locations)
        except ValueError as error:
            told((field,), str(error))
    return detector, {name: config for name, (_, config) in defaults.items()}


def _overlap(one: Location, other: Location) -> bool:
    return all(mine == its for mine, its in zip(one, other, strict=False))


def _read_single(field: str, entry: Any, two_stage: bool, tell: Tell, blame: Blame) -> Any:
    """The `Config` of a part of which a detector has one; None where that follows from other settings."""
    if entry == {} and FIELDS[field].default is None:
        return None
    parts = ROOMS[field]
    if not isinstance(entry, dict):
        tell((field,), f"must be a name (known: {', '.join(parts.names)}) or a mapping of settings, got {show(entry)}")
        return None
    name = entry.get(NAME, part_name(field, None, two_stage))
    if what := _not_named(parts, name):
        tell((field, NAME) if NAME in entry else (field,), what)
        return None

    def tell_of(location: Location, what: str) -> None:
        if what.startswith("unknown key"):  # which part stands there may have been written elsewhere
            what = what.replace("unknown key", f"unknown key of the {parts.kind} {name}", 1)
        tell((field, *location), what)

    return _config(parts, name, _options(entry), [((field,), entry)], tell_of, blame)


def _read_list(
    field: str, value: Any, defaults: Mapping[str, tuple[Any, Any]], tell: Tell, blame: Blame
) -> tuple[Any, ...]:
    """The `Config`s of heads or query groups from names and mappings: `[atss, {name: atss, num_convs: 0}]`.

    `defaults` holds what a preset sets for a part by name; what stands in the list itself wins.
    """
    parts = ROOMS[field]
    if not isinstance(value, list):
        example = f" such as [{next(iter(parts.names))}]" if parts.names else ""
        tell((field,), f"must be a list of {parts.kind}s{example}, or [] for none, got {show(value)}")
        return ()
    configs = []
    for index, entry in enumerate(value):
        name: Any = entry.get(NAME) if isinstance(entry, dict) else entry
        what = _not_named(parts, name)
        if isinstance(entry, dict) and NAME not in entry:
            what = f"a {parts.kind} needs a name; known: {', '.join(parts.names) or 'none'}"
        if what:
            tell((field, index), what)
            continue

        def tell_of(location: Location, what: str, index: int = index) -> None:
            tell((field, index, *location), what)

        options = _options(entry) if isinstance(entry, dict) else {}
        below, _ = defaults.get(name, ({}, None))
        layers: list[tuple[Location, Any]] = [((field, index), options), ((HEAD_DEFAULTS, name), below)]
        configs.append(_config(parts, name, _merged(below, options), layers, tell_of, blame))
    return tuple(configs)


def _head_defaults(settings: Any, tell: Tell, blame: Blame) -> dict[str, tuple[Any, Any]]:
    """What a preset sets for a head, and the `Config` that this makes, by name; what has a mistake is left out."""
    if not isinstance(settings, dict):
        tell((HEAD_DEFAULTS,), f"must map a head's name to its settings, got {show(settings)}")
        return {}
    defaults = {}
    for name, options in settings.items():
        place = (HEAD_DEFAULTS, name)
        if what := _not_named(ROOMS["heads"], name):
            tell(place, what)
            continue
        told: list[str] = []

        def tell_of(location: Location, what: str, place: Location = place, told: list[str] = told) -> None:
            told.append(what)
            tell((*place, *location), what)

        def blame_of(conflict: Conflict, locations: Sequence[Location | None], told: list[str] = told) -> int:
            told.append(conflict.rule)
            return blame(conflict, locations)

        config = _config(ROOMS["heads"], name, options, [(place, options)], tell_of, blame_of)
        if not told:
            defaults[name] = options, config
    return defaults


def _not_named(parts: Parts, name: Any) -> str:
    """Why this cannot be the name of a part; empty when it can."""
    if not isinstance(name, str):
        return f"must be a name (known: {', '.join(parts.names) or 'none'}), got {show(name)}"
    if name not in parts:
        return parts.unknown(name)
    if source := parts.follows_from(name):
        return f"the {parts.kind} {name} follows from {source} and is never listed; take it out"
    try:
        kind = parts.config_of(name)
    except ValueError as error:
        return str(error)
    if (other := parts.name_of_kind(kind)) != name:
        return f"the {parts.kind} {name} has the Config of {other}; give it a class of its own"
    return ""


def _options(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != NAME}


def _config(
    parts: Parts, name: str, options: Any, layers: Sequence[tuple[Location, Any]], tell: Tell, blame: Blame
) -> Any:
    """The `Config` of a part.

    Args:
        parts: its room.
        name: of the part.
        options: its settings.
        layers: places in the section and settings that stand there, the upper ones first, for who is to blame.
        tell: takes a mistake's location within the part.
        blame: takes settings that do not go together, with locations in the section.
    """
    kind = parts.config_of(name)

    def tell_known(location: Location, what: str) -> None:
        if what.startswith("unknown key; known:") and len(location) == 1:
            what = f"unknown key{suggest(str(location[0]), [NAME, *field_names(kind)])}"
        tell(location, what)

    try:
        return validate(kind, options, tell_known, _blame_within(layers, blame))
    except Exception as error:
        if name in parts.configs:
            raise
        tell((), f"the Config of the {parts.kind} {name} raises {type(error).__name__}: {error}")
        return None


def _blame_within(layers: Sequence[tuple[Location, Any]], blame: Blame) -> Blame:
    """`blame` for locations within a part: each is looked for in the `layers` (place, settings), the first one wins."""

    def located(location: Location) -> Location | None:
        for place, settings in layers:
            node = settings
            for name in location:
                node = node.get(name, _ABSENT) if isinstance(node, dict) else _ABSENT
            if node is not _ABSENT:
                return (*place, *location)
        return None

    return lambda conflict, locations: blame(
        conflict, [None if where is None else located(where) for where in locations]
    )


_ABSENT = object()


def _merged(below: Any, above: Any) -> Any:
    """Mappings joined key by key; anything else is replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: _merged(below.get(key), value) for key, value in above.items()}
