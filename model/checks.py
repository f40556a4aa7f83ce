"""Checks of settings, readable without torch: one that concerns one value raises `ValueError` with its name, one that
concerns several a `Conflict`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

FORBID_UNKNOWN = {"extra": "forbid"}  # read by pydantic in harness.spec.spec; this package does not need it


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless `condition`."""
    if not condition:
        raise ValueError(message)


class Conflict(ValueError):
    """Settings that do not go together, each good alone: whoever wrote the last of them is told of the others.

    Args:
        rule: what they must keep, in words that name them.
        values: by their names, dotted and relative to the configuration that was checked.
    """

    def __init__(self, rule: str, values: Mapping[str, Any]):
        self.rule, self.values = rule, dict(values)
        told = ", ".join(f"{name} is {json.dumps(value, default=str)}" for name, value in values.items())
        super().__init__(f"{rule}: {told}")


def require_together(condition: bool, rule: str, config: Any, *names: str) -> None:
    """Raise `Conflict` about these settings of `config` unless `condition`."""
    if not condition:
        raise Conflict(rule, {name: attrgetter(name)(config) for name in names})
