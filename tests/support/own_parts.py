"""Parts of one's own, with their `Config`s beside them, for any room."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest

from harness.spec.parts import ROOMS
from model.checks import FORBID_UNKNOWN, require, require_together


@dataclass(frozen=True)
class Inner:
    """Settings within a part."""

    __pydantic_config__ = FORBID_UNKNOWN
    ratio: float = 0.5


class Mine:
    """A part of one's own, with its `Config` beside it."""

    @dataclass(frozen=True)
    class Config:
        """Its settings."""

        __pydantic_config__ = FORBID_UNKNOWN
        size: int = 3
        most: int = 100
        inner: Inner = dataclasses.field(default_factory=Inner)

        def __post_init__(self) -> None:
            require(self.size >= 1, f"size must be at least 1, got {self.size}")
            require_together(self.size <= self.most, "size must not exceed most", self, "size", "most")


class Yours:
    """Another one."""

    @dataclass(frozen=True)
    class Config:
        """Its settings."""

        __pydantic_config__ = FORBID_UNKNOWN
        size: int = 5
        depth: int = dataclasses.field(default=1, metadata={"since": 3})


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mine` and `yours` in every room."""
    for parts in ROOMS.values():
        monkeypatch.setitem(parts, "mine", Mine)
        monkeypatch.setitem(parts, "yours", Yours)
