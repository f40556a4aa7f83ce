"""A trial's own analysis of its detector: after some epochs as numbers, at the end with tables and figures as well.

A training is worth more than its analysis: whatever goes wrong here becomes a warning and a note in the record, and
neither the training nor its costs notice. `codetr analyse` does the same later (harness/revisit/).
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.analyse import Analysed, analyse, write_tables
from harness.errors import Interrupted
from harness.store.lease import LeaseLost
from harness.store.results import ANALYSIS, DETECTIONS
from harness.trial.build import TrialState, reset_peak_memory
from harness.trial.record import check_lease, share_reporter, update_clock, warn


def analyse_trial(state: TrialState) -> None:
    """What the trial was asked to find out about its detector: tables in `analysis/`, numbers with the last epoch's.

    The last checkpoint is already written, so a trial that is stopped here only analyses again.
    """
    if not state.ranks.is_first:
        return
    last = state.progress.history[-1]
    alone = state.ranks.size == 1  # the others do not ask whether to stop meanwhile
    found = run_analysis(state, last["loss"], state.should_stop if alone else lambda: False)
    if found is None:
        return
    check_lease(state)
    write_tables(found, state.folder / ANALYSIS)
    _draw(state, found)
    last |= found.scalars
    state.analysis = found.for_record(state.trial.analyse)
    line = state.store.metrics(state.trial.trial_id)[-1]  # with its time
    state.store.append_metrics(state.trial.trial_id, line | found.scalars)


def _draw(state: TrialState, found: Analysed) -> None:
    """The figures beside the tables. A figure that fails is drawn later by `codetr analyse`."""
    from harness.report.trial_figures import save_trial_figures

    try:
        detections = json.loads((state.folder / DETECTIONS).read_bytes())
        with TemporaryDirectory(prefix="codetr-figures-") as folder:
            drawn = save_trial_figures(
                Path(folder),
                state.trial.label,
                found.tables,
                maps=found.maps,
                examples=found.examples,
                history=state.progress.history,
                dataset=state.val_data,
                detections=detections,
                say=lambda line: warn(state, line),
            )
            for path in drawn:  # drawing takes a while: the trial may be another process's by now
                state.store.write(state.trial.trial_id, f"analysis/{path.name}", path.read_bytes())
    except LeaseLost:
        raise
    except Exception as error:  # noqa: BLE001 - as in run_analysis
        warn(state, f"figures of the analysis failed: {type(error).__name__}: {error}")


def run_analysis(
    state: TrialState, loss: float | None, should_stop: Callable[[], bool] = lambda: False
) -> Analysed | None:
    """Analyse the detector as it is; None where nothing is asked for, or where it fails.

    A training is worth more than its analysis: what goes wrong becomes a warning and a note in the record, and
    `codetr analyse` can be tried later. Neither the training nor its costs notice.
    """
    trial, progress, settings = state.trial, state.progress, state.trial.analyse
    if not settings.metrics:
        return None
    state.analysis = {**settings.as_dict(), "epoch": progress.epoch, "error": None}
    update_clock(state)
    tell = share_reporter(state, "analyse", loss)

    def on_batch(done: int, count: int) -> None:
        if should_stop():
            raise Interrupted("stopped while analysing; the training is done")
        tell(done, count)

    try:
        with state.as_evaluated():
            return analyse(
                state.detector,
                state.val_data,
                trial.config.data,
                settings,
                state.device,
                batch_size=2 * state.val_loader.batch_size,  # without the backbone's and the encoder's graph
                num_workers=trial.runtime.num_workers,
                epoch=progress.epoch,
                on_batch=on_batch,
            )
    except (Interrupted, LeaseLost):
        raise
    except Exception as error:
        state.analysis["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        state.store.write(trial.trial_id, "analysis/error.txt", traceback.format_exc())
        warn(state, f"the analysis failed: {state.analysis['error']}; see analysis/error.txt")
        return None
    finally:
        reset_peak_memory(state.device)
