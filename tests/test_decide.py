"""`codetr decide`: seeds go where claims are open, kills change nothing, and what was planned stays."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.__main__ import main
from harness.decide import kept, told
from harness.decide.rounds import NO_ROOM, counted, decide, hours, next_round, seconds_of
from harness.errors import UserError
from harness.report.verdicts import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from harness.spec.grid import Grid, open_grid
from harness.store.decisions import LEASE, load, path_of
from harness.store.results import RunStore
from tests.support.decided_grid import FILE, finish, grid_of, prepared, settled, trainer, verdicts


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return prepared(tmp_path, monkeypatch)


def test_seeds_go_where_claims_are_open(file: Path) -> None:
    decision, asked, store, grid = settled(file)
    found = verdicts(decision)
    assert found["A clear gain"] == REPRODUCED and found["Two gains"] == NOT_REPRODUCED
    assert found["A small gain"] in (UNDECIDED, REPRODUCED)
    assert len(asked) == len(set(asked)), "nothing trains twice"
    rows = {row.label: sum(key in asked for key in row.trial_ids) for row in grid.rows}
    looks = {own.claim.text: own.course(decision.looks).look for own in decision.questions}
    assert looks["A clear gain"] == 3 and rows["clear"] == 3, "a settled row takes no more seeds"
    assert rows["none"] == max(filter(None, looks.values())) >= rows["small"] >= 5
    assert all(own.course(decision.looks).next_look is None for own in decision.questions)


def test_hours_stand_beside_those_of_as_many_seeds_everywhere(file: Path) -> None:
    decision, asked, store, grid = settled(file)
    took = hours([(decision, grid), (decision, grid)], store)  # shared trainings count once
    assert took.seen == pytest.approx(0.1 * len(asked)) and took.whole == pytest.approx(0.1 * 12 * 4)
    assert (took.rows, took.unseen) == (4, 0)
    assert "12 seeds of each row would take 4.8 h" in told.hours_words(decision, grid, store)
    fresh = kept.read(grid, RunStore(store.root.parent / "other"))
    assert told.hours_words(fresh, grid, store) == "", "no look has been taken"


def test_again_it_does_nothing(file: Path) -> None:
    decision, _, store, grid = settled(file)
    before = path_of(grid, store).read_bytes()
    again, why = decide(grid, store, lambda ids: pytest.fail(f"{ids} ran"))
    assert verdicts(again) == verdicts(decision) and why == "" and path_of(grid, store).read_bytes() == before


@pytest.mark.parametrize("budget", [None, 3600.0])
@pytest.mark.parametrize("seed", range(8))
def test_killed_at_random_and_resumed_it_decides_the_same(
    seed: int, budget: float | None, file: Path, tmp_path: Path
) -> None:
    """Later seeds take longer than the first ones tell, so that a round may cost more than it was admitted for."""

    class Killed(BaseException):
        pass

    grid, asked = grid_of(file), list[str]()
    seeds = {key: seed for row in grid.rows for seed, key in enumerate(row.trial_ids)}

    def cost(key: str) -> dict[str, Any]:
        return {"cost": {"device_hours": 0.1 if seeds[key] < 3 else 0.13, "seconds_per_step": 0.1}}

    first = RunStore(tmp_path / "undisturbed")

    def train(ids: Sequence[str]) -> None:
        for key in ids:
            asked.append(key)
            finish(first, grid, key, **cost(key))

    undisturbed, stopped = decide(grid, first, train, budget=budget)
    store, draw, ran = RunStore(tmp_path / "other"), random.Random(seed), []

    def run(ids: Sequence[str]) -> None:
        order = list(ids)
        draw.shuffle(order)
        for key in order:
            if draw.random() < 0.15:
                raise Killed
            ran.append(key)
            finish(store, grid, key, **cost(key))
        if draw.random() < 0.3:
            raise Killed

    for _ in range(500):
        try:
            decision, why = decide(grid, store, run, budget=budget)
            break
        except Killed:
            continue
    assert why == stopped and verdicts(decision) == verdicts(undisturbed)
    assert [own.seen for own in decision.questions] == [own.seen for own in undisturbed.questions]
    assert sorted(ran) == sorted(asked)


def test_seeds_that_others_bring_do_not_reopen_a_verdict(file: Path) -> None:
    decision, _, store, grid = settled(file)
    for row in grid.rows:
        for key in row.trial_ids:
            if store.status(key) != "finished":
                finish(store, grid, key, metrics={"AP": 0.0})
    again, _ = decide(grid, store, lambda ids: None)
    assert verdicts(again) == verdicts(decision)


def test_what_was_seen_stays_even_if_a_record_is_lost(file: Path) -> None:
    decision, _, store, grid = settled(file)
    for key in grid.rows[1].trial_ids[:3]:
        store.write_result(key, {"trial_id": key, "status": "failed", "error": "gone", "metrics": {}, "history": []})
    again, _ = decide(grid, store, lambda ids: pytest.fail("no look is open"))
    assert verdicts(again) == verdicts(decision)


def test_a_failed_seed_is_a_missing_pair(file: Path) -> None:
    grid, store = grid_of(file), RunStore()
    broken = {grid.rows[2].trial_ids[1]}

    def run(ids: Sequence[str]) -> None:
        for key in ids:
            status = {"status": "failed", "error": "ValueError", "metrics": {}} if key in broken else {}
            finish(store, grid, key, **status)

    decision, why = decide(grid, store, run)
    small = next(own for own in decision.questions if own.claim.text == "A small gain")
    assert why == "" and small.seen["small"][1].difference is None
    assert sum(pair.difference is None for pair in small.seen["small"]) == 1
    line = next(line for line in told.lines(decision, grid, store) if line[0] == "A small gain")
    seeds = small.course(decision.looks).look
    assert line[4] == f"{seeds - 1} of {seeds}" and "without seed 1: trainings failed, or lack the number" in line[5]
    assert any("A small gain" in line and "without seed 1" in line for line in told.of_file(path_of(grid, store))[1])


def test_too_many_failed_seeds_end_a_claim(file: Path) -> None:
    grid, store = grid_of(file), RunStore()

    def run(ids: Sequence[str]) -> None:
        for key in ids:
            fails = key in grid.rows[2].trial_ids[::2]
            finish(store, grid, key, **({"status": "failed", "error": "no", "metrics": {}} if fails else {}))

    decision, _ = decide(grid, store, run)
    course = next(own for own in decision.questions if own.claim.text == "A small gain").course(decision.looks)
    assert course.next_look is None and course.reason.startswith("failing: of the 5 pairs of 'small' 3 are missing")


# ---- budget


def test_the_budget_counts_recorded_device_seconds(file: Path) -> None:
    grid, store, asked = grid_of(file), RunStore(), []
    first, why = decide(grid, store, trainer(store, grid, asked), budget=1.0)
    assert why == NO_ROOM and len(asked) == 12  # the first looks: nobody knows yet what they cost
    assert seconds_of(counted(first), store) == pytest.approx(12 * 360)
    again, why = decide(grid, store, lambda ids: pytest.fail("over budget"), budget=12 * 360.0)
    assert why == NO_ROOM and verdicts(again)["A clear gain"] == REPRODUCED
    found = next_round(again, grid, store)
    assert found is not None and found.number == 5 and found.seconds == pytest.approx(len(found.trials) * 360)
    whole, why = decide(grid, store, trainer(store, grid, asked), budget=1e9)
    other = RunStore(file.parent / "other")
    undisturbed, _ = decide(grid, other, trainer(other, grid, []))
    assert why == "" and verdicts(whole) == verdicts(undisturbed)


def test_what_was_finished_before_costs_nothing(file: Path) -> None:
    grid, store, asked = grid_of(file), RunStore(), []
    before = [key for row in grid.rows for key in row.trial_ids[:3]]
    for key in before:
        finish(store, grid, key)
    decision, why = decide(grid, store, trainer(store, grid, asked), budget=1.0)
    assert why == NO_ROOM and asked == [] and not counted(decision) & set(before)
    assert verdicts(decision)["A clear gain"] == REPRODUCED, "looks that need no training are taken"


# ---- what was planned stays


def test_more_seeds_afterwards_are_refused(file: Path) -> None:
    grid, store = grid_of(file, 7), RunStore()
    decision, _ = decide(grid, store, trainer(store, grid, []), max_seeds=7)
    assert decision.looks.numbers == (3, 5, 7)
    with pytest.raises(UserError, match="planned for 7 seeds before the first one was taken"):
        decide(grid_of(file), store, lambda ids: None, max_seeds=12)
    assert kept.max_seeds_kept(grid, store) == 7


def test_what_was_only_planned_binds_nothing(file: Path) -> None:
    grid, store = grid_of(file), RunStore()
    with pytest.raises(KeyboardInterrupt):
        decide(grid, store, lambda ids: (_ for _ in ()).throw(KeyboardInterrupt))
    file.write_text(FILE.replace("within: 4.0", "within: 1.0"))
    decision, why = decide(grid_of(file, 7), store, trainer(store, grid_of(file, 7), []), max_seeds=7)
    assert why == "" and decision.looks.most == 7


def test_mistakes_in_any_file_are_told_before_anything_trains(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(file)
    second = file.with_name("second.yaml")
    second.write_text(FILE.replace("name: claims", "name: second"))
    monkeypatch.setattr("harness.schedule.schedule.run_grid", lambda *_, **__: pytest.fail("nothing may train"))
    assert main(["decide", str(second), str(file), "--max-seeds", "7"]) == 2
    assert "its looks were planned for 12 seeds" in capsys.readouterr().err


def test_a_margin_that_changed_since_is_refused(file: Path) -> None:
    _, _, store, grid = settled(file)
    file.write_text(FILE.replace("within: 4.0", "within: 9.0"))
    with pytest.raises(UserError, match="the margin of 'Nearly equal' was 4 when its first look was taken, and is 9"):
        decide(grid_of(file), store, lambda ids: None)


def test_a_damaged_file_is_told_and_kept(file: Path) -> None:
    _, _, store, grid = settled(file)
    path = path_of(grid, store)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(UserError, match=r"decide\.digits\.json is damaged"):
        decide(grid, store, lambda ids: None)
    assert len(path.read_text()) > 100


def test_claims_of_several_margins_stand_beside_each_other(file: Path) -> None:
    file.write_text(FILE + "  - {text: Equal within less, equal: small, to: none, within: 2.0}\n")
    decision, _, store, grid = settled(file)
    assert kept.read(grid_of(file), store) == decision
    seen = {own.claim.text: own.seen for own in decision.questions}
    assert seen["Nearly equal"]["small"] and seen["Equal within less"]["small"]
    file.write_text(file.read_text().replace("within: 2.0", "within: 3.0"))
    with pytest.raises(UserError, match="the margin of 'Equal within less' was 2 when its first look was taken, and"):
        kept.read(grid_of(file), store)


# ---- claims that cannot be decided now

WAITING = FILE.replace("label: small, set", "label: small, needs: a package of tomorrow, set")
WHY = "'small' needs a package of tomorrow, which is not here yet"


def test_claims_of_rows_that_wait_are_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(WAITING)
    decision, _, store, grid = settled(file)
    assert decision.left_out == (("A small gain", WHY), ("Nearly equal", WHY))
    lines = told.lines(decision, grid, store)
    assert [line for line in lines if "left out" in line] == [
        [text, "left out", "", "", "", WHY] for text in ("A small gain", "Nearly equal")
    ]
    assert told.tally(decision).startswith("4 claims: 1 reproduced, 1 not reproduced, 2 left out;")
    assert main(["status"]) == 0
    assert f"A small gain: left out, as {WHY}" in capsys.readouterr().out
    assert main(["plan", str(file), "--decide"]) == 0
    assert "every claim that can be decided is settled" in capsys.readouterr().out


def test_what_was_seen_of_a_claim_is_kept_while_its_row_waits(file: Path) -> None:
    before, _, store, _ = settled(file)
    file.write_text(WAITING)
    waiting = grid_of(file)
    decide(waiting, store, lambda ids: pytest.fail("all others are settled"))
    assert len(load(path_of(waiting, store))["claims"]) == 2
    file.write_text(FILE)
    grid = grid_of(file)
    after, why = decide(grid, store, lambda ids: pytest.fail("a look was taken a second time"))
    assert why == "" and after == before


# ---- what was seen belongs to trainings


def test_a_row_that_is_another_training_now_is_looked_at_anew(file: Path) -> None:
    before, _, store, grid = settled(file)
    file.write_text(FILE.replace("train.epochs: 1", "train.epochs: 3"))
    other, asked = grid_of(file), []
    anew, _ = decide(other, store, trainer(store, other, asked))
    assert len(asked) >= 12 and not {*asked} & {key for row in grid.rows for key in row.trial_ids}
    file.write_text(FILE)
    after, _ = decide(grid_of(file), store, lambda ids: pytest.fail("what was seen of the former rows was kept"))
    assert verdicts(after) == verdicts(before) == verdicts(anew)


def test_a_report_of_other_seeds_keeps_the_verdicts(file: Path) -> None:
    decision, _, store, grid = settled(file)
    found = told.settled_verdicts(open_grid(file, seeds=[1, 2]), store)
    assert {claim.text: own.verdict for claim, own in found.items()} == verdicts(decision)
    assert not any("saw other numbers" in own.reason for own in found.values())


def test_new_words_change_nothing(file: Path) -> None:
    before, _, store, _ = settled(file)
    file.write_text(FILE.replace("clear", "plain").replace("none", "bare").replace("A small gain", "A slight gain"))
    after, _ = decide(grid_of(file), store, lambda ids: pytest.fail("the trainings are the same"))
    assert [*verdicts(after).values()] == [*verdicts(before).values()]


def test_differences_that_records_contradict_are_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(FILE.replace("name: claims", "name: looks"))
    _, _, store, grid = settled(file)
    key = grid.rows[1].trial_ids[0]
    finish(store, grid, key, metrics={"AP": 1.0})
    with pytest.raises(UserError, match=f"its looks saw other numbers of .*{key}.*than the records have now"):
        decide(grid, store, lambda ids: None)
    store.write_result(key, {"trial_id": key, "status": "failed", "error": "gone", "metrics": {}, "history": []})
    decide(grid, store, lambda ids: pytest.fail("no look is open"))
    assert main(["report", str(file), "--from", "records", "--out", str(file.parent / "out"), "--format", "md"]) == 0
    assert "1 trainings that its looks saw are not here" in " ".join(capsys.readouterr().out.split())


CODE = {"core": {"harness/trial/train.py": "1" * 16}, "parts": {}}


def test_trainings_of_different_code_are_not_paired(file: Path) -> None:
    grid, store = grid_of(file), RunStore()
    other = {**CODE, "core": {"harness/trial/train.py": "2" * 16}}
    for row in grid.rows:
        for seed, key in enumerate(row.trial_ids[:3]):
            finish(store, grid, key, provenance={"code": other if (row.label, seed) == ("none", 1) else CODE})
    run = trainer(store, grid, [])
    with pytest.raises(UserError, match=f"different code versions(.|\n)*codetr rm {grid.rows[0].trial_ids[1]}"):
        decide(grid, store, run)
    assert not any(own.seen for own in kept.read(grid, store).questions), "no look was taken"
    decision, why = decide(grid, store, run, allow_mixed=True)
    assert why == "" and verdicts(decision)["A clear gain"] == REPRODUCED


def test_nothing_trains_beside_trainings_of_other_code(file: Path) -> None:
    grid, store = grid_of(file), RunStore()
    finish(store, grid, grid.rows[0].trial_ids[0], provenance={"code": CODE})
    with pytest.raises(UserError, match="1 of the trainings to be looked at were made by other code than is here now"):
        decide(grid, store, lambda ids: pytest.fail("it would not compare"))


def test_trainings_that_are_tried_again_are_no_way_round(file: Path) -> None:
    """Neither round the refusal of other code nor round the budget."""
    grid, store = grid_of(file), RunStore()
    broken = set(grid.rows[2].trial_ids[::2])

    def run(ids: Sequence[str]) -> None:
        for key in ids:
            finish(store, grid, key, **({"status": "failed", "error": "no", "metrics": {}} if key in broken else {}))

    decide(grid, store, run)
    for key in broken & {*store.trials()}:
        (store.dir(key) / "result.json").unlink()  # set back
    decision, _ = decide(grid, store, lambda ids: pytest.fail("over budget"), budget=1.0)
    assert verdicts(decision)["A small gain"] == UNDECIDED
    for key in set(store.trials()) - broken:
        record = store.read(key) or {}
        store.write_result(key, {**record, "provenance": {"code": CODE}})
    with pytest.raises(UserError, match="were made by other code than is here now"):
        decide(grid, store, lambda ids: pytest.fail("they would not compare"))


def test_the_same_trainings_are_no_question(file: Path) -> None:
    file.write_text(FILE.replace("model.heads: [fcos]", "model.heads: []"))
    decision, *_ = settled(file)
    assert ("A small gain", "'small' and 'none' are the same trainings") in decision.left_out


def test_claims_that_failed_go_on_once_their_trainings_are_there(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, store, broken = grid_of(file), RunStore(), True

    def run(_: Grid, store: RunStore, only: Sequence[str], **__: Any) -> None:
        for key in only:
            finish(store, grid, key, **({"status": "failed", "error": "disk", "metrics": {}} if broken else {}))

    monkeypatch.setattr("harness.schedule.schedule.run_grid", run)
    assert main(["decide", str(file)]) == 1
    assert "codetr retry" in capsys.readouterr().err
    broken = False
    assert main(["retry"]) == 0
    assert main(["decide", str(file)]) == 0
    undisturbed, _ = decide(grid, other := RunStore(file.parent / "other"), trainer(other, grid, []))
    assert verdicts(kept.read(grid, store)) == verdicts(undisturbed)


def test_rows_in_another_order_are_the_same_claim(file: Path) -> None:
    before, _, store, _ = settled(file)
    file.write_text(FILE.replace("[clear, worse]", "[worse, clear]"))
    after, _ = decide(grid_of(file), store, lambda ids: pytest.fail("the trainings are the same"))
    assert verdicts(after) == verdicts(before) and not after.aside


def test_status_of_a_file_is_about_its_trainings_now(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settled(file)
    assert main(["status", str(file)]) == 0
    assert "A clear gain: reproduced at 3 seeds" in capsys.readouterr().out
    assert main(["status", str(file), "--seeds", "11"]) == 0
    assert "A clear gain: reproduced at 3 seeds" in capsys.readouterr().out, "whatever seeds are asked for"
    file.write_text(FILE.replace("train.epochs: 1", "train.epochs: 3"))
    assert main(["status", str(file)]) == 0
    said = capsys.readouterr().out
    assert "A clear gain: open, next look at 3 seeds" in said and "reproduced at" not in said
    assert "4 claims that were looked at are not asked now, or of other trainings" in said


# ---- one plan, whatever the file is called


def test_a_file_by_another_name_may_not_plan_other_looks(file: Path) -> None:
    before, _, store, _ = settled(file)
    renamed = file.with_name("renamed.yaml")
    renamed.write_text(FILE.replace("name: claims\n", ""))
    damaged = path_of(grid_of(renamed), store).parent.parent / "another" / "decide.digits.json"
    damaged.parent.mkdir()
    damaged.write_text("{")  # told where it is used, not here
    with pytest.raises(UserError, match="were planned for 12 seeds .*claims.*say --max-seeds 12"):
        decide(grid_of(renamed, 24), store, lambda ids: None, max_seeds=24)
    after, why = decide(grid_of(renamed), store, lambda ids: pytest.fail("the trainings are there"))
    assert why == "" and verdicts(after) == verdicts(before)


def test_looks_are_those_of_the_file(file: Path) -> None:
    _, _, store, grid = settled(file)
    path = path_of(grid, store)
    content = json.loads(path.read_text())
    content["looks"]["alphas"] = [0.01] * 5
    path.write_text(json.dumps(content))
    assert kept.read(grid, store).looks.alphas == (0.01,) * 5
    content["looks"]["alphas"] = [0.02] * 5
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is damaged .its looks spend 0.1, where 0.05 may be spent"):
        kept.read(grid, store)


def test_who_lost_the_lease_writes_nothing(file: Path) -> None:
    grid, store = grid_of(file), RunStore()
    lease = path_of(grid, store).with_name(f"decide.{grid.preset}{LEASE}")

    def run(ids: Sequence[str]) -> None:
        for key in ids:
            finish(store, grid, key)
        lease.unlink()  # as after a long suspension, when another process takes over
        decide(grid, store, trainer(store, grid, []))

    with pytest.raises(UserError, match="another process took over deciding its claims"):
        decide(grid, store, run)
    undisturbed, *_ = settled(file)
    assert kept.read(grid, store).questions == undisturbed.questions


# ---- numbers that trainings lack


def test_nothing_trains_for_a_number_that_no_training_measures(file: Path) -> None:
    claim = "  - {text: Less conflict, better: clear, than: small, metric: conflict/mean}\n"
    file.write_text(FILE.replace("rows:", "metrics: [AP, conflict/mean]\nrows:") + claim)
    grid, store = grid_of(file), RunStore()
    with pytest.raises(UserError, match=r"'Less conflict' is about conflict/mean, and nothing asks for it: `analyse"):
        decide(grid, store, lambda ids: pytest.fail("it would be in vain"))
    finish(store, grid, key := grid.rows[1].trial_ids[0])
    grid = open_grid(file, overrides=["analyse=[conflict]"], seeds=range(12))
    with pytest.raises(UserError, match=f"1 trainings finished without it: codetr analyse {key} --metrics conflict"):
        decide(grid, store, lambda ids: pytest.fail("one pair would lack it"))
    (store.dir(key) / "result.json").unlink()

    def run(ids: Sequence[str]) -> None:
        for key in ids:
            finish(store, grid, key, metrics={"AP": 40.0, "conflict/decoder": 0.1})  # analysed, but not this number

    decision, why = decide(grid, store, run)
    (own,) = [own for own in decision.questions if own.claim.text == "Less conflict"]
    assert why == "" and own.course(decision.looks).is_failing
    (words,) = told.failing(decision, store)
    assert "lack their number" in words and "conflict/mean was not recorded" in words and "retry" not in words


# ---- a file of the first schema, which had labels alone


def test_a_file_of_labels_alone_is_read(file: Path) -> None:
    decision, _, store, grid = settled(file)
    path = path_of(grid, store)
    content = json.loads(path.read_text())
    for own in content["claims"]:
        own["differences"] = {row: [pair[2] for pair in pairs] for row, pairs in own.pop("pairs").items()}
    path.write_text(json.dumps({**content, "schema": 1}))
    kept_before = path.read_bytes()
    again, _ = decide(grid, store, lambda ids: pytest.fail("all are settled"))
    assert again == decision
    path.write_bytes(kept_before)
    file.write_text(FILE.replace("[atss]", "[paa]"))  # nothing tells that the differences are of other trainings
    other = kept.read(grid_of(file), store)
    assert {own.claim.text for own in other.questions if own.seen} == {"A small gain", "Nearly equal"}
    assert len(other.aside) == 2


def test_a_file_whose_claims_all_wait_says_so(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(WAITING[: WAITING.index("  - {text: A clear")] + WAITING[WAITING.index("  - {text: Nearly") :])
    assert main(["decide", str(file)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.endswith(f"none of its claims can be decided: of 'Nearly equal', {WHY}")
