"""What trials ask of a cluster, in Ray's names, and whether it has that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.errors import UserError

if TYPE_CHECKING:
    from harness.config import RuntimeConfig

ACCELERATOR = "accelerator_type:"  # and a kind of GPU: a resource of every node that has it


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
