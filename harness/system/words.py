"""Numbers of things in words, for lines that people read."""

from __future__ import annotations


def plural(noun: str, number: int) -> str:
    """The noun with an s unless there is one."""
    return noun if number == 1 else noun + "s"


def quantity(number: int, noun: str) -> str:
    """`1 trial`, `3 trials`."""
    return f"{number} {plural(noun, number)}"
