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

from tests.support.detectors import PRESETS
from tests.support.simulated_ranks import SHOWN
from tests.support.simulated_steps import CASES, QUICK

EXPECTED = json.loads((Path(__file__).parent / "expected" / "waits.json").read_text())
MOST = 4  # waits of a step


def rows_of(module: str, *cases: str) -> dict[str, Any]:
    """What a module of `tests/support` prints of these cases, by itself: a device cannot be taken back."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"tests.support.{module}", *cases]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, env=environment, cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {row["case"]: row for row in map(json.loads, done.stdout.splitlines())}


def check(cases: list[str]) -> None:
    found = rows_of("simulated_steps", *cases)
    for case in cases:
        result = found[case]
        assert result["losses"] < 1e-4 and result["gradients"] < 1e-3, f"{case}: {result}"
        waits, copies = sum(result["waits"].values()), sum(result["copies"].values())
        assert {"waits": waits, "copies": copies} == EXPECTED[case], f"{case}: {result}"


def test_a_step_waits_as_often_as_it_is_known_to() -> None:
    check(list(QUICK))


@pytest.mark.slow
def test_every_step_waits_as_often_as_it_is_known_to() -> None:
    check([case for case in CASES if case not in QUICK])


def test_no_step_waits_too_often() -> None:
    assert EXPECTED.keys() == CASES.keys()
    assert {case for case in CASES if EXPECTED[case]["waits"] > MOST} == set()


def test_the_same_head_again_adds_no_wait() -> None:
    for case in CASES:
        if case.startswith("K = 6, ") and (once := case.replace("K = 6", "K = 1")) in CASES:
            assert EXPECTED[case]["waits"] == EXPECTED[once]["waits"], case


# ---- all that is done with a detector -----------------------------------------------------------------------------


@pytest.mark.parametrize("preset", [PRESETS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in PRESETS[1:])])
def test_a_preset_trains_resumes_detects_and_is_analysed_as_on_the_cpu(preset: str) -> None:
    found = rows_of("simulated_uses", preset)[preset]
    assert found["losses"] < 1e-4 and found["detections"] < 1e-3 and found["analyses"] < 1e-3, found
    assert found["resumed"] == 0, found
    assert sum(found["waits"].values()) <= MOST, found


# ---- ranks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", ["official", *(pytest.param(case, marks=pytest.mark.slow) for case in SHOWN if case != "official")]
)
def test_two_ranks_train_there_as_one_process_on_the_cpu_and_wait_no_more(case: str) -> None:
    """What they add up over the ranks comes on top: normalisers, and all gradients at once."""
    found = rows_of("simulated_ranks", case)[case]
    assert found["losses"] < 1e-4 and found["weights"] < 2e-4, found
    alone = EXPECTED["K = 0" if case == "no head" else "K = 2, atss + faster_rcnn, official"]["waits"]
    assert sum(found["waits"].values()) == alone * found["steps"], found
    gradients = sum(count for where, count in found["reductions"].items() if "harness/trial/ranks.py" in where)
    assert gradients == found["steps"], found
