"""Which code a number comes from: commit, versions, and a digest of the files that decide results.

A commit says too much: one that mends a sentence of the documentation makes no other numbers. Trials whose digests
agree were made by the same code, wherever it lay: in a checkout, in a job's upload without .git, or installed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "codetr-harness"  # the name of the distribution
DECIDING = (  # patterns below the repository; configuration is not here, for it is part of a trial's id
    "model/**/*.py",
    *("csrc/*.h", "csrc/*.cpp", "csrc/*.cu"),
    *("harness/trial/**/*.py", "harness/data/**/*.py"),
    *("harness/spec/detection_metrics.py", "harness/spec/training_length.py", "harness/system/process.py"),
)


def deciding_files(root: Path = ROOT) -> list[Path]:
    """The files that decide results, sorted by their path below `root`."""
    found = {path for pattern in DECIDING for path in root.glob(pattern) if path.is_file()}
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


@lru_cache(maxsize=8)  # of a process: what is edited later is not what runs
def code_digest(root: Path = ROOT) -> str:
    """First 12 hex digits of SHA-256 over the names and contents of `deciding_files`."""
    digest = hashlib.sha256()
    for path in deciding_files(root):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


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


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def _versions() -> dict[str, str | None]:
    return {"package": _version(PACKAGE), **{name: _version(name) for name in ("torch", "ray", "mlflow")}}


def provenance() -> dict[str, Any]:
    """Commit, dirty flag, digest of the code, versions; the trial adds device, kernels, evaluator and threads."""
    commit, dirty = code_version()
    return {"commit": commit, "dirty": dirty, "code": code_digest(), **_versions(), "python": platform.python_version()}
