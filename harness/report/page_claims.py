"""The claims of a page: the list of all, and every comparison below a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from harness.report.cells import PLAIN, interval_words, written
from harness.report.notes import paper_place, plural
from harness.report.section import Section, anchor_of, minus
from harness.report.verdicts import VERDICTS, Comparison, Verdict
from harness.spec.detection_metrics import is_detection_metric

AP_MARGIN = 0.5  # of metrics in points of AP: less does not matter, where a claim does not say otherwise
SIGNS = {"reproduced": "✓", "not reproduced": "✗", "undecided": "?"}
CHANCE = "of twenty such intervals, one misses the truth by chance: read many verdicts together, not the best one alone"
RATES = (
    "q: of the claims with a q no larger, so many are expected to have no effect (Benjamini-Hochberg on Student's p of "
    "the weakest row, or of the row that refutes times their number; approximate, as claims share rows and looks share "
    "seeds)"
)


def claims_tally(verdicts: Sequence[Verdict]) -> str:
    """How many claims have each verdict."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    told = [f"{counts[name]} {name}" for name in reversed(VERDICTS) if counts[name]]
    return f"{len(verdicts)} {plural('claim', len(verdicts))}: {', '.join(told)}."


def claim_line(section: Section, verdict: Verdict, q: float | None) -> dict[str, Any]:
    """A claim's line in the list of all: the comparison that decides it."""
    claim = verdict.claim
    return {
        **_comparison(verdict, verdict.deciding),
        **_verdict(verdict.verdict),
        "text": claim.text,
        "anchor": anchor_of(section.grid),
        "table": paper_place(section.grid.paper) or section.table.title,
        "reference": claim.reference,
        "others": len(claim.rows) if len(claim.rows) > 1 else 0,
        "metric": verdict.metric.heading,
        "margin": "" if claim.within is None else f"±{written(claim.within, verdict.metric)}",
        "q": "" if q is None else f"{q:.3f}" if q >= 0.001 else "<0.001",
        "looks": "" if verdict.seeds is None else f"looked at {verdict.seeds} seeds",
        "reason": verdict.reason,
    }


def claim_rows(verdict: Verdict) -> dict[str, Any]:
    """A claim below its own table: every comparison."""
    claim, heading = verdict.claim, verdict.metric.heading
    kind = f"better {heading} than {claim.reference}"
    if claim.within is not None:
        kind = f"{heading} within {written(claim.within, verdict.metric)} of {claim.reference}"
    rows = [{**_comparison(verdict, found), **_verdict(found.verdict)} for found in verdict.comparisons]
    return {**_verdict(verdict.verdict), "text": claim.text, "kind": kind, "comparisons": rows}


def _verdict(words: str) -> dict[str, str]:
    return {"verdict": words, "style": words.replace(" ", "-"), "sign": SIGNS[words]}


def _comparison(verdict: Verdict, found: Comparison) -> dict[str, str]:
    difference, metric = found.difference, verdict.metric
    return {
        "row": found.row,
        "difference": "no shared seed" if difference is None else minus(interval_words(difference, metric, PLAIN)),
        "n": "0" if difference is None else str(difference.n),
        "paper": "" if found.published is None else minus(written(found.published, metric, signed=True)),
        "shows": "" if found.detectable is None else written(found.detectable, metric),
        "size": _size(verdict, found),
    }


def _size(verdict: Verdict, found: Comparison) -> str:
    """How a difference stands to the claim's margin, for its colour: it stops nothing."""
    margin, gap = verdict.claim.margin, found.difference
    if margin is None and is_detection_metric(verdict.metric.name):
        margin = AP_MARGIN
    if margin is None or gap is None or gap.low is None or gap.high is None or verdict.claim.within is not None:
        return ""
    if -margin < gap.low and gap.high < margin:
        return "small"
    return "large" if gap.low > margin or gap.high < -margin else ""
