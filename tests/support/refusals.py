"""A system that answers with an error."""

from __future__ import annotations

import os
from typing import Any

import pytest


def refuse(monkeypatch: pytest.MonkeyPatch, function: str, name: str, error: int) -> None:
    """Let the system answer so when `function` of os is asked about a path that ends in `name`."""
    original = getattr(os, function)

    def answer(path: Any = ".", *args: Any, **options: Any) -> Any:
        if os.fspath(path).endswith(name):
            raise OSError(error, os.strerror(error), os.fspath(path))
        return original(path, *args, **options)

    monkeypatch.setattr(os, function, answer)
