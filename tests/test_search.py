"""Searches: what a file may say, what is drawn, what is stopped early, and that nothing of it is lost or mistaken
for a finished trial."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.__main__ import main
from harness.errors import UserError
from harness.report import grid_text
from harness.schedule.schedule import run_grid
from harness.spec import space
from harness.spec.grid import Grid, Trial, open_grid
from harness.store.results import RunStore
from harness.store.suggestions import note_suggestion, suggested, suggestions_file
from harness.tracking import tracking
from tests.support.curves import EPOCHS, ap_after, height, run_curve
from tests.support.fakes import entry, record

ROOT = Path(__file__).parents[1]
SPACE = "train.learning_rate: {uniform: [0.001, 0.005]}, model.num_queries: {choice: [20, 40]}"
needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="optuna is not installed")


def no_check(*_: Any) -> None:
    pass


@pytest.fixture
def file(tmp_path: Path):
    """Writes a search with these options; returns the file."""

    def write(text: str = "", ranges: str = SPACE, outside: str = "") -> Path:
        path = tmp_path / "weights.yaml"
        path.write_text(f"search: {{space: {{{ranges}}}, num_trials: 6{text}}}\n{outside}")
        return path

    return write


@pytest.fixture
def search_of(file):
    def open_text(text: str = "", ranges: str = SPACE, outside: str = "", **options: Any) -> Grid:
        return open_grid(file(text, ranges, outside), "digits_fast", **options)

    return open_text


def end(store: RunStore, trial: Trial, epochs: int, status: str) -> None:
    """Leave the record of a trial that came so far."""
    for epoch in range(1, epochs + 1):
        store.append_metrics(trial.trial_id, {**entry(trial, epoch), "AP": ap_after(trial, epoch)})
    record(store, trial, status)


# ---- what a file may say


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"text": ", nun_trials: 3"}, "search.nun_trials: unknown key; did you mean 'num_trials'?"),
        ({"ranges": ""}, "search.space: is empty; name a setting, such as model.lambda1: {uniform: [0.5, 2.0]}"),
        ({"text": ", metric: AP80"}, "search.metric: unknown metric 'AP80'; did you mean 'AP50'?"),
        ({"text": ", metric: loss"}, "search.mode: a lower loss is better; write mode: min"),
        ({"text": ", mode: min"}, "search.mode: a higher AP is better; write mode: max"),
        (
            {"text": ", scheduler: hyperband"},
            "search.scheduler: must be 'none' or 'asha', got the text 'hyperband'",
        ),
        ({"text": ", reduction_factor: 1"}, "search.reduction_factor: must be at least 2, got 1"),
        ({"text": ", grace_epochs: 0"}, "search.grace_epochs: must be at least 1, got 0"),
        (
            {"outside": "axes: {train.epochs: [1, 2]}"},
            "axes: cannot stand beside search, whose table is a ranking; remove axes, or search",
        ),
        (
            {"outside": "rows: [{label: a}]"},
            "rows: cannot stand beside search, whose table is a ranking; remove rows, or search",
        ),
        ({"outside": "seeds: [0, 1]"}, "seeds: a search trains each suggestion once: give one seed, not [0, 1]"),
        (
            {"ranges": "model.lamda1: {uniform: [0, 1]}"},
            "search.space.model.lamda1: unknown key; did you mean 'lambda1'?",
        ),
        (
            {"ranges": "model.lambda1: {uniform: [-1, 1]}"},
            "search.space.model.lambda1: lambda1 must not be negative, got -1.0",
        ),
        (
            {"ranges": "model.heads: {choice: [[atss], [rcnn]]}"},
            "search.space.model.heads.0: unknown head 'rcnn'; did you mean 'mask_rcnn'? known: ",
        ),
        (
            {"ranges": "model.lambda1: {uniform: [2, 2]}"},
            "search.space: model.lambda1: the range is empty; low must be below high, got [2, 2]",
        ),
        (
            {"ranges": "model.lambda1: {log_uniform: [0, 2]}"},
            "search.space: model.lambda1: log_uniform needs a positive range, got [0, 2]",
        ),
        (
            {"ranges": "model.lambda1: {uniform: [1]}"},
            "search.space: model.lambda1: uniform needs two numbers [low, high], got [1]",
        ),
        (
            {"ranges": "model.num_queries: {integer: [1.5, 3]}"},
            "search.space: model.num_queries: integer needs two whole numbers [low, high], got [1.5, 3]",
        ),
        (
            {"ranges": "model.num_queries: {choice: [3]}"},
            "search.space: model.num_queries: a choice needs at least two values, got [3]",
        ),
        (
            {"ranges": "model.num_queries: {choice: [3, 3]}"},
            "search.space: model.num_queries: the values of a choice must differ, got [3, 3]",
        ),
        (
            {"ranges": "model.lambda1: {unifrm: [1, 2]}"},
            "search.space: model.lambda1: unknown range 'unifrm'; did you mean 'uniform'?",
        ),
        (
            {"ranges": "model.lambda1: {uniform: [1, 2], choice: [1, 2]}"},
            "search.space: model.lambda1: must have one range, such as {uniform: [0.5, 2.0]}, got ",
        ),
        (
            {"ranges": "runtime.num_workers: {choice: [0, 1]}"},
            "search.space: runtime.num_workers: runtime settings change no result; search over others",
        ),
    ],
)
def test_each_mistake_is_one_clear_line(file, options, told):
    path = file(**options)
    with pytest.raises(UserError) as caught:
        open_grid(path, "digits_fast")
    [line] = str(caught.value).replace(f"{path}:", "").splitlines()
    assert line.startswith(told)


def test_a_searched_setting_cannot_be_set_as_well(search_of):
    with pytest.raises(UserError, match="--set train.learning_rate: .* searches over it; take it out of search.space"):
        search_of(overrides=["train.learning_rate=1"])


# ---- what is drawn


def test_the_same_seed_draws_the_same_trials(search_of):
    grid = search_of()
    assert [trial.trial_id for trial in search_of().trials] == [trial.trial_id for trial in grid.trials]
    assert len(grid.trials) == len({trial.trial_id for trial in grid.trials}) == 6
    other = search_of(", seed: 1").trials
    assert not {trial.trial_id for trial in other} & {trial.trial_id for trial in grid.trials}


def test_more_trials_continue_the_draws():
    def draws(number: int) -> list[space.Values]:
        ranges = {"a": {"log_uniform": (1e-4, 1e-2)}, "b": {"choice": ("x", "y")}}
        return space.drawn(space.SearchSpec(space=ranges, num_trials=number))

    assert draws(40)[:7] == draws(7)


def test_values_lie_in_their_range_and_are_rounded():
    ranges = {
        "a": {"uniform": (0.25, 4.0)},
        "b": {"log_uniform": (1e-4, 1e-2)},
        "c": {"integer": (20, 22)},
        "d": {"uniform": (1000.0, 1001.0)},
    }
    drawn = space.drawn(space.SearchSpec(space=ranges, num_trials=200))
    columns = {key: [values[key] for values in drawn] for key in ranges}
    for key, bounds in {"a": (0.25, 4.0), "b": (1e-4, 1e-2), "c": (20, 22), "d": (1000.0, 1001.0)}.items():
        assert bounds[0] <= min(columns[key]) and max(columns[key]) <= bounds[1]
    assert all(value == round(value, 3) for value in columns["a"] + columns["d"])
    assert all(value == float(f"{value:.3e}") for value in columns["b"])
    assert set(columns["c"]) == {20, 21, 22} and all(isinstance(value, int) for value in columns["c"])
    assert sum(value < 1e-3 for value in columns["b"]) == pytest.approx(100, abs=30)  # half of the decades
    assert len(set(columns["d"])) > 150


def test_a_suggestion_is_an_ordinary_trial(search_of, file, tmp_path):
    trial = search_of().trials[0]
    rate, queries = trial.config.train.learning_rate, trial.config.model.num_queries
    values = {"train.learning_rate": rate, "model.num_queries": queries}
    text = ", ".join(f"{key}: {value}" for key, value in values.items())
    path = tmp_path / "table.yaml"
    path.write_text(f"rows: [{{label: same, set: {{{text}}}}}]")
    assert open_grid(path, "digits_fast").trials[0].trial_id == trial.trial_id
    assert trial.factors == {**values, "seed": 0}
    assert trial.label == f"learning_rate={rate:g} num_queries={queries}"


def test_a_small_space_says_how_many_trials_it_holds(search_of):
    grid = search_of(ranges="model.num_queries: {choice: [20, 30]}, train.epochs: {choice: [1, 2]}")
    assert len(grid.trials) == 4
    assert any("holds only 4 trials that differ" in note for note in grid.notes)


def test_lists_can_be_chosen_from(search_of):
    grid = search_of(ranges="model.heads: {choice: [[], [atss], [atss, fcos]]}")
    assert {trial.label for trial in grid.trials} == {"heads=none", "heads=atss", "heads=atss+fcos"}


def test_plan_shows_the_draws_and_the_search(file, store, capsys):
    path = file(", algorithm: optuna, scheduler: asha", outside="").as_posix()
    Path(path).write_text(Path(path).read_text().replace("num_trials: 6", "num_trials: 14"))
    assert main(["plan", path, "--preset", "digits_fast"]) == 0
    out = capsys.readouterr().out
    assert out.count("learning_rate=") == 10  # a trial's row says what it sets
    assert "10 trials: 10 pending, 4 to be suggested" in out
    assert "chosen by Optuna after 10 drawn at random (seed 0) from train.learning_rate uniform [0.001, 0.005]" in out


# ---- what was suggested is not forgotten


@pytest.fixture
def optuna_search(search_of, monkeypatch: pytest.MonkeyPatch) -> Grid:
    """6 trials, of which 3 are drawn at random."""
    monkeypatch.setattr(space, "STARTUP", 3)
    return search_of(", algorithm: optuna")


def test_suggestions_are_kept_in_the_store(optuna_search, store):
    values = {"train.learning_rate": 0.0015, "model.num_queries": 20}
    grown = note_suggestion(optuna_search, store, values)
    assert len(grown.trials) == 4 and grown.num_unknown == 2
    assert suggested(optuna_search, store).trials == grown.trials
    assert len(note_suggestion(optuna_search, store, values).trials) == 4  # known already
    for number in range(4):
        grown = note_suggestion(grown, store, {**values, "train.learning_rate": 0.002 + number / 1e4})
    assert len(grown.trials) == 6 and suggested(optuna_search, store).trials == grown.trials  # no more than wanted


def test_an_unreadable_list_of_suggestions_says_what_to_do(optuna_search, store):
    path = suggestions_file(store, optuna_search)
    path.parent.mkdir(parents=True)
    path.write_text("[{")
    with pytest.raises(UserError, match="move the file away"):
        suggested(optuna_search, store)


@needs_optuna
def test_optuna_goes_on_after_a_kill_with_what_is_known(optuna_search, store):
    """Suggests as long as trials are wanted, in two launches, and learns from both."""
    from harness.schedule.tuner import Suggestions

    seen: list[str] = []

    def launch(limit: int) -> int:
        """Up to `limit` trials, then the driver dies."""
        grid = suggested(optuna_search, store)
        pending = [trial for trial in grid.trials if store.status(trial.trial_id) != "finished"]
        grids = [grid]
        source = Suggestions(grid, pending, grid.num_unknown, store, grids.append)
        for number in range(limit):
            config = source.suggest(f"ray{number}")
            if config == Suggestions.FINISHED:
                return number
            trial = next(t for t in grids[-1].trials if t.trial_id == config["trial"])
            seen.append(trial.trial_id)
            end(store, trial, EPOCHS, "finished")
            source.on_trial_complete(f"ray{number}", {})
        source.suggest("begun and never heard of again")
        return limit

    assert launch(4) == 4
    assert launch(9) == 2  # the one that was begun, and one more
    assert len(seen) == len(set(seen)) == 6
    assert set(seen) == {trial.trial_id for trial in suggested(optuna_search, store).trials}
    assert launch(9) == 0


@needs_optuna
def test_optuna_learns_from_the_store(search_of, store, monkeypatch: pytest.MonkeyPatch):
    """With many finished and pruned trials behind it, it suggests near the best."""
    from harness.schedule.tuner import Suggestions

    monkeypatch.setattr(space, "STARTUP", 30)
    path = search_of(", algorithm: optuna, scheduler: asha")
    spec = path.search.spec.model_copy(update={"num_trials": 50})
    grid = path
    for values in space.drawn(spec):
        grid = grid.suggest(values)
    grid = Grid(**{**vars(grid), "search": SimpleNamespace(**{**vars(grid.search), "spec": spec})})
    for trial in grid.trials:
        best = abs(trial.config.train.learning_rate - 0.003) < 0.001
        end(store, trial, EPOCHS if best else 1, "finished" if best else "pruned")
    monkeypatch.setattr("harness.schedule.tuner.note_suggestion", lambda grid, store, values: grown(grid, values))
    found: list[float] = []

    def grown(grid: Any, values: Any) -> Any:
        found.append(values["train.learning_rate"])
        trial, _ = grid.search.make(values)
        search = SimpleNamespace(**{**vars(grid.search), "values": {**grid.search.values, trial.trial_id: values}})
        return Grid(**{**vars(grid), "trials": (*grid.trials, trial), "search": search})

    source = Suggestions(grid, [], 20, store, lambda _: None)
    for number in range(20):
        source.suggest(str(number))
    assert sum(abs(value - 0.003) < 0.001 for value in found) >= 14  # at random: half of them


# ---- early stopping


def test_asha_marks_those_that_lag_behind_also_after_a_restart(search_of, store, tmp_path):
    from harness.schedule.tuner import Pruning, marker

    grid = search_of(", scheduler: asha")
    ordered = sorted(grid.trials, key=height, reverse=True)
    for trial in ordered[:3]:  # by an earlier launch
        end(store, trial, EPOCHS, "finished")
    scheduler = Pruning(grid, store, tmp_path)

    def told(trial: Trial, epoch: int) -> bool:
        ray_trial = SimpleNamespace(trial_id="ray's own", config={"trial": trial.trial_id})
        result = {"epoch": epoch, "value": ap_after(trial, epoch)}
        assert scheduler.on_trial_result(None, ray_trial, result) == scheduler.CONTINUE
        return marker(tmp_path, trial.trial_id).exists()

    assert not told(ordered[0], 3)  # its own numbers are no rivals
    assert told(ordered[-1], 1)
    better = SimpleNamespace(trial_id="x", config={"trial": "x"})
    scheduler.on_trial_result(None, better, {"epoch": 1, "value": 99.0})
    assert not marker(tmp_path, "x").exists()


def test_a_pruned_trial_fills_no_cell_and_is_ranked_after_the_finished(search_of, store):
    grid = search_of(", scheduler: asha")
    ordered = sorted(grid.trials, key=height, reverse=True)
    end(store, ordered[0], EPOCHS, "finished")
    end(store, ordered[3], EPOCHS, "finished")
    end(store, ordered[1], 3, "pruned")
    end(store, ordered[2], 1, "pruned")
    text = grid_text(grid, [store.read(trial.trial_id) for trial in ordered[:4]])
    rows = [line for line in text.splitlines() if line.startswith("learning_rate=")]
    assert [row.split("  ")[0] for row in rows[:4]] == [ordered[i].label for i in (0, 3, 1, 2)]
    assert f"{ap_after(ordered[0], EPOCHS):.1f}" in rows[0]
    assert "0 of 1  – [" in rows[2] and f"{ap_after(ordered[1], 3):.1f}" not in text
    assert "pruned after 3 epochs" in text and "pruned after 1 epoch:" in text
    assert "train it with other seeds before you report it" in " ".join(text.split())


def test_a_search_for_the_lowest_loss_is_ranked_by_it(search_of, store):
    grid = search_of(", metric: loss, mode: min")
    for trial, epochs in zip(grid.trials, (3, 9, 6), strict=False):  # the fakes' loss is 10 / epoch
        end(store, trial, epochs, "finished")
    text = grid_text(grid, [store.read(trial.trial_id) for trial in grid.trials[:3]])
    rows = [line.split() for line in text.splitlines() if line.startswith("learning_rate=")]
    assert [row[3] for row in rows[:3]] == ["1.11", "1.67", "3.33"]


def test_a_grid_trains_a_pruned_trial_to_its_end(search_of, store, monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "available", lambda: False)
    trial = search_of().trials[0]
    end(store, trial, 3, "pruned")
    grid = search_of()  # without asha, nothing may be given up
    summary = run_grid(grid, store, executor="local", run_trial=run_curve, check_data=no_check, out=[].append)
    assert len(summary.finished) == 6 and summary.pruned == ()
    assert [line["epoch"] for line in store.metrics(trial.trial_id)] == list(range(1, EPOCHS + 1))


def test_what_a_search_needs_is_told_before_anything_starts(search_of, store, monkeypatch):
    for text in (", scheduler: asha", ", algorithm: optuna"):
        with pytest.raises(UserError, match="needs Ray; leave --executor local out"):
            run_grid(search_of(text), store, executor="local", run_trial=run_curve, check_data=no_check)
    monkeypatch.setattr("harness.schedule.schedule.find_spec", lambda name: None)
    with pytest.raises(UserError, match="algorithm: optuna needs optuna; pip install"):
        run_grid(search_of(", algorithm: optuna"), store, run_trial=run_curve, check_data=no_check)
    assert not store.root.exists()


@pytest.mark.ray
@needs_optuna
def test_a_search_on_ray_from_beginning_to_end(
    optuna_search, search_of, store, tracking_store, monkeypatch: pytest.MonkeyPatch
):
    """Three random trials, three of Optuna's; ASHA gives up some; all of it reaches MLflow and nothing is repeated."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the workers
    lines: list[str] = []
    options = {"run_trial": run_curve, "check_data": no_check, "out": lines.append}
    first = search_of(", algorithm: optuna, scheduler: asha", overrides=["runtime.cpus_per_trial=0.5"])
    summary = run_grid(first, store, concurrent=2, **options)
    grid = suggested(first, store)
    ids = {trial.trial_id for trial in grid.trials}
    assert len(ids) == 6 and grid.num_unknown == 0
    assert set(summary.finished) | set(summary.pruned) == ids and summary.finished and summary.pruned, lines
    for trial_id in summary.pruned:
        assert (store.read(trial_id) or {})["status"] == "pruned" and len(store.metrics(trial_id)) < EPOCHS
        assert not (store.dir(trial_id) / "lease.json").exists()
    assert any("pruned  after epoch 1" in line for line in lines) and any(
        " 6/6  learning_rate=" in line for line in lines
    )
    told = tracking.read_records([trial.trial_id for trial in grid.trials])
    assert {r["trial_id"] for r in told if r["status"] == "pruned"} == set(summary.pruned)
    assert len(tracking.read_suggestions(grid.search.key)) == 6
    before = {trial_id: store.metrics(trial_id) for trial_id in ids}
    again = run_grid(first, store, **options)
    assert set(again.skipped) | set(again.pruned) == ids and not again.finished
    assert {trial_id: store.metrics(trial_id) for trial_id in ids} == before
