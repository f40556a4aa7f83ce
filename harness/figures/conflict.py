"""How far the maps of the heads lie apart: average distance against the number of heads (paper Figure 6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.figures.series import Estimate, bar_note, estimate, grouped, lacking_note
from harness.figures.style import COLUMN, head_name, head_style, legend_below, new_figure, plain, styled, wrapped

Table = Mapping[str, Any]
MOST_UPRIGHT = 8  # names below the axis; more stand on end
LONGEST_ON_END = 32  # letters of one that stands on end
PAIR_COLOUR = "#444444"
REFERENCES = {  # key of a table -> colour, words
    "ceiling": ("#d9d9d9", "ceiling: images shuffled"),
    "floor": ("#a6a6a6", "floor: same head, another seed"),
}


@styled()
def draw_conflict_distances(tables: Iterable[tuple[str, Table]], published: Sequence[tuple[str, Table]] = ()) -> Figure:
    """Average distance of every head to the others against the number K of auxiliary heads (paper Figure 6).

    Points stand at the mean over seeds with a bar from the lowest to the highest; of one seed the bar is the table's
    95 % interval over images. At K = 1 both heads have one distance, and one point. Grey bands are the ceiling and the
    floor of the same model, where it has them.

    Args:
        tables: (label, table of kind `conflict`); models without auxiliary heads are left out, and those without any
            distance are named. Where several labels have the same K, the labels stand at the axis instead.
        published: such tables of others, drawn as open marks at each model of the same heads, in whatever order; those
            of one label share a legend entry.

    Raises:
        ValueError: no table has a distance.
    """
    asked = grouped((label, table) for label, table in tables if len(table["heads"]) > 1)
    groups = {label: own for label, seeds in asked.items() if (own := [t for t in seeds if has_distance(t)])}
    left_out = lacking_note("distance", *({label: len(own) for label, own in by.items()} for by in (asked, groups)))
    groups = dict(sorted(groups.items(), key=lambda item: _num_auxiliary(item[1][0])))
    named = dict.fromkeys(head for seeds in groups.values() for head in seeds[0]["heads"])
    heads = [head for head in named if any(_estimate(seeds, "distance", head) for seeds in groups.values())]
    if not heads:
        raise ValueError("draw_conflict_distances: no table has a distance")
    counts = [_num_auxiliary(seeds[0]) for seeds in groups.values()]
    names = _place_names(list(groups), counts)
    figure = new_figure(COLUMN, 2.18 + _names_height(names))
    axes = figure.add_subplot()
    handles: dict[str, Artist] = {}
    for place, seeds in enumerate(groups.values()):
        handles |= _draw_references(axes, seeds, place)
    lines = {head: _draw_head(axes, list(groups.values()), head, heads) for head in heads}
    apart = {head for seeds in groups.values() if _num_auxiliary(seeds[0]) > 1 for head in seeds[0]["heads"]}
    handles = {head_name(head): line for head, line in lines.items() if head in apart} | handles
    for place, seeds in enumerate(groups.values()):
        if _num_auxiliary(seeds[0]) == 1:
            handles |= _draw_pair(axes, seeds, place)
    for name, table in published:
        for place in (at for at, seeds in enumerate(groups.values()) if _same_heads(seeds[0], table)):
            _draw_published(axes, table, place, list(groups.values())[place][0], heads)
            handles[name] = Line2D([], [], linestyle="", marker="D", markersize=3.8, color="black", fillstyle="none")
    _distance_axes(axes, names, len(set(counts)) == len(counts))
    note = "\n".join(filter(None, (bar_note([len(seeds) for seeds in groups.values()]), left_out)))
    legend_below(figure, list(handles.values()), list(handles), note)
    return figure


def has_distance(table: Table) -> bool:
    """Whether some image was usable, so that heads have a distance."""
    return any(_estimate([table], "distance", head) for head in table.get("distance") or {})


def _num_auxiliary(table: Table) -> int:
    return len(table["heads"]) - 1


def _estimate(seeds: Sequence[Table], *keys: str) -> Estimate | None:
    """The `value` found below `keys` in each seed's table, with the interval that stands beside it."""
    entries: list[Mapping[str, Any]] = []
    for table in seeds:
        entry: Any = table
        for key in keys:
            entry = (entry or {}).get(key)
        entries.append(entry or {})
    return estimate([entry.get("value") for entry in entries], [(e.get("low"), e.get("high")) for e in entries])


def _draw_head(axes: Axes, groups: Sequence[Sequence[Table]], head: str, heads: Sequence[str]) -> Line2D:
    """A head's distance at every place, the heads side by side so that equal numbers do not hide each other."""
    style = head_style(head, heads.index(head))
    found = [
        (place + _shift(head, seeds[0]), one)
        for place, seeds in enumerate(groups)
        if (one := _estimate(seeds, "distance", head))
    ]
    if len({_num_auxiliary(seeds[0]) for seeds in groups}) < len(groups):
        style["linestyle"] = ""  # a line along an axis of names would mean nothing
    pairs = [place for place, seeds in enumerate(groups) if _num_auxiliary(seeds[0]) == 1]
    for x, one in found:
        if one.low is not None and one.high is not None and x not in pairs:
            axes.plot([x, x], [one.low, one.high], color=style["color"], linewidth=0.9, zorder=2)
    style["linewidth"] = 0.8
    (line,) = axes.plot(
        [x for x, _ in found],
        [one.mean for _, one in found],
        **style,
        markevery=[number for number, (x, _) in enumerate(found) if x not in pairs],
        clip_on=False,
        zorder=3,
    )
    return line


def _draw_pair(axes: Axes, seeds: Sequence[Table], place: int) -> dict[str, Artist]:
    """The one distance between two heads alone, drawn once: it is that of either."""
    one = _estimate(seeds, "distance", seeds[0]["heads"][0])
    if one is None:
        return {}
    if one.low is not None and one.high is not None:
        axes.plot([place, place], [one.low, one.high], color=PAIR_COLOUR, linewidth=0.9, zorder=2)
    mark: dict[str, Any] = {"marker": "P", "markersize": 5.0, "color": PAIR_COLOUR, "markeredgecolor": "white"}
    axes.plot(place, one.mean, **mark, markeredgewidth=0.5, linestyle="", clip_on=False, zorder=4)
    return {"both heads (K = 1)": Line2D([], [], **mark, markeredgewidth=0.5, linestyle="")}


def _draw_references(axes: Axes, seeds: Sequence[Table], place: int) -> dict[str, Artist]:
    """Ceiling and floor of one model: a band over its place, with a line at the mean."""
    handles: dict[str, Artist] = {}
    for key, (colour, words) in REFERENCES.items():
        one = _estimate(seeds, key)
        if one is None:
            continue
        left, right = place - 0.42, place + 0.42
        if one.low is not None and one.high is not None:
            axes.fill_between([left, right], one.low, one.high, color=colour, alpha=0.6, linewidth=0, zorder=0)
        dashes = "solid" if key == "ceiling" else (0, (2, 1))
        (handles[words],) = axes.plot(
            [left, right], [one.mean] * 2, color="#6e6e6e", linewidth=0.9, linestyle=dashes, zorder=1
        )
    return handles


def _shift(head: str, table: Table) -> float:
    """Where the head stands beside the middle of its place; two alone share one number and stand in the middle."""
    heads = table["heads"]
    if len(heads) == 2:
        return 0.0
    return min(0.12, 0.7 / len(heads)) * (heads.index(head) - (len(heads) - 1) / 2)


def _same_heads(one: Table, other: Table) -> bool:
    return sorted(one["heads"]) == sorted(other["heads"])


def _draw_published(axes: Axes, table: Table, place: int, own: Table, heads: Sequence[str]) -> None:
    """The numbers of `table` beside those of the table `own` of the same heads."""
    for head in table["heads"]:
        value = (table["distance"].get(head) or {}).get("value")
        if value is not None and head in heads:
            colour = head_style(head, heads.index(head))["color"]
            axes.plot(
                place + _shift(head, own), value, marker="D", color=colour, fillstyle="none", markersize=3.8, zorder=2
            )


def _place_names(labels: Sequence[str], counts: Sequence[int]) -> list[str]:
    """What stands at each place: K where it tells the models apart, else their labels, in lines or short."""
    if len(set(counts)) == len(counts):
        return [str(count) for count in counts]
    if len(labels) > MOST_UPRIGHT:
        short = [plain(" ".join(label.split())) for label in labels]
        return [name if len(name) <= LONGEST_ON_END else f"{name[: LONGEST_ON_END - 1]}…" for name in short]
    return [wrapped(label, int(52 / len(labels))) for label in labels]


def _names_height(names: Sequence[str]) -> float:
    """Inches below the axis."""
    if len(names) > MOST_UPRIGHT:
        return 0.06 * max(map(len, names))
    return 0.12 * (1 + max(name.count("\n") for name in names))


def _distance_axes(axes: Axes, names: Sequence[str], are_counts: bool) -> None:
    axes.set_xticks(range(len(names)), names)
    if len(names) > MOST_UPRIGHT:
        axes.tick_params(axis="x", labelrotation=90, labelsize=6)
    margin = 0.5 if len(names) > 1 else 1.0
    axes.set_xlim(-margin, len(names) - 1 + margin)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]) if axes.get_ylim()[0] < -1e-3 else 0.0)
    axes.grid(False, axis="x")
    axes.set_xlabel("number K of auxiliary heads" if are_counts else "auxiliary heads")
    axes.set_ylabel("average distance (KL, nats)")
