"""What MLflow's pages show of a grid: few parameters with short names, and a view that its pages understand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.spec.grid import Grid, open_grid
from harness.spec.identity import config_to_dict
from harness.tracking import views

ABLATIONS = Path(__file__).parents[1] / "ablations"
FILES = [file for file in sorted(ABLATIONS.glob("*.yaml")) if "\nrows:" in file.read_text()]  # a search has no rows


def grid(name: str, **options: Any) -> Grid:
    return open_grid(ABLATIONS / f"{name}.yaml", "digits_fast", **options)


def differing(grid: Grid) -> tuple[str, ...]:
    return views.varied(config_to_dict(trial.config) for trial in grid.trials)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("table07_heads", ("K", "heads", "groups", "loss_normaliser")),
        ("table08_head_kinds", ("K", "heads")),
        ("table09_components", ("K", "heads", "auxiliary_loss", "positive_queries", "groups", "loss_normaliser")),
        ("table12_convolutions", ("atss.num_convs",)),
        ("table13_loss_weights", ("lambda1", "lambda2")),
    ],
)
def test_only_what_differs_is_a_parameter(name: str, expected: tuple[str, ...]) -> None:
    assert differing(grid(name, seeds=[0])) == expected
    assert differing(grid(name, seeds=[0, 1])) == (*expected, "seed")


def test_heads_are_counted_and_repeats_are_short() -> None:
    found = {trial.row: views.params_of(config_to_dict(trial.config)) for trial in grid("table07_heads").trials}
    assert {(own["K"], own["heads"]) for own in found.values()} >= {
        *((0, "none"), (1, "atss"), (2, "atss+paa"), (2, "atss*2"), (6, "atss*6")),
        *((2, "AtFa"), (3, "AtFaPa"), (6, "AtFaPaReFcGf")),
    }


def test_only_lists_of_names_are_shortened() -> None:
    config = config_to_dict(grid("quickstart").trials[0].config)
    path, branches = "/data/rgb+depth", ["decoder", "atss", "paa"]
    config = config | {"data": config["data"] | {"path": path}, "evaluate": config["evaluate"] | {"branches": branches}}
    own = views.params_of(config)
    assert path in own.values() and "DeAtPa" in own.values()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_texts_differ_in_what_is_shown_of_them(file: Path) -> None:
    """MLflow's parallel coordinates give two texts with the same first ten letters one label, at the wrong place."""
    made = open_grid(file)
    found = [views.params_of(config_to_dict(trial.config)) for trial in made.trials]
    for name in differing(made):
        texts = {own[name] for own in found if isinstance(own.get(name), str)}
        assert len({text[:10] for text in texts}) == len(texts), f"{name}: {sorted(texts)}"


def test_options_of_a_second_head_have_its_name() -> None:
    made = grid("quickstart", overrides=["model.heads=[atss, {name: atss, num_convs: 3}]"])
    own = views.params_of(config_to_dict(made.trials[0].config))
    assert (own["heads"], own["atss.num_convs"], own["atss.2.num_convs"]) == ("atss*2", 1, 3)


def test_names_of_parameters_are_the_same_in_every_grid_and_clear() -> None:
    own = views.params_of(config_to_dict(grid("table07_heads").trials[-1].config))
    assert {"epochs", "num_queries", "num_decoder_layers", "digits.seed", "seed", "learning_rate"} <= own.keys()
    assert all(isinstance(value, str | int | float | bool) for value in own.values())


def test_the_view_orders_what_a_person_looks_at() -> None:
    made = grid("table07_heads", seeds=[0, 1])
    state = views.view_state(
        made, differing(made), ["AP", "loss", "cost/wall_seconds", "losses/atss/giou", "per_class/3"]
    )
    assert [(section["name"], section["display"]) for section in state["compareRunSections"]] == [
        *(("Comparison", True), ("Model metrics", True), ("cost", True)),
        *(("losses/atss", False), ("per_class", False), ("System metrics", False)),
    ]
    parallel, *others = state["compareRunCharts"]
    assert parallel["selectedParams"] == ["K"]  # grouped runs are compared by numbers
    assert parallel["selectedMetrics"][-1] == "AP"
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in (parallel, *others)} <= sections
    assert len({chart["uuid"] for chart in (parallel, *others)}) == 1 + len(others)
    assert {"params.`K`", "params.`heads`", "params.`seed`", "metrics.`AP`"} <= set(state["selectedColumns"])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`AP`", False)


def test_views_of_two_presets_differ() -> None:
    fast = grid("quickstart")
    other = open_grid(ABLATIONS / "quickstart.yaml", "digits")
    assert views.view_id(fast) != views.view_id(other)
    assert views.grid_filter(fast) != views.grid_filter(other)


def test_many_runs_are_not_squeezed_into_an_address() -> None:
    made = grid("quickstart")
    assert "compare-runs" in views.note(made, "1", ["a" * 32, "b" * 32])
    assert "compare-runs" not in views.note(made, "1", ["a" * 32] * 61)
    assert "compare-runs" not in views.note(made, "1", ["a" * 32])
