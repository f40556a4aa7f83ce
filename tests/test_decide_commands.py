"""The commands around `codetr decide`: what they print, and what report, export and others take of its looks."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.__main__ import main
from harness.decide import kept, told
from harness.decide.rounds import counted, decide, seconds_of
from harness.decide.sound import contradiction
from harness.errors import UserError
from harness.report.cells import percent
from harness.report.frames import read_frames
from harness.spec.grid import Grid, open_grid
from harness.store.decisions import path_of, take
from harness.store.parcel import Refused
from harness.store.results import RunStore
from tests.support.decided_grid import FILE, ap_of, finish, grid_of, prepared, settled, trainer, verdicts


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return prepared(tmp_path, monkeypatch)


def test_the_commands_tell_how_claims_stand(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, store = grid_of(file), RunStore()
    monkeypatch.setattr(
        "harness.schedule.schedule.run_grid", lambda grid, store, only, **_: [finish(store, grid, key) for key in only]
    )
    assert main(["plan", str(file), "--decide"]) == 0
    told_before = capsys.readouterr().out
    assert "next look at 3 seeds, 6 trials to run" in told_before and "3 seeds at 99.9 %" in told_before
    assert "next: 12 trials for looks at 3 seeds" in told_before
    assert main(["decide", str(file), "--budget", "1s"]) == 0
    first = capsys.readouterr()
    assert "stopped: the budget has no room for the next look" in first.err and "no look has told yet" in first.err
    assert "trials to run, which the budget has no room for" in " ".join(first.out.split())
    assert "open" in first.out and "reproduced" in first.out
    assert main(["decide", str(file)]) == 0
    told_after = capsys.readouterr().out
    assert "A clear gain" in told_after and "at 99.9 %" in told_after and "4 claims: " in told_after
    assert main(["status"]) == 0
    lines = capsys.readouterr().out
    assert "claims (digits)  claims" in lines and "A clear gain: reproduced at 3 seeds" in lines
    assert main(["status", str(file)]) == 0
    assert "A clear gain: reproduced at 3 seeds" in capsys.readouterr().out
    assert main(["plan", str(file), "--decide"]) == 0
    assert "every claim is settled" in capsys.readouterr().out
    heading, own = told.of_file(path_of(grid, store))
    assert heading == "claims (digits)" and len(own) == 4


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["decide", "FILE", "--seeds", "0,1"], "leave out --seeds"),
        (["decide", "FILE", "--max-seeds", "2"], "max_seeds must be from 3 to 24, got 2"),
        (["decide", "FILE", "--max-seeds", "99"], "max_seeds must be from 3 to 24, got 99"),
        (["plan", "FILE", "--decide", "--only", "heads=atss"], "leave out --seeds and --only"),
    ],
)
def test_mistakes_are_one_line(words: list[str], error: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file) if word == "FILE" else word for word in words]) == 2
    told_line = capsys.readouterr().err
    assert error in told_line and told_line.count("\n") == 1


@pytest.mark.parametrize("text", ["6", "h", "-1h", "0m", "nan", "infh", "sixh"])
def test_a_budget_is_a_time(text: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["decide", str(file), f"--budget={text}"])
    assert ended.value.code == 2 and "must be a time such as 6h" in capsys.readouterr().err


def test_a_file_without_claims(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(FILE[: FILE.index("claims:\n")])
    assert main(["decide", str(file)]) == 2
    assert "states no claim" in capsys.readouterr().err


def test_the_file_says_how_many_seeds(file: Path) -> None:
    file.write_text(FILE + "decide: {max_seeds: 5}\n")
    assert grid_of(file).max_seeds == 5
    file.write_text(FILE + "decide: {max_seed: 5}\n")
    with pytest.raises(UserError, match=r"unknown.*did you mean 'max_seeds'"):
        grid_of(file)
    file.write_text(FILE + "decide: {max_seeds: 2}\n")
    with pytest.raises(UserError, match="must be from 3 to 24"):
        grid_of(file)


def test_only_one_process_decides(file: Path) -> None:
    grid, store = grid_of(file), RunStore()

    def run(ids: Sequence[str]) -> None:
        with pytest.raises(UserError, match="another process is deciding its claims"):
            decide(grid, store, lambda ids: None)
        for key in ids:
            finish(store, grid, key)

    decide(grid, store, run)


def test_the_kept_file_holds_looks_and_differences(file: Path) -> None:
    decision, _, store, grid = settled(file)
    content = json.loads(path_of(grid, store).read_text())
    assert content["looks"]["seeds"] == [3, 5, 7, 9, 12] and sum(content["looks"]["alphas"]) == pytest.approx(0.05)
    own = content["claims"][0]["pairs"]["clear"]
    ids = {row.label: row.trial_ids for row in grid.rows}
    assert [pair[:2] for pair in own] == [[ids["clear"][seed], ids["none"][seed]] for seed in range(3)]
    assert [pair[2] for pair in own] == [pytest.approx(ap_of("clear", seed) - ap_of("none", seed)) for seed in range(3)]
    assert kept.read(grid, store) == decision


def test_a_report_and_an_export_take_the_seeds_that_were_looked_at(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(FILE.replace("name: claims", "name: looks"))
    grid, store, asked = grid_of(file), RunStore(), []
    decide(grid, store, trainer(store, grid, asked))
    counts = {row.label: sum(key in asked for key in row.trial_ids) for row in grid.rows}
    assert len(set(counts.values())) > 1
    assert main(["report", str(file), "--from", "records", "--out", str(tmp_path / "out"), "--format", "html,md"]) == 0
    text = (tmp_path / "out" / "looks.md").read_text(encoding="utf-8")
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")]
    assert {row[1].split(" ")[0]: row[2] for row in cells[2:]} == {label: str(n) for label, n in counts.items()}
    assert "not run yet" not in text and "as many seeds as each row's claims took, 3 to" in text
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"1 table asks for {len(set(asked))} trainings. {len(set(asked))} have finished." in page
    assert main(["report", str(file), "--seeds", "0", "--from", "records", "--out", str(tmp_path / "one")]) == 0
    capsys.readouterr()
    assert main(["export", str(file), "--out", str(tmp_path / "records.zip")]) == 0
    assert f"{len(set(asked))} records" in capsys.readouterr().out


def test_a_budget_is_one_for_all_files(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second file's rows are others, so that none of its trials was finished by the first."""
    second = file.with_name("second.yaml")
    second.write_text(FILE.replace("name: claims", "name: second").replace("num_train: 8", "num_train: 12"))
    store = RunStore()

    def run_grid(grid: Grid, _: RunStore, *, only: set[str], **options: Any) -> None:
        for key in sorted(only):
            finish(store, grid, key)

    monkeypatch.setattr("harness.schedule.schedule.run_grid", run_grid)
    assert main(["decide", str(file)]) == 0
    first = kept.read(grid_of(file), store)
    seconds = seconds_of(counted(first), store)
    for path in store.root.glob("grids/*/decide.*.json"):
        path.unlink()
    for key in store.trials():
        (store.dir(key) / "result.json").unlink()
    assert main(["decide", str(file), str(second), "--budget", f"{seconds:.0f}s"]) == 0
    told_first, told_second = capsys.readouterr().out.split("Claims: claims")[-2:]
    assert "budget has no room" not in told_first and "budget has no room" in told_second
    assert verdicts(kept.read(grid_of(file), store)) == verdicts(first)


def test_a_training_that_files_share_costs_once(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    second, trained = file.with_name("second.yaml"), []
    second.write_text(FILE.replace("name: claims", "name: second").replace("[fcos]", "[retinanet]"))

    def run_grid(grid: Grid, store: RunStore, *, only: set[str], **options: Any) -> None:
        for key in sorted(only):
            trained.append(key)
            finish(store, grid, key)

    monkeypatch.setattr("harness.schedule.schedule.run_grid", run_grid)
    for budgets in (["1s", "2.15h"], ["2.15h"]):  # first looks run whatever the budget: both files are begun
        monkeypatch.setenv("CODETR_STORE", str(file.parent / f"store of {len(budgets)}"))
        trained.clear()
        for budget in budgets:
            assert main(["decide", str(file), str(second), "--budget", budget]) == 0
        assert len(trained) == len(set(trained)) == 21


def test_a_report_of_named_seeds_and_of_rows_without_claims_tells_what_is_missing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = "  - {label: beside, set: {model.heads: [paa]}}\nbaseline"
    file.write_text(FILE.replace("name: claims", "name: looks\nseeds: [0, 1, 2]").replace("baseline", extra, 1))
    grid, store = grid_of(file), RunStore()
    decide(grid, store, trainer(store, grid, []))
    finish(store, grid, grid.rows[4].trial_ids[0])

    def rows(*words: str) -> dict[str, str]:
        assert main(["report", str(file), "--from", "records", "--out", str(tmp_path), "--format", "md", *words]) == 0
        lines = (tmp_path / "looks.md").read_text(encoding="utf-8").splitlines()
        cells = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("|")]
        return {row[1].split(" ")[0]: row[2].split("<")[0].strip() for row in cells[2:]}

    assert rows()["clear"] == "3" and rows()["beside"] == "1 of 3"
    assert rows("--seeds", "0,1,2,3")["clear"] == "3 of 4"
    assert rows("--seeds", "0,1,2")["clear"] == "3"


def test_what_is_kept_of_looks_travels_with_the_records(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decision, _, store, grid = settled(file)
    assert main(["export", str(file), "--out", str(tmp_path / "records.zip")]) == 0
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "there"))
    name = path_of(grid, store).relative_to(store.root)
    with zipfile.ZipFile(tmp_path / "records.zip") as archive:
        data = archive.read(str(name))
    assert take(RunStore(), str(name), data) and not take(RunStore(), str(name), data), "the same is here"
    assert kept.read(grid_of(file), RunStore()) == decision
    shorter = json.loads(data)
    for own in shorter["claims"]:
        own["pairs"] = {row: pairs[:3] for row, pairs in own["pairs"].items()}
    assert not take(RunStore(), str(name), json.dumps(shorter).encode()), "what is here goes further"
    (tmp_path / "there" / name).write_text(json.dumps(shorter))
    assert take(RunStore(), str(name), data), "what comes goes further"
    shorter["claims"][0]["pairs"]["clear"][0][2] += 1
    with pytest.raises(Refused, match="other looks were taken here"):
        take(RunStore(), str(name), json.dumps(shorter).encode())
    assert take(RunStore(), str(name), json.dumps(shorter).encode(), replace=True)
    with pytest.raises(Refused, match="is damaged"):
        take(RunStore(), str(name), data[:-30])


def test_what_was_finished_of_a_later_file_costs_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    second = file.with_name("second.yaml")
    second.write_text(FILE.replace("name: claims", "name: second").replace("num_train: 8", "num_train: 12"))
    other, store = grid_of(second), RunStore()
    for row in other.rows:
        for key in row.trial_ids[:3]:
            finish(store, other, key)
    trained = []

    def run_grid(grid: Grid, store: RunStore, *, only: set[str], **options: Any) -> None:
        trained.extend(only)
        for key in sorted(only):
            finish(store, grid, key)

    monkeypatch.setattr("harness.schedule.schedule.run_grid", run_grid)
    assert main(["decide", str(file), str(second), "--budget", "1.1h"]) == 0
    assert len({*trained} & {key for row in grid_of(file).rows for key in row.trial_ids}) == 12


def test_nothing_asks_for_trials_that_no_look_asked_for(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def run_grid(grid: Grid, store: RunStore, *, only: set[str], **options: Any) -> None:
        asked.append(({trial.trial_id for trial in grid.trials}, grid.command))
        for key in only:
            finish(store, grid, key)

    monkeypatch.setattr("harness.schedule.schedule.run_grid", run_grid)
    assert main(["decide", str(file), "--set", "train.epochs=2"]) == 0
    assert [len(trials) for trials, _ in asked] == [12, 16]
    assert {command for _, command in asked} == {f"codetr decide {file} --set train.epochs=2"}


def test_looks_and_records_arrive_together(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decision, _, store, grid = settled(file)
    name = str(path_of(grid, store).relative_to(store.root))
    data = (store.root / name).read_bytes()
    there = RunStore(tmp_path / "there")
    with pytest.raises(Refused, match="the records are not here"):
        take(there, name, data, contradiction=lambda kept: contradiction(kept, there))
    for key in store.trials():
        finish(there, grid, key)
    changed = grid.rows[1].trial_ids[0]
    finish(there, grid, changed, metrics={"AP": 1.0})
    with pytest.raises(Refused, match="saw other numbers than the records here have, of 2 pairs"):
        take(there, name, data, contradiction=lambda kept: contradiction(kept, there))
    finish(there, grid, changed)
    assert take(there, name, data, contradiction=lambda kept: contradiction(kept, there))
    assert kept.read(grid, there) == decision


def test_an_export_writes_over_no_other_looks(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, store, grid = settled(file)
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "early"))
    early = RunStore()
    decide(grid, early, trainer(early, grid, []), budget=1.0)
    before = path_of(grid, store).read_bytes()
    assert main(["export", str(file), "--out", str(store.root)]) == 0
    assert path_of(grid, store).read_bytes() == before, "what lies there goes further"
    content = json.loads(path_of(grid, early).read_text())
    content["claims"][0]["pairs"]["clear"][0][2] += 1
    path_of(grid, early).write_text(json.dumps(content))
    assert main(["export", str(file), "--out", str(store.root)]) == 2
    assert "other looks were taken here" in capsys.readouterr().err
    path_of(grid, early).write_text('{"schema": 2, "max_seeds": 5}')
    assert main(["export", *early.trials(), "--out", str(tmp_path / "records.zip")]) == 0
    assert "is damaged" in capsys.readouterr().err


def test_who_reads_the_numbers_has_those_seeds_too(file: Path) -> None:
    _, asked, _, _ = settled(file)
    found = read_frames(file, source="records").trials
    assert set(found[found["status"] == "finished"]["trial_id"]) == set(asked)
    assert set(read_frames(file, seeds=[0], source="records").trials["seed"]) == {0}


@pytest.mark.parametrize(
    ("confidence", "words"),
    [(0.95, "95 %"), (0.999, "99.9 %"), (1 - 0.001 / 2, "99.95 %"), (1 - 0.001 / 3, "99.967 %")],
)
def test_no_interval_is_certain(confidence: float, words: str) -> None:
    assert percent(confidence) == words


def test_variants_of_a_file_are_told_apart(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settled(file)
    grid, store = open_grid(file, overrides=["train.epochs=3"], seeds=range(12)), RunStore()
    decide(grid, store, trainer(store, grid, []))
    assert main(["status"]) == 0
    told_lines = capsys.readouterr().out
    assert "claims (digits)  claims" in told_lines and "claims (digits, train.epochs=3)  claims" in told_lines
