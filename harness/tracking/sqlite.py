"""The tracking store as a sqlite file: where it lies, and whether it is whole.

mlflow itself answers a damaged file with a traceback, or starts a server on it that fails later.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from harness.errors import UserError
from harness.passwords import shown


def database_file(uri: str) -> Path | None:
    """The file of a sqlite store; None for any other."""
    return Path(uri.removeprefix("sqlite:///").split("?")[0]).absolute() if uri.startswith("sqlite:///") else None


def is_missing(uri: str) -> bool:
    """Whether the store is a sqlite file, and not there."""
    file = database_file(uri)
    return file is not None and not file.exists()


def check_database(uri: str, patience: float = 20.0) -> None:
    """Look into a sqlite store; nothing happens for any other, or when there is none yet.

    Args:
        uri: the tracking store.
        patience: seconds to wait while somebody else writes.

    Raises:
        UserError: the file is damaged.
    """
    file = database_file(uri)
    if file is None or not file.exists():
        return
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=patience)) as database:
            names = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for name in {"experiments", "runs", "tags", "params", "latest_metrics"} & names:
                database.execute(f"SELECT count(*) FROM {name}").fetchone()
    except sqlite3.OperationalError:
        return  # locked, or not to be opened: that is another trouble
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"tracking store {shown(uri)} is damaged ({error}); move {file.name} away, and `codetr sync FILES` makes "
            "it again from the records, or set MLFLOW_TRACKING_URI"
        ) from error
