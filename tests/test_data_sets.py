"""Grids over several data sets: labels, gains, claims, and what a row gains over all of them."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.__main__ import main
from harness.decide.rounds import decide
from harness.errors import UserError
from harness.report import grid_text, identified, write_report
from harness.report.figures import analysis_figures
from harness.report.pivot import make_pivot, pivot_frame
from harness.report.tables import make_table
from harness.report.tasks import over_tasks, why_not
from harness.spec.grid import Grid, open_grid
from harness.spec.identity import config_to_dict
from harness.store.results import RunStore
from tests.support.folders import tables, write_folder, write_split
from tests.support.report_grid import make_record

FILE = """
title: Heads on data
rows:
  - {label: no head, set: {model.heads: []}, published: {AP: 47.1}}
  - {label: ATSS, set: {model.heads: [atss]}, published: {AP: 48.7}}
baseline: no head
claims: [{text: A head helps, better: ATSS, than: no head}]
"""
AXIS = FILE.replace(", published: {AP: 47.1}", "").replace(", published: {AP: 48.7}", "")
GAINS = {"digits": 3.0, "birds": -1.0, "cells": 6.0}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """Two data sets by name."""
    for seed, name in enumerate(("birds", "cells")):
        for split in ("train", "val"):
            write_split(tmp_path / name, split, tables(seed), seed)
    return {name: str(tmp_path / name) for name in ("birds", "cells")}


@pytest.fixture
def grid_of(tmp_path, folders):
    def make(text: str = FILE, *data: str, seeds: int = 5, **options: Any) -> Grid:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        named = [folders.get(name, name) for name in data]
        return open_grid(path, "digits_fast", data=named or None, seeds=range(seeds), **options)

    return make


def name_of(trial: Any) -> str:
    return Path(trial.config.data.path).name if trial.config.data.path else "digits"


def ap_of(trial: Any) -> float:
    """Levels of the data sets lie far apart; the gain of a head scatters a little by the seed."""
    name, seed = name_of(trial), trial.config.seed
    level = 40 + 20 * [*GAINS, name].index(name) + (seed * 7) % 5
    return level + (GAINS.get(name, 0.0) + 0.1 * ((seed * 3) % 5 - 2) if trial.config.model.heads else 0.0)


def records_of(grid: Grid) -> list[dict[str, Any]]:
    return [make_record(t.trial_id, ap_of(t)) for t in grid.trials]


def test_every_row_is_trained_on_every_data_set(grid_of, folders):
    grid = grid_of(FILE, "preset", "birds", "cells")
    labels = [f"{row}, data={data}" for row in ("no head", "ATSS") for data in ("digits", "birds", "cells")]
    assert [row.label for row in grid.rows] == labels
    assert {row.baseline for row in grid.rows} == set(labels[:3])
    assert all(row.baseline.endswith(row.label.rpartition("data=")[2]) for row in grid.rows)
    assert not any(row.published for row in grid.rows) and any("the paper's numbers" in note for note in grid.notes)
    for name in folders:
        alone = grid_of(FILE, name)
        assert {t.trial_id for t in alone.trials} <= {t.trial_id for t in grid.trials}, "trials of one set are shared"


def test_the_command_line_and_an_axis_of_the_file_are_one(grid_of, folders):
    named = ", ".join(folders.values())
    axis = grid_of(AXIS + f"axes: {{data.path: [null, {named}]}}\n")
    given = grid_of(AXIS, "preset", *folders)
    assert [row.label for row in axis.rows] == [row.label for row in given.rows]
    assert [t.trial_id for t in axis.trials] == [t.trial_id for t in given.trials]
    assert axis.key == "mine" and given.key != "mine", "what a command line asks for has a folder of its own"
    assert given.key != grid_of(AXIS, "birds", "cells").key != grid_of(AXIS, "cells").key
    assert "birds" in given.heading and "cells" in given.heading


def test_one_data_set_is_what_it_was(grid_of, folders):
    one = grid_of(FILE, "birds")
    assert [row.label for row in one.rows] == ["no head", "ATSS"] and one.rows[0].published == {"AP": 47.1}
    assert one.key == open_grid(one.command.split()[2], "digits_fast", data=folders["birds"], seeds=range(5)).key
    assert grid_of(FILE, "preset").key == grid_of(FILE).key == "mine"


def test_a_claim_is_one_on_each_data_set(grid_of):
    grid = grid_of(FILE, "preset", "birds", "cells")
    assert [claim.text for claim in grid.claims] == [f"A head helps ({name})" for name in GAINS]
    assert [claim.rows for claim in grid.claims] == [(f"ATSS, data={name}",) for name in GAINS]
    verdicts = [verdict.verdict for verdict in make_table(grid, records_of(grid)).verdicts]
    assert verdicts == ["reproduced", "not reproduced", "reproduced"]


def test_a_claim_on_one_data_set_stays_one_under_other_settings(grid_of):
    text = FILE.replace("better: ATSS, than: no head", '"better": "ATSS, data=birds", than: "no head, data=birds"')
    (claim,) = grid_of(text, "birds", "cells", overrides=["model.heads=[paa]"]).claims
    assert (claim.text, claim.rows) == ("A head helps", ("ATSS, data=birds [model.heads=paa]",))


def test_claims_may_name_one_data_set(grid_of):
    text = FILE.replace("better: ATSS, than: no head", '"better": "ATSS, data=birds", than: "no head, data=birds"')
    (claim,) = grid_of(text, "birds", "cells").claims
    assert (claim.text, claim.rows) == ("A head helps", ("ATSS, data=birds",))


def test_data_sets_lie_across_with_the_interquartile_mean(grid_of):
    grid = grid_of(FILE, "preset", "birds", "cells")
    pivot = make_pivot(grid, make_table(grid, records_of(grid)))
    assert (pivot.across, pivot.columns) == ("data", ("digits", "birds", "cells"))
    none, head = pivot.over_tasks
    gains = sorted(g + 0.1 * ((s * 3) % 5 - 2) for g in GAINS.values() for s in range(5))
    assert none is None and head.gain.value == pytest.approx(np.mean(gains[3:-3]))
    assert head.gain.low < head.gain.value < head.gain.high and head.seeds == 5
    text = grid_text(grid, records_of(grid))
    assert "IQM of gains" in text and "P(better)" in text and "92 of 100" in " ".join(text.split())
    frame = pivot_frame(pivot)
    assert frame["iqm_gain"][1] == pytest.approx(head.gain.value) and np.isnan(frame["iqm_gain"][0])


@pytest.mark.parametrize(("data", "seeds", "told"), [(("birds", "cells"), 5, "2 and 5"), (tuple(GAINS), 4, "3 and 4")])
def test_too_few_results_say_so(grid_of, data, seeds, told):
    named = tuple("preset" if name == "digits" else name for name in data)
    grid = grid_of(FILE, *named, seeds=seeds)
    pivot = make_pivot(grid, make_table(grid, records_of(grid)))
    assert not pivot.over_tasks and pivot.note.endswith(
        f"no interquartile mean: that takes 3 data sets and 5 seeds that all of them have, here are {told}"
    )


def test_only_gains_on_the_same_data_set_are_summarised(grid_of):
    grid = grid_of(FILE.replace("baseline: no head", 'baseline: "no head, data=digits"'), "preset", "birds", "cells")
    pivot = make_pivot(grid, make_table(grid, records_of(grid)))
    assert not pivot.over_tasks and pivot.note.endswith("here are 1 and 5")
    assert "gains_on_data" not in analysis_figures(grid, records_of(grid))


def test_a_baseline_that_cannot_run_yet_gives_no_gains(grid_of):
    grid = grid_of(FILE.replace("label: no head", "label: no head, needs: time"), "preset", "birds", "cells")
    assert not make_pivot(grid, make_table(grid, records_of(grid))).over_tasks
    assert "gains_on_data" not in analysis_figures(grid, records_of(grid))


def test_table_and_figure_summarise_the_same_rows(grid_of, folders, tmp_path):
    write_folder(tmp_path / "empty")
    grid = grid_of(FILE, "preset", "birds", "cells", str(tmp_path / "empty"))
    records = [make_record(t.trial_id, ap_of(t)) for t in grid.trials if name_of(t) != "empty"]
    pivot = make_pivot(grid, make_table(grid, records))
    assert not pivot.over_tasks and pivot.note.endswith("here are 4 and 0")
    (axes,) = analysis_figures(grid, records)["gains_on_data"].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == [*GAINS, "empty"]


def test_a_metric_that_is_better_neither_way_has_no_summary(grid_of):
    grid = grid_of(
        FILE.replace("claims:", "metrics: [num_parameters]\nclaims:").split("claims:")[0], "preset", "birds", "cells"
    )
    assert not make_pivot(grid, make_table(grid, records_of(grid))).over_tasks


def test_several_other_axes_stand_in_the_first_column(grid_of):
    text = "axes: {model.lambda1: [1, 2], model.lambda2: [3, 4]}\n"
    pivot = make_pivot(grid := grid_of(text, "birds", "cells", seeds=1), make_table(grid, records_of(grid)))
    assert (pivot.corner, pivot.rows[1][0]) == ("variant", "lambda1=1 lambda2=4")


def test_every_format_has_the_summary(grid_of, tmp_path):
    grid = grid_of(FILE, "preset", "birds", "cells")
    write_report([grid], tmp_path / "out", records=records_of(grid))
    for name in ("report.html", "mine.md", "mine.tex"):
        assert "IQM of gains" in (tmp_path / "out" / name).read_text(encoding="utf-8"), name
    with (tmp_path / "out" / "mine_pivot.csv").open(encoding="utf-8") as file:
        head = next(csv.reader(file))
    assert head[-6:] == ["iqm_gain", "iqm_gain_low", "iqm_gain_high", "p_better", "p_better_low", "p_better_high"]
    assert (tmp_path / "out" / "mine_gains_on_data.png").exists()


def slow_summary(own: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    gains = sorted((own - other).ravel())
    cut = len(gains) // 4
    wins = [
        np.mean([(a > b) + 0.5 * (a == b) for a, b in itertools.product(first, second)])
        for first, second in zip(own, other, strict=True)
    ]
    return float(np.mean(gains[cut : len(gains) - cut])), float(np.mean(wins))


@pytest.mark.parametrize("shape", [(3, 5), (4, 7)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_summary_agrees_with_a_slow_one(shape, sign):
    rng = np.random.default_rng(sum(shape))
    own, other = rng.integers(0, 6, (2, *shape)).astype(float)  # with ties
    tasks = [tuple(dict(enumerate(side)) for side in pair) for pair in zip(own, other, strict=True)]
    found = over_tasks(tasks, sign)
    middle, better = slow_summary(own, other)
    assert found.gain.value == pytest.approx(middle)
    assert found.better.value == pytest.approx(better if sign > 0 else 1 - better)
    assert found.gain.low <= found.gain.value <= found.gain.high and 0 <= found.better.low <= found.better.high <= 1
    drawn = [
        slow_summary(np.take_along_axis(own, index, 1), np.take_along_axis(other, index, 1))[0]
        for index in rng.integers(0, shape[1], (400, *shape))
    ]
    assert (found.gain.low, found.gain.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.4)


def test_the_chance_to_be_better_lies_within_its_interval_where_seeds_go_together():
    base = np.arange(40.0, 45.0)
    found = over_tasks([(dict(enumerate(base + 0.5)), dict(enumerate(base)))] * 3).better
    assert found.value == pytest.approx(0.6) and found.low < found.value < found.high
    assert found.value - found.low == pytest.approx(found.high - found.value, abs=0.1)


def test_seeds_that_one_data_set_lacks_do_not_count():
    full, short = {seed: float(seed) for seed in range(6)}, {seed: float(seed) for seed in range(5)}
    assert not why_not([(full, full), (short, full), (full, full)])
    assert over_tasks([(full, full), (short, full), (full, full)]).seeds == 5
    assert why_not([(full, full), ({0: 1.0}, full), (full, full)])


def test_data_sets_that_are_not_here_are_known_by_their_names(grid_of, folders, tmp_path):
    grid = grid_of(FILE, "birds", "cells")
    store = RunStore(tmp_path / "store")
    for trial in grid.trials:
        made = make_record(trial.trial_id, ap_of(trial))
        made |= {"config": config_to_dict(trial.config), "fingerprint": trial.fingerprint}
        store.write_result(trial.trial_id, made)
    elsewhere = open_grid(
        tmp_path / "mine.yaml", "digits_fast", data=["else/birds", "else/cells"], seeds=range(5), require_data=False
    )
    found = identified(elsewhere, store)
    assert [t.trial_id for t in found.trials] == [t.trial_id for t in grid.trials]
    one = open_grid(tmp_path / "mine.yaml", "digits_fast", data="else/cells", seeds=range(5), require_data=False)
    assert {t.trial_id for t in identified(one, store).trials} == {t.trial_id for t in grid_of(FILE, "cells").trials}
    other = open_grid(tmp_path / "mine.yaml", "digits_fast", data="else/stars", seeds=[0], require_data=False)
    with pytest.raises(UserError, match="records of several data sets fit it; name the data set with --data"):
        identified(other, store)


def test_a_data_set_that_is_not_here_is_none_of_the_others(grid_of, tmp_path):
    store = RunStore(tmp_path / "store")
    for trial in (grid := grid_of(FILE, "preset", "birds", seeds=1)).trials:
        made = make_record(trial.trial_id, ap_of(trial))
        made |= {"config": config_to_dict(trial.config), "fingerprint": trial.fingerprint}
        store.write_result(trial.trial_id, made)
    found = identified(grid_of(FILE, "birds", "gone", seeds=1, require_data=False), store)
    assert [t.has_id for t in found.trials] == [True, False, True, False]
    assert {t.trial_id for t in found.trials if t.has_id} < {t.trial_id for t in grid.trials}
    alone = identified(grid_of(FILE, "gone", seeds=1, require_data=False), store)
    assert alone.notes[-1] == "the data set gone is not here: these are records of birds, the only one that fits"
    assert [t.fingerprint for t in alone.trials] == [grid.trials[1].fingerprint] * 2, "generated scenes are no folder"


def test_a_data_set_is_called_by_its_name_however_it_is_written(grid_of, folders, monkeypatch):
    monkeypatch.setenv("HOME", folders["cells"])
    monkeypatch.chdir(folders["birds"])
    labels = [row.label for row in grid_of(FILE, "birds", "cells").rows]
    for written in ((".", "~"), ("../birds/", "../birds/../cells/.")):
        assert [row.label for row in grid_of(FILE, *written).rows] == labels


def test_the_order_of_data_sets_makes_no_other_grid(grid_of):
    one, other = grid_of(FILE, "birds", "cells"), grid_of(FILE, "cells", "birds")
    assert (one.key, one.heading) == (other.key, other.heading)
    assert {t.trial_id for t in one.trials} == {t.trial_id for t in other.trials}


def test_one_data_set_of_the_command_line_takes_the_place_of_an_axis(grid_of, folders):
    text = AXIS + f"axes: {{data.path: [null, {folders['birds']}]}}\n"
    for grid in (grid_of(text, "cells"), grid_of(text, overrides=[f"data.path={folders['cells']}"])):
        assert [row.label for row in grid.rows] == ["no head, data=cells", "ATSS, data=cells"]
        assert [claim.text for claim in grid.claims] == ["A head helps (cells)"]
        assert {t.trial_id for t in grid.trials} == {t.trial_id for t in grid_of(AXIS, "cells").trials}
        assert any("takes the place of the data sets" in note for note in grid.notes)


def test_a_baseline_may_be_a_folder_whose_name_has_spaces(grid_of, tmp_path):
    write_folder(tmp_path / "my, data")
    text = FILE.replace("baseline: no head", 'baseline: "no head, data=my, data"')
    assert {row.baseline for row in grid_of(text, "birds", str(tmp_path / "my, data")).rows} == {
        "no head, data=my, data"
    }
    text = FILE.replace("baseline: no head", 'baseline: "data=my, data"')
    assert grid_of(text, "birds", str(tmp_path / "my, data")).rows[2].baseline == "ATSS, data=my, data"


def test_a_data_set_counts_once_by_whatever_name(grid_of, folders, tmp_path):
    (tmp_path / "link").symlink_to(folders["birds"])
    with pytest.raises(UserError, match=r"^[^\n]*'birds' and 'link' are the same data set by two names; name it once$"):
        grid_of(FILE, "birds", str(tmp_path / "link"), seeds=1)


def test_the_data_set_of_a_row_is_not_replaced_in_silence(grid_of, folders):
    text = FILE.replace("{model.heads: [atss]}", f"{{model.heads: [atss], data.path: {folders['cells']}}}")
    with pytest.raises(UserError, match=r"rows\.1\.set\.data\.path: data\.path is an axis of this grid"):
        grid_of(text, "birds", "cells", seeds=1)
    with pytest.raises(UserError, match=r"--data: --set data\.path=a says something else; remove one of them"):
        grid_of(FILE, "birds", "cells", seeds=1, overrides=["data.path=a"])


@pytest.mark.parametrize(
    ("text", "data", "told"),
    [
        (FILE, ("birds", "birds"), "two data sets are called 'birds'; link to one of them by another name"),
        (AXIS + "axes: {data.path: [a, b]}\n", ("birds", "cells"), "has an axis data.path itself; name none, or one"),
        (AXIS + "axes: {data.path: [1, b]}\n", (), "axes.data.path: must be a text, got 1"),
        (
            "search: {space: {model.lambda1: {uniform: [0.5, 2]}}, num_trials: 2, metric: AP, mode: max}\n",
            ("birds", "cells"),
            "--data: a search takes one data set",
        ),
        (
            FILE.replace("than: no head", 'than: "no head, data=birds"'),
            ("birds", "cells"),
            "is on one data set and others",
        ),
        (FILE.replace("better: ATSS", "better: ATS"), ("birds", "cells"), "'ATS' is not the label of a row; did you m"),
    ],
)
def test_mistakes_are_told_in_a_line(grid_of, text, data, told):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        grid_of(text, *data, seeds=1, require_data=False)
    assert told in str(caught.value)


def test_analyse_takes_one_data_set(folders, capsys):
    assert main(["analyse", "abc", *(word for folder in folders.values() for word in ("--data", folder))]) == 2
    told = capsys.readouterr().err.strip()
    assert told == "error: analyse: takes one --data; name the others in commands of their own"


def test_only_and_plan_know_data_sets_by_name(grid_of, folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    grid_of(FILE)
    named = [word for folder in ("preset", *folders.values()) for word in ("--data", folder)]
    file = str(tmp_path / "mine.yaml")
    assert main(["plan", file, "--preset", "digits_fast", *named, "--only", "data=birds", "--seeds", "0"]) == 0
    out = capsys.readouterr().out
    assert "no head, data=birds" in out and "data=cells" not in out.split("(preset")[0] and "2 trials" in out


@pytest.mark.parametrize("data", [("birds", "cells"), ("cells",)])
def test_what_was_decided_stays_so_where_a_data_set_is_not_here(grid_of, folders, tmp_path, capsys, monkeypatch, data):
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    store = RunStore()
    grid = grid_of(FILE, *data, seeds=12)

    def run_trials(ids: Any) -> None:
        for trial in (grid.trial(key) for key in ids):
            own = {"config": config_to_dict(trial.config), "fingerprint": trial.fingerprint}
            store.write_result(trial.trial_id, make_record(trial.trial_id, ap_of(trial)) | own)

    decide(grid, store, run_trials, allow_mixed=True)
    capsys.readouterr()
    named = [word for name in data for word in ("--data", folders[name])]
    command = ["report", str(tmp_path / "mine.yaml"), "--preset", "digits_fast", *named, "--from", "records"]
    told = []
    for name in ("here", "gone"):
        assert main([*command, "--out", str(tmp_path / name), "--format", "md"]) == 0
        told.append(capsys.readouterr().out.split("wrote")[0])
        if name == "here":
            Path(folders["cells"]).rename(tmp_path / "moved")
    assert told[0] == told[1] and "looked at" in told[0]
