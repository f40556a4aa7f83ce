"""What a process that trains asks of the system: memory that stays, in large pages, and threads that wait politely.

The C library gives large blocks back to the system at once, and gets them again page by page, each page cleared. A
training step on a CPU allocates the same large blocks over and over, and spends a tenth of its time on that. Linux also
has pages of 2 MB where a program asks for them, which spares the processor most of its look-ups of addresses.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h of the GNU C library
GROWTH = 2**26  # bytes that the heap grows by
MADV_HUGEPAGE = 14  # sys/mman.h of Linux
HUGE_PAGE = 2**21

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
        options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, GROWTH))
        kept = all(option(*pair) for pair in options)
        use_huge_pages()
        return kept
    return False


@cache
def use_huge_pages(reserve: int = 2**31 - HUGE_PAGE) -> bool:
    """Have the next `reserve` bytes of the heap in pages of 2 MB; False where the system does not offer it.

    Addresses are reserved; memory is taken when it is first written, as always. Large blocks lie in the heap only after
    `keep_freed_memory`, which calls this.
    """
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.mallopt(M_TOP_PAD, reserve)
    library.free(library.malloc(2 * GROWTH))  # more than the heap has left, so that it grows, by this and the reserve
    library.mallopt(M_TOP_PAD, GROWTH)
    begin, end = _heap()
    begin, end = -(-begin // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
    return bool(end > begin and library.madvise(begin, end - begin, MADV_HUGEPAGE) == 0)


def _heap() -> tuple[int, int]:
    """First and last address of the memory that the C library extends; two zeros where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.endswith("[heap]"):
                begin, end = line.split()[0].split("-")
                return int(begin, 16), int(end, 16)
    return 0, 0
