"""How often a training step makes the host wait for the device, on a device that is simulated (no GPU is needed).

What a step counts stands in `tests/expected/waits.json`; a number that goes down is written there, one that goes up is
an error. `python -m tests.support.simulated_steps CASE` tells the lines that wait.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.simulated_steps import CASES, SLOW

EXPECTED = json.loads((Path(__file__).parent / "expected" / "waits.json").read_text())
MOST = 4  # waits of a step


def steps(*cases: str) -> dict[str, Any]:
    """What these cases count, in a process of their own: a device cannot be taken back."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.simulated_steps", *cases]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, env=environment, cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def check(cases: list[str]) -> None:
    found = steps(*cases)
    for case in cases:
        result = found[case]
        assert result["losses"] < 1e-4 and result["gradients"] < 1e-3, f"{case}: {result}"
        waits, copies = sum(result["waits"].values()), sum(result["copies"].values())
        assert {"waits": waits, "copies": copies} == EXPECTED[case], f"{case}: {result}"


def test_a_step_waits_as_often_as_it_is_known_to() -> None:
    check([case for case in CASES if case not in SLOW])


@pytest.mark.slow
def test_a_step_of_many_heads_waits_as_often_as_it_is_known_to() -> None:
    check([case for case in CASES if case in SLOW])


def test_no_step_waits_too_often() -> None:
    assert EXPECTED.keys() == CASES.keys()
    assert {case for case in CASES if EXPECTED[case]["waits"] > MOST} == set()


def test_the_same_head_again_adds_no_wait() -> None:
    for case in CASES:
        if case.startswith("K = 6, ") and (once := case.replace("K = 6", "K = 1")) in CASES:
            assert EXPECTED[case]["waits"] == EXPECTED[once]["waits"], case
