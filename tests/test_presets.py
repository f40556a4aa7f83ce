"""Detectors by their names: what `model.preset` stands for, what wins over it, and how it is told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.__main__ import main
from harness.choose import choose
from harness.errors import UserError
from harness.spec.grid import Grid, open_grid
from harness.spec.presets import SIZES
from harness.spec.pretrained import check_backbones
from harness.spec.strict import Mistakes, read_yaml_file
from model.backbones.configs import asked
from model.config import DetectorConfig
from model.detector import Detector
from model.groups.configs import HybridConfig
from tests.support.tiny import NUM_CLASSES, tiny_batch

ABLATIONS = Path(__file__).parents[1] / "ablations"
MODELS = sorted((ABLATIONS / "presets" / "models").glob("*.yaml"))
SCALES = {
    "digits": "digits",
    "digits_v1": "digits",
    "digits_fast": "digits_fast",
    "coco_r50_12e": "paper",
    "coco_r50_36e": "paper",
}
EVERY_MODEL = pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
EVERY_SCALE = pytest.mark.parametrize("scale", SCALES)

Open = Callable[..., Grid]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def make(spec: dict[str, Any] | None = None, *overrides: str, preset: str = "digits", **options: Any) -> Grid:
        path = tmp_path / "table.yaml"
        path.write_text(yaml.safe_dump({"rows": [{"label": "a"}]} if spec is None else spec, sort_keys=False))
        return open_grid(path, preset, overrides, require_data=False, **options)

    return make


@pytest.fixture
def mistakes(opened: Open, tmp_path: Path) -> Callable[..., list[str]]:
    def tell(*arguments: Any, **options: Any) -> list[str]:
        with pytest.raises(UserError) as caught:
            opened(*arguments, **options)
        return str(caught.value).replace(f"{tmp_path}/", "").splitlines()

    return tell


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., None]:
    """Writes the detector `mine` beside the ablation file."""

    def write(text: str, name: str = "mine") -> None:
        folder = tmp_path / "presets" / "models"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)

    return write


def ids(grid: Grid) -> list[str]:
    return [trial.trial_id for trial in grid.trials]


def model_of(grid: Grid) -> DetectorConfig:
    return grid.trials[0].config.model


def rows(*settings: dict[str, Any]) -> dict[str, Any]:
    return {"rows": [{"label": str(index), "set": own} for index, own in enumerate(settings)]}


# ---- what a name stands for


@EVERY_SCALE
@EVERY_MODEL
def test_a_name_is_the_settings_spelt_out(opened: Open, model: Path, scale: str) -> None:
    tree = read_yaml_file(model, Mistakes())
    sizes = {size: tree.pop(size, {}) for size in SIZES}
    named = opened(rows({"model.preset": model.stem, "model.heads": ["atss"]}), preset=scale)
    by_hand = opened({"base": tree, **rows({**sizes[SCALES[scale]], "model.heads": ["atss"]})}, preset=scale)
    assert ids(named) == ids(by_hand) and named.trials[0].config == by_hand.trials[0].config
    assert named.trials[0].detector == model.stem and by_hand.trials[0].detector == ""


@EVERY_SCALE
def test_without_a_name_the_detector_is_deformable_pp(scale: str) -> None:
    plain = open_grid(ABLATIONS / "quickstart.yaml", scale, require_data=False)
    named = open_grid(ABLATIONS / "quickstart.yaml", scale, ["model.preset=deformable_pp"], require_data=False)
    assert [trial.config for trial in named.trials] == [trial.config for trial in plain.trials]
    assert ids(named) == ids(plain) and [row.label for row in named.rows] == [row.label for row in plain.rows]


def test_another_detector_from_the_command_line_has_neither_the_rows_words_nor_their_published_numbers() -> None:
    grid = open_grid(ABLATIONS / "quickstart.yaml", "digits", ["model.preset=dab_c5"], require_data=False)
    assert all(row.label.endswith(" [model.preset=dab_c5]") and not row.published for row in grid.rows)
    assert grid.baseline == grid.rows[0].label and grid.claims[0].reference == grid.rows[0].label
    assert any("dab_c5 is another detector than that of the rows" in note for note in grid.notes)
    several = open_grid(ABLATIONS / "detectors.yaml", "digits", ["model.preset=dab_c5"], require_data=False)
    assert all(row.label.count("[model.preset=dab_c5]") <= 1 for row in several.rows)


@pytest.mark.parametrize("scale", ["coco_r50_12e", "coco_r50_36e"])
def test_the_plain_detector_is_that_of_table_9(opened: Open, scale: str) -> None:
    table = open_grid(ABLATIONS / "table09_components.yaml", scale, require_data=False)
    named = opened(rows({"model.preset": "deformable", "model.heads": []}), preset=scale)
    assert named.trials[0].config == table.trials[0].config


def test_the_hybrid_group_keeps_its_proportions(opened: Open) -> None:
    for scale in SCALES:
        model = model_of(opened(None, "model.preset=h_deformable", preset=scale))
        (group,) = model.groups
        assert isinstance(group, HybridConfig) and group.repeats == 6 and group.weight == 1.0
        assert model.loss_normaliser == "objects"
        assert (group.number, model.num_queries) == {
            **{"digits": (200, 40), "digits_v1": (200, 40), "digits_fast": (25, 12)},
            **dict.fromkeys(("coco_r50_12e", "coco_r50_36e"), (1500, 300)),
        }[scale]


@EVERY_MODEL
def test_every_detector_learns_from_a_batch_at_the_size_of_digits_fast(opened: Open, model: Path) -> None:
    grid = opened(rows({"model.preset": model.stem, "model.heads": ["atss"]}), preset="digits_fast")
    detector = Detector(model_of(grid), NUM_CLASSES)
    total, _ = detector(tiny_batch())
    total.backward()
    assert total.isfinite() and all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)


# ---- what wins


def test_what_is_said_wins_over_the_name_wherever_that_stands(opened: Open) -> None:
    detector = {"model.preset": "h_deformable"}
    for spec, overrides in (
        (rows({**detector, "model.num_queries": 9}), []),
        ({"base": {"model.num_queries": 9}, **rows(detector)}, []),
        ({"base": detector, **rows({"model.num_queries": 9})}, []),
        ({"presets": {"digits": {"model.num_queries": 9}}, **rows(detector)}, []),
        (rows({"model.num_queries": 9}), ["model.preset=h_deformable"]),
        (rows(), ["model.num_queries=9", "model.preset=h_deformable"]),
        ({"base": {"model": {"preset": "h_deformable", "num_queries": 9}}, **rows({})}, []),
    ):
        model = model_of(opened(spec if spec["rows"] else None, *overrides))
        assert model.num_queries == 9 and model.groups[0].number == 200, spec


def test_the_name_wins_over_the_preset_of_scale(opened: Open, tmp_path: Path) -> None:
    text = "size: digits\nmodel: {two_stage: true, num_queries: 7, transformer.num_levels: 3}"
    (tmp_path / "scale.yaml").write_text(text)
    model = model_of(opened(None, "model.preset=deformable", preset=str(tmp_path / "scale.yaml")))
    assert not model.two_stage and model.num_queries == 7


def test_a_preset_of_scale_may_name_a_detector(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "scale.yaml").write_text("size: digits\nmodel: {preset: h_deformable, transformer.num_levels: 3}")
    scale = str(tmp_path / "scale.yaml")
    assert model_of(opened(preset=scale)).groups
    assert not model_of(opened(rows({"model.preset": "deformable"}), preset=scale)).groups


def test_the_last_name_counts_and_nothing_is_left_of_the_others(opened: Open) -> None:
    spec = {"base": {"model.preset": "deformable"}, **rows({"model.preset": "h_deformable"}, {})}
    first, second = (trial.config.model for trial in opened(spec).trials)
    assert first.two_stage and first.groups and not second.two_stage
    (only,) = opened(spec, "model.preset=deformable_pp").trials
    assert only.config.model.two_stage and not only.config.model.groups


def test_a_row_whose_detector_is_replaced_loses_its_published_numbers(opened: Open) -> None:
    spec = rows({"model.preset": "h_deformable"}, {"model.heads": ["atss"]})
    for row in spec["rows"]:
        row["published"] = {"AP": 40.0}
    replaced = opened(spec, "model.preset=deformable")
    assert [row.label for row in replaced.rows] == ["0 [model.preset=deformable]", "1 [model.preset=deformable]"]
    assert [bool(row.published) for row in replaced.rows] == [False, False]  # the second was "++", which none names
    same = opened(spec, "model.preset=deformable_pp")
    assert [row.label for row in same.rows] == ["0 [model.preset=deformable_pp]", "1"]
    assert [bool(row.published) for row in same.rows] == [False, True]
    inside = opened(spec, "model.two_stage=true")  # the detector says so, and so it is the row's own
    assert [bool(row.published) for row in inside.rows] == [False, True]


def test_a_detector_beside_the_file_wins(opened: Open, own: Callable[..., None]) -> None:
    own("model.num_queries: 5\ndigits_fast: {model.lambda1: 2.0}\npaper: {model.num_queries: 6}")
    own("model: {num_queries: 3}", "deformable")
    for scale, queries, weight in (("digits", 5, 1.0), ("digits_fast", 5, 2.0), ("coco_r50_12e", 6, 1.0)):
        model = model_of(opened(rows({"model.preset": "mine", "model.heads": ["atss"]}), preset=scale))
        assert (model.num_queries, model.lambda1) == (queries, weight)
    assert model_of(opened(None, "model.preset=deformable")).num_queries == 3


def test_settings_of_a_size_hold_under_every_preset_of_it(opened: Open, tmp_path: Path) -> None:
    sized = {"digits": {"model.num_queries": 7}, "paper": {"model.num_queries": 8}}
    spec = {"presets": sized, "rows": [{"label": "a"}, {"label": "b", "presets": {"paper": {"model.num_queries": 9}}}]}

    def queries(scale: str) -> list[int]:
        return [trial.config.model.num_queries for trial in opened(spec, preset=scale).trials]

    assert queries("digits") == [7] and queries("coco_r50_12e") == queries("coco_r50_36e") == [8, 9]
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "mine.yaml").write_text("size: digits\nmodel.transformer.num_levels: 3")
    assert queries("mine") == [7]
    sized["mine"] = {"model.num_queries": 6}  # a preset's name says more than its size
    assert queries("mine") == [6] and queries("digits") == [7]


# ---- several in one file


CROSSED = {
    "rows": [{"label": "no head", "set": {"model.heads": []}}, {"label": "ATSS", "set": {"model.heads": ["atss"]}}],
    "axes": {"model.preset": ["deformable", "h_deformable"]},
    "baseline": "no head",
}


def test_an_axis_over_detectors(opened: Open) -> None:
    grid = opened(CROSSED)
    assert [row.label for row in grid.rows] == [
        *("no head, preset=deformable", "no head, preset=h_deformable"),
        *("ATSS, preset=deformable", "ATSS, preset=h_deformable"),
    ]
    assert [trial.label for trial in grid.trials] == [
        *("preset=deformable heads=none", "preset=h_deformable heads=none"),
        *("preset=deformable heads=atss", "preset=h_deformable heads=atss"),
    ]
    assert grid.rows[3].baseline == "no head, preset=h_deformable"
    assert grid.trials[0].factors == {"model.preset": "deformable", "model.heads": "none", "seed": 0}
    assert choose(grid, ["preset=h_deformable"]) == {grid.trials[1].trial_id, grid.trials[3].trial_id}


def test_labels_tell_what_differs_from_the_detector_of_that_name(opened: Open) -> None:
    grid = opened(
        rows(
            {"model.preset": "deformable"},
            {"model.preset": "deformable", "model.num_queries": 20},
            {"model.preset": "h_deformable"},
            {"model.preset": "h_deformable", "model.look_forward_twice": False},
            {"model.two_stage": True},
        )
    )
    assert [trial.label for trial in grid.trials] == [
        "preset=deformable num_queries=40",
        "preset=deformable num_queries=20",
        "preset=h_deformable num_queries=40",
        "preset=h_deformable num_queries=40 look_forward_twice=false",
        "num_queries=40",
    ]


def test_a_search_draws_detectors(opened: Open) -> None:
    space = {"model.preset": {"choice": ["deformable", "h_deformable"]}, "model.num_queries": {"integer": [20, 40]}}
    grid = opened({"search": {"space": space, "num_trials": 6}})
    for trial in grid.trials:
        assert trial.detector == trial.factors["model.preset"]
        assert bool(trial.config.model.groups) == (trial.detector == "h_deformable")


def test_plan_tells_the_names(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    opened(CROSSED)
    assert main(["plan", str(tmp_path / "table.yaml")]) == 0
    assert "model.preset: deformable, h_deformable" in capsys.readouterr().out.splitlines()
    opened(rows({}))
    assert main(["plan", str(tmp_path / "table.yaml"), "--set", "model.preset=h_deformable"]) == 0
    assert "model.preset: h_deformable" in capsys.readouterr().out.splitlines()


# ---- mistakes


def test_an_unknown_name_is_told_with_the_nearest(mistakes: Callable[..., list[str]]) -> None:
    near = "unknown detector 'h_defrmable'; did you mean 'h_deformable'?"
    assert mistakes(None, "model.preset=h_defrmable") == [f"--set model.preset: {near}"]
    assert mistakes({"axes": {"model.preset": ["h_defrmable"]}}) == [f"table.yaml:axes.model.preset: {near}"]
    (line,) = mistakes(None, "model.prest=deformable")
    assert line == "--set model.prest: unknown key; did you mean 'model.preset'?"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.preset=3", "--set model.preset: must be the name of a detector (known: "),
        ("model.preset={name: deformable}", "--set model.preset.name: must be the name of a detector (known: "),
        ("model.preset=null", "--set model.preset: must be the name of a detector (known: "),
    ],
)
def test_what_is_no_name_is_told(mistakes: Callable[..., list[str]], override: str, told: str) -> None:
    (line,) = mistakes(None, override)
    assert line.startswith(told) and "h_deformable" in line


def test_a_preset_of_scale_says_its_size(mistakes: Callable[..., list[str]], opened: Open, tmp_path: Path) -> None:
    scale = tmp_path / "scale.yaml"
    scale.write_text("model.transformer.num_levels: 3")
    assert opened(preset=str(scale)).trials  # only a detector's name needs it
    (line,) = mistakes(None, "model.preset=deformable", preset=str(scale))
    what = "does not say its size, which `model.preset: deformable` needs"
    assert line == f"scale.yaml: {what}; add size: digits, digits_fast or paper"
    scale.write_text("size: papre")
    assert mistakes(preset=str(scale)) == [
        "scale.yaml:size: must be a size, got the text 'papre'; did you mean 'paper'?",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: {num_querys: 3}", "mine.yaml:model.num_querys: unknown key; did you mean 'num_queries'?"),
        ("digits: {model.num_queries: 0}", "mine.yaml:digits.model.num_queries: num_queries must be at least 1, got 0"),
        ("papre: {model.num_queries: 3}", "mine.yaml:papre.model.num_queries: unknown key; did you mean 'paper'?"),
        (
            "runtime.ranks: 2",
            "mine.yaml:runtime.ranks: unknown key; known: model, data, train, evaluate, digits, digits_fast, paper",
        ),
        (
            "digits: {runtime.ranks: 2}",
            "mine.yaml:digits.runtime.ranks: unknown key; known: model, data, train, evaluate",
        ),
        ("model.preset: deformable", "mine.yaml:model.preset: a detector cannot name another; write its settings"),
        (
            "digits.model.num_queries: 3",
            "mine.yaml:digits.model.num_queries: the settings of a size are a mapping; write digits: {…}",
        ),
        ("digits: 3", "mine.yaml:digits: must be a mapping of settings, got 3"),
    ],
)
def test_mistakes_of_a_detectors_file(
    mistakes: Callable[..., list[str]], own: Callable[..., None], text: str, told: str
) -> None:
    own(text)
    assert mistakes(None, "model.preset=mine") == [f"presets/models/{told}"]


# ---- files beside a preset


def test_weights_lie_beside_the_preset_that_names_them(own: Callable[..., None], opened: Open, tmp_path: Path) -> None:
    weights = ABLATIONS / "presets" / "digits_backbone.safetensors"
    own("model: {backbone.weights: ../near.safetensors}")
    shutil.copy(weights, tmp_path / "presets" / "near.safetensors")
    (shipped,), (near,) = opened().trials, opened(None, "model.preset=mine").trials
    assert Path(asked(shipped.config.model.backbone, "weights")) == weights
    assert near.trial_id == shipped.trial_id  # by content, wherever the file lies
    (given,) = opened(None, "model.backbone.weights=near.safetensors").trials  # from where one stands, not found there
    assert not given.has_id


@pytest.mark.parametrize("text", ["''", "' '"])
def test_no_name_beside_a_preset_is_a_mistake(mistakes: Callable[..., list[str]], tmp_path: Path, text: str) -> None:
    (tmp_path / "scale.yaml").write_text(f"size: digits\nmodel: {{backbone.weights: {text}}}")
    (line,) = mistakes(preset=str(tmp_path / "scale.yaml"))
    assert line.startswith("scale.yaml:model.backbone.weights: weights must name a file")


def test_the_shipped_weights_fit_every_detector(opened: Open) -> None:
    trials = [opened(None, f"model.preset={path.stem}").trials[0] for path in MODELS]
    assert all(asked(trial.config.model.backbone, "weights") for trial in trials)
    check_backbones(trials)


def test_trials_of_the_first_digits_preset_keep_their_ids(opened: Open) -> None:
    runs = ABLATIONS.parent / "docs" / "mini-paper" / "first" / "store" / "runs"
    grid = open_grid(ABLATIONS / "table08_head_kinds.yaml", "digits_v1", seeds=[0, 1, 2])
    assert len(grid.trials) == 24 and all((runs / trial.trial_id).is_dir() for trial in grid.trials)


# ---- no torch


def test_planning_by_name_loads_no_torch(opened: Open, tmp_path: Path) -> None:
    opened({"axes": {"model.preset": [path.stem for path in MODELS]}})
    for command in ("plan", "status"):
        argv = [command, str(tmp_path / "table.yaml"), "--preset", "digits_fast", "--store", str(tmp_path / "store")]
        code = f"import sys; from harness.__main__ import main; assert main({argv!r}) == 0; print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not {"torch", "ray", "mlflow"} & set(done.stdout.split())


def test_a_record_of_a_named_detector_is_one_of_any_other(opened: Open) -> None:
    from harness.spec.identity import config_from_dict, config_to_dict

    (trial,) = opened(None, "model.preset=h_deformable").trials
    tree = json.loads(json.dumps(config_to_dict(trial.config)))
    assert "preset" not in tree["model"] and config_from_dict(tree) == trial.config
