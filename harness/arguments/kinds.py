"""The kinds of value that options take: each reads a text, or says what it must be."""

from __future__ import annotations

from argparse import ArgumentTypeError


def whole_numbers(text: str) -> list[int]:
    """`0,1,2`."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ArgumentTypeError(f"must be whole numbers like 0,1,2, got '{text}'") from None


def at_least_one(text: str) -> int:
    """A whole number that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number of at least 1, got '{text}'")
    return int(text)


def port(text: str) -> int:
    """Of TCP; 0, which lets the system choose, is none."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ArgumentTypeError(f"must be a number from 1 to 65535, got '{text}'")
    return int(text)


def score(text: str) -> float:
    """Of a detection, from 0 to 1."""
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0.0 <= score <= 1.0:
        raise ArgumentTypeError(f"must be a number from 0 to 1, got '{text}'")
    return score


def seconds(text: str) -> float:
    """`6h`, `90m` or `1200s`."""
    number, unit = text[:-1], {"h": 3600.0, "m": 60.0, "s": 1.0}.get(text[-1:].lower())
    try:
        value = float(number) * (unit or 0.0)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise ArgumentTypeError(f"must be a time such as 6h, 90m or 1200s, got '{text}'")
    return value


def words(text: str) -> list[str]:
    """`html,md,csv`."""
    return [part.strip() for part in text.split(",") if part.strip()]
