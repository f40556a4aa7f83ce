"""The Ray cluster: the one that the environment names, or one on this machine, and whether trials fit into it.

What trials ask of it is told in Ray's names. What runs there is decided in on_ray.py.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import secrets
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError, one_line
from harness.schedule.execute import available_cpus
from harness.schedule.workers import keep_quiet

if TYPE_CHECKING:
    from harness.config import RuntimeConfig
    from harness.schedule.progress import Progress
    from harness.spec.grid import Trial

ACCELERATOR = "accelerator_type:"  # and a kind of GPU: a resource of every node that has it
SETTINGS = {  # of Ray, unless the environment has them
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # or `ray.init` waits for workers, for ever where none can start
    "RAY_worker_niceness": "0",  # Ray's 15 is meant for machines that others share
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}

_BEGINNING = threading.Lock()  # one Ray to a process: the next one waits until one that nobody wants has gone


def is_given() -> bool:
    """Whether the environment names a cluster; else this process starts a Ray of its own."""
    return bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))


class RayStart:
    """Ray begins in a thread, while this one has other things to do until it waits.

    That is a connection to the cluster that the environment names (always so inside a Ray job), else a Ray of this
    process's own. The thread stays as long as the process: what it starts may end with it, as Ray's processes do.

    Args:
        trials: what is to run there.
        concurrent: how many at a time; None: as many as fit.
    """

    def __init__(self, trials: Sequence[Trial], concurrent: int | None) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        self.log: Path | None = None  # of Ray's daemon, where this process has started it
        self._given = is_given()
        if not self._given and "RAY_AUTH_MODE" not in os.environ:
            # A token of this process alone: nobody else can use the cluster, and no file is left in the home folder.
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        self._address = os.environ.get("RAY_ADDRESS") or "auto"
        self._trials, self._concurrent = trials, concurrent
        self._future: Future[Path | None] = Future()  # of `log`
        self._lock = threading.Lock()
        self._given_up = self._taken = False
        self._notes: list[str] = []
        threading.Thread(target=self._run, name="ray").start()

    def wait(self, progress: Progress) -> None:
        """Wait until trials can run; whoever has waited ends Ray with `stop_ray`. A signal gets out of it at once.

        Raises:
            UserError: the cluster does not answer, or this machine cannot hold a trial.
        """
        progress.phase(f"connecting to Ray ({self._address})" if self._given else "starting Ray")
        while not self._future.done():
            wait([self._future], timeout=1.0)
        self.log = self._future.result()
        self._taken = True
        for note in self._notes:
            progress.say(f"note: {note}")
        progress.phase("waiting for workers")

    def __enter__(self) -> RayStart:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception):  # or Ray would be seen to fail while the process ends
            while not self._future.done():
                wait([self._future], timeout=1.0)
        with self._lock:
            self._given_up = True
            begun = self._future.done() and self._future.exception() is None
        if begun and not self._taken:
            stop_ray()

    def _run(self) -> None:
        with _BEGINNING:
            log, failure = None, None
            try:
                log = self._begin()
            except BaseException as error:
                failure = error
            with self._lock:
                given_up = self._given_up
                if failure is not None:
                    self._future.set_exception(failure)
                else:
                    self._future.set_result(log)
            if given_up and failure is None:
                stop_ray()
        threading.main_thread().join()

    def _begin(self) -> Path | None:
        if self._given:
            _check_answers(self._address)
        import ray

        keep_quiet()
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "job_config": _job_config()}
        cpus = max(trial.runtime.cpus_per_trial for trial in self._trials)
        num_cpus = max(available_cpus(), math.ceil(cpus * (self._concurrent or 1)))
        if self._given:
            options["address"] = self._address
        else:
            options |= {"address": "local", "include_dashboard": False}
            options |= {"num_cpus": num_cpus, "object_store_memory": 128 * 2**20}
        try:
            context: Any = ray.init(**options)
        except Exception as error:
            raise UserError(_init_advice(error, self._address if self._given else None)) from error
        runtimes = [trial.runtime for trial in self._trials]
        try:
            self._notes = resource_notes(runtimes, ray.cluster_resources(), may_grow=self._given)
        except UserError:
            stop_ray()
            raise
        return None if self._given else Path(context.address_info["session_dir"]) / "logs" / "raylet.err"


def _job_config() -> Any:
    """Settings of this driver that keep its working folder off the workers' path.

    Ray puts it there, in front of Python's own library; only where the job has a folder of its own it does not.
    """
    from ray.job_config import JobConfig

    class OwnFolder(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    return OwnFolder()


def _init_advice(error: BaseException, address: str | None) -> str:
    """What went wrong with Ray, and what to do; `address` is that of a cluster, None for a Ray of this process."""
    told = one_line(error)
    if told.endswith(":"):  # versions of Python or Ray that differ, a line each
        told = " ".join(str(error).split())
    if "AF_UNIX" in told:
        name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
        return f"{name}={os.environ.get(name, '')} is too long for Ray's sockets; RAY_TMPDIR=/tmp helps"
    if address is not None:
        return f"Ray cluster {address}: {told}; check RAY_ADDRESS and RAY_AUTH_MODE"
    return f"Ray cannot start on this machine: {told}; --executor local needs no Ray"


def stop_ray() -> None:
    """Leave the cluster, or end the one that this process started.

    Objects of Ray that another thread's garbage collection frees while Ray shuts down end the whole process at once,
    without a word (ray 2.60). So what is garbage goes first, and no more is collected until Ray is gone.
    """
    import ray

    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if collecting:
            gc.enable()


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto": looked up on this machine
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"Ray cluster {address} does not answer ({error}); check RAY_ADDRESS") from error


def bundle(runtime: RuntimeConfig) -> dict[str, float]:
    """What a trial asks of the one node that it runs on, for all its ranks, in Ray's names."""
    asked = {"CPU": runtime.cpus_per_trial, "GPU": runtime.gpus_per_trial}
    if runtime.accelerator_type is not None:
        asked[ACCELERATOR + runtime.accelerator_type] = 0.001
    return asked


def resource_notes(runtimes: Sequence[RuntimeConfig], there: dict[str, float], *, may_grow: bool) -> list[str]:
    """What a person should know of what trials ask for and what Ray has, as `ray.cluster_resources()` tells.

    Raises:
        UserError: a trial can never start, as nothing can be added to what is there.
    """
    cpus, gpus = (max(getattr(runtime, f"{kind}_per_trial") for runtime in runtimes) for kind in ("cpus", "gpus"))
    asked = [f"{cpus:g} CPUs and {gpus:g} GPUs"] if cpus > there.get("CPU", 0) or gpus > there.get("GPU", 0) else []
    wanted = {runtime.accelerator_type for runtime in runtimes if runtime.accelerator_type}
    asked += [f"a GPU of type {kind}" for kind in sorted(wanted) if ACCELERATOR + kind not in there]
    notes = []
    if asked:
        kinds = sorted(name.removeprefix(ACCELERATOR) for name in there if name.startswith(ACCELERATOR))
        found = f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs"
        found += f" ({', '.join(kinds)})" if kinds else ""
        if not may_grow:
            raise UserError(f"a trial asks for {' and '.join(asked)}, this machine has {found}")
        notes.append(f"a trial asks for {' and '.join(asked)}; the cluster has {found} now")
    if there.get("GPU") and not gpus:
        notes.append("there are GPUs, but no trial asks for one; see --gpus-per-trial")
    return notes
