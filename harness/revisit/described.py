"""What a file of weights says of itself: `codetr import-weights` writes it, and it makes a configuration needless.

It stands in the metadata of the safetensors file, so that the weights and their description cannot part.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import TrialConfig
from harness.data.categories import Categories, of_metadata
from harness.errors import ReadError, UserError
from harness.files import to_json
from harness.spec.identity import config_from_dict, config_to_dict

KEY = "codetr"  # of the metadata
SCHEMA = 1
LONGEST = 2**28  # bytes of a header


@dataclass(frozen=True)
class Description:
    """Where weights come from, and which detector has them."""

    model: str  # the preset that was named; "" where it was none
    source: str  # name of the file that they come from
    sha256: str  # of its content
    family: str  # whose names they had there
    num_classes: int
    config: TrialConfig

    def to_metadata(self) -> dict[str, str]:
        """For the safetensors file."""
        tree = {"schema": SCHEMA, **self.__dict__, "config": config_to_dict(self.config)}
        return {KEY: to_json(tree)}


def classes_of(path: Path) -> Categories | None:
    """The classes that a file of weights tells of; None where it tells of none.

    Raises:
        UserError: what it tells is no list of classes.
        ReadError: the storage does not give the file.
    """
    try:
        return of_metadata(_header(path).get("__metadata__", {}))
    except ValueError as error:
        raise UserError(f"{path}: {error}; another program wrote it, or the file is damaged: fetch it again") from error


def described(path: Path) -> Description | None:
    """What a file says of itself; None where it says nothing, or is no whole safetensors file, which its reader tells.

    Raises:
        UserError: the description does not fit this version.
        ReadError: the storage does not give the file.
    """
    text = _header(path).get("__metadata__", {}).get(KEY)
    if text is None:
        return None
    remedy = "another version of this program wrote it; import the weights again, or give --model"
    try:
        tree = json.loads(text)
        if tree["schema"] != SCHEMA:
            raise UserError(f"schema {tree['schema']} instead of {SCHEMA}")
        names = {name: tree[name] for name in ("model", "source", "sha256", "family", "num_classes")}
        return Description(**names, config=config_from_dict(tree["config"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        first = str(error).partition("\n")[0]
        raise UserError(f"{path}: its description cannot be used ({first}); {remedy}") from error


def _header(path: Path) -> dict[str, Any]:
    """Of a safetensors file, also of one that is cut short behind it; empty where there is none."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if length <= LONGEST else b""
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return {}
    except OSError as error:
        raise ReadError(path, error) from error
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("__metadata__", {}), dict) else {}
