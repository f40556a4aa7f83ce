"""The end of Ray leaves the process alive, whatever other threads are at."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys

import pytest

DROP_WHILE_STOPPING = """
import gc, logging, threading, time
import ray
from harness.schedule.cluster import stop_ray

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
         object_store_memory=128 * 2**20)


class Cycle:  # garbage that only a collection finds
    def __init__(self, reference):
        self.me, self.reference = self, reference


references = [ray.put(number) for number in range(3000)]
gc.set_threshold(20, 1, 1)
ended = threading.Event()


def drop():
    while references and not ended.is_set():
        Cycle(references.pop())
        time.sleep(0.0005)


thread = threading.Thread(target=drop, daemon=True)
thread.start()
time.sleep(0.2)
stop_ray()
assert len(references) < 2990  # the thread was at work all the while
ended.set()
thread.join()
print("alive", ray.is_initialized(), gc.isenabled())
"""


@pytest.mark.ray
def test_garbage_of_another_thread_does_not_end_the_process():
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = [sys.executable, "-c", DROP_WHILE_STOPPING]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["alive", "False", "True"]
