"""Is a tracking store equal to the records? Everything is compared that a run can hold."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from harness.spec.grid import Trial
from harness.spec.identity import config_to_dict
from harness.store.agreement import short, unpacked
from harness.store.results import RunStore
from harness.tracking import tracking
from harness.tracking.metric_names import flat_metrics
from harness.tracking.views import ALWAYS, params_of


def runs_of_trials(uri: str) -> list[Any]:
    """All runs of trials that are not deleted."""
    client = tracking.connect(uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    return tracking.find_runs(client, str(experiment.experiment_id), "tags.trial_id LIKE '%'") if experiment else []


def assert_equal_to_records(uri: str, store: RunStore, trials: Iterable[Trial], grid: str) -> None:
    """One run per trial that was begun; status, parameters, tags, artifacts and each metric's whole history agree."""
    begun = {trial.trial_id: trial for trial in trials if store.status(trial.trial_id) != "pending"}
    runs = runs_of_trials(uri)
    assert sorted(run.data.tags["trial_id"] for run in runs) == sorted(begun)
    client = tracking.connect(uri)
    for run in runs:
        trial = begun[run.data.tags["trial_id"]]
        record, lines = store.read(trial.trial_id) or {}, store.metrics(trial.trial_id)
        status = store.status(trial.trial_id)
        assert run.info.status == tracking.MLFLOW_STATUS[status]
        settings = {name: str(value) for name, value in params_of(config_to_dict(trial.config)).items()}
        assert set(ALWAYS) <= set(run.data.params)
        assert {name: value.lower() for name, value in run.data.params.items()} == {
            name: settings[name].lower() for name in run.data.params
        }
        assert run.data.tags[f"grid.{grid}"] == (trial.row or trial.label)
        for key in ("error", "started", "finished", "fingerprint"):
            assert run.data.tags[f"codetr.{key}"] == str(record.get(key) or ""), key
        provenance = json.loads(run.data.tags["codetr.provenance"])
        assert {key: unpacked(value) for key, value in provenance.items()} == (record.get("provenance") or {})
        if status == "finished":
            assert run.data.tags["codetr.code"] == short(record["provenance"]["code"])
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert files == {name for name in ("config.yaml", "result.json") if (store.dir(trial.trial_id) / name).exists()}

        of_epochs = [(line, flat_metrics(line)) for line in lines]
        expected = {
            name: [(line["step"], flat[name]) for line, flat in of_epochs if name in flat]
            for name in {name for _, flat in of_epochs for name in flat}
        }
        for name in expected:
            history = client.get_metric_history(run.info.run_id, name)
            assert [(metric.step, metric.value) for metric in history] == expected[name], name
        parts = {group: record.get(group) or {} for group in ("cost", "per_class")}
        final = flat_metrics({**(record.get("metrics") or {}), **parts})
        final = {name: value for name, value in final.items() if name not in expected}  # epochs know theirs better
        assert {name: run.data.metrics[name] for name in final} == final
        assert set(run.data.metrics) == set(expected) | set(final)
