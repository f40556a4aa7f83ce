"""The head that docs/add-a-head.md writes, installed as the page says: the contract, training and an ablation."""

from __future__ import annotations

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from harness.config import TrainConfig
from harness.spec.grid import open_grid
from harness.trial.train import build_optimizer, train_step
from model.detector import Detector
from model.heads import HEADS
from tests.support.head_contract import HeadContract
from tests.support.linted import complaints
from tests.support.tiny import NUM_CLASSES, tiny_batch, tiny_config
from tests.support.tiny_heads import TINY

PAGE = (Path(__file__).parents[1] / "docs" / "add-a-head.md").read_text()
NAME = "center_point"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's three Python blocks: the file, the line in HEADS, the line in TINY."""
    file, line, setting = blocks("python")
    place = re.match(r"# (model/heads/(\w+)\.py)\n", file)
    assert place, "the first block begins with the file's place"
    path = tmp_path / f"{place[2]}.py"
    path.write_text(file)
    spec = spec_from_file_location(f"model.heads.{place[2]}", path)
    assert spec and spec.loader
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    ((name, head),) = eval(f"{{{line}}}", vars(module)).items()
    assert name == NAME == place[2]
    monkeypatch.setitem(HEADS, name, head)
    monkeypatch.setitem(TINY, name, eval(f"{{{setting}}}")[name])


def test_the_pages_file_passes_ruff() -> None:
    assert complaints(blocks("python")[0], f"model/heads/{NAME}.py") == ""


@pytest.mark.parametrize("name", [NAME])
class TestThePagesHead(HeadContract):
    pass


def test_two_training_steps_and_its_branch() -> None:
    torch.manual_seed(0)
    detector = Detector(tiny_config(NAME, "atss", NAME), NUM_CLASSES)
    config = TrainConfig(learning_rate=1e-3, batch_size=2, drop_epochs=())
    optimizer = build_optimizer(detector, config)
    batch = tiny_batch(counts=(3, 2), sizes=((96, 96), (64, 80)))
    totals = []
    for step in range(2):
        losses = train_step(detector, [batch], optimizer, config, step=step, total_steps=2, steps_per_epoch=2)
        assert {f"{NAME}/boxes", f"{NAME}.2/boxes", f"queries.{NAME}.0/l1"} <= losses.keys()
        totals.append(losses["total"])
    assert totals[1] < totals[0]
    detector.eval()
    assert len(detector.detect_branches(batch, (f"{NAME}.2",), 5)[f"{NAME}.2"]) == 2


def test_the_ablation_is_understood(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(blocks("yaml")[0])
    grid = open_grid(tmp_path / "mine.yaml", "digits", [], require_data=False)
    assert len(grid.trials) == len(grid.rows) == 3
    assert grid.trials[2].config.model.heads[1] == HEADS[NAME].Config(box_weight=1.0)
