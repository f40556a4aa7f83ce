"""From settings in layers to the checked configuration of a trial.

Settings are layered preset < base < presets.<name> < row < axes < command line, and each keeps the place it was
written at: a mistake is told where the person made it, once, however many trials it concerns. Heads, given as
names or mappings, become the frozen `Config` of their class; torch is loaded only when a head is named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_type_hints

from harness.config import AnalyseConfig, DataConfig, EvaluateConfig, RuntimeConfig, TrainConfig, TrialConfig
from harness.strict import Location, Mistakes, dotted, field_names, non_finite, show, suggest, validate
from harness.training_length import training_length
from model.config import DetectorConfig

SECTIONS: dict[str, type] = {
    "model": DetectorConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "analyse": AnalyseConfig,
    "runtime": RuntimeConfig,
}

HEAD_DEFAULTS = "head_defaults"  # in `model`: what a preset sets for a head wherever it is named

Setting = tuple[tuple[str, ...], Any, str]  # path, value, where it was written
Tell = Callable[[Location, str], None]  # takes a mistake's place and what it is


def leaves(tree: Mapping[str, Any], origin: str, mistakes: Mistakes) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """(path, value, where it was written) of nested and dotted settings; lists are values.

    `model: {num_queries: 40}` and `model.num_queries: 40` are the same setting.
    """
    seen: set[tuple[str, ...]] = set()

    def walk(node: Mapping[str, Any], path: tuple[str, ...], where: str) -> Iterator[tuple[tuple[str, ...], Any, str]]:
        for key, value in node.items():
            here = f"{where}{key}"
            full = (*path, *str(key).split("."))
            if isinstance(value, dict) and value:
                yield from walk(value, full, here + ".")
            elif full in seen:
                mistakes.add(here, "set twice, nested and dotted; remove one")
            else:
                seen.add(full)
                yield full, value, here

    yield from walk(tree, (), origin)


@dataclasses.dataclass(frozen=True)
class Resolved:
    """Checked sections of one trial, before its seed."""

    model: DetectorConfig
    data: DataConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    analyse: AnalyseConfig
    runtime: RuntimeConfig
    head_defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # a preset's `Config` by head

    def trial(self, seed: int) -> TrialConfig:
        """The configuration of the trial with this seed."""
        return TrialConfig(self.model, self.data, self.train, self.evaluate, seed)


def resolve(settings: Iterable[Setting], where: str, mistakes: Mistakes) -> Resolved | None:
    """Layer `settings` (later ones win) and check them; None after a mistake.

    `where` names the file for mistakes that nobody wrote, such as a missing value.
    """
    tree: dict[str, Any] = {}
    origins: dict[tuple[str, ...], str] = {}
    for path, value, origin in settings:
        if path == ("analyse",) and isinstance(value, list):
            path = ("analyse", "metrics")  # the short form
        if path[0] not in SECTIONS:
            hint = "; seeds are given by the file's `seeds` or --seeds" if path[0] in ("seed", "seeds") else ""
            mistakes.add(origin, f"unknown key{hint or suggest_key(path) or suggest(path[0], SECTIONS)}")
        elif non_finite(value):
            mistakes.add(origin, f"must be finite, got {show(value)}")
        elif (above := _value_above(tree, path)) is not None:
            place = ".".join(above)
            mistakes.add(origin, f"{place} is no mapping that could hold it, see {origins.get(above, place)}")
        else:
            _put(tree, path, value)
            origins = {p: o for p, o in origins.items() if p[: len(path)] != path}  # a list replaces what was there
            origins[path] = origin
    before = len(mistakes.lines)
    sections: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for name, kind in SECTIONS.items():

        def tell(location: Location, what: str, name: str = name) -> None:
            full = (name, *location)
            if what.startswith("unknown key; known:") and "heads" not in location:
                what = f"unknown key{suggest_key(full)}" if suggest_key(full) else what
            mistakes.add(_place(full, origins, where), what)

        section = tree.get(name, {})
        if kind is DetectorConfig and isinstance(section, dict) and {"heads", HEAD_DEFAULTS} & section.keys():
            sections[name], defaults = _detector(section, tell)
        else:
            sections[name] = validate(kind, section, tell)
    if len(mistakes.lines) > before or None in sections.values():
        return None
    resolved = Resolved(**sections, head_defaults=defaults)
    _check_branches(resolved, lambda what: mistakes.add(_place(("evaluate", "branches"), origins, where), what))
    return resolved


def overruled_epochs(
    settings: Iterable[Setting], resolved: Resolved, num_images: Callable[[DataConfig], int | None]
) -> str:
    """A remark on epochs that somebody sets while `train.min_steps` of another file asks for more; empty when it holds.

    Args:
        settings: the layers that `resolved` was made from.
        resolved: of these settings.
        num_images: gives the number of images of a training split; None where it is not known.
    """
    last = {path: (place, origin.partition(":")[0]) for place, (path, _, origin) in enumerate(settings)}
    epochs, least = last.get(("train", "epochs")), last.get(("train", "min_steps"))
    train, data = resolved.train, resolved.data
    if epochs is None or least is None or least > epochs or epochs[1] == least[1] or train.min_steps == 0:
        return ""
    told = f"train.epochs={train.epochs}: train.min_steps={train.min_steps} asks for"
    instead = f"train.min_steps=0 makes it {train.epochs}"
    if (images := num_images(data)) is None:
        images = -(-train.min_steps // train.epochs) * train.batch_size
        return f"{told} more than {train.epochs} epochs of fewer than {images:,} images; {instead}"
    length = training_length(train, images)
    return f"{told} {length}, of {images:,} images; {instead}" if length.epochs > train.epochs else ""


def _detector(tree: dict[str, Any], tell: Tell) -> tuple[DetectorConfig | None, dict[str, Any]]:
    """The detector with its heads, and what the preset makes of each head it has settings for."""
    model = validate(DetectorConfig, {k: v for k, v in tree.items() if k not in ("heads", HEAD_DEFAULTS)}, tell)
    heads, defaults = read_heads(tree.get("heads", []), tree.get(HEAD_DEFAULTS) or {}, tell)
    return (dataclasses.replace(model, heads=heads) if model is not None else None), defaults


def read_heads(value: Any, settings: Any, tell_section: Tell) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Head configurations from names and mappings: `[atss, {name: atss, num_convs: 0}]`.

    `settings` maps a head's name to what a preset sets for it; what stands in the list itself wins. Returns the
    configurations of the list, and those that `settings` alone give, by name.
    """

    def tell(location: Location, what: str) -> None:
        tell_section(("heads", *location), what)

    if not isinstance(value, list):
        tell((), f"must be a list of heads such as [atss], or [] for none, got {show(value)}")
        return (), {}
    if not value:
        return (), {}  # the plain detector needs no torch
    from model.heads import HEADS

    defaults = _head_defaults(settings, HEADS, tell_section)
    configs = []
    for index, entry in enumerate(value):
        options = dict(entry) if isinstance(entry, dict) else {"name": entry}
        name = options.pop("name", None)
        if not isinstance(name, str) or name not in HEADS:
            what = f"unknown head '{name}'" if name is not None else "a head needs a name"
            tell((index,), f"{what}; known: {', '.join(HEADS)}")
            continue

        def tell_option(location: Location, what: str, index: int = index) -> None:
            tell((index, *location), what)

        kind: Any = HEADS[name]
        below = settings[name] if name in defaults else {}
        configs.append(validate(kind.Config, _merged(below, options), tell_option))
    return tuple(configs), defaults


def _head_defaults(settings: Any, heads: Mapping[str, Any], tell_section: Tell) -> dict[str, Any]:
    """A preset's `Config` by head; what has a mistake is left out."""
    if not isinstance(settings, dict):
        tell_section((HEAD_DEFAULTS,), f"must map a head's name to its settings, got {show(settings)}")
        return {}
    defaults = {}
    for name, options in settings.items():
        told: list[str] = []

        def tell(location: Location, what: str, name: str = name, told: list[str] = told) -> None:
            told.append(what)
            tell_section((HEAD_DEFAULTS, name, *location), what)

        if name not in heads:
            tell((), f"unknown head '{name}'; known: {', '.join(heads)}")
            continue
        config = validate(heads[name].Config, options, tell)
        if not told:
            defaults[name] = config
    return defaults


def _merged(below: Any, above: Any) -> Any:
    """Mappings joined key by key; anything else is replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: _merged(below.get(key), value) for key, value in above.items()}


def _check_branches(resolved: Resolved, tell: Callable[[str], None]) -> None:
    heads: tuple[str, ...] = ()
    if resolved.model.heads:
        from model.heads import instance_names

        heads = instance_names(resolved.model.heads)
    for branch in resolved.evaluate.branches:
        if branch not in ("decoder", *heads):
            tell(f"unknown branch '{branch}'; known for these heads: {', '.join(('decoder', *heads))}")


def _value_above(tree: dict[str, Any], path: tuple[str, ...]) -> tuple[str, ...] | None:
    """The beginning of `path` where a plain value stands, which would be lost; None when there is none."""
    for end, name in enumerate(path[:-1], 1):
        if name not in tree:
            return None
        tree = tree[name]
        if not isinstance(tree, dict):
            return path[:end]
    return None


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    if not (value == {} and isinstance(tree.get(path[-1]), dict)):  # an empty mapping changes nothing
        tree[path[-1]] = value


def _place(location: Location, origins: Mapping[tuple[str, ...], str], where: str) -> str:
    """The place that set `location`: itself, a list it is in, or the last setting inside it."""
    names = tuple(map(str, location))
    for cut in range(len(names), 0, -1):
        if names[:cut] in origins:
            return ".".join([origins[names[:cut]], *names[cut:]])
    inside = [origin for path, origin in origins.items() if path[: len(names)] == names]
    return inside[-1] if inside else f"{where}:{dotted(location)}"


def known_keys() -> list[str]:
    """Every dotted key of the sections (heads' own keys excepted)."""

    def walk(kind: type, path: str) -> list[str]:
        hints = get_type_hints(kind)
        keys = []
        for name in field_names(kind):
            inner = hints[name]
            deeper = dataclasses.is_dataclass(inner) and isinstance(inner, type)
            keys += walk(inner, f"{path}.{name}") if deeper else [f"{path}.{name}"]
        return keys

    return [key for name, kind in SECTIONS.items() for key in walk(kind, name)]


def suggest_key(path: Iterable[str | int]) -> str:
    """`; did you mean 'x'?` with the nearest key of any section, or nothing when none is near."""
    names = [str(name) for name in path]
    keys = known_keys()
    same = [key for key in keys if key.rpartition(".")[2] == names[-1]]
    if same:
        return f"; did you mean '{same[0]}'?"
    near = suggest(".".join(names), keys)
    return near if "did you mean" in near else ""
