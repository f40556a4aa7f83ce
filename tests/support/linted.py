"""Code that stands on a page, as ruff sees it where the page puts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def complaints(code: str, place: str) -> str:
    """What `ruff check` and `ruff format --check` say of a file with this content; empty where nothing.

    Args:
        code: of the file.
        place: its path below the repository, which decides the rules and which imports are our own.
    """
    said = ""
    for command in (["check", "--quiet"], ["format", "--check", "--diff", "--quiet"]):
        line = [sys.executable, "-m", "ruff", *command, "--no-cache", "--stdin-filename", place, "-"]
        found = subprocess.run(line, input=code, cwd=ROOT, capture_output=True, text=True)
        said += "" if found.returncode == 0 else found.stdout + found.stderr
    return said
