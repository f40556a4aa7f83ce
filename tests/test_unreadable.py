"""Storage that does not answer: told as such, never a fact about a trial, and nothing that is there gets lost.

Each command runs again and again; the first time the first question to the storage fails, then the second, and so on.
"""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import json
import os
import pickle
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.__main__ import main
from harness.analyse import Analysed
from harness.config import AnalyseConfig
from harness.errors import ReadError, StorageError, UserError
from harness.revisit.asked import Request
from harness.revisit.kept import keep
from harness.revisit.trained import Found
from harness.schedule.schedule import run_grid
from harness.spec.grid import Grid, open_grid
from harness.store import housekeeping, lease, ledger, transfer
from harness.store.results import RunStore
from harness.store.transfer import export_records
from harness.tracking import mirror as mirror_room
from harness.tracking import tracking
from harness.tracking.mirror import Mirror
from harness.trial.checkpoint import Progress, load_checkpoint, save_checkpoint
from tests.support.fakes import entry, finish, make_grid, make_trial, record, run_fake
from tests.support.tracked import assert_equal_to_records

ERRORS = (errno.ESTALE, errno.EIO, errno.EMFILE, errno.EACCES, errno.ENOTCONN, errno.ETIMEDOUT)
QUICKSTART = str(Path(__file__).parents[1] / "ablations" / "quickstart.yaml")
FAST = ["--preset", "digits_fast"]
REPORT = ["report", QUICKSTART, *FAST, "--from", "records", "--out", "{out}", "--format"]


class Broken:
    """An open file whose content does not come."""

    def __init__(self, file: Any, error: OSError) -> None:
        self.file, self.error = file, error

    def __enter__(self) -> Broken:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        if name in ("read", "readinto", "readall", "readline"):
            raise self.error
        return getattr(self.file, name)


class Storage:
    """Questions to the storage below a folder: opening, reading, listing, looking. The n-th fails."""

    def __init__(self, folder: Path, number: int, code: int) -> None:
        self.folder, self.number, self.code = str(folder), number, code
        self.failed = ""

    def fails(self, path: Any) -> bool:
        if self.failed or not isinstance(path, str | os.PathLike) or not str(path).startswith(self.folder):
            return False
        if ".now-" in str(path):
            return False
        self.number -= 1
        if self.number == 0:
            self.failed = str(path)
        return self.number == 0

    def error(self, path: Any) -> OSError:
        return OSError(self.code, os.strerror(self.code), str(path))

    @contextmanager
    def failing(self) -> Iterator[Storage]:
        patch, real_open, real_stat = pytest.MonkeyPatch(), io.open, os.stat

        def opened(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            reads = not set(mode) & set("wx+")
            if not (reads and self.fails(path)):
                return real_open(path, mode, *arguments, **options)
            if "r" in mode and self.code == errno.EIO and stat.S_ISREG(real_stat(path).st_mode):
                return Broken(real_open(path, mode, *arguments, **options), self.error(path))
            raise self.error(path)

        def asking(real: Any) -> Any:
            def ask(path: Any = ".", *arguments: Any, **options: Any) -> Any:
                if self.fails(path):
                    raise self.error(path)
                return real(path, *arguments, **options)

            return ask

        try:
            for room in (builtins, io):
                patch.setattr(room, "open", opened)
            for name in ("stat", "lstat", "listdir", "scandir"):
                patch.setattr(os, name, asking(getattr(os, name)))
            yield self
        finally:
            patch.undo()


def everything(store: RunStore) -> dict[str, bytes]:
    """All that stands in records: what no command that only looks, and no failed one, may change."""
    runs = store.root / "runs"
    paths = [path for path in runs.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(runs).as_posix(): path.read_bytes() for path in paths}


def of(trial: Any, files: dict[str, bytes]) -> dict[str, bytes]:
    """Those of one trial."""
    return {name: data for name, data in files.items() if name.startswith(trial.trial_id)}


@pytest.fixture
def grid() -> Grid:
    return open_grid(QUICKSTART, "digits_fast")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: Grid) -> RunStore:
    """A finished trial with all that a trial may have, a failed and a interrupted one, and the grid of the three."""
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(tracking, "available", lambda: False)
    store = RunStore()
    done, failed, begun = grid.trials
    finish(store, done)
    store.heartbeat(done.trial_id, {"step": 3})
    for name in ("checkpoint/model.safetensors", "checkpoint/state.safetensors", "analysis/conflict.json"):
        store.write(done.trial_id, name, "{}")
    store.write(done.trial_id, "detections.json", "[]")
    store.append_metrics(failed.trial_id, entry(failed, 1))
    store.write(failed.trial_id, "log.txt", "it failed")
    store.write(failed.trial_id, "attempts/1/log.txt", "it failed before")
    store.write(failed.trial_id, "checkpoint/state.safetensors", "{}")
    record(store, failed, "failed", error="ValueError: no")
    store.append_metrics(begun.trial_id, entry(begun, 1))
    record(store, begun, "running")
    ledger.remember(store, grid)
    return store


@pytest.fixture
def template(store: RunStore, tmp_path: Path) -> Path:
    """A copy of the store, to begin each attempt with."""
    return shutil.copytree(store.root, tmp_path / "template", symlinks=True)


LOOKS: dict[str, list[str]] = {
    "status": ["status"],
    "status all": ["status", "--all"],
    "status of a file": ["status", QUICKSTART, *FAST],
    "plan": ["plan", QUICKSTART, *FAST],
    "plan cost": ["plan", QUICKSTART, *FAST, "--cost"],
    "logs": ["logs", "{failed}"],
    "diff": ["diff", "{done}", "{failed}"],
    "gc": ["gc"],
    "export": ["export", "{done}", "--out", "{out}/records.zip"],
    "export folder": ["export", "{done}", "--out", "{out}/records", "--checkpoints", "--detections"],
    "analyse": ["analyse", "{done}"],
    "report": [*REPORT, "md,csv"],
    "report with a page": [*REPORT, "md,csv,html"],
}
FIGURES = 11  # each time the page's figures are drawn, so that the plain run lets each eleventh question fail


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *((name, 1 if name != "report with a page" else FIGURES) for name in LOOKS),
        pytest.param("report with a page", 1, marks=pytest.mark.slow),
    ],
)
def test_who_only_looks_says_what_cannot_be_read_and_changes_nothing(
    name: str, step: int, store: RunStore, grid: Grid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, failed, _ = grid.trials
    before, places = everything(store), {"done": done.trial_id, "failed": failed.trial_id, "out": str(tmp_path / "out")}
    argv = [word.format(**places) for word in LOOKS[name]]
    as_ever, told = main(argv), capsys.readouterr()
    for number, storage in attempts(store.root, step):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        with storage.failing():
            code = main(argv)
        out, err = capsys.readouterr()
        if not storage.failed:
            break
        where = (number, storage.failed, out, err)
        assert everything(store) == before, where
        assert "damaged" not in err and "Traceback" not in err, where
        if code == 2 and as_ever != 2:
            assert err.splitlines()[-1].startswith(("error: ", "warning: ")), where
            assert os.strerror(storage.code) in err, where
        else:
            assert (code, out.replace("records", "")) == (as_ever, told.out.replace("records", "")), where
    assert number > 3


def attempts(folder: Path, step: int = 1) -> Iterator[tuple[int, Storage]]:
    """Storages whose first, second, third … question fails (or each `step`-th), one after the other's error."""
    for number in itertools.count(1, step):
        yield number, Storage(folder, number, ERRORS[number % len(ERRORS)])


CHANGES: dict[str, list[str]] = {
    "gc": ["gc", "--yes"],
    "retry": ["retry"],
    "retry from scratch": ["retry", "{failed}", "--from-scratch"],
    "rm": ["rm", "--yes", "{failed}"],
    "import": ["import", "{there}"],
    "import of an archive": ["import", "{there}.zip"],
}


@pytest.mark.parametrize("name", CHANGES)
def test_who_changes_something_does_it_whole_or_not_at_all(
    name: str,
    store: RunStore,
    template: Path,
    grid: Grid,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "checked", lambda trial_id, files: json.loads(files["result.json"]))
    done, failed, begun = grid.trials
    there = RunStore(tmp_path / "there")
    for trial in (done, failed):
        finish(there, trial)
        record(there, trial, "finished", config={}, metrics={"AP": 99.0})
    export_records(there, [done.trial_id, failed.trial_id], tmp_path / "there.zip")
    before, theirs = everything(store), everything(there)
    argv = [word.format(failed=failed.trial_id, there=there.root) for word in CHANGES[name]]
    for number, storage in attempts(tmp_path):
        shutil.rmtree(store.root)
        shutil.copytree(template, store.root)
        with storage.failing():
            code = main(argv)
        _, err = capsys.readouterr()
        if not storage.failed:
            break
        after, where = everything(store), (number, storage.failed, err)
        assert code == 0 or err.splitlines()[-1].startswith(("error: ", "warning: ", "kept ", "note: ")), where
        assert "Traceback" not in err and "damaged" not in err, where
        kept = f"{done.trial_id}/checkpoint/state.safetensors"  # which gc may delete
        assert {**of(done, after), kept: b"{}"} == of(done, before), where
        assert of(begun, after) == of(begun, before), where
        own = of(failed, after)
        result = own.get(f"{failed.trial_id}/result.json", own.get(f"{failed.trial_id}/attempts/2/result.json"))
        if name == "rm":
            assert own in ({}, of(failed, before)), where
        elif name.startswith("import"):
            assert result in (before[f"{failed.trial_id}/result.json"], theirs[f"{failed.trial_id}/result.json"]), where
        else:
            assert result == before[f"{failed.trial_id}/result.json"], where
    assert number > 3


@pytest.mark.parametrize("step", [31, pytest.param(7, marks=pytest.mark.slow)])
def test_a_run_says_what_it_could_not_read_and_touches_nothing_that_is_finished(
    step: int, store: RunStore, template: Path, grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_EVERY", 60.0)
    done, failed, _ = grid.trials
    before = everything(store)
    for number, storage in attempts(store.root, step=step):
        shutil.rmtree(store.root)
        shutil.copytree(template, store.root)
        lines: list[str] = []
        with storage.failing():
            try:
                run_grid(
                    grid, store, executor="local", run_trial=run_fake, check_data=lambda *_: None, out=lines.append
                )
            except (OSError, UserError) as error:
                lines.append(str(error))
        if not storage.failed:
            break
        after, where = everything(store), (number, storage.failed, lines)
        assert of(done, after) == of(done, before), where
        assert "damaged" not in "".join(lines), where
        kept = [data for path, data in of(failed, after).items() if path.endswith("result.json")]
        assert before[f"{failed.trial_id}/result.json"] in kept, where
        for trial in grid.trials:  # epochs are neither lost nor doubled
            epochs = [line["epoch"] for line in store.metrics(trial.trial_id)]
            assert epochs == sorted(set(epochs)) and epochs[:1] == [1], where
    assert number > 20


# ---- single reads


ASKS: dict[str, Callable[[RunStore, str], object]] = {
    "read": lambda store, key: store.read(key),
    "status": lambda store, key: store.status(key),
    "look": lambda store, key: store.look(key),
    "mark": lambda store, key: store.mark(key, "failed", "no"),
    "metrics": lambda store, key: store.metrics(key),
    "append_metrics": lambda store, key: store.append_metrics(key, {"epoch": 9}),
    "restore_metrics": lambda store, key: store.restore_metrics(key, [{"epoch": 9}]),
    "read_heartbeat": lambda store, key: store.read_heartbeat(key),
    "claim": lambda store, key: store.claim(key),
    "set_back": lambda store, key: housekeeping.set_back(store, key),
    "remove": lambda store, key: housekeeping.remove(store, key),
    "damages": lambda store, key: housekeeping.damages(store, key),
    "take_up": lambda store, key: housekeeping.take_up(store, [key]),
}


@pytest.mark.parametrize("code", ERRORS)
@pytest.mark.parametrize("name", ASKS)
def test_each_error_is_raised_and_never_taken_for_an_answer(
    name: str, code: int, store: RunStore, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial_id, real = grid.trials[0].trial_id, Path.read_bytes
    before = everything(store)

    def away(path: Path) -> bytes:
        if path.is_relative_to(store.root):
            raise OSError(code, os.strerror(code), str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", away)
    with pytest.raises(ReadError, match="cannot be read") as caught:
        ASKS[name](store, trial_id)
    assert os.strerror(code) in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.undo()
    assert everything(store) == before


def test_too_many_open_files_do_not_make_a_living_holder_a_dead_one(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.read_text

    def full(path: Path, *arguments: object, **options: object) -> str:
        if path.is_relative_to("/proc"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return real(path, *arguments, **options)  # type: ignore[arg-type]

    with store.claim("t"), monkeypatch.context() as outage:
        outage.setattr(Path, "read_text", full)
        for ask in (store.claim, store.status):
            with pytest.raises(ReadError, match="Too many open files"):
                ask("t")


def test_a_checkpoint_that_cannot_be_read_now_is_no_torn_one(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or hours of training would be thrown away, and the next checkpoint would replace the whole one."""
    folder = store.root / "checkpoint"
    detector = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(detector.parameters())
    save_checkpoint(folder, detector, optimizer, Progress(step=7))
    for _, storage in attempts(folder):
        with storage.failing():
            try:
                progress, warnings = load_checkpoint(folder, detector, optimizer)
            except ReadError as error:
                assert os.strerror(storage.code) in str(error)
                progress = None
        if not storage.failed:
            break
        assert progress is None
    assert progress is not None and (progress.step, warnings) == (7, [])


def test_an_analysis_is_not_kept_in_a_record_that_cannot_be_read(
    store: RunStore, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = grid.trials[0]
    found = Found(trial.trial_id, trial.config, Path("weights"), 1, "here")
    analysed = Analysed({"queries": {"rows": []}}, {"queries": 1.0}, {}, {}, 1, 1, 1.0)
    request = Request(AnalyseConfig(("queries",)))
    monkeypatch.setattr("harness.revisit.kept.open_dataset", lambda *_, **__: None)
    monkeypatch.setattr("harness.revisit.kept._draw", lambda *_: [])
    result = store.dir(trial.trial_id) / "result.json"
    before = result.read_bytes()
    for _, storage in attempts(store.root):
        with storage.failing(), suppress(StorageError):
            keep(found, analysed, request, store)
        if not storage.failed:
            break
        assert json.loads(result.read_bytes())["status"] == "finished"
        if "result.json" in storage.failed:
            assert result.read_bytes() == before
    assert (store.read(trial.trial_id) or {})["metrics"]["queries"] == 1.0
    result.write_bytes(b"{")
    with pytest.raises(UserError, match="finished no more"):
        keep(found, analysed, request, store)
    assert result.read_bytes() == b"{"


def test_records_that_are_away_are_not_blamed_on_the_tracking_store(
    tmp_path: Path, tracking_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_room, "RETRY_SECONDS", 0.0)
    store, trials = RunStore(tmp_path / "store"), [make_trial(number) for number in range(1, 30)]
    for trial in trials:
        finish(store, trial)
    said: list[str] = []
    mirror = Mirror(store, make_grid(*trials), warn=said.append)
    mirror.open()
    for number, storage in attempts(store.root):
        said.clear()
        with storage.failing():
            through = mirror.sync([trials[number]])
        if not storage.failed:
            break
        assert through or (len(said) == 1 and str(store.root) in said[0] and "tracking store" not in said[0]), said
    assert number > 8 and mirror.close()
    assert_equal_to_records(tracking_store, store, trials, "fakes")


@pytest.mark.parametrize("kind", [StorageError, ReadError])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EIO])
def test_the_advice_is_about_rights_where_these_are_what_is_missing(kind: type[StorageError], code: int) -> None:
    told = str(pickle.loads(pickle.dumps(kind("a", OSError(code, os.strerror(code))))))
    assert ("see to the rights there" in told) == (code not in (errno.ENOSPC, errno.EIO))
