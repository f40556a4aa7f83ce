"""How commands print: tables to standard output, so that they can be piped; remarks to standard error."""

from __future__ import annotations

import locale
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from harness.system.entrance import python_command
from harness.system.words import quantity

ORDER = ("finished", "running", "interrupted", "failed", "pruned", "pending")  # of statuses in a summary


def begin_process() -> None:
    """Make this process, and those it starts, read and write UTF-8 files whatever the locale.

    Python decides that when it begins. So where the locale has another encoding it begins once more, with the same
    arguments and the terminal's encoding. Output that was closed goes nowhere instead of into the next opened file.
    """
    for number in (0, 1, 2):
        with suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # it takes the first number that is free: this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8")
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    os.environ["PYTHONIOENCODING"] = f"{encoding}:replace"
    os.environ["PYTHONUTF8"] = "1"
    encodings = {sys.getfilesystemencoding(), locale.getpreferredencoding(False)}
    if {name.lower().replace("-", "") for name in encodings} != {"utf8"}:
        command = [*python_command("from harness.__main__ import main; sys.exit(main())"), *sys.argv[1:]]
        os.execv(command[0], command)
    forgive()


def forgive() -> None:
    """Show characters that the output cannot show as `?`, instead of ending on them."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def remark(text: str) -> None:
    """Print a line (`note: …`, `warning: …`) to standard error."""
    print(text, file=sys.stderr)


def table(title: str, columns: dict[str, bool], rows: list[list[str]], widest: int | None = None) -> None:
    """Print a table; `columns` tells by heading whether long cells may be wrapped.

    A pipe or a job log has no width: nothing is wrapped for it, unless the table would be wider than `widest`.
    Texts are shown as they are: brackets and colons in a label or a path are neither markup nor an emoji.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        width = max(80, sum(_widths(list(columns), rows)) + len(columns))
        width = width if widest is None else min(width, max(80, widest))
        console = Console(highlight=False, markup=False, emoji=False, width=width)
    made = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold")
    for heading, wrap in columns.items():
        made.add_column(heading, no_wrap=not wrap, overflow="fold")
    for row in rows:
        made.add_row(*row)
    with console.capture() as capture:
        console.print(made)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _widths(headings: list[str], rows: list[list[str]]) -> list[int]:
    return [max(len(cell) for cell in column) + 2 for column in zip(headings, *rows, strict=True)]


def fitted(text: str, width: int) -> str:
    """`text` with lines longer than `width` wrapped, and what goes on set in."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        lines += textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False) or [""]
    return "\n".join(lines)


def count(statuses: Iterable[str]) -> str:
    """`3 trials: 2 finished, 1 pending`."""
    counts = Counter(statuses)
    number = sum(counts.values())
    known = [status for status in (*ORDER, *sorted(counts)) if counts[status]]
    told = ", ".join(f"{counts[status]} {status}" for status in dict.fromkeys(known))
    return quantity(number, "trial") + (f": {told}" if told else "")


def size(num_bytes: float) -> str:
    """`312 B`, `4.1 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
