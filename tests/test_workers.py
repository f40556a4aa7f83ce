"""Workers: their priority and path, what becomes of the trials of one that is lost, and why one cannot begin."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray.exceptions import RayActorError

from harness.errors import UserError
from harness.schedule import cluster, on_ray, workers
from harness.schedule.preloaded import Preloaded, connect
from harness.schedule.schedule import run_grid
from harness.store import lease
from harness.store.results import RunStore
from harness.system.forkserver import ForkServer, WorkerUnfit
from tests.support.fakes import make_grid, make_trial, run_fake, starts

TESTS = Path(__file__).parent
IMPORT = """The actor with name ImplicitFunc failed to import on the worker. This may be because of

Traceback (most recent call last):
  File "function_manager.py", line 696, in _load_actor_class_from_gcs
ImportError: libcudart.so.13: cannot open shared object file

An unexpected internal error occurred"""


class Broken:
    """Can be sent to another process, and not be made again there."""

    def __reduce__(self) -> Any:
        return (__import__, ("nothing_of_this_name",))


def test_what_cannot_be_loaded_in_a_fork_is_told_and_the_server_lives() -> None:
    forks = ForkServer(preload=("nothing_of_this_name", "harness.errors"))
    try:
        with pytest.raises(WorkerUnfit, match="^ModuleNotFoundError: No module named 'nothing_of_this_name'$"):
            forks.run(print, Broken())
        assert forks.run(os.getpid) != os.getpid()
    finally:
        forks.close()


def test_a_preload_that_ends_badly_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_library.py").write_text("raise OSError('libcudart.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    forks = ForkServer(preload=("broken_library",))
    try:
        assert forks.run(os.getppid) == forks.process.pid
    finally:
        forks.close()


def test_workers_share_a_process_that_has_loaded_everything() -> None:
    with Preloaded(preload=("colorsys",)) as loaded:
        first, second = (ForkServer(connection=connect(loaded.place)) for _ in range(2))
        assert first.run(is_loaded, "colorsys") and second.run(is_loaded, "colorsys")
        parents = {first.run(os.getppid), second.run(os.getppid)}
        assert len(parents) == 2 and os.getpid() not in parents
        first.close()
        assert second.run(os.getppid) in parents
    assert connect(loaded.place) is None and not Path(loaded.place).parent.exists()


def test_its_forks_end_with_it() -> None:
    with Preloaded(preload=()) as loaded:
        forks = ForkServer(connection=connect(loaded.place))
        server = forks.run(os.getppid)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{server}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{server}").exists()


def is_loaded(name: str) -> bool:
    import sys

    return name in sys.modules


def test_rays_pages_become_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ray._private import worker

    monkeypatch.setattr(workers, "_said", [])
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    workers.keep_quiet()
    worker.print_to_stdstream({"lines": [IMPORT], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    worker.print_to_stdstream({"lines": ["A worker died or was killed"]}, ignore_prefix=False)
    assert capsys.readouterr() == ("", "")
    error = type("ActorDiedError", (Exception,), {})("The actor died unexpectedly before finishing this task.\n")
    reason = "its worker could not run it: ImportError: libcudart.so.13: cannot open shared object file"
    assert on_ray._reason(error) == reason
    monkeypatch.setattr(workers, "_said", ["A worker died or was killed"])
    assert on_ray._reason(error).startswith("its worker was lost again and again (ActorDiedError)")
    assert on_ray._reason(RuntimeError()) == "its worker could not run it: RuntimeError"


def test_ray_that_cannot_start_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/a/long/one")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /a/long/one/ray")
    assert cluster._init_advice(long, None) == "TMPDIR=/a/long/one is too long for Ray's sockets; RAY_TMPDIR=/tmp helps"
    monkeypatch.setenv("RAY_TMPDIR", "/b")
    assert cluster._init_advice(long, None).startswith("RAY_TMPDIR=/b is too long")
    other = RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.12.1\nThis")
    told = cluster._init_advice(other, "head:6379")
    assert told.startswith("Ray cluster head:6379: Version mismatch: The cluster was started with: Ray: 2.60.0 Python")
    assert "RAY_ADDRESS" not in cluster._init_advice(RuntimeError("no"), None)


@pytest.fixture
def store(store: RunStore, without_mlflow: None) -> RunStore:
    return store


class Start:
    """Stands for a Ray that has begun."""

    log: Path | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> Start:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def wait(self, progress: Any) -> None:
        pass


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> type[Start]:
    start = type("Start", (Start,), {})
    monkeypatch.setattr("harness.schedule.schedule.RayStart", start)
    monkeypatch.setattr(on_ray, "stop_ray", lambda: None)
    return start


@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped by Ray", "as it is"])
def test_a_machine_where_no_worker_begins_fails_the_trials(
    store: RunStore, no_ray: type[Start], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    """Ray would try for ever; and what a signal's handler raises it makes a SystemError of."""
    no_ray.log = log = tmp_path / "raylet.err"
    log.write_text("Fatal Python error\nTraceback (most recent call last):\nSystemExit: no licence on this node\n")

    def wait_for_ever(*_: Any) -> None:
        try:
            while True:
                time.sleep(0.01)
        except workers.NoWorkers:
            if wrapped:
                raise SystemError("returned a result with an exception set") from None
            raise

    monkeypatch.setattr(on_ray, "_run_until_settled", wait_for_ever)
    monkeypatch.setattr(workers, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(workers, "WORKER_SECONDS", 0.0)
    lines: list[str] = []
    grid = make_grid(make_trial(1), make_trial(2))
    summary = run_grid(grid, store, run_trial=run_fake, check_data=lambda *_: None, out=lines.append)
    assert len(summary.failed) == 2
    reason = (store.read(summary.failed[0]) or {})["error"]
    assert reason.startswith("its worker could not start: SystemExit: no licence on this node (on ")


KILLED = "2 worker(s) were killed due to the node running low on memory. Memory on the node was 22.56GB used"


class Tuned:
    """Tune's own controller with one trial, and no Ray: workers are told to it, and how they end."""

    def __init__(self, folder: Path, max_failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
        from ray.train._internal import storage
        from ray.tune.execution import tune_controller
        from ray.tune.experiment import Trial

        monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "1")
        monkeypatch.setattr(tune_controller, "_ResourceUpdater", MagicMock())
        monkeypatch.setattr(storage, "_get_ray_train_session_dir", lambda: str(folder / "session"))
        place = storage.StorageContext(str(folder), "launch", trial_dir_name="trial")
        controller = tune_controller.TuneController(storage=place, resource_manager_factory=MagicMock)
        trial: Any = Trial("stub", stub=True, storage=place, max_failures=max_failures)
        self.trial = trial
        Path(trial.local_path).mkdir(parents=True)
        controller.add_trial(self.trial)
        self.controller: Any = controller

    def worker(self) -> Any:
        """A worker for the trial."""
        from ray.air.execution._internal import TrackedActor

        worker = TrackedActor(self.trial.run_metadata.num_failures, on_error=self.controller._actor_failed)
        self.controller._actor_to_trial[worker] = self.trial
        self.controller._trial_to_actor[self.trial] = worker
        self.controller._actor_manager._live_actors_to_ray_actors_resources[worker] = MagicMock(), MagicMock()
        return worker

    def cannot_start(self, error: Exception) -> None:
        """Tell that the worker ended before it had the trial."""
        self.controller._staged_trials.add(self.trial)
        self.controller._actor_cache.increase_max(self.trial.placement_group_factory)
        self.controller._actor_manager._actor_start_failed(self.worker(), error)

    def ends_at_work(self, error: Exception) -> None:
        """Tell that the worker ended while it ran the trial."""
        from ray.air.execution._internal.tracked_actor_task import TrackedActorTask

        def task_failed(worker: Any, own: Exception) -> None:
            assert isinstance(own, RayActorError) or worker in self.controller._actor_to_trial  # as Tune asserts
            self.controller._trial_task_failure(self.trial, own)

        self.controller._set_trial_status(self.trial, "RUNNING")
        self.controller._actor_manager._actor_task_failed(TrackedActorTask(self.worker(), None, task_failed), error)


@pytest.mark.parametrize("how", ["ends_at_work", "cannot_start"])
def test_a_worker_ended_for_its_memory_is_a_lost_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Tune would end all the trials: it knows no such error. Its part of Ray is the real one."""
    from ray import cloudpickle
    from ray.exceptions import OutOfMemoryError
    from ray.tune.execution import tune_controller

    from harness.schedule.actors import count_as_lost

    monkeypatch.setattr(tune_controller, "RayActorManager", tune_controller.RayActorManager)  # put back at the end
    count_as_lost()
    tuned = Tuned(tmp_path, 2, monkeypatch)
    states = []
    for _ in range(3):
        getattr(tuned, how)(OutOfMemoryError(f"{KILLED}\nand pages more"))
        states.append(tuned.trial.status)
    assert states == ["PENDING", "PENDING", "ERROR"]
    error = cloudpickle.loads(Path(tuned.trial.pickled_error_file).read_bytes())
    assert on_ray._reason(error).startswith("out of memory on its node, again and again: try fewer trials at a time")


def test_any_other_trouble_of_ray_is_one_line(
    store: RunStore, no_ray: type[Start], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import RaySystemError

    def raise_error(cause: Exception) -> None:
        raise RuntimeError(f"Caught unexpected exception: {cause}\nand pages more") from cause

    grid = make_grid(make_trial(1))
    options: dict[str, Any] = {"run_trial": run_fake, "check_data": lambda *_: None, "out": lambda _: None}
    monkeypatch.setattr(on_ray, "_tune", lambda *_: raise_error(RaySystemError("the raylet is gone")))
    with pytest.raises(UserError, match="^store .*: Ray Tune cannot go on .*raylet is gone.* The same command goes on"):
        run_grid(grid, store, **options)
    monkeypatch.setattr(on_ray, "_tune", lambda *_: raise_error(KeyError("ours")))
    with pytest.raises(RuntimeError, match="ours"):
        run_grid(grid, store, **options)


def test_a_cluster_or_workers_at_work_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "raylet.err"
    log.write_text("OSError: one died, another came\n")
    monkeypatch.setattr(workers, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(workers, "WORKER_SECONDS", 0.0)
    with workers.no_start(lambda: True, log):
        time.sleep(0.1)
    with workers.no_start(lambda: False, None):
        time.sleep(0.1)
    log.write_text("a warning")
    with workers.no_start(lambda: False, log):
        time.sleep(0.1)


def run_and_tell(trial: Any, store: RunStore, **options: Any) -> Any:
    """A trial that tells where it runs, by a file in its folder."""
    import sys

    import model

    found = [os.getpriority(os.PRIO_PROCESS, 0), model.__file__, os.getcwd() in sys.path]
    store.dir(trial.trial_id).mkdir(parents=True, exist_ok=True)
    (store.dir(trial.trial_id) / "where").write_text(repr(found), encoding="utf-8")
    return run_fake(trial, store, **options)


@pytest.mark.ray
def test_on_ray_ours_come_first_at_this_process_own_priority(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("model", "harness", "yaml", "torch", "types", "pandas"):
        (folder / f"{name}.py").write_text("raise RuntimeError")
    monkeypatch.chdir(folder)
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "tests").symlink_to(TESTS)  # not the folder above it, where our packages lie
    for place in (TESTS, tmp_path / "path"):
        monkeypatch.syspath_prepend(str(place))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    trial = make_trial(1)
    summary = run_grid(make_grid(trial), store, run_trial=run_and_tell, check_data=lambda *_: None, out=lambda _: None)
    assert summary.finished == (trial.trial_id,)
    nice, file, has_folder = eval((store.dir(trial.trial_id) / "where").read_text(encoding="utf-8"))
    assert nice == os.getpriority(os.PRIO_PROCESS, 0) and not has_folder
    assert file == str(TESTS.parent / "model" / "__init__.py")


def test_a_worker_leaves_a_trial_of_another_process_to_it(store: RunStore) -> None:
    trial = make_trial(1)
    launch = on_ray.Launch(store, run_fake, concurrent=None, max_failures=0, fail_fast=False)
    with store.claim(trial.trial_id):  # type: ignore[union-attr]
        assert on_ray._run_one(trial, launch, lease.identity()) == "running"
    assert starts(store, trial) == 0
    assert on_ray._run_one(trial, launch, lease.identity()) == "finished"


def test_a_trial_that_never_began_does_not_end_the_driver(store: RunStore) -> None:
    """Tune knows no configuration of it; its folder has the name."""
    grid = make_grid(make_trial(1))
    lines: list[str] = []

    class Told:
        def say(self, text: str) -> None:
            lines.append(text)

    on_ray._mark_lost(grid.trials, store, {grid.trials[0].trial_id: "its worker could not run it: why"}, Told())  # type: ignore[arg-type]
    assert (store.read(grid.trials[0].trial_id) or {})["status"] == "failed"
