"""Letters of a person's words in LaTeX: signs that mean something else there, accents, Greek, and all others."""

from __future__ import annotations

import re
import unicodedata

_GREEK = (
    *("alpha", "beta", "gamma", "delta", "varepsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu"),
    *("xi", "o", "pi", "rho", "varsigma", "sigma", "tau", "upsilon", "varphi", "chi", "psi", "omega"),
)  # in Unicode's order
_CAPITALS = ("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega")
LATEX_CHARACTERS = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "`": r"\`{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\char34{}"},
    **{"±": r"$\pm$", "×": r"$\times$", "–": "--", "—": "---", "…": r"\dots{}", "→": r"$\rightarrow$"},
    **{"−": "$-$", "·": r"$\cdot$", "°": r"$^\circ$", "≈": r"$\approx$", "≠": r"$\ne$", "∞": r"$\infty$"},
    **{"≤": r"$\le$", "≥": r"$\ge$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "←": r"$\leftarrow$", "∪": r"$\cup$"},
    **{"‘": "`", "’": "'", "“": "``", "”": "''", "µ": r"$\mu$", "•": r"$\bullet$", "½": "1/2", "√": r"$\surd$"},
    **{"ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "ø": r"\o{}", "Ø": r"\O{}", "œ": r"\oe{}", "Œ": r"\OE{}"},
    **{"ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}", "å": r"\aa{}", "Å": r"\AA{}"},
    **{character: f"$_{number}$" for number, character in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    **{character: f"$^{number}$" for number, character in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{chr(0x3B1 + place): "o" if name == "o" else f"$\\{name}$" for place, name in enumerate(_GREEK)},
    **{unicodedata.lookup(f"GREEK CAPITAL LETTER {'LAMDA' if n == 'Lambda' else n}"): f"$\\{n}$" for n in _CAPITALS},
    **{"[": "{[}", "*": "{*}"},  # at the start of a row these would be arguments of the line break before
}
_ACCENTS = dict(
    zip(
        "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030b\u030c\u0327\u0323\u0331",
        ["`", "'", "^", "~", "=", "u", ".", '"', "H", "v", "c", "d", "b"],
        strict=True,
    )
)
OTHER = r"\unicodeletter"
DEFINITION = (
    rf"\ifdefined{OTHER}\else\protected\def{OTHER}#1#2{{\ifdefined\Umathcode#1\else#2\fi}}\fi"
    "  % letters that pdflatex does not have, by their numbers; xelatex and lualatex show them"
)


def escape_latex(text: str) -> str:
    """Escape `text` for LaTeX of any kind; a letter that pdflatex does not have is shown there by its number."""
    words = " ".join(text.split())
    words = re.sub(r"([-',])(?=\1)", "\\1\0", words)  # two of these would become another sign
    return "".join("{}" if letter == "\0" else latex_letter(letter) for letter in unicodedata.normalize("NFC", words))


def latex_letter(letter: str) -> str:
    """One letter for LaTeX; `OTHER` with its number where pdflatex has no form of it."""
    if letter in LATEX_CHARACTERS:
        return LATEX_CHARACTERS[letter]
    if letter.isascii() and letter.isprintable():
        return letter
    base, *accents = list(unicodedata.normalize("NFD", letter))
    if accents and base.isascii() and base.isalpha() and all(accent in _ACCENTS for accent in accents):
        shown = base
        for accent in accents:
            shown = f"\\{_ACCENTS[accent]}{{{shown}}}"
        return shown
    number = f"U+{ord(letter):04X}"
    return f"{OTHER}{{{letter if letter.isprintable() else number}}}{{{number}}}"
