"""The three parts that docs/add-a-part.md writes, installed as the page says: contracts, training, an ablation."""

from __future__ import annotations

import re
import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from harness.config import TrainConfig
from harness.spec.grid import open_grid
from harness.spec.identity import named_parts
from harness.store.agreement import agree
from harness.store.closure import code_of, read_source
from harness.trial.train import build_optimizer, train_step
from model.assign import ASSIGNERS
from model.backbones import BACKBONES
from model.detector import Detector
from model.groups import GROUPS
from tests.support.assigner_contract import AssignerContract
from tests.support.feature_contracts import BackboneContract
from tests.support.group_contract import GroupContract
from tests.support.linted import complaints
from tests.support.rooms import ROOMS, TINY, config_of, every, make
from tests.support.tiny import NUM_CLASSES, PLAIN, tiny_batch, tiny_config, tiny_targets

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add-a-part.md").read_text()
PLACE = re.compile(r"# model/(\w+)/(\w+)\.py\n")
BACKBONE, GROUP, ASSIGNER = "plain", "jittered", "aligned"


class Written(NamedTuple):
    """A part as it stands on the page."""

    room: str
    name: str
    file: str
    line: str  # of the room's dict
    tiny: str  # of TINY


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def written() -> list[Written]:
    """For each part three blocks of Python: the file, the line in the dict, the line in TINY."""
    code, parts = blocks("python"), []
    for file, line, tiny in zip(code[::3], code[1::3], code[2::3], strict=True):
        place = PLACE.match(file)
        assert place, "the first block begins with the file's place"
        parts.append(Written(place[1], place[2], file, line, tiny))
    return parts


def in_dict(line: str) -> dict[str, Any]:
    found: dict[str, Any] = eval(f"{{{line}}}")
    return found


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in written():
        path = tmp_path / f"{part.name}.py"
        path.write_text(part.file)
        spec = spec_from_file_location(f"model.{part.room}.{part.name}", path)
        assert spec and spec.loader
        module = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        ((name, place),) = in_dict(part.line).items()
        assert name == part.name
        monkeypatch.setitem(ROOMS[part.room], name, place)
        monkeypatch.setitem(TINY[part.room], name, in_dict(part.tiny)[name])


def test_the_page_has_a_backbone_a_group_and_an_assigner() -> None:
    parts = [(part.room, part.name) for part in written()]
    assert parts == [("backbones", BACKBONE), ("groups", GROUP), ("assign", ASSIGNER)]


@pytest.mark.parametrize("part", written(), ids=lambda part: part.name)
def test_the_pages_files_pass_ruff(part: Written) -> None:
    assert complaints(part.file, f"model/{part.room}/{part.name}.py") == ""


@pytest.mark.parametrize("case", [BACKBONE])
class TestThePagesBackbone(BackboneContract):
    pass


@pytest.mark.parametrize("case", [GROUP])
class TestThePagesGroup(GroupContract):
    pass


@pytest.mark.parametrize("case", [ASSIGNER])
class TestThePagesAssigner(AssignerContract):
    pass


def test_a_part_without_a_tiny_setting_fails_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(TINY["backbones"], BACKBONE)
    assert BACKBONE in every("backbones").args[1]
    with pytest.raises(pytest.fail.Exception, match="backbones: 'plain' has no tiny setting: add a line to TINY"):
        make("backbones", BACKBONE)


# ---- what is particular to each -----------------------------------------------------------------------------------


def test_depths_of_the_backbone_are_its_stages() -> None:
    backbone = BACKBONES[BACKBONE](BACKBONES[BACKBONE].Config(width=8, num_stages=2, num_blocks=1))
    names = ["stem.1.conv.weight", "stages.0.down.norm.bias", "stages.1.blocks.0.conv.weight"]
    assert [backbone.lr_depth(name) for name in names] == [2, 1, 0]
    assert backbone.channels == (16, 32) and backbone.strides == (8, 16)


def test_jittered_boxes_stay_near_their_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    detector = Detector(tiny_config(groups=(config_of("groups", GROUP),)), NUM_CLASSES)
    kept, batch = [], tiny_batch(counts=(3, 1))
    queries = detector.groups[GROUP].queries
    monkeypatch.setattr(detector.groups[GROUP], "queries", lambda step: kept.append(queries(step)) or kept[-1])
    detector(batch)
    (group,) = kept
    assert group.blocks == (3, 3) and group.sees == "main"
    assert group.gt_index.tolist() == [[0, 1, 2] * 2, [0, -1, -1] * 2]
    assert torch.equal(group.hidden, group.gt_index < 0) and torch.equal(group.weight, (group.gt_index >= 0).float())
    expected = batch.targets.boxes_cxcywh(batch.valid_hw).repeat(1, 2, 1)
    moved = (group.reference_cxcywh - expected)[~group.hidden].abs()
    limit = expected[~group.hidden][:, 2:].repeat(1, 2) * torch.tensor([0.2, 0.2, 0.4, 0.4])
    assert (moved <= limit + 1e-6).all() and moved.max() > 0.01


@pytest.mark.parametrize(("top_k", "expected"), [(1, [-1, 0, -1, 1]), (2, [0, 0, 1, 1]), (9, [0, 0, 1, 1])])
def test_each_object_has_the_queries_that_fit_it_best(top_k: int, expected: list[int]) -> None:
    targets, hw = tiny_targets((2,), torch.tensor([[100, 100]])), torch.tensor([[100, 100]])
    targets.boxes_xyxy[0] = torch.tensor([[10.0, 10, 30, 30], [60, 60, 90, 90]])
    targets.labels[0] = torch.tensor([1, 2])
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.2, 0.2, 0.2, 0.2], [0.75, 0.75, 0.3, 0.2], [0.75, 0.75, 0.3, 0.2]])
    logits = torch.zeros(1, 1, 4, NUM_CLASSES)
    logits[..., 3, 2] = 2.0  # of two boxes alike, the surer of the class
    assign = ASSIGNERS[ASSIGNER](ASSIGNERS[ASSIGNER].Config(top_k=top_k), weights=tiny_config().loss_weights)
    assert assign(logits, boxes[None, None], targets, hw).tolist() == [[expected]]


@pytest.mark.parametrize(
    ("room", "settings", "message"),
    [
        (BACKBONES, {"width": 0}, "width must be at least 1, got 0"),
        (GROUPS, {"jitter": 1.0}, r"jitter must be in \[0, 1\), got 1.0"),
        (ASSIGNERS, {"box_share": 2.0}, r"box_share must be in \[0, 1\], got 2.0"),
    ],
)
def test_settings_are_checked(room: Any, settings: dict[str, Any], message: str) -> None:
    name = next(name for name in (BACKBONE, GROUP, ASSIGNER) if name in room)
    with pytest.raises(ValueError, match=f"^{message}$"):
        room[name].Config(**settings)


# ---- all three in one detector ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [{}, PLAIN], ids=["two-stage", "one-stage"])
def test_two_training_steps_with_all_three_and_an_evaluation(variant: dict[str, Any]) -> None:
    torch.manual_seed(0)
    group = config_of("groups", GROUP)
    changes = {"groups": (group, group), "assign": config_of("assign", ASSIGNER)}
    config = tiny_config("atss", backbone=config_of("backbones", BACKBONE), **changes, **variant)
    detector = Detector(config, NUM_CLASSES)
    training = TrainConfig(learning_rate=1e-3, batch_size=2, drop_epochs=())
    optimizer = build_optimizer(detector, training)
    batch, totals = tiny_batch(counts=(3, 2), sizes=((96, 96), (64, 80))), []
    for step in range(2):
        torch.manual_seed(1)
        losses = train_step(detector, [batch], optimizer, training, step=step, total_steps=2, steps_per_epoch=2)
        assert {f"{GROUP}.0/l1", f"{GROUP}.2.1/giou", "queries.atss.0/l1", "decoder.1/l1"} <= losses.keys()
        totals.append(losses["total"])
    assert totals[1] < totals[0]
    found = detector.eval().detect_branches(batch, ("decoder", "atss"), 5)
    assert [len(detections) for detections in found.values()] == [2, 2]


def test_the_ablation_is_understood_and_each_row_can_be_built(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(blocks("yaml")[0])
    for preset in set(re.findall(r"--preset (\w+)", PAGE)):
        for trial in open_grid(tmp_path / "mine.yaml", preset, [], require_data=False).trials:
            Detector(trial.config.model, NUM_CLASSES)
    grid = open_grid(tmp_path / "mine.yaml", "digits", [], require_data=False)
    assert len(grid.trials) == len(grid.rows) == 5
    plain, all_three = grid.trials[1].config.model, grid.trials[4].config.model
    assert plain.backbone == BACKBONES[BACKBONE].Config(width=16, num_stages=2) and plain.groups == ()
    assert all_three.groups == (GROUPS[GROUP].Config(),)
    assert all_three.assign == ASSIGNERS[ASSIGNER].Config(top_k=1)


# ---- the code of a trial ------------------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the source, with the page's files and lines in their places."""
    for package in ("harness", "model", "csrc"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for part in written():
        room = tmp_path / "model" / part.room
        (room / f"{part.name}.py").write_text(part.file)
        text = (room / "__init__.py").read_text()
        first = re.search(r"= Parts\(\s*__name__,\s*\"[^\"]+\",\s*\{", text)
        assert first
        (room / "__init__.py").write_text(f"{text[: first.end()]}{part.line.strip()} {text[first.end() :]}")
    return tmp_path


@pytest.mark.parametrize("part", written(), ids=lambda part: part.name)
def test_a_line_changed_in_a_part_concerns_the_trials_that_name_it(house: Path, part: Written) -> None:
    (house / "mine.yaml").write_text(blocks("yaml")[0])
    grid = open_grid(house / "mine.yaml", "digits", [], require_data=False)
    names = [named_parts(trial.config.model) for trial in grid.trials]
    own = f"{part.room}.{part.name}"
    with_it = [own in named for named in names]
    assert sum(with_it) == 2 and not with_it[0] and with_it[-1]

    def codes() -> list[Any]:
        read_source.cache_clear()
        return [code_of(named, house) for named in names]

    before = codes()
    assert all(agree(first, second) for first in before for second in before), "different parts keep nobody apart"
    (house / "model" / part.room / f"{part.name}.py").write_text(part.file + "# another line\n")
    after = codes()
    read_source.cache_clear()
    for old, concerned in zip(before, with_it, strict=True):
        assert [agree(old, new) for new in after] == [not (concerned and other) for other in with_it]
