"""Each failure of the tracking store is told as what it is, with what helps, in one line without a password."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.tracking import tracking
from harness.tracking.failures import KINDS, failure_line, failure_of

POSTGRES = "postgresql+psycopg2://alice:SECRET@db:5432/mlflow"
SERVER = "http://alice:SECRET@host:5000"


def raised(kind: type[Exception], text: str, below: BaseException | None = None) -> Exception:
    error = kind(text)
    error.__cause__ = below
    return error


class MlflowException(Exception):
    pass


class OperationalError(Exception):
    pass


# error, kind, and what the advice must name
TOLD = [
    (
        raised(MlflowException, "The experiment 1 must be in the 'active' state. Current state is deleted."),
        "deleted",
        "codetr sync",
    ),
    (raised(ModuleNotFoundError, "No module named 'psycopg2'"), "driver", "pip install psycopg2-binary"),
    (raised(ModuleNotFoundError, "No module named 'MySQLdb'"), "driver", "pip install mysqlclient"),
    (raised(ValueError, "Can't load plugin: sqlalchemy.dialects:oracle8"), "scheme", "sqlite:///"),
    (
        raised(MlflowException, "The filesystem tracking backend (e.g., './mlruns') is in maintenance mode"),
        "folder",
        "migrate",
    ),
    (raised(ValueError, "invalid literal for int() with base 10: 'port'"), "address", "%40"),
    (
        raised(MlflowException, "Detected out-of-date database schema (found version 0584bdc529eb, but expected y)."),
        "older",
        "mlflow db upgrade postgresql+psycopg2://alice:***@db",
    ),
    (raised(MlflowException, "Can't locate revision identified by 'abc'"), "newer", "pip install -U mlflow"),
    (raised(OperationalError, "(sqlite3.OperationalError) database or disk is full"), "full", "make room"),
    (OSError(28, "No space left on device"), "full", "make room"),
    (raised(OperationalError, "(sqlite3.OperationalError) database is locked"), "locked", "wait"),
    (
        raised(OperationalError, "(sqlite3.OperationalError) attempt to write a readonly database"),
        "rights",
        "right to write",
    ),
    (PermissionError(13, "Permission denied"), "rights", "right to write"),
    (raised(OperationalError, "permission denied for table experiments"), "rights", "right to write"),
    (
        raised(MlflowException, "failed with error code 403 != 200. Response body: 'Invalid Host header'"),
        "host name",
        "--allowed-hosts",
    ),
    (
        raised(MlflowException, "failed with error code 401 != 200. Response body: ''"),
        "login",
        "MLFLOW_TRACKING_PASSWORD",
    ),
    (
        raised(OperationalError, 'FATAL:  password authentication failed for user "alice"'),
        "login",
        "MLFLOW_TRACKING_URI",
    ),
    (
        raised(OperationalError, "(1045, \"Access denied for user 'alice'@'h' (using password: YES)\")"),
        "login",
        "password",
    ),
    (raised(MlflowException, "failed with error code 403 != 200."), "forbidden", "right to write"),
    (raised(OperationalError, 'FATAL:  database "mlflow" does not exist'), "no database", "create it"),
    (raised(OSError, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"), "certificate", "CERT_PATH"),
    (ConnectionRefusedError(111, "Connection refused"), "away", "start it"),
    (raised(OSError, "<urlopen error timed out>", TimeoutError("timed out")), "away", "start it"),
    (raised(OSError, "x", OSError(-2, "Name or service not known")), "away", "start it"),
    (
        raised(OperationalError, 'connection to server at "db", port 5432 failed: Connection refused'),
        "away",
        "start it",
    ),
    (raised(MlflowException, "API request failed with error code 503 != 200"), "away", "start it"),
    (raised(MlflowException, "failed with error code 404 != 200"), "other server", "check the address"),
    (raised(MlflowException, "the response body was not in a valid JSON format"), "other server", "check"),
    (NotADirectoryError(20, "Not a directory"), "path", "another file"),
    (raised(RuntimeError, "something else at http://alice:SECRET@host:5000"), "other", "check it"),
]


@pytest.mark.parametrize(("error", "kind", "advice"), TOLD, ids=[f"{kind}-{n}" for n, (_, kind, _) in enumerate(TOLD)])
def test_each_failure_has_its_own_advice(error: Exception, kind: str, advice: str) -> None:
    failure = failure_of(POSTGRES, error)
    line = failure_line(POSTGRES, failure)
    assert failure.kind == kind
    assert advice in line and "\n" not in line and "SECRET" not in line and "{" not in line
    assert line.startswith("tracking store postgresql+psycopg2://alice:***@db:5432/mlflow ")


def test_every_kind_is_tried() -> None:
    assert {kind for _, kind, _ in TOLD} == {*KINDS, "other"}


@pytest.mark.parametrize("change", ["older", "newer", "read-only", "locked", "text"])
def test_a_database_that_cannot_be_used_says_why(change: str, tracking_store: str) -> None:
    file = Path(tracking_store.removeprefix("sqlite:///"))
    held = sqlite3.connect(file)
    told = {"older": "older mlflow", "newer": "newer one", "read-only": "cannot be written", "locked": "is locked"}
    if change in ("older", "newer"):
        held.execute("UPDATE alembic_version SET version_num = ?", ("451aebb31d03" if change == "older" else "f" * 12,))
        held.commit()
    elif change == "read-only":
        if os.geteuid() == 0:
            pytest.skip("an administrator may write everything")
        file.chmod(0o444)
        file.parent.chmod(0o555)
    elif change == "locked":
        held.execute("BEGIN EXCLUSIVE")
        tracking_store += "?timeout=0.2"
    else:
        held.close()
        file.write_text("this is no database" * 100)
    try:
        with pytest.raises(UserError) as caught:
            client = tracking.connect(tracking_store)
            with tracking.reaching(tracking_store):
                client.create_experiment("another")
        assert told.get(change, "is damaged (file is not a database)") in str(caught.value)
        assert "\n" not in str(caught.value)
    finally:
        held.close()
        file.parent.chmod(0o755)


class Refusing(BaseHTTPRequestHandler):
    """Answers as a server that wants a login does, or as a proxy before one that is away."""

    code = 401

    def do_GET(self) -> None:
        sign_of_life = self.path == "/health" and self.code != 503
        self.send_response(200 if sign_of_life else self.code)
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[int]:
    made = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made.server_port
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.mark.parametrize(
    ("code", "told"),
    [(401, "refuses the login"), (403, "does not allow it"), (404, "not as MLflow"), (503, "cannot be reached")],
)
def test_a_server_is_asked_without_the_login_in_its_address(
    code: int, told: str, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refusing, "code", code)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=told) as caught:
        tracking.ensure_store(f"http://alice:SECRET@127.0.0.1:{server}")
    assert "SECRET" not in str(caught.value) and f"alice:***@127.0.0.1:{server}" in str(caught.value)
