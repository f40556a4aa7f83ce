"""Too little memory is an outcome with advice, and a GPU that is still being emptied is waited for."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.__main__ import main
from harness.config import RuntimeConfig
from harness.errors import OutOfMemory
from harness.store.results import RunStore
from harness.system import memory
from harness.system.memory import GIB, await_free_memory, check_fits, explain_out_of_memory
from harness.trial import trial
from harness.trial.footprint import Footprint
from tests.support.quickstart import QUICKSTART, silent, trial_of

GPU = torch.device("cuda", 0)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """GiB of 80 that are free at each look; the last of them from then on. Nobody waits for long."""
    values: list[float] = []

    def mem_get_info(device: Any = None) -> tuple[int, int]:
        return int((values.pop(0) if len(values) > 1 else values[0]) * GIB), 80 * GIB

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(memory, "WAIT_SECONDS", 0.05)
    return values


def warnings_of(runtime: RuntimeConfig) -> list[str]:
    told: list[str] = []
    await_free_memory(GPU, runtime, told.append)
    return told


def test_memory_that_becomes_free_is_waited_for(free):
    free += [10.0, 10.0, 79.0]
    assert warnings_of(RuntimeConfig(gpus_per_trial=1)) == [] and free == [79.0]


def test_a_share_of_a_gpu_waits_for_its_share_only(free):
    free += [37.0]
    assert warnings_of(RuntimeConfig(gpus_per_trial=0.5)) == []
    assert warnings_of(RuntimeConfig(gpus_per_trial=1, ranks=2)) == []
    assert "only 37.0 of 80.0 GiB are free on cuda:0" in warnings_of(RuntimeConfig(gpus_per_trial=2, ranks=2))[0]


def test_a_demand_that_is_not_met_fails_with_advice(free):
    free += [20.0]
    assert warnings_of(RuntimeConfig(gpus_per_trial=1, min_free_gpu_gb=20)) == []
    with pytest.raises(OutOfMemory, match=r"min_free_gpu_gb: 30 are wanted, but only 20.0 of 80.0 GiB.*--concurrent"):
        warnings_of(RuntimeConfig(gpus_per_trial=1, min_free_gpu_gb=30))


def test_a_cpu_waits_for_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", None)
    await_free_memory(torch.device("cpu"), RuntimeConfig(min_free_gpu_gb=5), pytest.fail)


def test_advice_names_what_keeps_the_trial_the_same_first(free):
    free += [1.8]
    big = trial_of(0, "train.batch_size=16", "train.accumulate_steps=2", "runtime.ranks=2")
    assert explain_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"), big, 2) == (
        "out of GPU memory at step 3 (batch 16, 8 at once, 2 ranks, 78.2 of 80.0 GiB in use): try fewer trials at a "
        "time on this GPU (--gpus-per-trial 1) or --ranks 4 --gpus-per-trial 4; or, as another trial, "
        "--set train.accumulate_steps=4 or --set train.precision=bf16 or --set train.checkpoint_encoder_layers=1"
    )
    smallest = trial_of(0, "train.batch_size=1", "train.precision=bf16", "train.checkpoint_encoder_layers=1")
    assert explain_out_of_memory(torch.OutOfMemoryError(""), smallest, None) == (
        "out of GPU memory before the first step (batch 1, 78.2 of 80.0 GiB in use): try fewer trials at a time on "
        "this GPU (--gpus-per-trial 1)"
    )


def test_what_cannot_fit_fails_before_its_first_step_with_the_number(free):
    free += [1.0]  # what others have of it decides nothing here
    one = trial_of(0, "train.batch_size=16", "runtime.ranks=2")
    needed = Footprint(8, 800, 1344, kept=79.0 * GIB, parameters=GIB, gradients=GIB, optimiser=2 * GIB)
    with pytest.raises(OutOfMemory) as caught:
        check_fits(needed, one, GPU)
    assert str(caught.value) == (
        "out of GPU memory before the first step: 8 images of 800 x 1344 take about 83.0 GiB, and cuda:0 has 80.0: try "
        "a larger GPU or --ranks 4 --gpus-per-trial 4; or, as another trial, --set train.accumulate_steps=2 or "
        "--set train.precision=bf16 or --set train.checkpoint_encoder_layers=1"
    )
    check_fits(replace(needed, kept=70.0 * GIB), one, GPU)
    with pytest.raises(OutOfMemory, match=r"8 images of 800 x 1344 on each of 2 ranks take about 88.0 GiB, and"):
        check_fits(replace(needed, kept=40.0 * GIB, sharing=2), one, GPU)
    check_fits(None, one, GPU)


def test_the_plan_tells_what_a_step_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CODETR_STORE", str(tmp_path))
    options = ["--preset", "digits_fast", "--seeds", "0", "--memory"]
    assert main(["plan", str(QUICKSTART), *options]) == 0
    told = capsys.readouterr().out
    assert re.search(r"K = 0.* \d+ MiB", told) and "memory: of a training step with 8 images of" in told


def test_ranks_that_share_a_gpu_need_what_they_need_together(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CODETR_STORE", str(tmp_path))
    needed = []
    for gpus in (4, 2, 0.5):
        options = ["--set", "runtime.ranks=4", "--set", f"runtime.gpus_per_trial={gpus}", "--only", "heads=none"]
        assert main(["plan", str(QUICKSTART), "--preset", "digits_fast", "--memory", *options]) == 0
        told = capsys.readouterr().out
        needed.append(int(re.search(r" (\d+) MiB", told)[1]))
        assert ("on each of" in " ".join(told.split())) == (gpus < 4)
    assert needed == [pytest.approx(needed[0] * ranks, abs=2) for ranks in (1, 2, 4)]


def test_other_errors_are_not_about_memory():
    for error in (RuntimeError("shape mismatch"), ValueError("memory"), OutOfMemory("said already")):
        assert explain_out_of_memory(error, trial_of(0), 1) is None


def allocate(*_: Any, **__: Any) -> None:
    torch.empty(2**60)  # what torch itself raises


def no_memory(*_: Any, **__: Any) -> None:
    raise MemoryError


@pytest.mark.parametrize("step", [allocate, no_memory])
def test_a_trial_that_runs_out_of_memory_has_failed_and_says_what_to_do(tmp_path, monkeypatch, step):
    monkeypatch.setattr(trial, "train_step", step)
    store, one = RunStore(tmp_path), trial_of(0)
    with pytest.raises(OutOfMemory):
        trial.run_trial(one, store, report=silent)
    record = store.read(one.trial_id) or {}
    assert record["status"] == "failed"
    assert record["error"].startswith("out of memory at step 1 (batch 8): try fewer trials at a time on this machine")
    assert "train.accumulate_steps=2" in record["error"]
    assert step.__name__ in (store.dir(one.trial_id) / "log.txt").read_text()
