"""docs/detectors.md: its tables say what the detectors' files say, and its figure names the files of all parts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.config import TrialConfig
from harness.report.released import RELEASED
from harness.spec.grid import expand, open_grid
from harness.spec.identity import part_difference
from harness.spec.parts import ROOMS, default_part
from harness.spec.presets import detector_names
from harness.spec.spec import AblationSpec, RowSpec
from model.groups.configs import DenoisingConfig, ReplicasConfig

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "detectors.md").read_text()
MODELS = sorted(path.stem for path in (ROOT / "ablations" / "presets" / "models").glob("*.yaml"))
SWITCHES = {name: name.replace("_", " ") for name in ("box_refinement", "mixed_selection", "look_forward_twice")}


def tables() -> list[list[dict[str, str]]]:
    """The page's tables, a mapping of headings to cells for each line."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        head, _, *lines = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines())
        found.append([dict(zip(head, line, strict=True)) for line in lines])
    return found


def config_of(name: str, scale: str) -> TrialConfig:
    spec = AblationSpec(name=name, rows=(RowSpec(label=name),))
    overrides = [f"model.preset={name}", "model.heads=[atss]"]  # without a head an adapter counts for nothing
    return expand(spec, scale, overrides, require_data=False).trials[0].config


def part_cell(config: TrialConfig, field: str) -> str:
    part = getattr(config.model, field) or default_part(field, config.model.two_stage)
    difference = part_difference(field, part)
    return f"`{difference['name']}`" + ("*" if len(difference) > 1 else "")


def queries_cell(config: TrialConfig) -> str:
    own = config.model.num_queries

    def more(group: Any) -> str:
        if isinstance(group, DenoisingConfig):
            return f"2 × {group.number}"
        return f"{group.number} × {own}" if isinstance(group, ReplicasConfig) else str(group.number)

    return " + ".join([str(own), *map(more, config.model.groups)])


def test_every_detector_stands_in_both_tables() -> None:
    parts, settings, *_ = tables()
    assert sorted(re.match(r"\[(\w+)\]", row["`model.preset`"])[1] for row in parts) == MODELS  # type: ignore[index]
    assert sorted(row["`model.preset`"] for row in settings) == MODELS


@pytest.mark.parametrize("name", MODELS)
def test_the_table_of_parts_is_what_its_file_makes(name: str) -> None:
    (row,) = [row for row in tables()[0] if row["`model.preset`"].startswith(f"[{name}]")]
    config = config_of(name, "coco_r50_12e")
    for field in ("neck", "encoder", "adapter", "proposals", "decoder", "classification"):
        assert row[field] == part_cell(config, field), field
    groups = [f"`{ROOMS['groups'].name_of(group)}`" for group in config.model.groups]
    assert row["groups"] == (", ".join(groups) or "–")
    first, last = config.model.strides[0], config.model.strides[-1]
    assert row["levels"] == (f"{first}–{last}" if last > first else str(first))
    assert part_cell(config, "assign").rstrip("*") == "`hungarian`" and part_cell(config, "postprocess") == "`top_k`"


@pytest.mark.parametrize("name", MODELS)
def test_the_table_of_settings_is_what_its_file_makes(name: str) -> None:
    (row,) = [row for row in tables()[1] if row["`model.preset`"] == name]
    config, digits = (config_of(name, scale) for scale in ("coco_r50_12e", "digits"))
    told = {heading: row[heading] == "yes" for heading in ("two stages", *SWITCHES.values())}
    model = config.model
    assert told == {
        "two stages": model.two_stage,
        **{heading: getattr(model, field) for field, heading in SWITCHES.items()},
    }
    assert (row["queries"], row["on digit scenes"]) == (queries_cell(config), queries_cell(digits))
    numbers = (model.loss_weights.classification, model.transformer.dropout, config.train.learning_rate)
    assert tuple(float(row[heading]) for heading in ("class weight", "dropout", "learning rate")) == numbers


def test_the_figure_names_the_file_of_every_part() -> None:
    (figure,) = re.findall(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    named = set()
    for folder, files in re.findall(r"((?:model|harness)/(?:\w+/)?)(\w+\.py(?:  \w+\.py)*)", figure):
        named |= {folder + file for file in files.split()}
    assert named and all((ROOT / path).exists() for path in named)
    for field, parts in ROOMS.items():
        if field not in ("heads", "classification"):  # of which it names some, and the room
            for place in parts.values():
                module = place.partition(":")[0] if isinstance(place, str) else place.__module__
                assert f"{module.replace('.', '/')}.py" in named


def test_a_detector_of_ones_own_is_known(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    place = re.match(r"# (presets/models/(\w+)\.yaml)\n", example)
    assert place and yaml.safe_load(example)
    (tmp_path / place[1]).parent.mkdir(parents=True)
    (tmp_path / place[1]).write_text(example)
    (tmp_path / "mine.yaml").write_text(f"rows: [{{label: a, set: {{model.preset: {place[2]}}}}}]")
    for scale, number in (("digits", 200), ("coco_r50_12e", 1500)):
        (trial,) = open_grid(tmp_path / "mine.yaml", scale, require_data=False).trials
        assert len(trial.config.model.heads) == 1 and trial.config.model.groups[0].number == number


def test_the_table_of_released_models_is_what_is_published() -> None:
    found = next(table for table in tables() if "published AP" in table[0])
    names = [row["`model.preset`"].strip("`") for row in found]
    assert [name.removesuffix("_coco") for name in names] == [name.removesuffix("_coco") for name in RELEASED]
    for row, own in zip(found, RELEASED.values(), strict=True):
        protocol = own.protocol
        told = f"{protocol.post}, {protocol.detections} detections, {protocol.size}"
        assert (row["published AP"], row["where"], row["measured by"]) == (str(own.metrics["AP"]), own.source, told)
    assert set(names) <= set(detector_names())
