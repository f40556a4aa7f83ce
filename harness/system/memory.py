"""GPU memory before a trial, and what to say when there was too little of it (or of the machine's).

A trial that has ended may keep its memory for some seconds, so the next one on the same GPU waits a little. Running out
of memory is an outcome with advice, not a crash: it would happen again, so nobody starts the trial again by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from harness.errors import OutOfMemory

if TYPE_CHECKING:
    from harness.config import RuntimeConfig
    from harness.spec.grid import Trial
    from harness.trial.footprint import Footprint

WAIT_SECONDS = 30.0  # for memory to become free
POLL_SECONDS = 0.5
USABLE = 0.9  # of a GPU's memory; the rest is the driver's and other processes' contexts
GIB = 2**30


def await_free_memory(device: torch.device, runtime: RuntimeConfig, warn: Callable[[str], None]) -> None:
    """Wait until the GPU has as much memory free as the trial may count on.

    With `runtime.min_free_gpu_gb` that is a condition. Otherwise it is the share of the GPU that the trial asks for
    (`gpus_per_trial`, of each rank's GPU), less a tenth, and the trial begins with a warning if others keep it.

    Raises:
        OutOfMemory: `runtime.min_free_gpu_gb` are not free after `WAIT_SECONDS`.
    """
    if device.type != "cuda":
        return
    free, whole = torch.cuda.mem_get_info(device)
    if runtime.min_free_gpu_gb is not None:
        wanted = runtime.min_free_gpu_gb * GIB
    else:
        wanted = USABLE * whole * min(1.0, runtime.gpus_per_trial / runtime.ranks)
    deadline = time.monotonic() + WAIT_SECONDS
    while free < wanted and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        free, whole = torch.cuda.mem_get_info(device)
    if free >= wanted:
        return
    found = f"{free / GIB:.1f} of {whole / GIB:.1f} GiB are free on {device}, and did not grow in {WAIT_SECONDS:.0f} s"
    if runtime.min_free_gpu_gb is None:
        warn(f"only {found}; somebody else uses this GPU, so the trial may run out of memory")
    else:
        raise OutOfMemory(
            f"runtime.min_free_gpu_gb: {runtime.min_free_gpu_gb:g} are wanted, but only {found}; end what uses this "
            f"GPU (nvidia-smi names it), run fewer trials at a time (--concurrent), or lower the number"
        )


def check_fits(footprint: Footprint | None, trial: Trial, device: torch.device) -> None:
    """Fail where a training step of the largest batch takes more than the whole GPU has.

    Args:
        footprint: of the trial (`harness.trial.footprint`); None: nobody can tell.
        trial: what is about to run.
        device: the GPU.

    Raises:
        OutOfMemory: it cannot fit; one line with the number.
    """
    whole = torch.cuda.mem_get_info(device)[1]
    if footprint is None or footprint.on_gpu <= whole:
        return
    each = f" on each of {footprint.sharing} ranks" if footprint.sharing > 1 else ""
    raise OutOfMemory(
        f"out of GPU memory before the first step: {footprint.images} images of {footprint.height} x "
        f"{footprint.width}{each} take about {footprint.on_gpu / GIB:.1f} GiB, and {device} has {whole / GIB:.1f}: "
        f"{_advice(trial, True, footprint.images * trial.runtime.ranks, alone=True)}"
    )


def explain_out_of_memory(error: BaseException, trial: Trial, step: int | None) -> str | None:
    """One line for a person if `error` tells of too little memory, else None.

    Args:
        error: what was raised.
        trial: what ran.
        step: steps done; None: it was not yet built.
    """
    gpu = isinstance(error, torch.OutOfMemoryError)
    if not gpu and not isinstance(error, MemoryError) and not _is_cpu_allocation(error):
        return None
    config, ranks = trial.config.train, trial.runtime.ranks
    images = config.batch_size // config.accumulate_steps
    facts = [f"batch {config.batch_size}"]
    if config.accumulate_steps > 1:
        facts.append(f"{images} at once")
    if ranks > 1:
        facts.append(f"{ranks} ranks")
    if gpu and torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info()
        facts.append(f"{(whole - free) / GIB:.1f} of {whole / GIB:.1f} GiB in use")
    when = "before the first step" if step is None else f"at step {step + 1}"
    return f"out of {'GPU memory' if gpu else 'memory'} {when} ({', '.join(facts)}): {_advice(trial, gpu, images)}"


def _is_cpu_allocation(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in text and "memory" in text


def _advice(trial: Trial, gpu: bool, images: int, alone: bool = False) -> str:
    """What keeps the trial the same first, then what makes it another; `alone`: nobody else has to do with it."""
    config, ranks = trial.config.train, trial.runtime.ranks
    tried = [f"fewer trials at a time on this {'GPU (--gpus-per-trial 1)' if gpu else 'machine (--concurrent)'}"]
    if alone:
        tried = ["a larger GPU"]
    if gpu and images > ranks:
        tried.append(f"--ranks {2 * ranks} --gpus-per-trial {2 * ranks}")
    other = []
    factor = next((n for n in range(2, images + 1) if images % n == 0), None)
    if factor:
        other.append(f"--set train.accumulate_steps={config.accumulate_steps * factor}")
    if gpu and config.precision != "bf16":
        other.append("--set train.precision=bf16")
    layers = trial.config.model.transformer.num_encoder_layers
    if gpu and config.checkpoint_encoder_layers < layers:
        other.append(f"--set train.checkpoint_encoder_layers={layers}")
    last = f"; or, as another trial, {' or '.join(other)}" if other else ""
    return f"try {' or '.join(tried)}{last}"
