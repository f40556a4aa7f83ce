"""The comparison of losses between commits tells the smallest difference, wherever it is."""

from __future__ import annotations

import math

import pytest

from benchmarks import gpu_trials, losses, speed

ONE = {"losses": [{"total": (1.0).hex(), "l1": (0.5).hex()}], "weights": "a"}


def changed(**loss: float) -> dict:
    return {"losses": [ONE["losses"][0] | {name: value.hex() for name, value in loss.items()}], "weights": "a"}


def test_equal_cases_are_equal():
    lines, equal = losses.table({"K = 0": ONE}, {"K = 0": ONE})
    assert equal and lines[1].split() == ["K", "=", "0", "0", "-", "equal"]


@pytest.mark.parametrize(
    ("after", "largest", "where"),
    [
        (changed(total=math.nextafter(1.0, 2.0)), 2.0**-52, "total (step 1)"),
        (changed(l1=0.25, total=1.5), 0.5, "total (step 1)"),
        ({"losses": [{"total": (1.0).hex()}], "weights": "a"}, math.inf, "l1 (step 1)"),
        (changed(l1=-0.0) | {"weights": "a"}, 0.5, "l1 (step 1)"),
    ],
)
def test_the_largest_difference_is_told_with_its_place(after, largest, where):
    assert losses.largest_difference(ONE["losses"], after["losses"]) == (largest, where)
    assert not losses.table({"K = 0": ONE}, {"K = 0": after})[1]


def test_other_weights_after_equal_losses_are_a_difference():
    lines, equal = losses.table({"K = 0": ONE}, {"K = 0": ONE | {"weights": "b"}})
    assert not equal and lines[1].endswith("differ")


def test_a_case_of_one_side_alone_is_told_and_decides_nothing():
    lines, equal = losses.table({"K = 0": ONE}, {"K = 0": ONE, "K = 1": ONE})
    assert equal and lines[2].endswith("only here")


@pytest.mark.parametrize("compare", [losses.main, speed.main], ids=["losses", "speed"])
def test_a_commit_that_is_not_there_is_one_line(compare, capsys):
    assert compare(["no-such-commit"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "no-such-commit" in told[0] and "b'" not in told[0]


@pytest.mark.slow
def test_this_commit_equals_itself(capsys):
    assert losses.main(["HEAD", "--assert-equal"]) == 0
    assert "equal to the last bit" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_asked_of_a_gpu_holds_on_the_cpu():
    """A training that is resumed, and two ranks; on a GPU atomic additions are another difference."""
    found = {row["name"]: row["loss_difference"] for row in gpu_trials.trials("cpu")}
    resumed, ranks = found.values()
    assert resumed == 0 and ranks < 1e-3
