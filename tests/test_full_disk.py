"""A grid of real trials, on either executor, on a file system that takes nothing more."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def may_mount() -> bool:
    unshare = shutil.which("unshare")
    mine = [unshare or "", "--map-root-user", "--mount", "true"]
    return unshare is not None and subprocess.run(mine, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(not may_mount(), reason="cannot mount a file system of its own")
@pytest.mark.parametrize("executor", ["local", "ray"])
@pytest.mark.parametrize("room", [3 * 2**20, 4096])  # for one checkpoint but not the one before it; for no record
def test_a_grid_on_a_really_full_disk(tmp_path: Path, tracking_store: str, executor: str, room: int) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    python = [sys.executable, "-m", "tests.support.full_disk", str(folder), executor, str(room)]
    command = ["unshare", "--map-root-user", "--mount", *python]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    full, after = json.loads(done.stdout)
    assert full["code"] != 0 and "Traceback" not in full["said"]
    assert "No space left" in full["said"] and str(folder) in full["said"]
    if room > 4096:
        assert full["states"] == ["finished", "finished", "failed"]  # the longest starts first
        assert full["errors"][2].startswith("StorageError: ") and "make room" in full["errors"][2]
    else:
        assert full["states"] == ["pending"] * 3
    assert (after["code"], after["states"]) == (0, ["finished"] * 3)
