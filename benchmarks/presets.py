"""Detectors by their names, as a grid file has them: `model.preset` at a scale."""

from __future__ import annotations

from harness.spec.presets import open_presets
from harness.spec.resolve import resolve
from harness.spec.spec import AblationSpec
from harness.spec.strict import Mistakes
from model.config import DetectorConfig

HERE = "benchmarks"  # where settings are said to come from


def preset_detector(name: str, scale: str = "coco_r50_12e") -> DetectorConfig:
    """The detector `name` of `ablations/presets/models` under the preset `scale`.

    Raises:
        UserError: there is no such detector or preset.
    """
    mistakes = Mistakes()
    presets = open_presets(scale, AblationSpec(path=HERE), mistakes)
    resolved = resolve(presets.layered([(("model", "preset"), name, HERE)], mistakes).settings, HERE, mistakes)
    mistakes.check()
    assert resolved is not None
    return resolved.model
