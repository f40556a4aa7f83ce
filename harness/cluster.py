"""The Ray cluster: the one that the environment names, or one on this machine, and whether trials fit into it.

What trials ask of it is told in Ray's names. What runs there is decided in harness/on_ray.py.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import re
import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError, one_line
from harness.execute import available_cpus, interruptible

if TYPE_CHECKING:
    from harness.config import RuntimeConfig
    from harness.grid import Trial
    from harness.progress import Progress

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
WORKER_SECONDS = 20.0  # that a worker has to begin before what Ray notes of dead ones is believed
SAID = 20  # messages of Ray that are kept
CAUSE = re.compile(r"^\w+(?:Error|Exception|Exit): .+", re.MULTILINE)  # the last line of a traceback


class NoWorkers(RuntimeError):
    """No process that could run a trial can be started; the text says why."""


def start_ray(trials: Sequence[Trial], concurrent: int | None, progress: Progress) -> None:
    """Connect to the cluster that the environment names (always so inside a Ray job), else start one on this machine.

    Raises:
        UserError: the cluster does not answer, or this machine cannot hold a trial.
        NoWorkers: none can begin on this machine.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    given = bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))
    if not given and "RAY_AUTH_MODE" not in os.environ:
        # A token of this process alone: nobody else can use the cluster, and no file is left in the home folder.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    address = os.environ.get("RAY_ADDRESS") or "auto"
    progress.phase(f"connecting to Ray ({address})" if given else "starting Ray")
    if given:
        _check_answers(address)
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "job_config": _job_config()}
    cpus = max(trial.runtime.cpus_per_trial for trial in trials)
    if given:
        options["address"] = address
    else:
        num_cpus = max(available_cpus(), math.ceil(cpus * (concurrent or 1)))
        options |= {"address": "local", "include_dashboard": False}
        options |= {"num_cpus": num_cpus, "object_store_memory": 128 * 2**20}
    _keep_quiet()
    try:
        context = interruptible(lambda: ray.init(**options), stop_ray)
    except Exception as error:
        raise UserError(_init_advice(error, address if given else None)) from error
    try:
        for note in resource_notes([trial.runtime for trial in trials], ray.cluster_resources(), may_grow=given):
            progress.say(f"note: {note}")
        progress.phase("waiting for workers")
        if not given:
            _await_worker(Path(context.address_info["session_dir"]) / "logs" / "raylet.err")
    except BaseException:
        stop_ray()
        raise


def _keep_quiet() -> None:
    """Note what Ray would print about its workers, pages of tracebacks; `unimportable` looks into it."""
    from ray._private import worker

    def note(data: dict[str, Any], *_: object, **__: object) -> None:
        _said.extend(data.get("lines") or ())
        del _said[:-SAID]

    worker.print_to_stdstream = note


_said: list[str] = []


def unimportable() -> str:
    """Why a worker could not load what it was to do, as one line; empty where that was not its trouble."""
    for text in reversed(_said):
        if "failed to import on the worker" in text and (causes := CAUSE.findall(text)):
            return str(next((cause for cause in reversed(causes) if "failed to import" not in cause), causes[-1]))
    return ""


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


def _await_worker(log: Path) -> None:
    """Wait until a first worker is there. Where none can begin Ray tries for ever, and its `log` has the reason."""
    import ray

    first = ray.remote(num_cpus=0)(lambda: None).remote()
    begun = time.monotonic()
    while not ray.wait([first], timeout=0.5)[0]:
        if time.monotonic() - begun < WORKER_SECONDS:
            continue
        with suppress(OSError):
            if causes := CAUSE.findall(log.read_text(encoding="utf-8", errors="replace")):
                raise NoWorkers(f"its worker could not start: {causes[-1]} (on {socket.gethostname()})")
    try:
        ray.get(first)
    except ray.exceptions.RayError as error:
        raise NoWorkers(f"its worker could not start: {one_line(error)}") from None


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
