"""Memory that a step frees is kept for the next step.

The C library gives large blocks back to the system at once, and gets them again page by page, each page cleared. A
training step on a CPU allocates the same large blocks over and over, and spends a tenth of its time on that.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h of the GNU C library


KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}
GIVE_BACK = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 2**17, M_TOP_PAD: 2**17}  # about what the library begins with


def keep_freed_memory(keep: bool = True) -> bool:
    """Tell the C library to keep what this process frees, or to give it back; False where it has no such option."""
    with suppress(AttributeError, OSError, TypeError):  # not the GNU C library
        option = ctypes.CDLL(None).mallopt
        return all(option(*setting) for setting in (KEEP if keep else GIVE_BACK).items())
    return False
