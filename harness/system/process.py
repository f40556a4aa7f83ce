"""What a process that trains asks of the system: memory that stays, and threads that wait politely.

The C library gives large blocks back to the system at once, and gets them again page by page, each page cleared. A
training step on a CPU allocates the same large blocks over and over, and spends a tenth of its time on that.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h of the GNU C library
KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}  # no own mappings, and the heap stays

SPINS = "1000"  # some microseconds


def wait_politely() -> None:
    """Let threads of OpenMP that wait for each other sleep soon; call it before torch is loaded.

    By default they keep their core busy for milliseconds, each time. On a machine that does anything else, the thread
    waited for cannot run there, and a step can take fifty times as long.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def keep_freed_memory() -> bool:
    """Tell the C library to keep what this process frees; False where it has no such option."""
    with suppress(AttributeError, OSError, TypeError):  # not the GNU C library
        option = ctypes.CDLL(None).mallopt
        return all(option(*setting) for setting in KEEP.items())
    return False
