"""Names of metrics in MLflow: it takes them, no two are one, and they are read back as what they were."""

from __future__ import annotations

import random

import pytest
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name

from harness.tracking.metric_names import flat_metrics, renamed, safe_name, safe_names

ODD = (
    *(".", "/", "+", "*", "", "..", "...", "//", "./a", "a/", "/a", "a//b", "a/../b", "a/./b", " ", "  ", "a ", "a."),
    *("a", "Car", "car", "CAR", "AP", "AP50", "loss", "epoch", "step", "time", "a\nb", "a\tb", "a\0b", "\n", "\ud83d"),
    *("😀", "🚗", "é", "e\u0301", "ﬁ", "fi", "日本", "ไทย", "x" * 300, "x" * 299 + "y", "X" * 300, "a@b", "a_b", "50%"),
    *("50_", "'", '"', "`", "traffic light", "car (small)", "car [small]", "_", "__", "_/_", "-", ":", "C:\\", "<b>"),
    *("decoder.1/x", "%s", "{}"),
)
TAKEN = ("traffic light", "car/truck", "a.", "日本", "é", "decoder.1/x", "x" * 200, "speed: 50", "AP", "___", "...")


def is_taken(name: str) -> bool:
    _validate_metric_name(name)  # raises for what MLflow refuses
    return len(name) <= MAX_ENTITY_KEY_LENGTH


def test_any_class_name_is_taken_and_distinct_and_comes_back() -> None:
    per_class = {name: float(number) for number, name in enumerate(ODD)}
    flat = flat_metrics({"per_class": per_class})
    assert len({name.casefold().rstrip() for name in flat}) == len(ODD)
    assert all(map(is_taken, flat))
    own = renamed({"per_class": per_class})
    back = {own.get(name, name).removeprefix("per_class/"): value for name, value in flat.items()}
    assert back == per_class


@pytest.mark.parametrize("name", TAKEN)
def test_a_name_that_mlflow_takes_stays(name: str) -> None:
    assert safe_name(f"per_class/{name}") == f"per_class/{name}"
    assert flat_metrics({"per_class": {name: 1, "@": 2}}).keys() > {f"per_class/{name}"}


def test_equal_names_are_told_apart_whatever_their_order() -> None:
    names = [f"per_class/{name}" for name in ("+", "*", "_", "/", "other", "a@b", "a#b")]
    found = safe_names(names)
    assert found["per_class/_"] == "per_class/_" and found["per_class/other"] == "per_class/other"
    assert found["per_class/+"].startswith("per_class/_-") and found["per_class/a@b"].startswith("per_class/a_b-")
    for seed in range(10):
        shuffled = random.Random(seed).sample(names, len(names))
        assert safe_names(shuffled) == found
    # An undefined AP is no number, and yet its class has a name.
    assert list(flat_metrics({"per_class": {"+": None, "*": 2.0}})) == [found["per_class/*"]]


def test_a_name_that_is_what_another_becomes_is_told_apart() -> None:
    taken = safe_names(["+", "*"])["+"]
    found = safe_names(["+", "*", taken])
    assert found[taken] == taken and len(set(found.values())) == 3


def test_a_protocol_is_a_column_of_its_own() -> None:
    flat = flat_metrics({"AP": 1.0, "AP@300": 2.0, "atss/AP50@1000": 3.0})
    assert flat == {"AP": 1.0, "AP_300": 2.0, "atss/AP50_1000": 3.0}
    assert renamed({"AP@300": 2.0, "losses": {"a[0]": 1.0}}) == {"AP_300": "AP@300"}


def test_a_head_may_be_called_like_a_group() -> None:
    flat = flat_metrics({"cost/AP": 30.0, "per_class/AP": 20.0, "cost": {"AP": 1.0}})
    assert flat == {"cost_/AP": 30.0, "per_class_/AP": 20.0, "cost/AP": 1.0}
    assert renamed({"cost/AP": 30.0, "cost": {"AP": 1.0}}) == {"cost_/AP": "cost/AP"}
