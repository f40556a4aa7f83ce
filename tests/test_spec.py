"""Reading ablation files: what is accepted, and what each mistake says."""

from __future__ import annotations

import pytest

from harness.errors import UserError
from harness.spec.grid import open_grid
from harness.spec.spec import read_spec
from harness.spec.strict import Mistakes, read_yaml
from model.heads import HEADS

TWO_ROWS = """
rows:
  - {label: plain, set: {model.heads: []}}
  - {label: head, set: {model.heads: [atss]}}
"""


@pytest.fixture
def mistakes_of(tmp_path):
    """The lines told about an ablation file and options, without the file's own path."""

    def tell(text: str, *overrides: str, preset: str = "digits", **options) -> list[str]:
        path = tmp_path / "table.yaml"
        path.write_text(text)
        with pytest.raises(UserError) as caught:
            open_grid(path, preset, overrides, **options)
        return str(caught.value).replace(f"{path}:", "").splitlines()

    return tell


@pytest.fixture
def grid_of(tmp_path):
    def open_text(text: str, *overrides: str, preset: str = "digits", **options):
        path = tmp_path / "table.yaml"
        path.write_text(text)
        return open_grid(path, preset, overrides, **options)

    return open_text


def test_scalars_follow_yaml_1_2():
    mistakes = Mistakes()
    text = "[1e-4, 1.0e-4, -2E5, .5, 1, -3, 010, 0x10, no, yes, on, true, False, null, ~, 1:30, 2024-01-02, '1', .inf]"
    values = read_yaml(text, "text", mistakes)
    assert values[:7] == [1e-4, 1e-4, -2e5, 0.5, 1, -3, 10]
    assert values[7:11] == ["0x10", "no", "yes", "on"]
    assert values[11:] == [True, False, None, None, "1:30", "2024-01-02", "1", float("inf")]
    assert [type(value) for value in values[:7]] == [float, float, float, float, int, int, int]
    assert not mistakes.lines


def test_number_without_a_point_is_a_number(grid_of):
    grid = grid_of("base: {train.learning_rate: 1e-4}" + TWO_ROWS, "train.weight_decay=3e-5")
    assert {trial.config.train.learning_rate for trial in grid.trials} == {1e-4}
    assert {trial.config.train.weight_decay for trial in grid.trials} == {3e-5}


def test_nested_and_dotted_settings_are_the_same(grid_of):
    nested = grid_of("base: {model: {transformer: {num_points: 3}}}" + TWO_ROWS)
    dotted = grid_of("base: {model.transformer.num_points: 3}" + TWO_ROWS)
    mixed = grid_of("base: {model: {transformer.num_points: 3}}" + TWO_ROWS)
    assert nested.trials == dotted.trials == mixed.trials


def test_heads_by_name_and_by_mapping(grid_of):
    grid = grid_of("rows: [{label: a, set: {model.heads: [atss, {name: atss, num_convs: 0}]}}]")
    config = HEADS["atss"].Config
    assert grid.trials[0].config.model.heads == (config(), config(num_convs=0))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("base: {model.num_querys: 3}", "base.model.num_querys: unknown key; did you mean 'num_queries'?"),
        ("base: {data.num_train: 3}", "base.data.num_train: unknown key; did you mean 'data.digits.num_train'?"),
        ("base: {modle.num_queries: 3}", "base.modle.num_queries: unknown key; did you mean 'model.num_queries'?"),
        ("titel: x", "titel: unknown key; did you mean 'title'?"),
        ("base: {seed: 3}", "base.seed: unknown key; seeds are given by the file's `seeds` or --seeds"),
        ("base: {model.num_queries: many}", "base.model.num_queries: must be a whole number, got the text 'many'"),
        ("base: {model.num_queries: 40.5}", "base.model.num_queries: must be a whole number, got 40.5"),
        ("base: {model.two_stage: no}", "base.model.two_stage: must be true or false, got the text 'no'"),
        ("base: {model.two_stage: 1}", "base.model.two_stage: must be true or false, got 1"),
        (
            'base: {train.learning_rate: "1e-4"}',
            "base.train.learning_rate: must be a number, got the text '1e-4'; remove the quotes",
        ),
        ("base: {train.learning_rate: .inf}", "base.train.learning_rate: must be finite, got Infinity"),
        ("base: {train.schedule: cosine}", "base.train.schedule: must be 'one_cycle' or 'step', got the text 'cosine'"),
        ("base: {train: 3}", "base.train: must be a mapping (key: value), got 3"),
        ("base: {data.train_short_sides: 160}", "base.data.train_short_sides: must be a list like [1, 2], got 160"),
        ("base: {model.backbone.depths: [1, 1]}", "base.model.backbone.depths: has too few values: [1, 1]"),
        (
            "base: {model.loss_weights.giou: -2}",
            "base.model.loss_weights.giou: giou must not be negative, got -2.0",
        ),
        ("base: {model.lambda1: -1}", "base.model.lambda1: lambda1 must not be negative, got -1.0"),
        (
            "base: {model.heads: [ats]}\nrows: [{label: a}]",
            f"base.model.heads.0: unknown head 'ats'; did you mean 'atss'? known: {', '.join(sorted(HEADS))}",
        ),
        (
            "base: {model.heads: [{name: atss, num_conv: 2}]}\nrows: [{label: a}]",
            "base.model.heads.0.num_conv: unknown key; did you mean 'num_convs'?",
        ),
        (
            "base: {model.heads: [{name: atss, box_weight: -1}]}\nrows: [{label: a}]",
            "base.model.heads.0.box_weight: box_weight must not be negative, got -1.0",
        ),
        (
            "base: {model.heads: atss}\nrows: [{label: a}]",
            "base.model.heads: must be a list of heads such as [atss], or [] for none, got the text 'atss'",
        ),
        (
            "base: {evaluate.branches: [decoder, atss]}\nrows: [{label: a}]",
            'base.evaluate.branches=["decoder", "atss"]: unknown branch "atss" in evaluate.branches; known for these '
            "heads: decoder; model.heads is [] (the default); change it too",
        ),
        ("base: {train.epochs: 3, train: {epochs: 4}}", "base.train.epochs: set twice, nested and dotted; remove one"),
        ("seeds: []", "seeds: seeds are empty, so the grid is empty; write seeds: [0]"),
        ("seeds: [1, 1]", "seeds: seeds must differ, got [1, 1]"),
        ("metrics: [AP, AP80]", "metrics: unknown metric 'AP80'; did you mean 'AP50'?"),
        ("figures: [ap, conflicts]", "figures: unknown figure 'conflicts'; did you mean 'conflict'?"),
        ("baseline: plan", "baseline: 'plan' is not the label of a row; did you mean 'plain'?"),
        ("presets: {digit: {}}", "presets.digit: unknown preset; did you mean 'digits'?"),
        ("axes: {train.epochs: []}", "axes: 'train.epochs' has no values, so the grid is empty; list at least one"),
        ("rows: []", "rows: the grid is empty; add rows or axes"),
        ("rows: [{label: a}, {label: a}]", "rows: each row needs a label of its own; used twice: a"),
        ("rows: [{set: {}}]", "rows.0.label: missing; add it"),
        (
            "rows: [{label: a, published: {AP: high}}]",
            "rows.0.published: AP must be a number, got the text 'high'",
        ),
        (
            "rows: [{label: a, published: {AP: 1}}]\naxes: {train.epochs: [1]}",
            "axes: cannot cross rows that have published numbers; write each combination as a row",
        ),
    ],
)
def test_each_mistake_is_one_clear_line(mistakes_of, line, told):
    text = line if "rows:" in line else line + TWO_ROWS
    assert mistakes_of(text) == [told]


def test_duplicate_key_names_both_lines(mistakes_of):
    told = mistakes_of("base:\n  train:\n    epochs: 3\n    batch_size: 8\n    epochs: 4" + TWO_ROWS)
    assert told == ["5: duplicate key 'epochs' (first on line 3); remove one"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rows: [", "1: not valid YAML: expected the node content, but found '<stream end>'"),
        ("- a\n- b", ' must hold a mapping (key: value lines), got ["a", "b"]'),
    ],
)
def test_unreadable_file(mistakes_of, text, told):
    assert mistakes_of(text) == [told]


def test_empty_file(mistakes_of):
    [line] = mistakes_of("")
    assert "must hold a mapping" in line


def test_missing_file_suggests_a_neighbour(tmp_path):
    (tmp_path / "quickstart.yaml").write_text(TWO_ROWS)
    with pytest.raises(UserError, match=r"quikstart.yaml: no such ablation file; did you mean '.*quickstart.yaml'"):
        read_spec(tmp_path / "quikstart.yaml")


def test_all_mistakes_of_file_preset_and_overrides_come_together(mistakes_of, tmp_path):
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "mine.yaml").write_text("train: {epochs: 0}\nmodel: {numm_queries: 1}")
    told = mistakes_of(
        "titel: x\nbase: {train: {batch_size: eight, weight_decay: -1}}" + TWO_ROWS,
        "train.schedule=cosine",
        "model.lambda2",
        "model.num_queries=[",
        preset="mine",
        seeds=[-1],
    )
    found = "\n".join(told)
    assert len(told) == 9, found
    preset = tmp_path / "presets" / "mine.yaml"
    assert f"{preset}:train.epochs: epochs must be at least 1, got 0" in told
    assert f"{preset}:model.numm_queries: unknown key; did you mean 'num_queries'?" in told
    assert "titel: unknown key; did you mean 'title'?" in told
    assert "base.train.batch_size: must be a whole number, got the text 'eight'" in told
    assert "base.train.weight_decay: weight_decay must not be negative, got -1.0" in told
    assert "--set train.schedule: must be 'one_cycle' or 'step', got the text 'cosine'" in told
    assert "--set model.lambda2: must be key=value, such as --set train.epochs=3" in told
    assert "--set model.num_queries:1: not valid YAML: expected the node content, but found '<stream end>'" in told
    assert "--seeds: seeds must not be negative, got [-1]" in told


def test_a_mistake_that_spoils_a_part_hides_no_other(mistakes_of):
    """A claim without `than` and a row without a label cannot be built; the rest of the file is still looked at."""
    claim = "claims: [{text: t, better: [head], then: plain}]"
    rows = "rows: [{label: plain}, {label: head, set: {model.numm_queries: 9}}]"
    told = mistakes_of(f"{claim}\nseed: [0]\n{rows}\nbaseline: plane")
    found = "\n".join(told)
    assert "claims.0.then: unknown key; did you mean 'than'?" in told, found
    assert "seed: unknown key; did you mean 'seeds'?" in told, found
    assert "rows.1.set.model.numm_queries: unknown key; did you mean 'num_queries'?" in told, found
    assert "baseline: 'plane' is not the label of a row; did you mean 'plain'?" in told, found
    told = mistakes_of(f"{claim}\nrows: [{{labl: plain}}, {{label: head}}]\nbaseline: head\nbase: {{train.epoch: 1}}")
    found = "\n".join(told)
    assert "rows.0.label: missing; add it" in told and "base.train.epoch: unknown key; did you mean 'epochs'?" in told
    assert "not the label" not in found, "rows that cannot be read are not held against the baseline"


def test_labels_with_commas_are_told_in_quotes(mistakes_of):
    [line] = mistakes_of("rows: [{label: a}]\naxes: {model.num_queries: [10, 20]}\nbaseline: none of these")
    assert line.endswith("; known: 'a', 'a, num_queries=10', 'a, num_queries=20'")


def test_mistake_in_a_preset_is_told_once(mistakes_of, tmp_path):
    preset = tmp_path / "own.yaml"
    preset.write_text("train: {epochs: 0}")
    assert mistakes_of(TWO_ROWS, preset=str(preset)) == [f"{preset}:train.epochs: epochs must be at least 1, got 0"]


def test_unknown_preset_lists_the_known_ones(mistakes_of):
    [line] = mistakes_of(TWO_ROWS, preset="zzz")
    assert (
        line
        == "preset 'zzz': unknown preset; known: coco_r50_12e, coco_r50_36e, digits, digits_fast, digits_v1, photos"
    )


def test_a_preset_beside_the_file_wins(grid_of, tmp_path):
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "digits.yaml").write_text("train: {epochs: 77}")
    assert grid_of(TWO_ROWS).trials[0].config.train.epochs == 77


def test_layers(grid_of):
    text = """
base: {train.epochs: 31, train.batch_size: 32, train.learning_rate: 0.5, train.weight_decay: 0.5}
presets: {digits: {train.batch_size: 64, train.learning_rate: 0.25, train.weight_decay: 0.25}}
rows: [{label: a, set: {train.learning_rate: 0.125, train.weight_decay: 0.125}}]
axes: {train.weight_decay: [0.0625]}
"""
    train = grid_of(text).trials[0].config.train
    assert (train.epochs, train.batch_size, train.learning_rate, train.weight_decay) == (31, 64, 0.125, 0.0625)
    assert grid_of(text, "train.weight_decay=1").trials[0].config.train.weight_decay == 1
    assert grid_of(text, preset="digits_fast").trials[0].config.train.batch_size == 32


def test_head_defaults_of_a_preset_reach_every_mention_of_the_head(grid_of):
    text = """
    base: {model.head_defaults: {atss: {top_k: 5, num_convs: 0}}}
    rows: [{label: a, set: {model.heads: [atss, {name: atss, num_convs: 2}]}}]
    """
    trial = grid_of(text).trials[0]
    first, second = trial.config.model.heads
    assert (first.top_k, first.num_convs) == (5, 0)
    assert (second.top_k, second.num_convs) == (5, 2)


def test_labels_leave_a_presets_head_defaults_out(grid_of):
    text = (
        "base: {model.head_defaults: {atss: {top_k: 5}}}\naxes: {model.heads: [[], [atss], [{name: atss, top_k: 9}]]}"
    )
    assert [trial.label for trial in grid_of(text).trials] == ["heads=none", "heads=atss", "heads=atss(top_k=9)"]


def test_mistakes_in_head_defaults_are_told_at_their_place(mistakes_of):
    rows = "rows: [{label: a, set: {model.heads: [atss]}}]"
    told = mistakes_of(f"base: {{model.head_defaults: {{atss: {{topk: 5}}, rcn: {{}}}}}}\n{rows}")
    assert len(told) == 2
    assert "model.head_defaults.atss.topk: unknown key; did you mean 'top_k'?" in told[0]
    assert "model.head_defaults.rcn: unknown head 'rcn'; known: atss" in told[1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("title: !!set {a}\n", "1: not valid YAML"),
        ("title: x\nseeds: !!int [3]\n", "2: not valid YAML"),
        ("title: a\x00b\n", "1: not valid YAML: the character '\\x00' is not allowed"),
        ("title: 2020-01-01 !!timestamp\nrows: [{label: !!binary aGk=}]\n", "2: not valid YAML"),
        ("rows: [{label: a, 3: x}]\n", "1: key 3 is no text"),
        ("rows: [{label: a, published: {AP: .nan}}]\n", "rows.0.published: AP must be a number"),
        (f"rows: [{{label: a, published: {{AP: 1{'0' * 400}}}}}]\n", "rows.0.published: AP must be a number"),
        ("name: ../elsewhere\nrows: [{label: a}]\n", "name: must be up to 100 letters"),
        (f"rows: [{{label: a}}]\nseeds: [{2**63}]\n", "seeds: seeds must be below 2^63"),
    ],
)
def test_what_yaml_can_say_and_an_ablation_cannot(tmp_path, text, told):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_spec(path)
    assert told in str(caught.value) and str(path) in str(caught.value)


# ---- settings of a row under one preset


def test_a_row_may_differ_by_preset(grid_of):
    text = """
rows:
  - label: few
    set: {model.num_queries: 10, model.heads: [atss]}
    presets: {digits: {model.num_queries: 13}, coco_r50_12e: {model.num_queries: 101}}
  - {label: many, set: {model.num_queries: 45}}
"""

    def queries(**options):
        return [trial.config.model.num_queries for trial in grid_of(text, **options).trials]

    assert queries() == [13, 45]
    assert queries(preset="digits_fast") == [10, 45]
    assert [trial.config.model.num_queries for trial in grid_of(text, "model.num_queries=7").trials] == [7, 7]


def test_presets_of_a_row_are_checked(mistakes_of):
    text = "rows: [{label: a, presets: {digit: {}, digits: {model.num_querys: 3}}}]"
    assert mistakes_of(text) == [
        "rows.0.presets.digit: unknown preset; did you mean 'digits'?",
        "rows.0.presets.digits.model.num_querys: unknown key; did you mean 'num_queries'?",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rows: &a\n  - {label: x, published: *a}\n", ":2: not valid YAML: *a stands inside what it repeats"),
        (
            "search: {space: {model.lambda1: {uniform: [0.5, 2.0]}}, num_trials: 10000000}\n",
            ":search.num_trials: must be at most 5,000, got 10000000",
        ),
        ("rows: [{label: x}]\nmetrics: [AP, AP50, AP]\n", ":metrics: AP stands there twice; remove one"),
    ],
)
def test_what_repeats_itself_is_told(tmp_path, text, told):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        open_grid(path, "digits")
    assert str(caught.value) == f"{path}{told}"
