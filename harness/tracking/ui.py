"""`codetr ui`: MLflow's pages of the tracking store, until they are not wanted any more.

One server process with its log in a file. It is told of when it answers, not before, and ends with the command, however
that ends, together with all that it started.
"""

from __future__ import annotations

import errno
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.files import store_dir
from harness.passwords import masked, without_login
from harness.tracking.failures import ExperimentDeleted
from harness.tracking.mlflow_runs import VIEW_TAG
from harness.tracking.sqlite import check_database, database_file
from harness.tracking.tracking import (
    check_exists,
    connect,
    find_experiment,
    find_runs,
    is_server,
    reaching,
    tracking_uri,
)
from harness.tracking.views import id_of_view, page_of

if TYPE_CHECKING:
    from mlflow.entities import Run

MAX_PORT = 65535
PATIENCE = 300.0  # seconds until the server must have answered
GRACE = 10.0  # seconds that it has to end
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # what a browser here calls it
SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # six processes for language models
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def serve(host: str = "127.0.0.1", port: int = 5000, uri: str | None = None, say: Callable[[str], None] = print) -> int:
    """Serve the pages until interrupted; returns the exit code.

    Args:
        host: name or number of an address of this machine.
        port: a free one.
        uri: the tracking store; None takes `tracking_uri()`.
        say: takes each line.

    Raises:
        UserError: nothing was recorded yet, the store is a server itself, the port is taken, or MLflow ended.
    """
    uri = uri or tracking_uri()
    command, environment = server_command(uri, host, port)
    check_port(host, port)
    log = _log_file(port)
    say(f"starting MLflow (its log: {log})")
    try:
        with _end_on_signals(), _server(command, environment, log) as process:
            page = opening_page(uri, say)  # while the server starts
            _wait_until_ready(process, host, port, log)
            say(f"MLflow at http://{_browsed(host)}:{port}/{page} (ready; Ctrl-C stops it)")
            process.wait()
    except KeyboardInterrupt:
        say("MLflow is stopped")
        return 0
    say(f"MLflow has ended by itself ({_last_words(log)}; its log: {log})")
    return 1


def server_command(uri: str, host: str, port: int) -> tuple[list[str], dict[str, str]]:
    """The command of the server, and the environment that it needs: other users can read a command, and its password.

    Raises:
        UserError: the store is a server already, or nothing was recorded yet.
    """
    if is_server(uri):
        raise UserError(f"the tracking store is a server: open {without_login(uri)} in a browser")
    check_exists(uri)
    check_database(uri)
    database = database_file(uri)
    artifacts = (database.parent if database else store_dir()) / "mlartifacts"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--artifacts-destination", str(artifacts)]
    return [*command, "--host", host, "--port", str(port)], {"MLFLOW_BACKEND_STORE_URI": uri, **SETTINGS}


def opening_page(uri: str, say: Callable[[str], None] = lambda line: None) -> str:
    """The address, below that of the server, of the newest grid's view; of the list of runs where there is none.

    Raises:
        UserError: the tracking store cannot be reached.
    """
    with reaching(uri):
        client = connect(uri)
        try:
            experiment_id = find_experiment(client)
        except ExperimentDeleted as error:
            say(f"note: {error}")
            return "#/experiments"
        if experiment_id is None:
            return "#/experiments"
        grids = find_runs(client, experiment_id, "tags.`codetr.grid` LIKE '%'")
        views = client.get_experiment(experiment_id).tags
    for run in sorted(grids, key=_last_at_work, reverse=True):
        view = id_of_view(str(run.info.run_name))
        if VIEW_TAG + view in views:
            return page_of(experiment_id, view)
    return page_of(experiment_id)


def _last_at_work(run: Run) -> tuple[bool, int]:
    return run.info.status == "RUNNING", run.info.end_time or run.info.start_time or 0


# ---- the port


def check_port(host: str, port: int) -> None:
    """Make sure that a server can listen there.

    Raises:
        UserError: it cannot, and what to choose instead.
    """
    try:
        places = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host {host}: {why}; give an address of this machine, such as 127.0.0.1") from error
    failures = [failure for place in places if (failure := _cannot_listen(place)) is not None]
    codes = {failure.errno for failure in failures}
    if errno.EADDRINUSE in codes:
        other = next((n for n in range(port + 1, min(port + 100, MAX_PORT + 1)) if _is_free(host, n)), None)
        instead = f", such as --port {other}" if other else ""
        raise UserError(f"--port {port}: in use on {host}; choose another one{instead}")
    if errno.EACCES in codes:
        raise UserError(f"--port {port}: only the administrator may use it; choose one above 1023, such as --port 5000")
    if len(failures) == len(places):
        raise UserError(f"--host {host}: {failures[0].strerror}; give an address of this machine, such as 127.0.0.1")


def _is_free(host: str, port: int) -> bool:
    places = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return all(_cannot_listen(place) is None for place in places)


def _cannot_listen(place: tuple[Any, ...]) -> OSError | None:
    family, kind, protocol, _, address = place
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server: what has just ended is free
            probe.bind(address)
    except OSError as error:
        return error
    return None


# ---- the server


@contextmanager
def _server(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A running server with its own group of processes, which ends with this."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # so that Ctrl-C reaches this process alone, which then ends all of the group
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # another Ctrl-C must not leave half of them
    try:
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline and _is_alive(process):
                time.sleep(0.05)
    finally:
        signal.signal(signal.SIGINT, before)


def _is_alive(process: subprocess.Popen[bytes]) -> bool:
    """Whether any process of the server's group is left."""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


@contextmanager
def _end_on_signals() -> Iterator[None]:
    """Let SIGTERM and the end of the terminal do what Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_until_ready(process: subprocess.Popen[bytes], host: str, port: int, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not _answers(host, port):
        if process.poll() is not None:
            raise UserError(f"MLflow could not start ({_last_words(log)}); its log: {log}")
        if time.monotonic() > deadline:
            raise UserError(f"MLflow does not answer after {PATIENCE / 60:.0f} min; its log: {log}")
        time.sleep(0.2)


def _answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(EVERYWHERE.get(host, host), port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _browsed(host: str) -> str:
    name = EVERYWHERE.get(host, host)
    return f"[{name}]" if ":" in name else name


def _log_file(port: int) -> Path:
    name = f"ui.{port}.log"
    folder = store_dir()
    return folder / name if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="codetr-ui-")) / name


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return masked(lines[-1])[:200] if lines else "without a word"
