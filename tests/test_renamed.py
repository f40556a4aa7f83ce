"""Numbers of an older definition have names of their own, wherever a record is read, and its file stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.config import AnalyseConfig
from harness.revisit.kept import lacks
from harness.store.results import RunStore

OLD = {"epoch": 2, "AP": 40.0, "discriminability/encoder_auc": 0.9, "discriminability/attention_auc": None}
NEW = {**OLD, "discriminability/encoder_auc": 0.7, "discriminability/version": 2}
TABLE = {"encoder": {"auc": 0.9}, "attention": {"auc": None}}


def store_with(tmp_path: Path, line: dict[str, Any], **table: Any) -> RunStore:
    store = RunStore(tmp_path)
    record = {
        "trial_id": "a" * 12,
        "status": "finished",
        "metrics": {name: value for name, value in line.items() if name != "epoch"},
        "history": [{"epoch": 1, "AP": 20.0}, line],
        "analysis": {"metrics": ["discriminability", "queries"], "discriminability": {**TABLE, **table}},
    }
    store.write_result("a" * 12, record)
    store.append_metrics("a" * 12, line)
    return store


def test_a_number_without_a_version_is_of_the_first(tmp_path: Path) -> None:
    store = store_with(tmp_path, OLD)
    record = store.read("a" * 12)
    assert record is not None
    for numbers in (record["metrics"], record["history"][1], store.metrics("a" * 12)[0]):
        assert numbers["discriminability.v1/encoder_auc"] == 0.9 and numbers["AP"] == 40.0
        assert "discriminability/encoder_auc" not in numbers and "discriminability.v1/attention_auc" in numbers
    assert record["history"][0] == {"epoch": 1, "AP": 20.0}
    assert record["analysis"]["discriminability.v1"]["encoder"] == {"auc": 0.9}
    assert "discriminability" not in record["analysis"]
    kept = json.loads((store.dir("a" * 12) / "result.json").read_text())
    assert kept["metrics"]["discriminability/encoder_auc"] == 0.9  # the file is what it was


def test_a_number_with_a_version_stays(tmp_path: Path) -> None:
    store = store_with(tmp_path, NEW, version=2)
    record = store.read("a" * 12)
    assert record is not None and record["metrics"]["discriminability/encoder_auc"] == 0.7
    assert record["analysis"]["discriminability"] == {**TABLE, "version": 2}
    assert not any(name.startswith("discriminability.v1") for name in {**record["metrics"], **record["analysis"]})


@pytest.mark.parametrize(("version", "missing"), [({}, True), ({"version": 2}, False)])
def test_the_analysis_of_today_is_missing_where_only_that_of_then_was_made(
    tmp_path: Path, version: dict[str, int], missing: bool
) -> None:
    store = store_with(tmp_path, NEW if version else OLD, **version)
    assert lacks(store, "a" * 12, AnalyseConfig(("discriminability",))) is missing
    assert not lacks(store, "a" * 12, AnalyseConfig(("queries",)))


def test_reading_twice_and_writing_back_changes_nothing_more(tmp_path: Path) -> None:
    store = store_with(tmp_path, OLD)
    first = store.read("a" * 12)
    assert first is not None
    store.write_result("a" * 12, first)
    assert store.read("a" * 12) == first
