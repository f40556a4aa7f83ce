"""What the trials that are left will take, from the measured seconds per step of finished ones.

The basis is named with every number: finished trials on the same data whose settings are nearest, else trials on
other data with the nearest settings, always on the same kind of device. Without any the cost is unknown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import ReadError
from harness.spec.detection_metrics import was_evaluated
from harness.spec.identity import config_to_dict, newer_defaults
from harness.spec.training_length import epochs_of
from harness.store.results import RunStore

if TYPE_CHECKING:
    from harness.spec.grid import Trial

NO_TIME = ("heads", "path", "weights", "random_frozen")  # the heads are counted by name
IN_TRAIN = (  # settings of the training that a step's time depends on
    *("batch_size", "accumulate_steps", "precision"),
    *("checkpoint_encoder_layers", "checkpoint_backbone"),
)


@dataclass(frozen=True)
class Measured:
    """What a finished trial took."""

    trial_id: str
    seconds_per_step: float  # of training alone
    checkpoints_per_step: float  # seconds; 0 where the steps' own time holds them, as in older records
    seconds_per_evaluation: float
    steps: int
    epochs: int
    batch_size: int
    fingerprint: str
    on_gpu: bool
    traits: dict[str, Any]


@dataclass(frozen=True)
class Estimate:
    """What is left of a trial, and how that is known."""

    seconds: float
    basis: tuple[str, ...]  # trial ids
    how: str
    alike: bool  # do those have the same settings?


def _measured(store: RunStore) -> Iterator[Measured]:
    for trial_id in store.trials():
        try:
            record = store.read(trial_id) or {}
        except ReadError:
            continue  # an estimate does with the others
        cost, config, history = record.get("cost") or {}, record.get("config") or {}, record.get("history") or []
        provenance = record.get("provenance") or {}
        try:
            last, evaluations = history[-1], sum(map(was_evaluated, history))
            found = Measured(
                trial_id,
                float(cost["seconds_per_step"]),
                float(cost.get("checkpoint_seconds") or 0) / max(int(last["step"]), 1),
                float(cost.get("eval_seconds") or 0) / max(evaluations, 1),
                int(last["step"]),
                int(last["epoch"]),
                int(config["train"]["batch_size"]),
                str(record.get("fingerprint")),
                str(provenance.get("device", "cpu")) != "cpu",
                _traits(config, int(provenance.get("threads") or 1)),
            )
        except (KeyError, IndexError, TypeError, ValueError):
            continue  # it does not tell
        if record.get("status") == "finished" and found.seconds_per_step > 0 and found.epochs > 0:
            yield found


def _traits(config: dict[str, Any], threads: int) -> dict[str, Any]:
    """What a step's time depends on, flat."""
    traits: dict[str, Any] = {"threads": threads, **newer_defaults()}  # older records do not name these

    def walk(node: dict[str, Any], path: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{path}{key}.")
            elif key not in NO_TIME:
                traits[f"{path}{key}"] = value

    walk(config.get("model") or {}, "model.")
    walk({k: v for k, v in (config.get("data") or {}).items() if k != "digits"}, "data.")
    walk({k: v for k, v in (config.get("train") or {}).items() if k in IN_TRAIN}, "train.")
    traits["model.heads"] = Counter(head.get("name") for head in config["model"]["heads"])
    return traits


def _differing(one: dict[str, Any], other: dict[str, Any]) -> dict[str, int]:
    """Settings that differ, and how much each counts; of the heads, each that one has and the other has not."""
    found = {key: 1 for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    if "model.heads" in found:
        mine, theirs = one["model.heads"], other["model.heads"]
        found["model.heads"] = ((mine - theirs) + (theirs - mine)).total()
    return found


class Costs:
    """What trials of a store will take, judged by its finished ones."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._measured = list(_measured(store))
        self._found: dict[tuple[str, ...], tuple[list[str], list[Measured]]] = {}  # one search for all seeds

    def left(self, trial: Trial) -> Estimate | None:
        """What is left of a trial; None when nothing like it was measured, or its number of steps is not known."""
        runtime, config = trial.runtime, trial.config
        on_gpu = runtime.gpus_per_trial > 0 or runtime.device == "cuda"
        same_kind = [found for found in self._measured if found.on_gpu == on_gpu]
        same_data = [found for found in same_kind if trial.fingerprint and found.fingerprint == trial.fingerprint]
        per_epoch = _steps_per_epoch(trial, same_data)
        if not same_kind or per_epoch is None:
            return None
        own = _traits(config_to_dict(config), max(1, math.floor(runtime.cpus_per_trial)))
        key = (trial.fingerprint, str(on_gpu), repr(own))
        if key not in self._found:
            self._found[key] = _nearest(own, same_data or same_kind)
        differing, alike = self._found[key]
        epochs = epochs_of(config.train, per_epoch)
        done_steps, done_epochs = _done(self._store, trial.trial_id)
        per_step = _mean([found.seconds_per_step + found.checkpoints_per_step for found in alike])
        seconds = max(epochs * per_epoch - done_steps, 0) * per_step
        if same_data:
            evaluations = math.ceil(max(epochs - done_epochs, 0) / config.evaluate.every_epochs)
            seconds += evaluations * _mean([found.seconds_per_evaluation for found in alike])
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        how = f"differs in {', '.join(differing[:4])}{more}" if differing else "alike"
        how = how if same_data else f"other data, training only, {how}"
        return Estimate(seconds, tuple(found.trial_id for found in alike), how, not differing)


def _nearest(own: dict[str, Any], basis: Sequence[Measured]) -> tuple[list[str], list[Measured]]:
    """Settings that differ, and the measured trials that differ least."""
    exact = [found for found in basis if found.traits == own]
    if exact:
        return [], exact
    apart = [(_differing(own, found.traits), found) for found in basis]
    least = min(sum(differing.values()) for differing, _ in apart)
    nearest = [(differing, found) for differing, found in apart if sum(differing.values()) == least]
    return sorted(nearest[0][0]), [found for _, found in nearest]


def _steps_per_epoch(trial: Trial, same_data: Sequence[Measured]) -> int | None:
    data, batch = trial.config.data, trial.config.train.batch_size
    if data.path is None:
        return -(-data.digits.num_train // batch)
    for found in sorted(same_data, key=lambda found: found.batch_size != batch):  # the same size first: exact
        return -(-(found.steps // found.epochs) * found.batch_size // batch)
    return None


def _done(store: RunStore, trial_id: str) -> tuple[int, int]:
    """Steps and epochs that a checkpoint holds."""
    history = (store.read(trial_id) or {}).get("history") or []
    last = history[-1] if history and isinstance(history[-1], dict) else {}
    step, epoch = last.get("step"), last.get("epoch")
    return (step, epoch) if isinstance(step, int) and isinstance(epoch, int) else (0, 0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
