"""Which code a number comes from: a digest of the files that decide results.

A commit says too much: one that mends a sentence of the documentation makes no other numbers. Trials whose digests
agree were made by the same code, wherever it lay: in a checkout, in a job's upload without .git, or installed.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DECIDING = (  # patterns below the repository; configuration is not here, for it is part of a trial's id
    "model/**/*.py",
    *("csrc/*.h", "csrc/*.cpp", "csrc/*.cu"),
    *(f"harness/{name}.py" for name in ("train", "build", "trial", "trial_record", "trial_analysis")),
    *(f"harness/{name}.py" for name in ("ranks", "evaluate", "process")),
    "harness/data/**/*.py",
    "harness/analyse/instability.py",
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
