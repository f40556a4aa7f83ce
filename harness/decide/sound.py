"""Whether looks may be taken: what was seen is what the records say, and trainings of a claim compare.

Numbers made by different code do not compare, and a difference that was kept outlives its records. Neither would show
in a verdict, so both are refused here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, get_args

from harness.config import Analysis
from harness.decide.kept import Decision, is_about, looks_of
from harness.decide.questions import FAILED, Question, difference_of, trials_needed
from harness.errors import UserError
from harness.report.ground import check_ground
from harness.report.tables import metric_of
from harness.spec.grid import Grid
from harness.store.decisions import decisions, load, path_of
from harness.store.ledger import made_by_other_code
from harness.store.results import RunStore

SHOWN = 6  # trials named one by one


def check_seen(decision: Decision, grid: Grid, store: RunStore) -> None:
    """Refuse to go on from differences that records contradict, as those of trials that were trained anew.

    Raises:
        UserError: with the trials.
    """
    changed = sorted({key for question in decision.questions for key in altered(question, store)[0]})
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise UserError(
            f"{grid.name}: its looks saw other numbers of {', '.join(changed[:SHOWN])}{more} than the records have "
            f"now; put the former records back, or move {path_of(grid, store)} away to plan looks anew"
        )


def check_planned_alike(decision: Decision, grid: Grid, store: RunStore) -> None:
    """Refuse to plan other looks at claims that looks were taken of under another name of the file, or in another one.

    Raises:
        UserError: with that file, and the number of seeds that its looks were planned for.
    """
    if any(question.seen for question in decision.questions):
        return
    for path in decisions(store.root).values():
        kept = None
        with suppress(UserError):  # damaged: told where it is used
            kept = load(path) if path != path_of(grid, store) else None
        if kept is None or looks_of(kept) == decision.looks:
            continue
        known = (*kept["claims"], *kept["aside"])
        texts = [own.claim.text for own in decision.questions if any(is_about(one, own.claim, grid) for one in known)]
        if texts:
            raise UserError(
                f"{grid.name}: looks at the trainings of '{texts[0]}' were planned for {kept['max_seeds']} seeds "
                f"before the first one was taken ({path}); other looks now would spend more error than planned: "
                f"say --max-seeds {kept['max_seeds']}"
            )


def check_measured(decision: Decision, grid: Grid, store: RunStore) -> None:
    """Refuse to train for a number that no training will have, since nothing asks for the analysis behind it.

    Raises:
        UserError: with the analysis.
    """
    for question in decision.questions:
        metric = metric_of(question.claim.metric).name
        analysis = metric.partition("/")[0].partition(".")[0]
        if "/" not in metric or analysis not in get_args(Analysis):
            continue
        told = f"{grid.name}: '{question.claim.text}' is about {metric}, and"
        states = {key: store.status(key) for key in trials_needed(question, grid, decision.looks)}
        to_come = [key for key, state in states.items() if state not in ("finished", FAILED)]
        if not all(analysis in grid.trial(key).analyse.metrics for key in to_come):
            raise UserError(f"{told} nothing asks for it: `analyse: [{analysis}]` in the file's base or --set does")
        finished = [key for key, state in states.items() if state == "finished"]
        if without := [key for key in finished if not _has_run(analysis, store.read(key) or {})]:
            raise UserError(
                f"{told} {len(without)} trainings finished without it: codetr analyse {' '.join(without[:SHOWN])}"
                f"{' …' if len(without) > SHOWN else ''} --metrics {analysis} adds it"
            )


def _has_run(analysis: str, record: Mapping[str, Any]) -> bool:
    """Whether a record has any number of an analysis."""
    return any(name.partition("/")[0].partition(".")[0] == analysis for name in record.get("metrics") or {})


def altered(question: Question, store: RunStore) -> tuple[set[str], set[str]]:
    """Trials of pairs whose records give another difference now, and of pairs that have none any more."""
    changed: set[str] = set()
    gone: set[str] = set()
    for pair in (pair for pairs in question.seen.values() for pair in pairs if pair.difference is not None):
        now = difference_of(pair.trial, pair.reference, question.claim.metric, store)
        if now is None or now is ...:
            gone |= {key for key in pair[:2] if store.status(key) != "finished"}
        elif now != pair.difference:
            changed |= {pair.trial, pair.reference}
    return changed, gone


def contradiction(kept: Mapping[str, Any], store: RunStore) -> str:
    """Why looks that were taken elsewhere do not fit the records here; empty where they do."""
    lacking, changed = 0, 0
    for own in (*kept["claims"], *kept["aside"]):
        for trial, reference, difference in (pair for pairs in own["pairs"].values() for pair in pairs if pair[0]):
            now = difference_of(trial, reference, own["metric"], store)
            lacking += difference is not None and (now is None or now is ...)
            changed += isinstance(now, float) and difference is not None and now != difference
    if changed:
        return f"its looks saw other numbers than the records here have, of {changed} pairs"
    return f"of {lacking} pairs that its looks saw the records are not here" if lacking else ""


def check_same_code(
    questions: Sequence[Question], to_run: Iterable[str], decision: Decision, grid: Grid, store: RunStore
) -> None:
    """Refuse a look at trainings that do not compare, or that would not with those that are still to run.

    Raises:
        UserError: with the groups, or with the trials that other code made, and what to do.
    """
    looked: set[str] = set()
    for question in questions:
        looked |= trials_needed(question, grid, decision.looks).keys() | question.trials
    finished = {key for key in looked if store.status(key) == "finished"}
    if any(True for _ in to_run) and (other := made_by_other_code(store, sorted(finished))):
        raise UserError(
            f"{grid.name}: {len(other)} of the trainings to be looked at were made by other code than is here now, "
            f"which would train the rest: train them again (codetr rm {' '.join(other[:SHOWN])}"
            f"{' …' if len(other) > SHOWN else ''}), go on with their code, or say --allow-mixed"
        )
    own = replace(grid, trials=tuple(trial for trial in grid.trials if trial.trial_id in finished))
    records = [record for key in finished if (record := store.read(key)) is not None]
    check_ground([own], records, "say --allow-mixed to look at them all the same")
