"""Several ranks train what one process trains, and none of them is left behind whatever happens to another."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.errors import RankLost
from harness.system.launch import run_ranks
from tests.support.ranked import CASES, HALVES, misbehave, train, train_all

ROOT = Path(__file__).parents[1]


def never() -> bool:
    return False


def ignore(event: dict[str, Any]) -> None: ...


# ---- the same numbers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the ranks: more would only be in each other's way with so small a detector."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def test_a_training_goes_on_with_another_number_of_ranks(together):
    """Two steps alone and the rest together, and the other way round."""
    whole = train(HALVES)["losses"]
    assert_same_losses(together["alone, then together"]["losses"], whole)
    assert_same_losses(together["together"]["losses"] + together["then alone"]["losses"], whole)


# ---- no process is left behind ------------------------------------------------------------------------------------


class Starter:
    """Runs `misbehave` and keeps the first rank's process id."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def run(self, how: str, should_stop: Any = never) -> Any:
        return run_ranks(2, misbehave, (how,), report=self.events.append, should_stop=should_stop)

    def first_has_ended(self) -> bool:
        (event,) = self.events
        assert event["rank"] == 0
        return not Path(f"/proc/{event['pid']}").exists()


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("raise", KeyError, "told to"),
        ("kill", RankLost, "rank 1 of 2 was ended by SIGKILL before its first step; out of memory?"),
        ("exit", RankLost, "rank 1 of 2 ended with exit code 3"),
    ],
)
def test_a_rank_that_ends_badly_ends_all(how, error, message):
    starter = Starter()
    with pytest.raises(error, match=message.replace("?", r"\?")) as caught:
        starter.run(how)
    assert starter.first_has_ended()
    if how == "kill":
        assert "these are my last words" in caught.value.__notes__[0]
    if how == "raise":
        assert "ranked.py" in caught.value.__notes__[0]  # where in the rank it was raised


def test_all_ranks_stop_at_the_same_point():
    starter = Starter()
    assert starter.run("wait", should_stop=lambda: bool(starter.events)) == "stopped, as rank 0"
    assert starter.first_has_ended()


def test_ranks_end_with_their_starter():
    code = (
        "from harness.system.launch import run_ranks; from tests.support.ranked import misbehave; "
        "run_ranks(1, misbehave, ('wait',), report=lambda e: print(e['pid'], flush=True), should_stop=lambda: False)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as starter:
        assert starter.stdout is not None
        rank = Path("/proc") / starter.stdout.readline().decode().strip()
        assert rank.exists()
        starter.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while rank.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not rank.exists()
