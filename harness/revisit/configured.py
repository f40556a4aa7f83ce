"""The configuration of a file of weights: what it says of itself or the named preset says, and what `--set` changes."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from harness.config import TrialConfig
from harness.errors import UserError
from harness.revisit.described import Description, described
from harness.spec.grid import expand
from harness.spec.identity import config_to_dict
from harness.spec.presets import MODELS, detector_names, preset_files
from harness.spec.resolve import leaves, resolve
from harness.spec.spec import AblationSpec, RowSpec, override_settings
from harness.spec.strict import Mistakes, suggest
from model.weights import file_trouble

SCALE = "coco_r50_12e"  # the preset of scale below a detector that is named: released ones are of this size
SUFFIX = "_coco"  # of the names of released models; the released files lack it
SECTIONS = ("model", "data", "train", "evaluate")


@dataclass(frozen=True)
class Asked:
    """What a command line says of a detector's configuration."""

    model: str | None = None  # a preset of detectors, or of a whole model
    preset: str | None = None  # of scale
    overrides: tuple[str, ...] = ()
    data: str | None = None

    @property
    def names_any(self) -> bool:
        """Whether a preset is named, which counts more than what a file says of itself."""
        return self.model is not None or self.preset is not None


def of_file(path: Path, asked: Asked, default: str | None = None) -> tuple[TrialConfig, str]:
    """The configuration of a file of weights, and the name of its model, "" where there is none.

    Args:
        path: of the file.
        asked: by the command line.
        default: preset of scale where neither the file nor the command line says anything; None: that is a mistake.

    Raises:
        UserError: the file is none, what it says of itself does not fit this version, or a setting is mistaken.
    """
    if trouble := file_trouble(path):
        raise UserError(f"{path} {trouble}")
    description = None if asked.names_any else described(path)
    if description is not None:
        return _described(path, description, asked), description.model
    if not asked.names_any and default is None:
        raise UserError(f"{path} does not say which detector it is of; give --model NAME{of_stem(path)}")
    return of_presets(replace(asked, preset=asked.preset or default)), asked.model or ""


def of_presets(asked: Asked) -> TrialConfig:
    """The configuration of a named model.

    Raises:
        UserError: the name or a setting is mistaken.
    """
    preset, overrides = asked.preset, list(asked.overrides)
    if asked.model is not None and asked.model in detector_names():
        preset, overrides = preset or SCALE, [f"model.preset={asked.model}", *overrides]
    elif asked.model is not None and asked.model in preset_files(""):
        if preset not in (None, asked.model):
            raise UserError(f"--preset {preset}: --model {asked.model} names a preset of scale already; leave out one")
        preset = asked.model
    elif asked.model is not None:
        raise UserError(f"--model: unknown detector '{asked.model}'{_nearest(asked.model)}")
    name = asked.model or preset or SCALE
    spec = AblationSpec(name=name, rows=(RowSpec(label=name),))
    grid = expand(spec, preset or SCALE, overrides, data=asked.data, require_data=False)
    return grid.trials[0].config


def _nearest(name: str) -> str:
    """The preset that a name may mean, or all of detectors: the names of released models would fill a page.

    One of scale is meant where the name is nearly it, and a released one where it has every word of the name.
    """
    detectors = detector_names()
    near = difflib.get_close_matches(name, detectors, 1) or difflib.get_close_matches(name, preset_files(""), 1, 0.8)
    words = set(name.split("_"))
    whole = sorted((own for own in detectors if words <= set(own.split("_"))), key=lambda own: (len(own), own))
    found = [*near, *whole][:1]
    return f"; did you mean '{found[0]}'?" if found else suggest("", _detectors())


def of_stem(path: Path) -> str:
    """The released model that a file is named after, with or without `_coco` and the hash behind it, or all."""
    stem = re.sub(r"-[0-9a-f]{8}$", "", path.stem)
    known = detector_names()
    found = next((own for own in (stem, f"{stem}{SUFFIX}", stem.removesuffix(SUFFIX)) if own in known), None)
    return f"; its name is that of --model {found}" if found else suggest("", _detectors())


def _detectors() -> list[str]:
    return [*preset_files("", f"presets/{MODELS}"), "a released configuration (docs/detectors.md)"]


def _described(path: Path, description: Description, asked: Asked) -> TrialConfig:
    mistakes = Mistakes()
    tree = config_to_dict(description.config)
    settings = leaves({name: tree[name] for name in SECTIONS}, f"{path}: ", mistakes)
    settings += override_settings(asked.overrides, {}, mistakes)
    if asked.data is not None:
        settings.append((("data", "path"), asked.data, "--data"))
    resolved = resolve(settings, str(path), mistakes)
    mistakes.check()
    assert resolved is not None
    return resolved.trial(description.config.seed)
