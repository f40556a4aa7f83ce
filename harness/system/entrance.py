"""How a Python process of this project begins: with `codetr_harness`, which puts our packages first on its path.

It lies beside the packages and is found there, so that it works in a checkout that nobody has installed.
"""

from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))  # os: always the right one, pathlib perhaps not
ROOT = os.path.dirname(os.path.dirname(HERE))


def come_first() -> None:
    """Do it in this process; ends it with exit code 2 and one line where a file of the user's is in the way."""
    sys.path.insert(0, ROOT)
    import codetr_harness

    if codetr_harness.problem:
        print(f"error: {codetr_harness.problem}", file=sys.stderr)
        raise SystemExit(2)


def python_command(call: str) -> list[str]:
    """A command that runs the Python code `call` in a process of its own, with ours first."""
    begin = f"import sys; sys.path.insert(0, {ROOT!r}); import codetr_harness"
    return [sys.executable, "-P", "-c", f"{begin}; {call}"]


def python_path() -> str:
    """$PYTHONPATH for such a process, so that it finds modules where this one finds them (a Ray job's folder)."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)
