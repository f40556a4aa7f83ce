"""Presets by name: of scale (`--preset`), and of detectors (`model.preset`).

A file in `presets/` says how large everything is, one in `presets/models/` which parts and which recipe make a
detector. What of the latter depends on the scale stands there under one of `SIZES`, and a preset of scale says by its
key `size` which of them it takes. A detector's settings take the place of its name before anything is checked, right
above the preset of scale: what a file, a row or the command line sets itself wins, and whoever spells the settings out
has the same trial.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.spec.hub import is_hub
from harness.spec.parts import Setting
from harness.spec.resolve import leaves
from harness.spec.spec import SHIPPED, AblationSpec
from harness.spec.strict import Mistakes, read_yaml_file, show, suggest

SIZE = "size"  # the key of a preset of scale
SIZES = ("digits", "digits_fast", "paper")
DETECTOR = ("model", "preset")  # the path of the setting that names a detector
WEIGHTS = ("model", "backbone", "weights")  # the path of the setting that names a file which may lie beside a preset
MODELS = "models"  # folder of the detectors, in that of the presets
SECTIONS = ("model", "train", "evaluate")  # of which a detector may set something


@dataclass(frozen=True)
class Layered:
    """All settings of a row, from the preset of scale up to the command line."""

    settings: list[Setting]
    detector: str = ""  # the name of the preset that is among them
    below: tuple[Setting, ...] = ()  # of these settings, those of the two presets


@dataclass(frozen=True)
class Presets:
    """What the rows of a grid stand on."""

    name: str  # of the preset of scale
    scale: tuple[Setting, ...]
    size: str  # "" where it says none
    where: str  # its file, for mistakes
    models: Mapping[str, Path]  # files of the detectors by name
    read: dict[str, list[Setting]] = field(default_factory=dict)  # those that were named

    def layered(self, own: Iterable[Setting], mistakes: Mistakes) -> Layered:
        """The settings of a row: the preset of scale, the detector that is named last, and the row's `own`."""
        given = list(own)
        named = [setting for setting in (*self.scale, *given) if setting[0][:2] == DETECTOR]
        detector, settings = self._named(named[-1], mistakes) if named else ("", [])
        below = (*_without(self.scale), *settings)
        return Layered([*below, *_without(given)], detector, below)

    def own_of(self, settings: Iterable[Setting], mistakes: Mistakes) -> list[Setting]:
        """What a row sets itself, the settings of a detector that it names included."""
        given = list(settings)
        named = [setting for setting in given if setting[0][:2] == DETECTOR]
        return given + (self._named(named[-1], mistakes)[1] if named else [])

    def chosen(self, settings: Mapping[str, Any], where: str, mistakes: Mistakes) -> list[Setting]:
        """Of what a file or a row sets by the name of a preset of scale or by a size, what holds here.

        Settings for a name win over those for a size.
        """
        names = dict.fromkeys((self.size, self.name))
        return [
            setting
            for name in names
            if name in settings
            for setting in leaves(settings[name], f"{where}{name}.", mistakes)
        ]

    def _named(self, setting: Setting, mistakes: Mistakes) -> tuple[str, list[Setting]]:
        path, name, origin = setting
        if path != DETECTOR or not isinstance(name, str):
            told = "a mapping" if path != DETECTOR else show(name)
            mistakes.add(origin, f"must be the name of a detector (known: {', '.join(self.models)}), got {told}")
        elif name not in self.models:
            mistakes.add(origin, f"unknown detector '{name}'{suggest(name, self.models)}")
        elif not self.size:
            what = f"does not say its size, which `model.preset: {name}` needs"
            mistakes.add(self.where, f"{what}; add size: {', '.join(SIZES[:-1])} or {SIZES[-1]}")
        else:
            if name not in self.read:
                self.read[name] = _read_model(self.models[name], self.size, mistakes)
            return name, self.read[name]
        return "", []


def _without(settings: Iterable[Setting]) -> list[Setting]:
    return [setting for setting in settings if setting[0][:2] != DETECTOR]


def preset_files(spec_path: str, folder: str = "presets") -> dict[str, Path]:
    """Known presets by name: those beside the ablation file win over those that come with the program."""
    folders = [SHIPPED / folder, Path(spec_path).parent / folder]
    return {file.stem: file for parent in folders for file in sorted(parent.glob("*.yaml"))}


def open_presets(preset: str, spec: AblationSpec, mistakes: Mistakes) -> Presets:
    """The preset of scale with this name or path, and the detectors that the rows of `spec` can name."""
    known = preset_files(spec.path)
    file = Path(preset) if preset.endswith((".yaml", ".yml")) else known.get(preset)
    models = preset_files(spec.path, f"presets/{MODELS}")
    if file is None:
        detector = f"; '{preset}' is a detector: --set model.preset={preset}" if preset in models else ""
        mistakes.add(f"preset '{preset}'", f"unknown preset{detector or suggest(preset, known)}")
        return Presets(preset, (), SIZES[0], preset, models)  # one mistake is enough
    tree = read_yaml_file(file, mistakes)
    says_size, size = SIZE in tree, tree.pop(SIZE, "")
    if says_size and size not in SIZES:
        mistakes.add(f"{file}:{SIZE}", f"must be a size, got {show(size)}{suggest(str(size), SIZES)}")
        size = SIZES[0]
    return Presets(file.stem, tuple(_of_file(file, leaves(tree, f"{file}:", mistakes))), size, str(file), models)


def file_settings(spec: AblationSpec, presets: Presets, mistakes: Mistakes) -> list[Setting]:
    """What a file sets for all its rows under these presets."""
    known = list(dict.fromkeys([*preset_files(spec.path), *SIZES]))
    settings = leaves(spec.base, f"{spec.path}:base.", mistakes)
    parts = {"presets": spec.presets, **{f"rows.{index}.presets": row.presets for index, row in enumerate(spec.rows)}}
    for where, given in parts.items():
        for name in sorted(given.keys() - {*known, presets.name}):
            mistakes.add(f"{spec.path}:{where}.{name}", f"unknown preset{suggest(name, known)}")
    return settings + presets.chosen(spec.presets, f"{spec.path}:presets.", mistakes)


def _read_model(file: Path, size: str, mistakes: Mistakes) -> list[Setting]:
    """A detector's settings at a size: those that hold at every size, and its own on top."""

    def checked(tree: Any, where: str, known: tuple[str, ...]) -> list[Setting]:
        if not isinstance(tree, dict):
            mistakes.add(where.rstrip("."), f"must be a mapping of settings, got {show(tree)}")
            return []
        settings = leaves(tree, where, mistakes)
        for path, _, origin in settings:
            if path[0] in SIZES:
                mistakes.add(origin, f"the settings of a size are a mapping; write {path[0]}: {{…}}")
            elif path[0] not in SECTIONS:
                mistakes.add(origin, f"unknown key{suggest(path[0], known)}")
            elif path[:2] == DETECTOR:
                mistakes.add(origin, "a detector cannot name another; write its settings")
        return [setting for setting in _without(settings) if setting[0][0] in SECTIONS]

    tree = read_yaml_file(file, mistakes)
    own = tree.pop(size, {})
    for other in SIZES:
        tree.pop(other, None)
    at_every_size = checked(tree, f"{file}:", (*SECTIONS, *SIZES))
    return _of_file(file, at_every_size + checked({} if own is None else own, f"{file}:{size}.", SECTIONS))


def _of_file(file: Path, settings: Iterable[Setting]) -> list[Setting]:
    """A preset's settings, its file of weights found from the preset's folder: they come together."""
    return [
        (path, str(file.absolute().parent / value), origin)
        if path == WEIGHTS and isinstance(value, str) and value.strip() and not (value.startswith("~") or is_hub(value))
        else (path, value, origin)
        for path, value, origin in settings
    ]
