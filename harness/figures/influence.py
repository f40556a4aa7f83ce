"""What each head does to the decoder: gradients that agree or not, and steps that help or harm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from harness.figures.series import Estimate, bar_note, estimate, grouped
from harness.figures.style import PAGE, colour_of, head_name, legend_below, new_figure, plain, styled

Table = Mapping[str, Any]
DECODER = "decoder"
PLACES = {"root": ("encoder output", "o"), "shared": ("shared parameters", "s")}
CEILING = "#c8c8c8"
LONGEST = 34  # letters of a name at the axis
Line = tuple[str, str, str]  # what stands at the axis, the model's label, the head


@styled()
def draw_influence(gradients: Iterable[tuple[str, Table]], transfers: Iterable[tuple[str, Table]] = ()) -> Figure:
    """Cosines of each head's gradient with the decoder's, and the transfer of a step for the head to the decoder.

    A line for each head of each model. Points stand at the mean over seeds with a bar from the lowest to the highest;
    of one seed the bar is the table's 95 % interval over images. Grey bands are the ceiling, where the head learns the
    objects of another image. A cosine or a transfer below zero works against the decoder.

    Args:
        gradients: (label, table of kind `gradient`); models without auxiliary heads are left out.
        transfers: (label, table of kind `transfer`), likewise; without any, there is one panel.

    Raises:
        ValueError: no table has an auxiliary head.
    """
    by_kind = [
        {label: seeds for label, seeds in grouped(own).items() if _heads(seeds)} for own in (gradients, transfers)
    ]
    labels = list(dict.fromkeys(label for own in by_kind for label in own))
    lines = [
        (_name(label, head, len(labels)), label, head)
        for label in labels
        for head in _heads(by_kind[0].get(label) or by_kind[1][label])
    ]
    if not lines:
        raise ValueError("draw_influence: no table has an auxiliary head")
    panels = [own for own in by_kind if own]
    figure = new_figure(PAGE if len(panels) > 1 else 0.7 * PAGE, 0.9 + 0.24 * len(lines))
    places = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    handles: dict[str, Artist] = {}
    drawn = iter(places)
    if by_kind[0]:
        handles |= _draw_cosines(next(drawn), by_kind[0], lines)
    if by_kind[1]:
        handles |= _draw_transfer(next(drawn), by_kind[1], lines)
    places[0].set_yticks(range(len(lines)), [name for name, _, _ in lines])
    places[0].set_ylim(len(lines) - 0.5, -0.5)
    counts = [len(seeds) for own in panels for seeds in own.values()]
    legend_below(figure, list(handles.values()), list(handles), bar_note(counts))
    return figure


def _heads(seeds: Sequence[Table]) -> list[str]:
    return [head for head in seeds[0]["heads"] if head != DECODER]


def _name(label: str, head: str, num_labels: int) -> str:
    text = head_name(head) if num_labels == 1 else f"{head_name(head)}, {' '.join(label.split())}"
    text = plain(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _draw_cosines(axes: Axes, models: Mapping[str, Sequence[Table]], lines: Sequence[Line]) -> dict[str, Artist]:
    handles: dict[str, Artist] = {}
    bands: dict[str, Artist] = {}
    for number, (place, (words, marker)) in enumerate(PLACES.items()):
        shift = 0.16 * (2 * number - 1)
        for at, (_, label, head) in enumerate(lines):
            seeds = models.get(label) or []
            found = [
                _with_decoder(table[place], table["heads"].index(head)) for table in seeds if head in table["heads"]
            ]
            _point(axes, at + shift, _estimate(found), marker, number)
            bands |= _band(axes, at + shift, _estimate([table[place].get("ceiling") for table in seeds]), 0.14)
        handles[words] = _mark(marker, number)
    _finish(axes, "cosine with the decoder's gradient")
    return handles | bands


def _draw_transfer(axes: Axes, models: Mapping[str, Sequence[Table]], lines: Sequence[Line]) -> dict[str, Artist]:
    handles: dict[str, Artist] = {"transfer": _mark("D", 2)}
    for at, (_, label, head) in enumerate(lines):
        own = [table["transfer"] for table in models.get(label) or []]
        _point(axes, at, _estimate([table["heads"].get(head) for table in own]), "D", 2, scale=100)
        handles |= _band(axes, at, _estimate([table.get("ceiling") for table in own]), 0.3, scale=100)
    _finish(axes, "decoder's loss removed by a step (%)")
    return handles


def _finish(axes: Axes, words: str) -> None:
    axes.axvline(0, color="#6e6e6e", linewidth=0.7, zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel(words)
    axes.grid(False, axis="y")


def _with_decoder(table: Table, head: int) -> dict[str, float | None]:
    """The cosine of a head with the decoder, which comes first."""
    return {name: table[key][0][head] for name, key in (("value", "cosine"), ("low", "low"), ("high", "high"))}


def _estimate(entries: Sequence[Mapping[str, Any] | None]) -> Estimate | None:
    known = [entry or {} for entry in entries]
    return estimate([entry.get("value") for entry in known], [(e.get("low"), e.get("high")) for e in known])


def _mark(marker: str, place: int) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, markersize=4, color=colour_of(place), markeredgecolor="white")


def _point(axes: Axes, at: float, one: Estimate | None, marker: str, place: int, scale: float = 1) -> None:
    if one is None:
        return
    if one.low is not None and one.high is not None:
        axes.plot([scale * one.low, scale * one.high], [at, at], color=colour_of(place), linewidth=0.9, zorder=2)
    mark = _mark(marker, place)
    mark.set_data([scale * one.mean], [at])
    mark.set(markeredgewidth=0.5, clip_on=False, zorder=3)
    axes.add_line(mark)
    axes.autoscale_view()


def _band(axes: Axes, at: float, one: Estimate | None, half: float, scale: float = 1) -> dict[str, Artist]:
    if one is None:
        return {}
    low, high = (one.mean if end is None else end for end in (one.low, one.high))
    axes.fill_betweenx(
        [at - half, at + half], scale * low, scale * high, color=CEILING, alpha=0.6, linewidth=0, zorder=0
    )
    (line,) = axes.plot([scale * one.mean] * 2, [at - half, at + half], color="#8a8a8a", linewidth=0.9, zorder=1)
    return {"ceiling: objects of another image": line}
