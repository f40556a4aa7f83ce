"""How a process of a trial died, in words."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

COMPILED = "a fault in compiled code: does it go with CODETR_OPS=reference, or ONEDNN_MAX_CPU_ISA=AVX2?"
HINTS = {
    signal.SIGKILL: "out of memory? The system's log (dmesg) tells; fewer trials at a time (--concurrent) or smaller "
    "parts of a batch (train.accumulate_steps) take less",
    signal.SIGBUS: "mapped or shared memory that is not there: is a disk or /dev/shm full?",
    **dict.fromkeys((signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE), COMPILED),
    **dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), "somebody, or the scheduler, ended it"),
    signal.SIGXCPU: "a limit of processor time (ulimit -t)",
}


def story(code: int, beat: Mapping[str, Any]) -> str:
    """What to say of a process of a trial that died: how, how far it had come, and what that hints at.

    Args:
        code: its exit code, negative for a signal.
        beat: the last sign of life, which has the step.
    """
    total = beat.get("total_steps")
    when = f" after step {beat['step']}" if beat.get("step") else " before its first step"
    of_all = f" of {total}" if total and beat.get("step") else ""
    return f"{ending(code)}{when}{of_all}{hint(code)}"


def ending(code: int) -> str:
    """How a process with this exit code ended; negative for a signal."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def hint(code: int) -> str:
    """What a signal may come from, after a semicolon; empty where nobody knows."""
    known = HINTS.get(signal.Signals(-code)) if code < 0 and -code in set(signal.Signals) else None
    return f"; {known}" if known else ""
