"""Memory that a step frees is kept for the next step.

The C library gives large blocks back to the system at once, and gets them again page by page, each page cleared. A
training step on a CPU allocates the same large blocks over and over, and spends a tenth of its time on that.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h of the GNU C library


def keep_freed_memory() -> bool:
    """Tell the C library to keep what is freed, for the rest of this process; False where it has no such option."""
    with suppress(AttributeError, OSError, TypeError):  # not the GNU C library
        option = ctypes.CDLL(None).mallopt
        return bool(option(M_MMAP_MAX, 0) and option(M_TRIM_THRESHOLD, 2**31 - 1) and option(M_TOP_PAD, 2**26))
    return False
