"""What a process that trains asks of the system: memory that stays and grows, and threads that wait politely.

The C library gives large blocks back to the system at once, and gets them again page by page, each page cleared. A
training step on a CPU allocates the same large blocks over and over, and spends a tenth of its time on that.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h of the GNU C library
KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}  # no own mappings, and the heap stays

SPINS = "1000"  # some microseconds

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")  # the last two are older names
GROWING = "expandable_segments:True"


def wait_politely() -> None:
    """Let threads of OpenMP that wait for each other sleep soon; call it before torch is loaded.

    By default they keep their core busy for milliseconds, each time. On a machine that does anything else, the thread
    waited for cannot run there, and a step can take fifty times as long.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def let_segments_grow() -> None:
    """Let torch's allocator of a GPU extend what it holds, unless it was told otherwise; before torch is loaded.

    Images differ in size, and so do all blocks of a step. By default a block that fits nowhere is a new segment, and
    what lies free between those in use is lost: a trial runs out of memory while gigabytes are "reserved but
    unallocated". Nothing but addresses depends on it.
    """
    if allocator() is None and sys.platform == "linux":  # torch warns where the system cannot do it
        os.environ[ALLOCATOR[0]] = GROWING


def allocator() -> str | None:
    """What torch's allocator was told, such as "expandable_segments:True"; None: nothing."""
    return next(filter(None, map(os.environ.get, ALLOCATOR)), None)


def keep_freed_memory() -> bool:
    """Tell the C library to keep what this process frees; False where it has no such option."""
    with suppress(AttributeError, OSError, TypeError):  # not the GNU C library
        option = ctypes.CDLL(None).mallopt
        return all(option(*setting) for setting in KEEP.items())
    return False
