"""The claims of two editions of the mini-paper side by side: old verdict, new verdict, and what the seeds cost.

    python -m benchmarks editions docs/mini-paper/first/report docs/mini-paper/second/report [--most 12]

Reads what `codetr report` wrote there: claims.csv, and the trials of each table. A claim is known by its table and its
words. Of several rows the one that speaks least for the claim stands for it, as in the report. Seeds are those of the
claim's last look, and a claim that looks have not come to is *not reached*; hours saved are those of `--most` seeds at
every row, each by the mean of its trials, less what ran.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from harness.report.cells import percent
from harness.report.verdicts import VERDICTS

NUMBERS = ("difference", "low", "high", "confidence", "n", "could_show", "margin", "looks", "device_hours")
NOT_REACHED = "not reached"
HEADINGS = ("table", "claim", "first edition", "second edition", "difference", "seeds", "could show")


def main(argv: list[str]) -> int:
    """Print a table in Markdown, and the hours below it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks editions", description=__doc__)
    parser.add_argument("first", type=Path, help="folder of the first edition's report")
    parser.add_argument("second", type=Path, help="folder of the second edition's report")
    parser.add_argument("--most", type=int, default=12, metavar="N", help="seeds of the last look")
    args = parser.parse_args(argv)
    first, second = claims_in(args.first), claims_in(args.second)
    below = [tally(second), hours(args.second, args.most)]
    print("\n".join([*side_by_side(first, second), "", *below]))
    return 0


def claims_in(report: Path) -> pd.DataFrame:
    """The deciding row of each claim, in the report's order, by (table, claim)."""
    rows = _read(report / "claims.csv")
    rank = rows["row_verdict"].map({verdict: place for place, verdict in enumerate(VERDICTS)})
    support = rows["low"].where(~rows["metric"].map(_falls), -rows["high"])
    furthest = -rows[["low", "high"]].abs().max(axis=1)
    support = support.where(rows["margin"].isna(), furthest)
    ordered = rows.assign(rank=rank, support=support.fillna(float("-inf")))
    least = ordered.sort_values(["rank", "support"], kind="stable").groupby(["table", "claim"], sort=False).head(1)
    found = least.sort_index().set_index(["table", "claim"])
    if found["looks"].notna().any():
        found.loc[found["looks"].isna(), "verdict"] = NOT_REACHED
    return found


def _read(path: Path) -> pd.DataFrame:
    """A table; a row may be labelled as what pandas takes for no value."""
    return pd.read_csv(path, keep_default_na=False, na_values=dict.fromkeys(NUMBERS, [""]))


def _falls(metric: str) -> bool:
    from harness.report.tables import metric_of

    return metric_of(metric).better == "lower"


def side_by_side(first: pd.DataFrame, second: pd.DataFrame) -> list[str]:
    """Lines of the table; claims that only one edition has have a dash in the other."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    keys = [*second.index, *(key for key in first.index if key not in second.index)]
    for table, claim in keys:
        key = (table, claim)
        old = first.loc[key, "verdict"] if key in first.index else "–"
        cells = [table, claim, old, *(_told(second.loc[key]) if key in second.index else ["–"] * 4)]
        lines.append(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def tally(claims: pd.DataFrame) -> str:
    """How many claims came out how, those of equality apart."""
    told = []
    for kind, own in (("claims", claims["margin"].isna()), ("claims of equality", claims["margin"].notna())):
        counts = claims[own]["verdict"].value_counts()
        order = [verdict for verdict in (*VERDICTS[::-1], NOT_REACHED) if verdict in counts]
        words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in order)
        told += [f"{own.sum()} {kind}: {words}"] if own.any() else []
    return "; ".join(told) + "."


def _told(own: pd.Series) -> list[str]:
    kind = "" if pd.isna(own["margin"]) else f" (equal within {own['margin']:g})"
    if pd.isna(own["difference"]):
        return [own["verdict"] + kind, "not trained", "", ""]
    words = f"{own['row']} against {own['than']}: {own['difference']:+.3g} {own['metric']}"
    if not pd.isna(own["low"]):
        words += f" [{own['low']:+.3g}, {own['high']:+.3g}] at {percent(own['confidence'])}"
    seeds = own["n"] if pd.isna(own["looks"]) else own["looks"]
    shown = "" if pd.isna(own["could_show"]) else f"{own['could_show']:.3g}"
    return [own["verdict"] + kind, words, f"{seeds:.0f}", shown]


def hours(report: Path, most: int) -> str:
    """What the trainings took, each once, and what `most` seeds at every row that has any would have."""
    files = sorted(report.glob("*_trials.csv"))
    trials = pd.concat([_read(file) for file in files], ignore_index=True)
    done = trials[trials["status"] == "finished"]
    unique = done.drop_duplicates("trial_id")
    names = done.groupby(["table", "row"])["trial_id"].agg(frozenset)  # rows that share a training are one
    means = {own: done[done["trial_id"].isin(own)]["device_hours"].mean() for own in _joined(names)}
    spent, whole = unique["device_hours"].sum(), most * sum(means.values())
    return (
        f"{len(unique)} trainings of {len(means)} different rows, {spent:.1f} device hours; {most} seeds of each of "
        f"them would take {whole:.1f}: {whole - spent:.1f} saved."
    )


def _joined(sets: pd.Series) -> set[frozenset[str]]:
    """Sets that share a member, united: of two rows that share trainings one may have more seeds."""
    found: list[frozenset[str]] = []
    for own in sets:
        touching = [other for other in found if other & own]
        found = [other for other in found if not other & own] + [own.union(*touching)]
    return set(found)
