"""How every figure looks and how it is written: one style file, colours and marks, legends, files.

Colours are Okabe and Ito's, which colour-blind readers tell apart; dashes, marks and hatches say the same in black
and white. Figures are made at the size they are printed at, and the same figure gives the same bytes.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.files import write_atomic

STYLE_FILE = Path(__file__).with_name("paper.mplstyle")
COLUMN, PAGE = 3.4, 7.0  # inches: one column of a paper, and both
NOTE_COLOUR = "#555555"
NO_BREAK = "\N{NO-BREAK SPACE}"
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "<", ">")
HATCHES = ("", "//////", "......", "xxxxxx")
BAND = 0.15  # opacity
LEGEND_COLUMNS = 3  # at most

HEAD_NAMES = {  # as the paper writes them; any other head by its own name
    "decoder": "DETR",
    "atss": "ATSS",
    "faster_rcnn": "Faster R-CNN",
    "mask_rcnn": "Mask R-CNN",
    "paa": "PAA",
    "gfl": "GFL",
    "fcos": "FCOS",
    "retinanet": "RetinaNet",
}


@lru_cache(maxsize=1)
def _parameters() -> dict[Any, Any]:
    parameters = matplotlib.rc_params_from_file(STYLE_FILE, use_default_template=True)
    return {key: value for key, value in parameters.items() if not key.startswith("backend")}


@contextmanager
def styled() -> Iterator[None]:
    """The style, as a context or as a decorator of whatever draws or writes; the caller's own comes back after it."""
    with matplotlib.rc_context(_parameters()):
        yield


@lru_cache(maxsize=1)
def _colours() -> tuple[str, ...]:
    return tuple(f"#{colour.lstrip('#')}" for colour in _parameters()["axes.prop_cycle"].by_key()["color"])


def colour_of(index: int) -> str:
    """The colour of the series (category, head) number `index`; they come round again."""
    return _colours()[index % len(_colours())]


def line_style(index: int) -> dict[str, Any]:
    """Colour, dashes and mark of the line number `index`, as keywords of `Axes.plot`."""
    turn = index // len(_colours())
    return {
        "color": colour_of(index),
        "linestyle": DASHES[(index + turn) % len(DASHES)],  # a colour comes back with other dashes
        "marker": MARKERS[index % len(MARKERS)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }


def head_name(name: str) -> str:
    """`faster_rcnn` as the paper writes it, `atss.2` as `ATSS 2`; the decoder's own branch is DETR."""
    base, _, number = name.partition(".")
    return f"{HEAD_NAMES.get(base, base)} {number}".strip()


def head_style(name: str, index: int = 0) -> dict[str, Any]:
    """Keywords of a head's line: its own colour wherever it occurs, and for a repeated head other dashes.

    Args:
        name: such as `atss`, or `atss.2` for a second one.
        index: of a head that the paper does not have, for a colour.
    """
    base, _, number = name.partition(".")
    known = list(HEAD_NAMES)
    place = known.index(base) if base in known else index
    style = line_style(place)
    if number.isdigit():
        turn = place + int(number) - 1
        style |= {"linestyle": DASHES[turn % len(DASHES)], "marker": MARKERS[turn % len(MARKERS)]}
    return style


def plain(text: str) -> str:
    """`text` with a question mark for each letter that the font does not have."""
    return "".join(letter if letter.isspace() or ord(letter) in _letters() else "?" for letter in text)


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family=_parameters()["font.family"]))).get_charmap())


def wrapped(text: str, letters: int) -> str:
    """`text` in lines of at most so many letters; `K = 2` and no-break spaces are not broken.

    A word longer than a line is, after one of its signs if it has any.
    """
    whole = re.sub(" ([=±]) ", rf"{NO_BREAK}\1{NO_BREAK}", plain(text)).replace(" %", f"{NO_BREAK}%")
    lines = [" ".join(_parts(word, letters) for word in line.split(" ")) for line in whole.split("\n")]
    return "\n".join(part for line in lines for part in textwrap.wrap(line, letters)) or " "


def _parts(word: str, letters: int) -> str:
    """A word that is longer than a line with spaces after some of its signs, so that it breaks there."""
    if len(word) <= letters:
        return word
    lines = [""]
    for part in re.findall(r"[^_/.=,;:+-]*[_/.=,;:+-]?", word):
        if len(lines[-1]) + len(part) > letters and lines[-1]:
            lines.append("")
        lines[-1] += part
    return " ".join(lines)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)  # measures text, and needs no display
    return figure


def whole_epochs(axes: Axes) -> None:
    """Ticks at whole numbers only."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def legend_below(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], note: str = "") -> None:
    """Put one legend below all panels, in as many columns as fit; the figure grows by its height.

    Args:
        figure: with its panels drawn.
        handles: one per label.
        labels: wrapped where they are long.
        note: small print above the entries, such as what a band means.
    """
    width, height = figure.get_size_inches()
    assert isinstance(figure.canvas, FigureCanvasAgg)
    renderer = figure.canvas.get_renderer()
    letters = int(width * 16)  # of one line of a legend in a single column
    texts = [wrapped(label, letters) for label in labels]
    for columns in range(min(LEGEND_COLUMNS, max(1, len(labels))), 0, -1):
        legend = figure.legend(
            handles,
            texts,
            loc="outside lower center",
            ncols=columns,
            title=wrapped(note, int(width * 20)) if note else "",
        )
        legend.get_title().set(color=NOTE_COLOUR, multialignment="center")
        box = legend.get_window_extent(renderer)
        if box.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    figure.set_size_inches(width, height + box.height / figure.dpi + 0.04)


ANONYMOUS: dict[str, dict[str, None]] = {  # by ending: what would hold a date or a version
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}


@styled()
def figure_bytes(figure: Figure, ending: str, dots: float | None = None) -> bytes:
    """The file of `figure`; the same figure gives the same bytes.

    Args:
        figure: is laid out anew each time.
        ending: `png` or `pdf`, which embeds its fonts.
        dots: of a PNG per inch; None: 200.
    """
    size: dict[str, Any] = {} if dots is None else {"dpi": dots}
    stream = io.BytesIO()
    figure.savefig(stream, format=ending, metadata=ANONYMOUS[ending], **size)
    return stream.getvalue()


def save_figure(
    figure: Figure, path: Path | str, formats: Sequence[str] = ("png", "pdf"), dots: float | None = None
) -> list[Path]:
    """Write `figure` to `path` with each ending of `formats` added (see `figure_bytes`); files are replaced whole."""
    base = Path(path)
    paths = []
    for ending in formats:
        paths.append(base.with_name(f"{base.name}.{ending}"))
        write_atomic(paths[-1], figure_bytes(figure, ending, dots))
    return paths
