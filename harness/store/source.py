"""Which code a number comes from: commit, versions, and digests of the files that decide it.

A commit says too much: one that mends a sentence of the documentation makes no other numbers. Trials whose digests
agree (agreement.py) were made by the same code, wherever it lay: in a checkout, in a job's upload without .git, or
installed.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Collection
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.store.closure import ROOT, code_of

PACKAGE = "codetr-harness"  # the name of the distribution


def _git(root: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def code_version(root: Path | None = None) -> tuple[str | None, bool | None]:
    """Commit of the running code, and whether it was changed since.

    $CODETR_COMMIT and $CODETR_DIRTY (0 or 1) win: a job upload has no .git. (None, None) when nothing is known.
    """
    commit = os.environ.get("CODETR_COMMIT")
    if commit:
        dirty = os.environ.get("CODETR_DIRTY", "")
        return commit, {"0": False, "1": True}.get(dirty)
    return _git_version(root or ROOT)


@lru_cache(maxsize=8)  # of a process: what is committed later is not what runs
def _git_version(root: Path) -> tuple[str | None, bool | None]:
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():  # an installed copy inside somebody else's repository
        return None, None
    changes = _git(root, "status", "--porcelain", "--", "harness", "model", "csrc")
    return _git(root, "rev-parse", "HEAD"), None if changes is None else bool(changes)


def version_of(package: str = PACKAGE) -> str | None:
    """The version of an installed distribution."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def _versions() -> dict[str, str | None]:
    return {"package": version_of(), **{name: version_of(name) for name in ("torch", "ray", "mlflow")}}


def provenance(parts: Collection[str]) -> dict[str, Any]:
    """Commit, dirty flag, digests of the code, versions; the trial adds device, kernels, evaluator and threads.

    Args:
        parts: those that the trial's configuration names (`harness.spec.identity.named_parts`).
    """
    (commit, dirty), code = code_version(), code_of(parts)
    return {"commit": commit, "dirty": dirty, "code": code, **_versions(), "python": platform.python_version()}
