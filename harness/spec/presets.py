"""Presets by name: of scale (`--preset`), of detectors and of released models (`model.preset`).

A file in `presets/` says how large everything is, one in `presets/models/` which parts and which recipe make a
detector. What of the latter depends on the scale stands there under one of `SIZES`, and a preset of scale says by its
key `size` which of them it takes. A detector's settings take the place of its name before anything is checked, right
above the preset of scale: what a file, a row or the command line sets itself wins, and whoever spells the settings out
has the same trial.

A file in `presets/released/` has the models of an official program by the names of their configurations. Each is a list
of layers, of which the first names the detector; a layer is written like a detector's file, and the later one wins.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.spec.named_files import is_named, is_settings_file
from harness.spec.parts import Setting
from harness.spec.resolve import leaves
from harness.spec.spec import SHIPPED, AblationSpec
from harness.spec.strict import Mistakes, read_yaml_file, show, suggest

SIZE = "size"  # the key of a preset of scale
SIZES = ("digits", "digits_fast", "paper")
DETECTOR = ("model", "preset")  # the path of the setting that names a detector
WEIGHTS = ("model", "backbone", "weights")  # the path of the setting that names a file which may lie beside a preset
MODELS, RELEASED = "models", "released"  # folders of the detectors and of the released models, in that of the presets
SECTIONS = ("model", "data", "train", "evaluate")  # of which a detector may set something
PIECES = "pieces"  # in a file of released models: layers that several of them have in common, by YAML's anchors


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
    released: Mapping[str, Path] = field(default_factory=dict)  # files of released models
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
        elif not self.size:
            what = f"does not say its size, which `model.preset: {name}` needs"
            mistakes.add(self.where, f"{what}; add size: {', '.join(SIZES[:-1])} or {SIZES[-1]}")
        else:
            if name not in self.read:
                self.read[name] = self._read(name, origin, mistakes)
            return name, self.read[name]
        return "", []

    def _read(self, name: str, origin: str, mistakes: Mistakes) -> list[Setting]:
        """The settings of a detector or of a released model."""
        if name in self.models:
            return _read_model(self.models[name], self.size, mistakes)
        models = released_models(self.released, mistakes)
        if name not in models:
            near = difflib.get_close_matches(name, [*self.models, *models], 1)
            mistakes.add(origin, f"unknown detector '{name}'{suggest(name, near or self.models)}")
            return []
        file, layers = models[name]
        return _read_layers(file, name, layers, self, mistakes)


def _without(settings: Iterable[Setting]) -> list[Setting]:
    return [setting for setting in settings if setting[0][:2] != DETECTOR]


def preset_files(spec_path: str, folder: str = "presets") -> dict[str, Path]:
    """Known presets by name: those beside the ablation file win over those that come with the program."""
    folders = [SHIPPED / folder, Path(spec_path).parent / folder]
    return {file.stem: file for parent in folders for file in sorted(parent.glob("*.yaml"))}


def open_presets(preset: str, spec: AblationSpec, mistakes: Mistakes) -> Presets:
    """The preset of scale with this name or path, and the detectors that the rows of `spec` can name."""
    known = preset_files(spec.path)
    file = Path(preset) if is_settings_file(preset) else known.get(preset)
    models, released = (preset_files(spec.path, f"presets/{folder}") for folder in (MODELS, RELEASED))
    if file is None:
        detector = f"; '{preset}' is a detector: --set model.preset={preset}" if preset in models else ""
        mistakes.add(f"preset '{preset}'", f"unknown preset{detector or suggest(preset, known)}")
        return Presets(preset, (), SIZES[0], preset, models, released)  # one mistake is enough
    tree = read_yaml_file(file, mistakes)
    says_size, size = SIZE in tree, tree.pop(SIZE, "")
    if says_size and size not in SIZES:
        mistakes.add(f"{file}:{SIZE}", f"must be a size, got {show(size)}{suggest(str(size), SIZES)}")
        size = SIZES[0]
    scale = tuple(_of_file(file, leaves(tree, f"{file}:", mistakes)))
    return Presets(file.stem, scale, size, str(file), models, released)


def file_settings(spec: AblationSpec, presets: Presets, mistakes: Mistakes) -> list[Setting]:
    """What a file sets for all its rows under these presets."""
    known = list(dict.fromkeys([*preset_files(spec.path), *SIZES]))
    settings = leaves(spec.base, f"{spec.path}:base.", mistakes)
    parts = {"presets": spec.presets, **{f"rows.{index}.presets": row.presets for index, row in enumerate(spec.rows)}}
    for where, given in parts.items():
        for name in sorted(given.keys() - {*known, presets.name}):
            mistakes.add(f"{spec.path}:{where}.{name}", f"unknown preset{suggest(name, known)}")
    return settings + presets.chosen(spec.presets, f"{spec.path}:presets.", mistakes)


def detector_names() -> list[str]:
    """What `model.preset` can name without an ablation file: detectors, then released models."""
    released = released_models(preset_files("", f"presets/{RELEASED}"), Mistakes())
    return [*preset_files("", f"presets/{MODELS}"), *released]


def released_models(files: Mapping[str, Path], mistakes: Mistakes) -> dict[str, tuple[Path, Any]]:
    """Released models by name: the file that has each, and its layers."""
    trees = ((file, read_yaml_file(file, mistakes)) for file in files.values())
    return {name: (file, layers) for file, tree in trees for name, layers in tree.items() if name != PIECES}


def _read_layers(file: Path, name: str, layers: Any, presets: Presets, mistakes: Mistakes) -> list[Setting]:
    """The settings of a released model: those of its detector, and its own layers on top."""
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        mistakes.add(f"{file}:{name}", f"must be a list of layers of settings, got {show(layers)}")
        return []
    detectors = [layer.get(".".join(DETECTOR)) for layer in layers]
    if not layers or detectors[0] not in presets.models or any(detectors[1:]):
        what = f"the first layer, and no other, names the detector: {'.'.join(DETECTOR)}"
        mistakes.add(f"{file}:{name}", f"{what}{suggest(str(detectors[:1]), presets.models)}")
        return []
    settings = _read_model(presets.models[detectors[0]], presets.size, mistakes)
    for number, layer in enumerate(layers):
        own = {key: value for key, value in layer.items() if key != ".".join(DETECTOR)}
        settings += _of_size(own, file, f"{file}:{name}.{number}.", presets.size, mistakes)
    return settings


def _read_model(file: Path, size: str, mistakes: Mistakes) -> list[Setting]:
    """A detector's settings at a size: those that hold at every size, and its own on top."""
    return _of_size(read_yaml_file(file, mistakes), file, f"{file}:", size, mistakes)


def _of_size(tree: Mapping[str, Any], file: Path, where: str, size: str, mistakes: Mistakes) -> list[Setting]:
    """What a tree sets at a size."""

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

    own = tree.get(size, {})
    at_every_size = checked({key: value for key, value in tree.items() if key not in SIZES}, where, (*SECTIONS, *SIZES))
    return _of_file(file, at_every_size + checked({} if own is None else own, f"{where}{size}.", SECTIONS))


def _of_file(file: Path, settings: Iterable[Setting]) -> list[Setting]:
    """A preset's settings, its file of weights found from the preset's folder: they come together."""
    return [
        (path, str(file.absolute().parent / value), origin)
        if path == WEIGHTS
        and isinstance(value, str)
        and value.strip()
        and not (value.startswith("~") or is_named(value))
        else (path, value, origin)
        for path, value, origin in settings
    ]
