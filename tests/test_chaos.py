"""Twenty random kills of workers, drivers and a node, and the grid ends as if nothing had happened.

    python -m pytest -m slow tests/test_chaos.py -s            prints the kills as they come, and the counts
    CODETR_CHAOS_KILLS=100 CODETR_CHAOS_SEED=7 …                longer, and otherwise

Trials are real (a tiny detector), the driver is `python -m harness run`, nodes are processes of a Ray on this machine.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.spec.grid import Grid, open_grid
from harness.store.results import RunStore
from harness.tracking import tracking
from harness.trial.checkpoint import WEIGHTS

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "ablations" / "quickstart.yaml"
SEEDS = list(range(8))  # of three rows: 24 trials
EPOCHS, STEPS = 5, 4
SETTINGS = (f"train.epochs={EPOCHS}", "model.transformer.dropout=0.1")
KILLS = int(os.environ.get("CODETR_CHAOS_KILLS", "20"))
SEED = int(os.environ.get("CODETR_CHAOS_SEED", "0"))
KINDS = ("worker", "worker", "driver", "worker", "node")  # how often which, in random order

NODE = {"object_store_memory": 128 * 2**20}

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def command(*options: str) -> list[str]:
    chosen = [part for setting in SETTINGS for part in ("--set", setting)]
    seeds = ",".join(map(str, SEEDS))
    run = [sys.executable, "-m", "harness", "run", str(QUICKSTART), "--preset", "digits_fast", "--seeds", seeds]
    return [*run, *chosen, *options]


def say(text: str) -> None:
    print(text, flush=True)


def parent(pid: int) -> int:
    """0 when there is no such process any more."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


class Processes:
    """Starts drivers and nodes and kills them; every process that it kills has the store's path in its environment."""

    def __init__(self, store: RunStore, log: Path, address: str, cluster: Any) -> None:
        self.store, self.log, self.address, self.cluster = store, log, address, cluster
        self.nodes = [cluster.add_node(num_cpus=1, **NODE) for _ in range(2)]
        self.driver = self.start_driver()

    def start_driver(self) -> subprocess.Popen[bytes]:
        with open(self.log, "ab") as out:
            environment = {**os.environ, "RAY_ADDRESS": self.address}
            return subprocess.Popen(command(), cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)

    def ours(self, pid: int) -> bool:
        try:
            return f"CODETR_STORE={self.store.root}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False

    def workers(self) -> list[int]:
        """Processes in which a trial is at work now, as their signs of life tell."""
        beats = [
            self.store.read_heartbeat(key) or {} for key in self.store.trials() if self.store.status(key) == "running"
        ]
        return [pid for pid in {beat.get("pid") for beat in beats} if pid and self.ours(pid)]

    def kill(self, kind: str, rng: random.Random) -> bool:
        if kind == "worker":
            running = sorted(self.workers())
            if not running:
                return False
            family = [rng.choice(running)]  # the trial's process, the one it was forked from, Ray's worker
            while len(family) < 3 and self.ours(above := parent(family[-1])):
                family.append(above)
            os.kill(rng.choice(family), signal.SIGKILL)
        elif kind == "driver":
            self.driver.kill()
            self.driver.wait()
            self.driver = self.start_driver()
        else:
            node = self.nodes.pop(rng.randrange(len(self.nodes)))
            self.cluster.remove_node(node, allow_graceful=False)
            self.nodes.append(self.cluster.add_node(num_cpus=1, **NODE))
        return True


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs: all work is done on nodes that can be killed."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **NODE})
    yield made
    made.shutdown()


def work_done(store: RunStore) -> tuple[Any, ...]:
    """What changes while trials make progress."""
    return tuple(
        (key, len(store.metrics(key)), (store.read_heartbeat(key) or {}).get("step")) for key in store.trials()
    )


def wreak_havoc(processes: Processes, grid: Grid, kills: int) -> Counter[str]:
    """Kill, wait until somebody trains again, and so on; then wait for the driver. Returns the kills by kind."""
    rng, count, store = random.Random(SEED), Counter[str](), processes.store
    plan = [KINDS[number % len(KINDS)] for number in range(kills)]
    rng.shuffle(plan)
    begun, before = time.monotonic(), work_done(store)
    while plan:
        assert time.monotonic() - begun < 60 + 30 * KILLS, processes.log.read_text()[-3000:]
        if processes.driver.poll() is not None:  # all trials are finished, or it gave up
            break
        time.sleep(0.2)
        now = work_done(store)
        if now == before or not processes.workers():
            continue
        time.sleep(rng.uniform(0, 1.5))
        kind = plan.pop()
        if processes.kill(kind, rng):
            count[kind] += 1
            done = sum(store.status(trial.trial_id) == "finished" for trial in grid.trials)
            say(f"{time.monotonic() - begun:6.1f} s  kill {sum(count.values()):3}: {kind:6}  {done} finished")
        else:
            plan.append(kind)
        before = work_done(store)
    return count


def result(store: RunStore, trial_id: str) -> dict[str, Any]:
    """All of a trial that does not tell the time, to the last bit."""
    folder, times = store.dir(trial_id), ("seconds", "time")
    lines = [{key: value for key, value in line.items() if key not in times} for line in store.metrics(trial_id)]
    files = ("detections.json", "per_class.json", f"checkpoint/{WEIGHTS}")
    return {"epochs": lines, **{name: (folder / name).read_bytes() for name in files}}


def test_a_grid_survives_random_kills(
    tmp_path: Path, tracking_store: str, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = open_grid(QUICKSTART, "digits_fast", SETTINGS, seeds=SEEDS)
    assert len(grid.trials) == 24
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    calm, store = RunStore(tmp_path / "calm"), RunStore(tmp_path / "chaos")
    uri = f"sqlite:///{tmp_path / 'calm.db'}"
    ensured = {"CODETR_STORE": str(calm.root), "MLFLOW_TRACKING_URI": uri}
    undisturbed = subprocess.Popen(
        command("--executor", "local"), cwd=ROOT, env={**os.environ, **ensured}, stdout=subprocess.DEVNULL
    )
    monkeypatch.setenv("CODETR_STORE", str(store.root))
    processes = Processes(store, tmp_path / "driver.log", cluster.address, cluster)
    try:
        count = wreak_havoc(processes, grid, KILLS)
        code = processes.driver.wait(300)
        assert undisturbed.wait(300) == 0
    finally:
        processes.driver.kill()
        undisturbed.kill()
    states = Counter(store.status(trial.trial_id) for trial in grid.trials)
    starts = processes.log.read_text().count("trials to run")
    runs = [run for run in tracking.find_runs(*tracked(tracking_store), "") if "trial_id" in run.data.tags]
    say(f"kills: {dict(count)}; driver starts: {starts}; trials: {dict(states)}; runs in MLflow: {len(runs)}")
    assert code == 0 and sum(count.values()) == KILLS, processes.log.read_text()[-3000:]
    assert states == {"finished": 24}
    assert Counter(run.data.tags["trial_id"] for run in runs) == {trial.trial_id: 1 for trial in grid.trials}
    assert {run.info.status for run in tracking.find_runs(*tracked(tracking_store), "")} == {"FINISHED"}
    for trial in grid.trials:
        found, expected = result(store, trial.trial_id), result(calm, trial.trial_id)
        assert [(line["epoch"], line["step"]) for line in found["epochs"]] == [
            (epoch, epoch * STEPS) for epoch in range(1, EPOCHS + 1)
        ]
        assert found == expected, trial.label
    told = {back["trial_id"]: back for back in tracking.read_records([trial.trial_id for trial in grid.trials])}
    for trial in grid.trials:
        lines = store.metrics(trial.trial_id)
        assert [entry["AP"] for entry in told[trial.trial_id]["history"]] == [line["AP"] for line in lines]


def tracked(uri: str) -> tuple[Any, str]:
    client = tracking.connect(uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment is not None
    return client, str(experiment.experiment_id)
