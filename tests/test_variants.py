"""Two data sets, or other settings, under one file: kept apart in the store, in MLflow, in status, report and retry."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.utils.validation import _validate_tag_name

from harness.__main__ import main
from harness.report.reading import read_trials
from harness.schedule.schedule import run_grid
from harness.spec.grid import Grid, open_grid
from harness.spec.identity import config_to_dict
from harness.spec.resolve import Setting
from harness.spec.spec import override_settings
from harness.spec.strict import Mistakes
from harness.spec.variants import Variant, heading, key_of, variant_of
from harness.store.results import RunStore
from harness.tracking import tracking, views
from harness.tracking.mirror import sync
from tests.support.fakes import finish, make_trial, record, run_fake
from tests.support.folders import tables, write_folder, write_split

NONE = Variant()


def settings(*overrides: str, data: str | None = None) -> list[Setting]:
    found = override_settings(overrides, {}, Mistakes())
    return found + ([(("data", "path"), data, "--data")] if data is not None else [])


def variant(*overrides: str, data: str | None = None, fingerprint: str = "") -> Variant:
    return variant_of(settings(*overrides, data=data), fingerprint)


def test_a_plain_grid_has_the_name_that_it_always_had() -> None:
    assert variant() == NONE
    assert variant("runtime.num_workers=2", "analyse=[]", "analyse.metrics=[queries]", "data.path=null") == NONE
    assert key_of("quickstart", "digits", NONE) == "quickstart" and heading("a", "b", "") == "a (b)"


def test_words_are_short_and_say_what_differs() -> None:
    made = variant("train.epochs=2", data="/data/cards", fingerprint="1f3c0123")
    assert heading("quickstart", "digits", made.words) == "quickstart (digits, cards 1f3c, train.epochs=2)"
    assert key_of("quickstart", "digits", made) == f"quickstart-digits-cards-1f3c-train.epochs-2-{made.digest}"
    assert variant("model.heads=[atss, {name: paa, top_k: 5}]").words == "model.heads=atss+paa_top_k=5"


def test_what_makes_no_other_trial_makes_no_other_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = variant("train.epochs=2", "model.num_queries=9", data="cards")
    assert variant("model.num_queries=9", "train.epochs=2", data=str(tmp_path / "cards")) == first
    assert variant("data.path=cards", "model={num_queries: 9}", "train.epochs=5", "train.epochs=2") == first
    assert variant("train.epochs=2", "model.num_queries=9", "runtime.ranks=2", data="./cards/") == first
    assert variant("train.epochs=2", "model.num_queries=9", "data.path=other", data="x/../cards") == first
    weights = variant("model.backbone.weights=w.safetensors")
    assert weights == variant(f"model.backbone.weights={tmp_path}/w.safetensors") != NONE
    assert variant_of(settings("model.backbone.weights=a"), weights_hash="ab") != variant_of(
        settings("model.backbone.weights=a"), weights_hash="cd"
    )


def test_what_makes_other_trials_makes_other_names() -> None:
    long = [f"train.epochs={number}" for number in range(1, 4)]
    variants = [
        *(variant(data=f"/{folder}/cards") for folder in ("a", "b", "c d")),
        *(variant(data="/a/cards", fingerprint=fingerprint) for fingerprint in ("1f3c00", "1f4c00")),
        *(variant(text, *(f"model.k{number}={number}" for number in range(30))) for text in long),
        *(variant(f"train.learning_rate={rate}") for rate in ("0.00012345678", "0.00012345679", "1e-4")),
        *(variant(f"model.backbone.weights={'w' * 100}{number}") for number in range(2)),
        *(variant(f"model.heads=[{{name: atss, a: {value}}}]") for value in ("0.1234567891", "0.1234567892")),
        *(
            variant(data=name)
            for name in ("/x/日本", "/x/a b", "/x/a_b", "/x/" + "ü" * 200, "/", "/x/(1), 2", "/x/Cards")
        ),
    ]
    keys = [key_of("grid", "digits", one) for one in variants]
    assert len({key.casefold() for key in keys}) == len(keys)
    for key, one in zip(keys, variants, strict=True):
        _validate_tag_name(f"grid.{key}")
        assert len(os.fsencode(key)) <= 200 and "/" not in key and len(one.words) <= 75 and "\n" not in one.words
    words = [one.words for one in variants if "cards" not in one.words.lower() and "a_b" not in one.words]
    assert len(set(words)) == len(words)


def test_names_hold_for_any_settings() -> None:
    """Drawn at random: the same set gives the same name in any order, and another set another one."""
    draw = random.Random(7)
    seen: dict[str, frozenset[tuple[str, Any]]] = {}
    for _ in range(300):
        chosen = {
            f"train.{draw.choice('abc')}{draw.randrange(3)}": draw.choice([1, 2.5, True, "x y", "ü"]) for _ in range(4)
        }
        items = [((*key.split("."),), value, "--set") for key, value in chosen.items()]
        made = variant_of(draw.sample(items, len(items)))
        assert made == variant_of(items)
        assert seen.setdefault(key_of("g", "p", made), frozenset(map(repr, chosen.items()))) == frozenset(
            map(repr, chosen.items())
        )


# ---- the whole way


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "one.yaml"
    made.write_text("title: One file\nrows: [{label: a, set: {model.num_queries: 9}}, {label: b}]\nseeds: [0, 1]")
    return made


def run(grid: Grid, store: RunStore) -> None:
    options: dict[str, Any] = {"executor": "local", "run_trial": run_fake, "check_data": lambda *_: None}
    run_grid(grid, store, out=lambda line: None, **options)


def row_means(uri: str, grid: Grid) -> dict[str, list[str]]:
    """What MLflow averages in each row of a grid's view: the trials."""
    client = MlflowClient(tracking_uri=uri)
    experiment = str(client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id)
    rows: dict[str, list[str]] = {}
    for found in tracking.find_runs(client, experiment, views.grid_filter(grid)):
        rows.setdefault(found.data.tags[views.grid_tag(grid)], []).append(found.data.tags["trial_id"])
    return rows


def own_rows(grid: Grid) -> dict[str, set[str]]:
    return {row.label: set(row.trial_ids) for row in grid.rows}


def test_two_data_sets_under_one_file_stay_apart(
    file: Path, store: RunStore, tracking_store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("a/cards", "b/cards")):
        write_split(write_folder(tmp_path / name), "val", tables(seed), seed)
    asked: list[dict[str, Any]] = [
        *({}, {"data": str(tmp_path / "a/cards")}, {"data": str(tmp_path / "b/cards")}),
        {"data": str(tmp_path / "a/cards"), "overrides": ["train.epochs=3"]},
    ]
    grids = [open_grid(file, "digits_fast", **options) for options in asked]
    for grid in grids:
        run(grid, store)
    assert len({trial.trial_id for grid in grids for trial in grid.trials}) == 16
    assert len({grid.key for grid in grids}) == len({grid.heading for grid in grids}) == 4
    for grid in grids:
        assert {row: set(ids) for row, ids in row_means(tracking_store, grid).items()} == own_rows(grid)
    client = MlflowClient(tracking_uri=tracking_store)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    parents = tracking.find_runs(client, str(experiment.experiment_id), "tags.`codetr.grid` LIKE '%'")
    assert {parent.info.run_name for parent in parents} == {grid.heading for grid in grids}
    notes = {parent.info.run_name: parent.data.tags["mlflow.note.content"] for parent in parents}
    assert all(grid.command in notes[grid.heading] and "All by code" in notes[grid.heading] for grid in grids)

    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert all(f"{grid.heading}  4 trials: 4 finished\n" in out for grid in grids)
    for grid in grids:
        found = read_trials([trial.trial_id for trial in grid.trials])
        assert [one["trial_id"] for one in found] == [trial.trial_id for trial in grid.trials]

    for grid in grids:
        record(store, grid.trials[0], "failed", error="ValueError: no")
    assert main(["retry"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run next: ")]
    assert sorted(told) == sorted(f"run next: {grid.command}" for grid in grids)


def test_a_trial_of_two_presets_stays_in_both_views(file: Path, store: RunStore, tracking_store: str) -> None:
    """The tag `codetr.preset` is that of the plain grid."""
    plain = open_grid(file, "digits_fast")
    same = replace(plain, preset="other", variant=Variant("train.epochs=2", "01234567"))
    for trial in plain.trials:
        finish(store, trial)
    for grid in (plain, same, plain, same):
        sync(store, grid)
    for grid in (plain, same):
        assert {row: set(ids) for row, ids in row_means(tracking_store, grid).items()} == own_rows(grid)


def test_trials_of_other_settings_leave_a_plain_grids_view(
    file: Path, store: RunStore, tracking_store: str, tmp_path: Path
) -> None:
    """They were mirrored before settings were part of the key, or the file has changed; other seeds stay."""
    plain = open_grid(file, "digits_fast")
    changed = replace(open_grid(file, "digits_fast", ["train.epochs=7"]), variant=NONE)
    seeds = open_grid(file, "digits_fast", seeds=[5])
    elsewhere = make_trial(9)  # its configuration is not known here
    finish(store, elsewhere)
    sync(store, replace(plain, trials=(elsewhere,), rows=()))
    for grid in (changed, seeds, plain):
        for trial in grid.trials:
            finish(store, trial)
            found = store.read(trial.trial_id) or {}
            store.write_result(trial.trial_id, {**found, "config": config_to_dict(trial.config)})
        sync(store, grid)
    rows = {row: set(ids) for row, ids in row_means(tracking_store, plain).items()}
    other = own_rows(seeds)
    assert {row: rows[row] for row in ("a", "b")} == {row: ids | other[row] for row, ids in own_rows(plain).items()}
    assert rows["plain"] == {elsewhere.trial_id}


def test_the_note_says_which_code(store: RunStore) -> None:
    made = [{"provenance": {"code": code, "commit": "abc"}} for code in ("c0de", "c0de", "beef")]
    assert views.code_words(made[:2]) == "All by code c0de of commit abc."
    assert views.code_words(made) == (
        "Trials by different code do not compare: 2 by code c0de of commit abc, 1 by code beef of commit abc."
    )
    assert views.code_words([{"provenance": None}, {}]) == ""
