"""Metrics of errors by name, as docs/metrics.md defines them: which error costs how much AP, and the best threshold.

They are measured with a trial's last evaluation, for each branch (`atss/errors/duplicate`).
"""

from __future__ import annotations

COSTS = ("classification", "localisation", "both", "duplicate", "background", "miss")  # TIDE's, in the paper's order
SPECIAL_COSTS = ("false_positives", "false_negatives")
PREFIX = "errors/"
BEST = "best_f1"  # percent; with its threshold, precision and recall
THRESHOLD = "best_f1_threshold"  # a score
BEST_OTHERS = (THRESHOLD, "best_f1_precision", "best_f1_recall")
ERROR_METRICS = (
    *(PREFIX + name for name in (*COSTS, *SPECIAL_COSTS, "duplicate_gap", "best_regressed_recall")),
    *(BEST, *BEST_OTHERS),
)


def error_name(metric: str) -> str:
    """`errors/duplicate` of `atss/errors/duplicate`; empty for a metric of anything else."""
    parts = metric.split("/")
    names = [name for name in ("/".join(parts[-2:]), parts[-1]) if name in ERROR_METRICS]
    return names[0] if names and len(parts) - names[0].count("/") <= 2 else ""


def branch_of(metric: str) -> str:
    """`atss` of `atss/errors/duplicate`; empty for the decoder's, or for a metric of anything else."""
    name = error_name(metric)
    return metric.removesuffix(name).rstrip("/") if name else ""


def is_error_metric(metric: str) -> bool:
    """Whether this is a metric of errors, of a branch too."""
    return bool(error_name(metric))


def better(metric: str) -> str:
    """Which way such a metric is better: "higher", "lower" or, of a threshold, neither."""
    own = error_name(metric)
    if own == THRESHOLD:
        return ""
    return "higher" if own.startswith(BEST) or own.endswith("best_regressed_recall") else "lower"
