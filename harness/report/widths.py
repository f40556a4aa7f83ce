"""How wide a text is in print, and where its lines break: what a LaTeX table needs to know to stay within its column.

Widths are those of Computer Modern at 8 points, the widest of the usual fonts of papers, so that a table that fits here
fits in Times as well.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from harness.report.letters import OTHER, latex_letter

SIZE = 8.0  # points: \footnotesize of a document at 10 points
_WIDTHS = {  # thousandths of the size, by the letters that have it
    **dict.fromkeys("!',.:;[]`il", 295),
    **dict.fromkeys("fj", 325),
    **dict.fromkeys("- ", 354),
    **dict.fromkeys("I", 383),
    **dict.fromkeys("()tr", 414),
    **dict.fromkeys("s", 419),
    **dict.fromkeys("cez", 472),
    **dict.fromkeys('?"$*/0123456789\\^ago{}~_–', 531),
    **dict.fromkeys("JSbdhnpu", 590),
    **dict.fromkeys("kqvxy", 561),
    **dict.fromkeys("LZ", 664),
    **dict.fromkeys("EFP", 723),
    **dict.fromkeys("BCTRw", 782),
    **dict.fromkeys("ADGHKNOQUVXY&+=@<>±−×", 834),
    **dict.fromkeys("#%m", 885),
    **dict.fromkeys("MW|↑↓", 1091),
    **{"…": 1250, "½": 1600},
}
_KNOWN = 1100  # of other letters that pdflatex has
_NUMBER = 3800  # of `U+1F0A1`, which stands for a letter that it does not have
_BREAKS = "_/.:=+,;-"  # a long word may go on in the next line after one of these


def text_width(text: str) -> float:
    """Points of `text` in one line of LaTeX."""
    return sum(map(_letter_width, unicodedata.normalize("NFC", text))) * SIZE / 1000


@lru_cache(maxsize=4096)
def _letter_width(letter: str) -> int:
    if letter in _WIDTHS:
        return _WIDTHS[letter]
    return _NUMBER if latex_letter(letter).startswith(OTHER) else _KNOWN


def wrap(text: str, width: float, indent: float = 0.0) -> list[str]:
    """Lines of `text` that are at most `width` points wide; a word is broken only where it is wider than a line.

    Lines after the first have `indent` points less.
    """
    lines: list[str] = []
    for word in _words(text):
        longer = f"{lines[-1]} {word}" if lines else word
        if text_width(longer) <= width - (indent if len(lines) > 1 else 0.0):
            lines = [*lines[:-1], longer]
        else:
            lines += pieces(word, width - indent)
    return lines or [""]


def pieces(word: str, width: float) -> list[str]:
    """A word in parts of at most `width` points, broken after a sign where it has one."""
    parts = [""]
    for part in re.findall(rf"[^{re.escape(_BREAKS)}]*[{re.escape(_BREAKS)}]?", word):
        if text_width(parts[-1] + part) <= width:
            parts[-1] += part
        elif part and text_width(part) <= width:
            parts.append(part)
        else:
            for letter in part:
                if parts[-1] and text_width(parts[-1] + letter) > width:
                    parts.append("")
                parts[-1] += letter
    return parts


def fits(texts: Iterable[str], lines: int, width: float, indent: float = 0.0) -> bool:
    """Whether each text has at most so many lines of `width` points, without a broken word."""
    return all(
        len(wrap(text, width, indent)) <= lines and all(text_width(word) <= width - indent for word in _words(text))
        for text in texts
    )


def _words(text: str) -> list[str]:
    """Words, of which `K = 2` and `AP ↑` are one."""
    words = re.sub(r" (?=[↑↓])", "\0", re.sub(r"(\S) ([=±]) (?=\S)", "\\1\0\\2\0", text)).split()
    return [word.replace("\0", " ") for word in words]
