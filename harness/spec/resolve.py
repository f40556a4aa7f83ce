"""From settings in layers to the checked configuration of a trial.

Settings are layered preset < base < presets.<name> < row < axes < command line, and each keeps the place it was
written at: a mistake is told where the person made it, once, however many trials it concerns. Heads, given as
names or mappings, become the frozen `Config` of their class. No torch is loaded, unless a head of one's own keeps its
`Config` beside its class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_type_hints

from harness.config import AnalyseConfig, DataConfig, EvaluateConfig, RuntimeConfig, TrainConfig, TrialConfig
from harness.spec.origins import Origins
from harness.spec.strict import Location, Mistakes, field_names, non_finite, show, suggest, validate
from harness.spec.training_length import training_length
from model.checks import Conflict
from model.config import DetectorConfig
from model.heads import HEADS

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
# takes what does not go together and the locations of its settings (None: a default), returns which was written last
Blame = Callable[[Conflict, Sequence[Location | None]], int]


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
    origins = Origins(where)
    for path, value, origin in settings:
        if path == ("analyse",) and isinstance(value, list):
            path = ("analyse", "metrics")  # the short form
        if path[0] not in SECTIONS:
            hint = "; seeds are given by the file's `seeds` or --seeds" if path[0] in ("seed", "seeds") else ""
            mistakes.add(origin, f"unknown key{hint or suggest_key(path) or suggest(path[0], SECTIONS)}")
        elif non_finite(value):
            mistakes.add(origin, f"must be finite, got {show(value)}")
        elif (above := _value_above(tree, path)) is not None:
            mistakes.add(origin, f"{'.'.join(above)} is no mapping that could hold it, see {origins.place(above)}")
        else:
            _put(tree, path, value)
            origins.wrote(path, value, origin)
    before = len(mistakes.lines)
    sections: dict[str, Any] = {}
    defaults: dict[str, Any] = {}

    def blame(conflict: Conflict, locations: Sequence[Location | None]) -> int:
        index, place, what = origins.blame(conflict, locations)
        mistakes.add(place, what)
        return index

    for name, kind in SECTIONS.items():

        def tell(location: Location, what: str, name: str = name) -> None:
            full = (name, *location)
            if what.startswith("unknown key; known:") and "heads" not in location:
                what = f"unknown key{suggest_key(full)}" if suggest_key(full) else what
            mistakes.add(origins.place(full), what)

        def blame_section(conflict: Conflict, locations: Sequence[Location | None], name: str = name) -> int:
            return blame(conflict, [None if location is None else (name, *location) for location in locations])

        section = tree.get(name, {})
        if kind is DetectorConfig and isinstance(section, dict) and {"heads", HEAD_DEFAULTS} & section.keys():
            sections[name], defaults = _detector(section, tell, blame_section)
        else:
            sections[name] = validate(kind, section, tell, blame_section)
    if len(mistakes.lines) > before or None in sections.values():
        return None
    resolved = Resolved(**sections, head_defaults=defaults)
    for conflict in conflicts(resolved):
        blame(conflict, [tuple(name.split(".")) for name in conflict.values])
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


def _detector(tree: dict[str, Any], tell: Tell, blame: Blame) -> tuple[DetectorConfig | None, dict[str, Any]]:
    """The detector with its heads, and what the preset makes of each head it has settings for."""
    own = {key: value for key, value in tree.items() if key not in ("heads", HEAD_DEFAULTS)}
    model = validate(DetectorConfig, own, tell, blame)
    heads, defaults = read_heads(tree.get("heads", []), tree.get(HEAD_DEFAULTS) or {}, tell, blame)
    return (dataclasses.replace(model, heads=heads) if model is not None else None), defaults


def read_heads(value: Any, settings: Any, tell_section: Tell, blame: Blame) -> tuple[tuple[Any, ...], dict[str, Any]]:
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
        return (), {}
    defaults = _head_defaults(settings, tell_section, blame)
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

        below = settings[name] if name in defaults else {}
        layers: list[tuple[Location, Any]] = [(("heads", index), options), ((HEAD_DEFAULTS, name), below)]
        configs.append(
            validate(HEADS.config_of(name), _merged(below, options), tell_option, _blame_within(layers, blame))
        )
    return tuple(configs), defaults


def _head_defaults(settings: Any, tell_section: Tell, blame: Blame) -> dict[str, Any]:
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

        def blame_option(
            conflict: Conflict, locations: Sequence[Location | None], told: list[str] = told, within: Blame = blame
        ) -> int:
            told.append(conflict.rule)
            return within(conflict, locations)

        if name not in HEADS:
            tell((), f"unknown head '{name}'; known: {', '.join(HEADS)}")
            continue
        layers: list[tuple[Location, Any]] = [((HEAD_DEFAULTS, name), options)]
        config = validate(HEADS.config_of(name), options, tell, _blame_within(layers, blame_option))
        if not told:
            defaults[name] = config
    return defaults


def _blame_within(layers: Sequence[tuple[Location, Any]], blame: Blame) -> Blame:
    """`blame` for locations within a head: each is looked for in the `layers` (place, settings), the first one wins."""

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


def conflicts(trial: Resolved) -> Iterator[Conflict]:
    """What does not go together across sections."""
    model, heads = trial.model, HEADS.instance_names(trial.model.heads) if trial.model.heads else ()
    told = {"evaluate.branches": list(trial.evaluate.branches), "model.heads": list(heads)}
    for branch in trial.evaluate.branches:
        if branch not in ("decoder", *heads):
            known = ", ".join(("decoder", *heads))
            yield Conflict(f'unknown branch "{branch}" in evaluate.branches; known for these heads: {known}', told)
    channels = model.transformer.channels
    for name, head in zip(heads, model.heads, strict=True):
        groups = getattr(head, "num_groups", None)
        if groups is not None and channels % groups:
            rule = f"num_groups of the head {name} ({groups}) must divide transformer.channels"
            below = getattr(trial.head_defaults.get(HEADS.name_of(head)), "num_groups", None)
            key, value = "model.heads", list(heads)
            if below == groups:
                key, value = f"model.{HEAD_DEFAULTS}.{HEADS.name_of(head)}.num_groups", groups
            yield Conflict(rule, {"model.transformer.channels": channels, key: value})
    if trial.runtime.ranks > 1 and model.backbone.norm == "batch":
        rule = "norm: batch takes its statistics from one process, so that several ranks train another detector"
        yield Conflict(rule, {"model.backbone.norm": "batch", "runtime.ranks": trial.runtime.ranks})


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
