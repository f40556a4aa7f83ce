"""Files of weights by what people write: a path, `hub:…` (`harness.spec.hub`) or `pip:…` (`harness.spec.packages`)."""

from __future__ import annotations

from pathlib import Path

from harness.data.disk import shown
from harness.errors import UserError
from harness.spec import hub
from harness.spec.packages import PREFIX, check_packaged, is_packaged, package_of, packaged_file

HOW = f"write {hub.FORM}, or {PREFIX}DISTRIBUTION"


def is_settings_file(name: str) -> bool:
    """Whether a word is a file of settings (an ablation, a preset) and no name: by its ending."""
    return name.endswith((".yaml", ".yml"))


def is_named(name: str) -> bool:
    """Whether this is the name of a file that is kept elsewhere, and no path."""
    return hub.is_hub(name) or is_packaged(name)


def check_name(name: str) -> None:
    """Raise `ValueError` where a name is written wrongly, in one line; of a path, that it does not look like one."""
    prefix = name[: name.find(":") + 1]
    if prefix.lower() in (hub.PREFIX, PREFIX) and not is_named(name):
        raise ValueError(f"{shown(name)} begins with {prefix}; {HOW} (./{prefix}… is a path)")
    if hub.is_hub(name):
        hub.read_name(name)
    elif is_packaged(name):
        package_of(name)


def local_file(name: str, say: hub.Say | None = None) -> Path:
    """Where the file lies; fetched where it is on the Hub and not here (see `hub.local_file`).

    Raises:
        UserError: it is written wrongly, cannot be fetched, or its package is not installed; one line that begins with
            the name.
    """
    try:
        check_name(name)
    except ValueError as error:
        raise UserError(str(error)) from error
    return packaged_file(name) if is_packaged(name) else hub.local_file(name, say)


def check_content(name: str, path: Path, sha256: str) -> None:
    """Raise `UserError` where the file's content is not what its name asks for; of a path nothing is asked."""
    if is_packaged(name):
        check_packaged(name, sha256)
    else:
        hub.check_content(name, path, sha256)
