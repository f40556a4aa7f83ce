"""A grid of four rows whose trainings are made up, with claims of every kind: what `codetr decide` is tried on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.decide import kept
from harness.decide.rounds import decide
from harness.spec.grid import Grid, open_grid
from harness.store.results import RunStore

FILE = """
name: claims
title: Claims
base: {data.digits.num_train: 8, train.epochs: 1, train.min_steps: 0}
rows:
  - {label: none, set: {model.heads: []}}
  - {label: clear, set: {model.heads: [atss]}}
  - {label: small, set: {model.heads: [fcos]}}
  - {label: worse, set: {model.heads: [gfl]}}
baseline: none
claims:
  - {text: A clear gain, better: clear, than: none}
  - {text: A small gain, better: small, than: none}
  - {text: Two gains, better: [clear, worse], than: none}
  - {text: Nearly equal, equal: small, to: none, within: 4.0}
"""
EFFECTS = {"none": 0.0, "clear": 8.0, "small": 0.15, "worse": -6.0, "beside": 1.0}


def ap_of(label: str, seed: int) -> float:
    """What a training of this row and seed comes to."""
    rng = np.random.default_rng([seed, len(label)])
    return 40 + EFFECTS[label] + float(rng.normal(scale=0.1))


def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The ablation file, and an empty store as the usual one."""
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = tmp_path / "claims.yaml"
    path.write_text(FILE)
    return path


def grid_of(file: Path, most: int = 12) -> Grid:
    return open_grid(file, seeds=range(most))


def finish(store: RunStore, grid: Grid, key: str, **more: Any) -> None:
    """As if the trial had trained."""
    (row, seed) = next((row, seed) for row in grid.rows for seed, own in enumerate(row.trial_ids) if own == key)
    cost = {"device_hours": 0.1, "seconds_per_step": 0.1}
    record = {"trial_id": key, "status": "finished", "metrics": {"AP": ap_of(row.label, seed)}, "cost": cost}
    store.dir(key).mkdir(parents=True, exist_ok=True)
    store.write_result(key, {**record, "history": [], "error": None, **more})


def trainer(store: RunStore, grid: Grid, asked: list[str]) -> Callable[[Sequence[str]], None]:
    def run(ids: Sequence[str]) -> None:
        for key in ids:
            asked.append(key)
            finish(store, grid, key)

    return run


def verdicts(decision: kept.Decision) -> dict[str, str]:
    return {own.claim.text: own.course(decision.looks).verdict for own in decision.questions}


def settled(file: Path) -> tuple[kept.Decision, list[str], RunStore, Grid]:
    grid, store, asked = grid_of(file), RunStore(), []
    decision, why = decide(grid, store, trainer(store, grid, asked))
    assert why == ""
    return decision, asked, store, grid
