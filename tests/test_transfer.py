"""Records travel whole or not at all: the same bytes for the same records, checked where they arrive, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.__main__ import main
from harness.errors import UserError
from harness.spec.grid import Trial, open_grid
from harness.spec.identity import config_to_dict
from harness.store import transfer
from harness.store.results import RunStore
from harness.store.transfer import export_records, import_records
from harness.tracking.mirror import sync
from harness.tracking.tracking import read_records
from tests.support.fakes import entry, record

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "ablations" / "quickstart.yaml")
GRID = open_grid(QUICKSTART, "digits_fast", seeds=[0, 1])
FIRST, SECOND, THIRD = GRID.trials[:3]


def finish(store: RunStore, trial: Trial, status: str = "finished", **fields: Any) -> None:
    """A trial as it lies in a store, with what only its own machine needs."""
    config = config_to_dict(trial.config)
    store.write_config(trial.trial_id, config)
    for epoch in (1, 2):
        store.append_metrics(trial.trial_id, entry(trial, epoch))
    record(store, trial, status, config=config, **fields)
    folder = store.dir(trial.trial_id)
    analysis = ("analysis/conflict.json", "analysis/conflict.png")
    for name in ("checkpoint/model.safetensors", "checkpoint/state.safetensors", *analysis):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('{"of": "this trial"}')
    for name in ("per_class.json", "classes.json", "heartbeat.json", "detections.json", ".result.json.1.tmp"):
        (folder / name).write_text("{}")


@pytest.fixture
def there(tmp_path: Path) -> RunStore:
    """The store of the other machine."""
    store = RunStore(tmp_path / "there")
    finish(store, FIRST)
    finish(store, SECOND)
    return store


@pytest.fixture
def here(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "here")


def pack(store: RunStore, out: Path, **options: bool) -> Path:
    export_records(store, store.trials(), out, **options)
    return out


def content(store: RunStore, trial: Trial) -> dict[str, bytes]:
    folder = store.dir(trial.trial_id)
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in sorted(found.items()) if not name.startswith(".")}


@pytest.mark.parametrize("name", ["records.zip", "records"])
def test_records_arrive_as_they_were(name: str, there: RunStore, here: RunStore, tmp_path: Path) -> None:
    done = import_records(here, pack(there, tmp_path / name))
    assert done.taken == sorted([FIRST.trial_id, SECOND.trial_id]) and not (done.refused or done.ignored)
    for trial in (FIRST, SECOND):
        arrived = content(here, trial)
        assert set(arrived) == {*transfer.FILES, "analysis/conflict.json"}  # no checkpoint, detections, heartbeat
        assert arrived.items() <= content(there, trial).items()
        assert here.status(trial.trial_id) == "finished"


def test_an_exported_folder_is_a_store(there: RunStore, tmp_path: Path) -> None:
    store = RunStore(pack(there, tmp_path / "records"))
    assert store.trials() == there.trials()
    assert store.read(FIRST.trial_id) == there.read(FIRST.trial_id)


def test_the_same_records_make_the_same_bytes(there: RunStore, here: RunStore, tmp_path: Path) -> None:
    first = pack(there, tmp_path / "first.zip").read_bytes()
    import_records(here, tmp_path / "first.zip")
    os.utime(here.dir(FIRST.trial_id) / "result.json", (0, 0))
    assert pack(here, tmp_path / "second.zip").read_bytes() == first


def test_weights_and_detections_travel_when_asked(there: RunStore, here: RunStore, tmp_path: Path) -> None:
    archive = pack(there, tmp_path / "all.zip", checkpoints=True, detections=True)
    import_records(here, archive)
    assert "checkpoint/model.safetensors" not in content(here, FIRST)
    assert import_records(here, archive).without_weights, "what nobody asked for is told"
    done = import_records(here, archive, checkpoints=True)  # the record is here already: the rest is added
    assert done.same == here.trials() and not done.taken
    assert content(here, FIRST)["checkpoint/model.safetensors"] == b'{"of": "this trial"}'
    assert "detections.json" in content(here, FIRST)
    assert "checkpoint/state.safetensors" not in content(here, FIRST)


def test_a_finished_record_is_only_replaced_when_asked(there: RunStore, here: RunStore, tmp_path: Path) -> None:
    finish(here, FIRST, metrics={"AP": 1.0})
    before = content(here, FIRST)
    archive = pack(there, tmp_path / "records.zip")
    done = import_records(here, archive)
    assert done.taken == [SECOND.trial_id] and list(done.kept) == [FIRST.trial_id]
    assert content(here, FIRST) == before
    done = import_records(here, archive, replace=True)
    assert done.taken == [FIRST.trial_id] and done.same == [SECOND.trial_id]
    after = content(here, FIRST)
    assert after["result.json"] == content(there, FIRST)["result.json"]
    assert not {"checkpoint/model.safetensors", "detections.json", "heartbeat.json"} & after.keys()  # of the other


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])
def test_what_is_not_finished_here_gets_the_record(
    status: str, there: RunStore, here: RunStore, tmp_path: Path
) -> None:
    finish(here, FIRST, status)
    assert FIRST.trial_id in import_records(here, pack(there, tmp_path / "records.zip")).taken
    assert here.status(FIRST.trial_id) == "finished"
    assert "checkpoint/state.safetensors" not in content(here, FIRST)


def test_a_trial_that_runs_here_is_left_alone(there: RunStore, here: RunStore, tmp_path: Path) -> None:
    archive = pack(there, tmp_path / "records.zip")
    with here.claim(FIRST.trial_id):  # type: ignore[union-attr]
        done = import_records(here, archive)
        assert done.refused == {FIRST.trial_id: "is running here"} and done.taken == [SECOND.trial_id]
        assert not (here.dir(FIRST.trial_id) / "result.json").exists()


def changed(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), **fields}).encode()


def other_rate(data: bytes) -> bytes:
    found = json.loads(data)
    found["config"]["train"]["learning_rate"] = 0.5
    return json.dumps(found).encode()


def unknown_key(data: bytes) -> bytes:
    found = json.loads(data)
    found["config"]["train"]["new_setting"] = 1
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("result.json", lambda data: data[:-20], "no whole JSON"),
        ("result.json", lambda data: b"[1]", "schema"),
        ("result.json", lambda data: data.replace(b'"AP": ', b'"AP": NaN, "old": ', 1), "NaN"),
        ("result.json", lambda data: b"[" * 100_000, "no whole JSON"),
        ("result.json", changed(schema=2), "schema"),
        ("result.json", changed(status="running"), "not finished: running"),
        ("result.json", changed(trial_id=THIRD.trial_id), f"is of trial {THIRD.trial_id}"),
        ("result.json", changed(fingerprint="other data"), "was changed, or made by another version"),
        ("result.json", changed(metrics=[1]), "metrics is missing, or of another type"),
        ("result.json", changed(config={}), "configuration"),
        ("result.json", other_rate, "was changed, or made by another version"),
        ("result.json", unknown_key, "new_setting"),
        ("metrics.jsonl", lambda data: data[:-20], "metrics.jsonl"),
        ("metrics.jsonl", lambda data: b'{"no": "epoch"}', "no epoch"),
        ("per_class.json", lambda data: b"{", "per_class.json"),
        ("analysis/conflict.json", lambda data: b"{", "conflict.json"),
    ],
)
def test_what_is_wrong_is_refused_and_the_rest_taken(
    name: str, change: Callable[[bytes], bytes], why: str, there: RunStore, here: RunStore, tmp_path: Path
) -> None:
    out = pack(there, tmp_path / "records")
    (out / "runs" / FIRST.trial_id / name).write_bytes(change((there.dir(FIRST.trial_id) / "result.json").read_bytes()))
    done = import_records(here, out)
    assert list(done.refused) == [FIRST.trial_id] and why in done.refused[FIRST.trial_id]
    assert done.taken == [SECOND.trial_id] == here.trials()


def test_configuration_comes_from_the_checked_record(there: RunStore, here: RunStore, tmp_path: Path) -> None:
    out = pack(there, tmp_path / "records")
    (out / "runs" / FIRST.trial_id / "config.yaml").write_text("seed: 7\n")
    import_records(here, out)
    assert content(here, FIRST)["config.yaml"] == content(there, FIRST)["config.yaml"]


@pytest.mark.parametrize(
    "name", ["../escaped", f"runs/{FIRST.trial_id}/../../../escaped", "/escaped", "runs\\..\\escaped", "c:/escaped"]
)
def test_names_that_lead_elsewhere_spoil_the_archive(
    name: str, there: RunStore, here: RunStore, tmp_path: Path
) -> None:
    archive = pack(there, tmp_path / "records.zip")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(name, "gotcha")
    with pytest.raises(UserError, match="leads out of the store; nothing was taken"):
        import_records(here, archive)
    assert here.trials() == [] and not list(tmp_path.rglob("escaped"))


def test_what_is_no_part_of_a_record_stays_outside(there: RunStore, here: RunStore, tmp_path: Path) -> None:
    archive = pack(there, tmp_path / "records.zip")
    strange = ["README", f"runs/{FIRST.trial_id}/lease.json", "runs/not-an-id/result.json", "runs/mlflow.db"]
    with zipfile.ZipFile(archive, "a") as opened:
        for name in strange:
            opened.writestr(name, "{}")
    done = import_records(here, archive)
    assert done.ignored == strange and len(done.taken) == 2
    assert not (here.dir(FIRST.trial_id) / "lease.json").exists() and here.trials() == done.taken


def test_a_damaged_archive_is_one_line(there: RunStore, here: RunStore, tmp_path: Path) -> None:
    whole = pack(there, tmp_path / "records.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.zip").write_text("no archive")
    (tmp_path / "empty").mkdir()
    for name in ("cut.zip", "text.zip", "missing.zip", "empty"):
        with pytest.raises(UserError) as caught:
            import_records(here, tmp_path / name)
        assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)


def test_flipped_bytes_are_noticed(there: RunStore, here: RunStore, tmp_path: Path) -> None:
    archive = pack(there, tmp_path / "records.zip")
    with zipfile.ZipFile(archive) as opened:
        info = opened.getinfo(f"runs/{FIRST.trial_id}/result.json")
    damaged = bytearray(archive.read_bytes())
    start = info.header_offset + 30 + len(info.filename) + 40
    damaged[start : start + 8] = bytes(8)
    archive.write_bytes(bytes(damaged))
    done = import_records(here, archive)
    assert list(done.refused) == [FIRST.trial_id] and done.taken == [SECOND.trial_id]


def test_nothing_is_lost_when_the_disk_is_full(
    there: RunStore, here: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(here, FIRST, metrics={"AP": 1.0})
    before = content(here, FIRST)
    archive = pack(there, tmp_path / "records.zip")

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer, "write_atomic", full)
    with pytest.raises(UserError, match="No space left"):
        import_records(here, archive, replace=True)
    assert content(here, FIRST) == before


def test_commands_say_what_they_did(
    there: RunStore,
    here: RunStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CODETR_STORE", "")  # --store changes it: put it back afterwards
    finish(there, THIRD, "failed")
    archive = str(tmp_path / "records.zip")
    at = {"there": ["--store", str(there.root)], "here": ["--store", str(here.root)]}
    assert (
        main(["export", QUICKSTART, "--preset", "digits_fast", "--seeds", "0,1", "--out", archive, *at["there"]]) == 0
    )
    told = capsys.readouterr()
    assert f"wrote {archive}: 2 records" in told.out and "left out 4 that are not finished here" in told.err

    assert main(["import", archive, *at["here"]]) == 0
    assert "2 taken" in capsys.readouterr().out
    finish(here, FIRST, metrics={"AP": 1.0})
    assert main(["import", archive, *at["here"]]) == 1
    told = capsys.readouterr()
    assert "1 here already, 1 kept" in told.out and "AP 1.0000 here, AP 20.0000 there" in told.err

    assert main(["export", FIRST.trial_id[:6], "--out", str(tmp_path / "one.zip"), *at["there"]]) == 0
    assert zipfile.ZipFile(tmp_path / "one.zip").namelist()[-1] == f"runs/{FIRST.trial_id}/result.json"
    for what in ("zzz", "", "nothing.yaml"):
        assert main(["export", what, "--out", archive, *at["there"]]) == 2
    assert main(["export", "--out", archive, "--store", str(tmp_path / "no store")]) == 2
    assert "no finished trial to export" in capsys.readouterr().err


WITHOUT_SERVICES = """
import sys
sys.modules["ray"] = sys.modules["mlflow"] = None  # as if they were not installed
from harness.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_machine_without_ray_and_mlflow_trains_for_another(
    tmp_path: Path, here: RunStore, tracking_store: str
) -> None:
    """Train there, export, import here, and MLflow has the run."""
    there, archive = str(tmp_path / "gpu box"), str(tmp_path / "records.zip")
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    for words in (
        ["run", QUICKSTART, "--preset", "digits_fast", "--executor", "local", "--limit", "1"],
        ["export", "--out", archive],
    ):
        command = [sys.executable, "-c", WITHOUT_SERVICES, *words, "--store", there]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
    (trial_id,) = import_records(here, Path(archive)).taken
    sync(here, open_grid(QUICKSTART, "digits_fast"))
    (back,) = read_records([trial_id])
    made = here.read(trial_id) or {}
    assert back["status"] == "finished" and back["metrics"]["AP"] == made["metrics"]["AP"]
    assert made["provenance"]["device"] == "cpu"
