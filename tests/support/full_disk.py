"""A grid on a disk that is full at first, and has room once a trial has failed, or the run has.

    unshare --map-root-user --mount python -m tests.support.full_disk FOLDER EXECUTOR BYTES

mounts a small file system of its own at FOLDER, of which BYTES are free; it ends with this process. Prints a line of
JSON: exit codes, statuses and what was said by the run on the full disk and by the one that follows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from harness.spec.grid import open_grid
from harness.store.results import RunStore

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "ablations" / "quickstart.yaml"
SETTINGS = ["train.epochs=3"]
SIZE = 64 * 2**20


def main(folder: Path, executor: str, room: int) -> None:
    """Fill the disk, run, make room when a trial has failed, run again."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], check=True)
    grid = open_grid(QUICKSTART, "digits_fast", SETTINGS)
    store, ballast = RunStore(folder), folder / "ballast"
    os.environ["CODETR_STORE"] = str(folder)
    command = [sys.executable, "-m", "harness", "run", str(QUICKSTART), "--preset", "digits_fast"]
    command += ["--set", SETTINGS[0], "--executor", executor, "--concurrent", "1"]
    ballast.write_bytes(b"\0" * (SIZE - room))

    def make_room() -> None:
        while "failed" not in {store.status(trial.trial_id) for trial in grid.trials}:
            time.sleep(0.05)
        ballast.unlink(missing_ok=True)

    threading.Thread(target=make_room, daemon=True).start()
    found = []
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        records = [store.read(trial.trial_id) or {} for trial in grid.trials]
        errors = [record.get("error") for record in records]
        states = [store.status(trial.trial_id) for trial in grid.trials]
        ballast.unlink(missing_ok=True)
        found.append({"code": done.returncode, "states": states, "errors": errors, "said": done.stdout})
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
