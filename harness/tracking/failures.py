"""What is wrong with the tracking store, and what helps: one line for each kind of failure.

MLflow, SQLAlchemy, database drivers and the system each have their own words for the same trouble. They are told apart
here by these words alone, so that no library need be loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from harness.errors import UserError, one_line
from harness.passwords import masked, shown
from harness.tracking.sqlite import check_database

ELSEWHERE = "or set MLFLOW_TRACKING_URI"
AWAY = "away"
DELETED = "deleted"


@dataclass(frozen=True)
class Failure:
    """What is wrong with a tracking store."""

    kind: str  # a key of `KINDS`, or "other"
    reason: str
    advice: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.advice}"


class ExperimentDeleted(UserError):
    """The experiment of all runs was deleted in MLflow."""


@dataclass(frozen=True)
class _Kind:
    words: str  # of the error or of one below it, as a pattern over `Type: text`
    reason: str  # {why} is the error's own line
    advice: str


DRIVERS = {
    "psycopg2": "psycopg2-binary",
    "psycopg": "'psycopg[binary]' (or write postgresql+psycopg2://)",
    "MySQLdb": "mysqlclient",
}

# In order: the first that fits. {found} is the first group of the pattern, {uri} the address for a command.
KINDS = {
    DELETED: _Kind(
        r"Current state is deleted|must be in the 'active' (?:state|lifecycle)|experiment .*lifecycle_stage.*deleted",
        "has lost its experiment 'codetr', which was deleted",
        "`codetr sync FILES` restores it, as `mlflow experiments restore` does",
    ),
    "driver": _Kind(
        r"(?:ModuleNotFoundError|ImportError): .*No module named '([\w.]+)'",
        "needs the Python package {found}, which is not installed",
        "pip install {package}, " + ELSEWHERE,
    ),
    "scheme": _Kind(
        r"Unsupported\w*URI|NoSuchModuleError|Can't load plugin: sqlalchemy|unsupported URI",
        "is of no kind that MLflow knows",
        "MLFLOW_TRACKING_URI begins with http://, https://, sqlite:///, postgresql:// or mysql://",
    ),
    "folder": _Kind(
        r"filesystem tracking backend|FileStore",
        "is a folder of files, which MLflow no longer writes",
        "`mlflow migrate-filestore` makes a database of it; set MLFLOW_TRACKING_URI to that (sqlite:///…)",
    ),
    "address": _Kind(
        r"Invalid IPv6 URL|Could not parse SQLAlchemy URL|InvalidURL|nonnumeric port|invalid literal for int\(\)"
        r"|Port could not be cast|unknown url type|no host given|Invalid port",
        "is no address that can be understood",
        "write MLFLOW_TRACKING_URI as http://HOST:PORT or postgresql://HOST/NAME, with user:password@ before HOST "
        "where they are needed, and %40 for an @ in them",
    ),
    "older": _Kind(
        r"out-of-date database schema(?:.*found version (\w+))?",
        "was made by an older mlflow",
        "make a copy, then: mlflow db upgrade {uri}",
    ),
    "newer": _Kind(
        r"Can't locate revision identified by",
        "was made by a newer one than the {mlflow} that is here",
        "install that one (pip install -U mlflow), " + ELSEWHERE,
    ),
    "full": _Kind(
        r"database or disk is full|No space left on device|Disk quota exceeded|\bENOSPC\b|could not extend file",
        "has no room left ({why})",
        "make room there, then run the same command again",
    ),
    "locked": _Kind(
        r"database (?:table )?is locked|Lock wait timeout|could not obtain lock|The file lock .* could not be acquired",
        "is locked by another process",
        "wait until that has ended; many writers or several hosts need a server (docs/mlflow.md)",
    ),
    "rights": _Kind(
        r"readonly database|PermissionError|unable to open database file|Permission denied|Read-only file system"
        r"|permission denied for",
        "cannot be written ({why})",
        "give this user the right to write there, " + ELSEWHERE,
    ),
    "host name": _Kind(
        r"Invalid Host header",
        "does not answer to this host name",
        "start it with --allowed-hosts and that name, or go by localhost, " + ELSEWHERE,
    ),
    "login": _Kind(
        r"error code 401\b|HTTP Error 401|\b401 Client Error|Unauthorized|not authenticated|authentication failed"
        r"|no password supplied|Access denied for user|role \"?[^\"]*\"? does not exist|Login failed for user",
        "refuses the login ({why})",
        "check user and password: those in MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    ),
    "forbidden": _Kind(
        r"error code 403\b|HTTP Error 403|\b403 Client Error|Forbidden|PERMISSION_DENIED",
        "does not allow it ({why})",
        "ask for the right to write to the experiment 'codetr', " + ELSEWHERE,
    ),
    "no database": _Kind(
        r"database \"?([^\"]*)\"? does not exist|Unknown database '?([^']*)'?",
        "has no such database ({why})",
        "create it, " + ELSEWHERE,
    ),
    "certificate": _Kind(
        r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError|WRONG_VERSION_NUMBER|UNEXPECTED_EOF_WHILE_READING",
        "cannot be reached safely ({why})",
        "check https:// or http://, and name its certificate in MLFLOW_TRACKING_SERVER_CERT_PATH, " + ELSEWHERE,
    ),
    AWAY: _Kind(
        r"Connection ?refused|Connection(?:Reset|Refused|Aborted)?Error|timed out|TimeoutError|Max retries exceeded"
        r"|No route to host|Network is unreachable|Name or service not known|nodename nor servname"
        r"|failure in name resolution|could not translate host name|could not connect|Can't connect to"
        r"|server closed the connection|RemoteDisconnected|Connection reset|error code 50[234]\b|HTTP Error 50[234]",
        "cannot be reached: {why}",
        "start it, " + ELSEWHERE,
    ),
    "other server": _Kind(
        r"error code 40[45]\b|HTTP Error 404|not in a valid JSON format|JSONDecodeError|Expecting value",
        "answers, but not as MLflow does",
        "check the address, " + ELSEWHERE,
    ),
    "path": _Kind(
        r"NotADirectoryError|FileExistsError|IsADirectoryError|FileNotFoundError",
        "cannot be reached: {why}",
        "name another file, " + ELSEWHERE,
    ),
}  # fmt: skip


def failure_of(uri: str, error: BaseException) -> Failure:
    """What is wrong with the store at `uri`, judged by an error and those below it."""
    words = " | ".join(f"{type(one).__name__}: {one}" for one in _chain(error))
    why = masked(one_line(error), uri)[:200]
    for name, kind in KINDS.items():
        if match := re.search(kind.words, words, re.IGNORECASE):
            found = next(filter(None, match.groups()), "")
            parts = {"why": why, "found": found, "package": DRIVERS.get(found, found), "uri": _argument(uri)}
            parts["mlflow"] = _mlflow_version()
            if name == "older" and not _knows_revision(found):
                name, kind = "newer", KINDS["newer"]
            return Failure(name, masked(kind.reason.format(**parts), uri), kind.advice.format(**parts))
    return Failure("other", f"cannot be used: {why}", f"check it, {ELSEWHERE}")


def failure_line(uri: str, failure: Failure) -> str:
    """`tracking store http://… cannot be reached: Connection refused; start it, …`."""
    return f"tracking store {shown(uri)} {failure}"


def user_error(uri: str, error: BaseException) -> UserError:
    """The error for a person.

    Raises:
        UserError: another one: the store is a file, and damaged.
    """
    failure = failure_of(uri, error)
    if failure.kind != "locked":  # or it would be waited for
        check_database(uri)
    kind = ExperimentDeleted if failure.kind == DELETED else UserError
    return kind(failure_line(uri, failure))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        reason = getattr(one, "reason", None)  # of a URLError
        one = one.__cause__ or one.__context__ or (reason if isinstance(reason, BaseException) else None)


def _argument(uri: str) -> str:
    """The address in a command that can be typed, without its password."""
    named = os.environ.get("MLFLOW_TRACKING_URI") == uri != shown(uri)
    return '"$MLFLOW_TRACKING_URI"' if named else shown(uri)


def _knows_revision(revision: str) -> bool:
    """Whether the mlflow that is here has this step of its database's form; it calls a later one out of date too."""
    package = find_spec("mlflow")
    folders = [
        Path(place) / "store/db_migrations/versions" for place in (package and package.submodule_search_locations) or ()
    ]
    known = [file.name for folder in folders for file in folder.glob("*.py")]
    return not known or not revision or any(name.startswith(revision) for name in known)


def _mlflow_version() -> str:
    try:
        return f"mlflow {version('mlflow')}"
    except PackageNotFoundError:
        return "mlflow"
