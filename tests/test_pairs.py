"""Which number of single heads predicts the gain of two: made-up trainings with a known answer, and plain loops."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from harness.__main__ import main
from harness.report.pairs import GAIN, Trainings, chance, predict, spearman
from harness.spec.grid import open_grid
from harness.store.results import RunStore

HEADS = ("atss", "faster_rcnn", "fcos", "gfl", "paa", "retinanet")


def trainings(seed: int = 0, seeds: int = 3, noise: float = 0.0) -> Trainings:
    """Pairs whose gain is the sum of the heads' transfers; their own gains tell nothing."""
    rng = np.random.default_rng(seed)
    strength, plain = rng.permutation(6) ** 1.5, rng.normal(40, 1, seeds)
    pairs = np.array([strength[i] + strength[j] for i, j in itertools.combinations(range(6), 2)])
    together = plain[:, None] + pairs + noise * rng.normal(size=(seeds, 15))
    singles = {GAIN: rng.normal(size=(seeds, 6)), "transfer/*-decoder": np.tile(strength / 1000, (seeds, 1))}
    return Trainings(HEADS, tuple(range(seeds)), plain, singles, together)


def of(found: list, measure: str, combination: str):
    return next(own for own in found if (own.measure, own.combination) == (measure, combination))


def test_what_makes_the_gain_predicts_it() -> None:
    found = predict(trainings())
    best = of(found, "transfer/*-decoder", "sum")
    assert best.correlation == pytest.approx(1) and best.without == (pytest.approx(1), pytest.approx(1))
    assert best.interval == (pytest.approx(1), pytest.approx(1))
    assert best.p == best.p_any == pytest.approx(1 / 720)  # no other order of six different values does as well
    assert (found[0].measure, found[0].combination) == (GAIN, "sum") and found[1] == best
    assert 0.3 < chance(trainings()) < 1


def test_against_plain_loops() -> None:
    made = trainings(seed=3, noise=4.0)
    own = of(predict(made), "transfer/*-decoder", "smaller")
    values, gains = made.singles["transfer/*-decoder"].mean(0), (made.pairs - made.plain[:, None]).mean(0)

    def correlation(ordered: Any, chosen: Any = range(15), against: Any = gains) -> float:
        feature = [min(ordered[i], ordered[j]) for i, j in itertools.combinations(range(6), 2)]
        return float(spearmanr([feature[n] for n in chosen], [against[n] for n in chosen]).statistic)

    assert own.correlation == pytest.approx(correlation(values))
    permuted = [abs(correlation([values[n] for n in order])) for order in itertools.permutations(range(6))]
    assert own.p == pytest.approx(np.mean([value >= abs(own.correlation) - 1e-12 for value in permuted]))
    places = list(itertools.combinations(range(6), 2))
    without = [correlation(values, [n for n, place in enumerate(places) if head not in place]) for head in range(6)]
    assert own.without == (pytest.approx(min(without)), pytest.approx(max(without)))
    resampled = []
    for drawn in itertools.product(range(3), repeat=3):
        differences = (made.pairs - made.plain[:, None])[list(drawn)].mean(0)
        resampled.append(correlation(made.singles["transfer/*-decoder"][list(drawn)].mean(0), against=differences))
    assert own.interval == tuple(pytest.approx(value) for value in np.quantile(resampled, [0.025, 0.975]))


def test_by_chance_one_feature_in_twenty_has_a_p_below_five_percent() -> None:
    found = [own for seed in range(40) for own in predict(trainings(seed)) if own.measure == GAIN]
    share = np.mean([own.p <= 0.05 for own in found])
    assert 0.0 <= share < 0.15
    assert all(own.p_any >= own.p for own in found)


def test_equal_values_tell_nothing() -> None:
    assert spearman(np.ones(4), np.arange(4.0)) == 0
    assert spearman(np.array([1.0, 1, 2, 3]), np.arange(4.0)) == pytest.approx(spearmanr([1, 1, 2, 3], range(4))[0])


# ---- the command


FILE = """
name: pairs
title: Pairs
base: {data.digits.num_train: 8, train.epochs: 1, train.min_steps: 0}
rows:
  - {label: none, set: {model.heads: []}}
"""


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    heads = HEADS[:3]
    rows = [(head,) for head in heads] + list(itertools.combinations(heads, 2))
    lines = [f"  - {{label: {' + '.join(row)}, set: {{model.heads: [{', '.join(row)}]}}}}\n" for row in rows]
    file = tmp_path / "pairs.yaml"
    file.write_text(FILE + "".join(lines) + "seeds: [0, 1]\n")
    return file


def finish(file: Path, *, without: str = "", leave: Any = lambda label, seed, metrics: metrics) -> None:
    store = RunStore()
    for number, trial in enumerate(open_grid(file).trials):
        names = trial.config.model.head_names
        if trial.row == without:
            continue
        metrics = {"AP": 30.0 + 2 * len(names) + number / 10}
        metrics |= {f"transfer/{name}-decoder": 0.001 * (1 + HEADS.index(name)) for name in names if len(names) == 1}
        metrics = leave(trial.row, trial.config.seed, metrics)
        record = {"trial_id": trial.trial_id, "status": "finished", "metrics": metrics, "history": []}
        (store.dir(trial.trial_id)).mkdir(parents=True)
        (store.dir(trial.trial_id) / "result.json").write_text(json.dumps(record))


def test_the_command_prints_a_table(grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(grid)
    assert main(["pairs", str(grid), "--from", "records", "--out", str(tmp_path / "out.csv")]) == 0
    told = capsys.readouterr().out
    assert "transfer/*-decoder" in told and "3 pairs of 3 heads, 2 seeds" in told and "95 %" in told
    assert "gradient/decoder-*" not in told  # nobody measured it
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0].startswith("measure,feature,spearman") and len(lines) == 1 + 2 * 3


@pytest.mark.parametrize(
    ("without", "words"),
    [("none", "without heads"), ("atss + fcos", "the row with atss and fcos"), ("fcos", "the row with fcos;")],
)
def test_a_row_that_is_missing_is_named(
    grid: Path, without: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(grid, without=without)
    assert main(["pairs", str(grid), "--from", "records"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: pairs: no finished trial of ") and words in error and error.count("\n") == 1


def test_pairs_of_a_head_without_a_row_are_told(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = "  - {label: further, set: {model.heads: [atss, gfl]}}\nseeds"
    grid.write_text(grid.read_text().replace("seeds", row))
    finish(grid)
    assert main(["pairs", str(grid), "--from", "records"]) == 0
    told = capsys.readouterr().out
    assert "3 pairs of 3 heads" in told and "not each of their heads has a row of its own: further" in told


def test_trainings_of_different_code_are_refused(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(grid)
    store, key = RunStore(), open_grid(grid).trials[-1].trial_id
    record = {**(store.read(key) or {}), "provenance": {"ops": "reference"}}
    store.write_result(key, record)
    assert main(["pairs", str(grid), "--from", "records"]) == 2
    assert "its trials come from different operators" in capsys.readouterr().err
    assert main(["pairs", str(grid), "--from", "records", "--allow-mixed"]) == 0


def test_two_rows_of_the_same_heads_are_refused(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of them would be taken silently."""
    finish(grid)
    row = "  - {label: other, set: {model.heads: [{name: atss, top_k: 5}]}}\nseeds"
    grid.write_text(grid.read_text().replace("seeds", row))
    assert main(["pairs", str(grid), "--from", "records"]) == 2
    error = capsys.readouterr().err
    assert "'atss' and 'other' are both the row with atss: which one is meant?" in error and error.count("\n") == 1


def test_what_is_left_out_is_told(grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one seed there is no interval, and of three heads none can be left out."""

    def leave(label: str, seed: int, metrics: dict[str, Any]) -> dict[str, Any]:
        if (label, seed) == ("gfl", 1):
            return {**metrics, "AP": None}  # as where nothing could be evaluated
        return {**metrics, "instability": 3.0} if label == "atss" else metrics

    grid.write_text(grid.read_text().replace("fcos", "gfl"))
    finish(grid, leave=leave)
    assert main(["pairs", str(grid), "--from", "records", "--out", str(tmp_path / "out.csv")]) == 0
    told = capsys.readouterr().out
    assert "3 pairs of 3 heads, 1 seed;" in told and "left out, as not finished in every row: seed 1" in told
    assert "left out, as not every training has it: instability" in told and "instability_gt" not in told
    first = next(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    empty = [name for name, value in first.items() if not value]
    assert first["measure"] == GAIN and empty == ["low", "high", "lowest_without", "highest_without"]
    assert sum(cell == "–" for line in told.splitlines() for cell in line.split()) == 2 * 6
