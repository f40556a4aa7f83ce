"""Several ranks train what one process trains, and none of them is left behind whatever happens to another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranked

from harness.errors import RankLost
from harness.launch import run_ranks
from tests.ranked import CASES, HALVES, misbehave, train, train_all

ROOT = Path(__file__).parents[1]


def never() -> bool:
    return False


def ignore(event: dict[str, Any]) -> None: ...


# ---- the same numbers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every case trained by two ranks, in one pair of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    found = run_ranks(2, train_all, (str(folder),), report=ignore, should_stop=never)
    found["then alone"] = train(HALVES, folder=str(folder / "together"), start=2)
    return found


def assert_same_losses(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(found) == len(expected)
    for step, (own, other) in enumerate(zip(found, expected, strict=True)):
        assert own == pytest.approx(other, rel=1e-4, abs=1e-5), f"step {step}"


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_what_one_process_trains(together, case):
    """Every loss of every step to 1e-4, and weights that have moved alike."""
    alone = train(case)
    assert_same_losses(together[case]["losses"], alone["losses"])
    for name, weights in alone["weights"].items():
        np.testing.assert_allclose(together[case]["weights"][name], weights, atol=2e-4, err_msg=name)
