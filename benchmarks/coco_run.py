"""One epoch of 1,000 steps at COCO's size, killed in the middle and resumed: `python -m benchmarks coco_run`.

118,000 images of 64 x 64 pixels with 860,000 boxes, 118 images a step, two ranks with two loading processes each, all
on the CPU. Every few seconds the proportional memory (PSS) of all processes is read; each rank and worker must stay
flat. A second call with the same folder goes on where the first one was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.store.results import RunStore

NUM_IMAGES, NUM_BOXES, NUM_VAL, SIDE, BATCH, RANKS, WORKERS = 118_000, 860_000, 100, 64, 118, 2, 2
SAMPLE_SECONDS = 3.0
SETTINGS = {
    "train.epochs": 1,
    "train.batch_size": BATCH,
    "train.learning_rate": 2e-4,
    "data.train_short_sides": [SIDE],
    "data.eval_short_side": SIDE,
    "data.max_long_side": SIDE,
    "runtime.num_workers": WORKERS,
    "model.heads": ["atss"],
    "model.num_queries": 12,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data set, train, kill, resume, and print what the processes held meanwhile."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks coco_run", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for data set and records; taken again if there")
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--boxes", type=int, default=NUM_BOXES)
    parser.add_argument("--kill-at", type=int, default=400, help="step after which all processes are killed")
    args = parser.parse_args(argv)
    data = args.folder / "data"
    if not (data / "annotations" / "instances_val.json").exists():
        from benchmarks.coco_size import write_annotations

        write_annotations(data, "train", args.images, args.boxes, size=(SIDE, SIDE))
        write_annotations(data, "val", NUM_VAL, NUM_VAL * 8, size=(SIDE, SIDE), seed=1)
    for kill_at in (args.kill_at, None):
        run = Run(args.folder, data)
        run.follow(kill_at)
        run.tell()
    record = run.record()
    last = record["history"][-1]
    print(json.dumps({"status": record["status"], "steps": last["step"], "loss": last["loss"], "cost": record["cost"]}))
    return 0 if record["status"] == "finished" else 1


class Run:
    """One call of `codetr run`, watched from outside."""

    def __init__(self, folder: Path, data: Path):
        grid = folder / "grid.yaml"
        grid.write_text("rows: [{label: COCO-sized}]\n", encoding="utf-8")
        settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={json.dumps(value)}")]
        command = [sys.executable, "-m", "harness", "run", str(grid), "--preset", "digits_fast", "--executor", "local"]
        command += ["--ranks", str(RANKS), "--cpus-per-trial", "2", "--data", str(data), *settings]
        self.store = RunStore(folder / "store")
        environment = {**os.environ, "CODETR_STORE": str(folder / "store")}
        self.process = subprocess.Popen(command, env=environment, start_new_session=True)
        self.began = time.monotonic()
        self.samples: dict[str, list[tuple[float, int, float]]] = defaultdict(list)  # role: seconds, step, MiB

    def follow(self, kill_at: int | None) -> None:
        """Take samples until the command ends, or until it has passed a step: then kill all of its processes."""
        while self.process.poll() is None:
            time.sleep(SAMPLE_SECONDS)
            step = self.step()
            for role, mebibytes in _memory(self.process.pid):
                self.samples[role].append((time.monotonic() - self.began, step, mebibytes))
            if kill_at is not None and step >= kill_at:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                print(f"killed after {step} steps", flush=True)

    def step(self) -> int:
        """What the trial's heartbeat says; 0 before there is one."""
        beats = sorted(self.store.root.glob("runs/*/heartbeat.json"))
        return int(json.loads(beats[0].read_text(encoding="utf-8")).get("step") or 0) if beats else 0

    def record(self) -> dict[str, Any]:
        """Of the trial."""
        (result,) = self.store.root.glob("runs/*/result.json")
        return dict(json.loads(result.read_text(encoding="utf-8")))

    def tell(self) -> None:
        """Each process' memory in the first and last quarter of its training, and its largest."""
        for role, samples in sorted(self.samples.items()):
            trained = [mebibytes for _, step, mebibytes in samples if step > 0]
            if len(trained) >= 8:
                quarter = len(trained) // 4
                first, last = statistics.mean(trained[1 : 1 + quarter]), statistics.mean(trained[-quarter:])
                steps = [step for _, step, _ in samples if step > 0]
                print(
                    f"{role:<22} steps {steps[0]:>4} to {steps[-1]:>4}   first quarter {first:7.1f} MiB   "
                    f"last quarter {last:7.1f} MiB   most {max(trained):7.1f} MiB"
                )


def _memory(pid: int) -> list[tuple[str, float]]:
    """Role and PSS in MiB of a process and all below it; ranks and their workers by their age."""
    found, waiting = [], [("command", pid)]
    while waiting:
        role, number = waiting.pop()
        try:
            lines = Path(f"/proc/{number}/smaps_rollup").read_text(encoding="utf-8").splitlines()
            below = Path(f"/proc/{number}/task/{number}/children").read_text(encoding="utf-8").split()
        except OSError:
            continue  # it has just ended
        pss = next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
        found.append((role, pss / 1024))
        waiting += [
            (f"{role} > {place}" if role != "command" else f"child {place}", int(n)) for place, n in enumerate(below)
        ]
    return found


if __name__ == "__main__":
    sys.exit(main())
