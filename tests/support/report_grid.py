"""A hand-made grid and its records for the tests of tables and figures: every kind of cell occurs once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.config import DataConfig, RuntimeConfig, TrainConfig, TrialConfig
from harness.spec.claims import Claim
from harness.spec.grid import Grid, Row, Trial
from model.config import DetectorConfig

CONFIG = TrialConfig(DetectorConfig(), DataConfig(), TrainConfig(epochs=4, batch_size=8))
SEEDS = (0, 1, 2)


def make_grid(rows: dict[str, dict[str, Any]], seeds: tuple[int, ...] = SEEDS, **fields: Any) -> Grid:
    """A grid whose trials are named `<row number>-<seed>`; `rows` maps labels to fields of `Row`."""
    trials, made = [], []
    for number, (label, extra) in enumerate(rows.items()):
        ids = tuple(f"{number}-{seed}" for seed in seeds)
        made.append(Row(label, **{"factors": {"model.heads": label}, "trial_ids": ids, "published": {}, **extra}))
        for seed, trial_id in zip(seeds, ids, strict=True):
            config = replace(CONFIG, seed=seed)
            trials.append(Trial(trial_id, config, RuntimeConfig(), f"{label} seed={seed}", label, {"seed": seed}, "f"))
    known: dict[str, Any] = {"name": "made", "title": "Made by hand", "paper": "", "preset": "digits"}
    known |= {"metrics": ("AP",), "baseline": next(iter(rows)), **fields}
    return Grid(trials=tuple(trials), rows=tuple(made), seeds=seeds, **known)


def make_record(trial_id: str, ap: float | None, **changes: Any) -> dict[str, Any]:
    """A finished record with AP rising to `ap` over four epochs."""
    metrics = {} if ap is None else {"AP": ap, "AP50": 1.5 * ap}
    history = [] if ap is None else [{"epoch": e, "step": 10 * e, "AP": ap * e / (e + 1) * 1.25} for e in range(1, 5)]
    return {
        "trial_id": trial_id,
        "status": "finished",
        "metrics": metrics,
        "history": history,
        "cost": {"peak_memory_mb": 512.4, "num_parameters": 1_234_567},
        "fingerprint": "0123456789abcdef",
        "provenance": {
            "commit": "a1b2c3d4e5f60718",
            "dirty": False,
            "evaluator": "faster_coco_eval 1.8.0",
            "area_bounds": [256.0, 1024.0],
            "device": "cpu",
            "code": "c0de12345678",
            "ops": "compiled (c++ 12.2.0)",
            "threads": 1,
        },
        "error": None,
        **changes,
    }


def full_grid() -> Grid:
    """Five rows: all seeds there, one failed, all interrupted or never run, odd letters, numbers of the paper."""
    return make_grid(
        {
            "K = 0": {"published": {"AP": 37.1, "AP50": 55.5}},
            "ATSS": {"published": {"AP": 41.6}, "note": "losses of the head alone"},
            "100 % _odd_ a_b & #1 | {x} $y$ \\ ~^ [z] *": {},
            "λ₁ = 2": {"published": {"AP": 42.3, "AP50": 60.5}},
            "not run": {},
        },
        name="table_09",
        title="Components & more_of it",
        paper="table09",
        metrics=("AP", "AP50", "APS", "peak_memory_mb", "num_parameters"),
        claims=(
            Claim("A head helps", ("ATSS",), "K = 0", "AP"),
            Claim(
                "All <b>others</b> & 100 % help",
                ("ATSS", "100 % _odd_ a_b & #1 | {x} $y$ \\ ~^ [z] *"),
                "K = 0",
                "AP50",
            ),
            Claim("λ matters little", ("λ₁ = 2",), "K = 0", "AP", 0.5),
        ),
        published_preset="coco_r50_12e",
    )


def full_records() -> list[dict[str, Any]]:
    """Records of `full_grid`, and one that belongs to another grid."""
    cuda = {"status": "failed", "error": "Traceback:\nRuntimeError: out_of_memory: 97% of <b>8 GB</b> & #2"}
    return [
        *(make_record(f"0-{seed}", ap) for seed, ap in enumerate((30.0, 31.0, 29.0))),
        *(make_record(f"1-{seed}", ap) for seed, ap in enumerate((33.0, 36.0, 36.0))),
        *(make_record(f"2-{seed}", ap) for seed, ap in enumerate((29.0, 28.0))),
        make_record("2-2", None, **cuda),
        make_record("3-0", 5.0, status="interrupted"),
        make_record("3-1", None, status="running"),
        make_record("elsewhere", 99.0),
    ]
