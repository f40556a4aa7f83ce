"""Precision is a named choice: what it sets, what ran, and what does not follow it."""

from __future__ import annotations

import pytest
import torch

from harness.store.results import RunStore
from harness.system.precision import as_torch_starts, computing_in, ran_in, set_precision
from harness.trial.trial import run_trial
from tests.support.quickstart import silent, timeless, trial_of

CPU = torch.device("cpu")
SMALL = ("data.digits.num_train=8", "data.digits.num_val=4", "train.epochs=1")


def flags() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


@pytest.fixture(autouse=True)
def as_before():
    before = flags()
    yield
    torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize(("precision", "kind"), [("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")])
def test_products_and_convolutions_are_told_alike(precision, kind):
    set_precision(precision)
    assert flags() == (kind, kind)


def test_another_precision_holds_inside_alone():
    set_precision("tf32")
    with pytest.raises(KeyError), computing_in("bf16", CPU):
        assert flags() == ("ieee", "ieee") and torch.is_autocast_enabled("cpu")
        raise KeyError
    assert flags() == ("tf32", "tf32") and not torch.is_autocast_enabled("cpu")


def test_torchs_own_choice_can_be_asked_for_as_its_exporter_does():
    set_precision("fp32")
    with pytest.raises(RuntimeError, match="TF32"):
        assert torch.backends.cudnn.allow_tf32
    with as_torch_starts():
        assert torch.backends.cudnn.allow_tf32 in (True, False)
    assert flags() == ("ieee", "ieee")


def test_a_processor_has_no_tf32():
    assert [ran_in(name, CPU) for name in ("fp32", "tf32", "bf16")] == ["fp32", "fp32", "bf16"]
    assert ran_in("tf32", torch.device("cuda")) == "tf32"


def test_on_a_processor_tf32_gives_the_numbers_of_fp32_and_the_record_says_so(tmp_path):
    store = RunStore(tmp_path)
    records = [
        run_trial(trial_of(0, f"train.precision={name}", *SMALL), store, report=silent) for name in ("fp32", "tf32")
    ]
    assert records[0]["trial_id"] != records[1]["trial_id"]
    assert timeless(records[0]["history"]) == timeless(records[1]["history"])
    for record in records:
        provenance = record["provenance"]
        assert (provenance["precision"], provenance["evaluation_precision"]) == ("fp32", "fp32")
        assert provenance["matrix_products"]


def test_evaluation_follows_training_where_that_is_asked(tmp_path):
    """Losses are the same, scores are not: only what detects differs."""
    store = RunStore(tmp_path)
    options = ("train.precision=bf16", "evaluate.branches=[decoder, atss]", "model.heads=[atss]", *SMALL)
    plain, followed = (
        run_trial(trial_of(2, f"evaluate.precision={name}", *options), store, report=silent)
        for name in ("fp32", "training")
    )
    assert plain["history"][0]["losses"] == followed["history"][0]["losses"]
    assert plain["provenance"]["precision"] == followed["provenance"]["precision"] == "bf16"
    assert plain["provenance"]["evaluation_precision"] == "fp32"
    assert followed["provenance"]["evaluation_precision"] == "bf16"
    scores = [(store.dir(record["trial_id"]) / "detections.json").read_text() for record in (plain, followed)]
    assert scores[0] != scores[1]
