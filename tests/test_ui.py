"""`codetr ui`: told when it is ready, quiet, and gone with all its processes when it is ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from harness.__main__ import main
from harness.errors import UserError
from harness.store.results import RunStore
from harness.tracking import tracking, ui, views
from harness.tracking.mirror import sync
from tests.support.fakes import finish, make_grid, make_trial
from tests.support.ports import free_port

SERVER = """
import http.server, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[2], "w").write(str(child.pid))
print("noise of the server", flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
time.sleep(1.0)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
COMMAND = """
import sys
from harness.tracking import ui
command = [sys.executable, "-c", sys.argv[1], *sys.argv[2:]]
ui.server_command = lambda *_: (command, {})
ui.opening_page = lambda *_: "#/view"
raise SystemExit(ui.serve(port=int(sys.argv[2]), say=lambda line: print(line, flush=True)))
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    (tmp_path / "store").mkdir()
    return RunStore()


@pytest.fixture(params=[("127.0.0.1", socket.AF_INET), ("0.0.0.0", socket.AF_INET), ("::1", socket.AF_INET6)])
def taken(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    host, family = request.param
    with socket.socket(family) as server:
        try:
            server.bind((host, 0))
        except OSError:
            pytest.skip(f"no {host} here")
        server.listen()
        yield host, server.getsockname()[1]


def test_a_port_in_use_is_one_line_that_names_the_option(
    taken: tuple[str, int], store: RunStore, tracking_store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    host, port = taken
    asked = "127.0.0.1" if host == "0.0.0.0" else host
    assert main(["ui", "--host", asked, "--port", str(port)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"error: --port {port}: in use on {asked}") and err.count("\n") == 1
    other = int(err.split("such as --port ")[1])
    ui.check_port(asked, other)


@pytest.mark.parametrize("port", ["0", "70000", "-1", "x", "65536", ""])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ui", f"--port={port}"])
    assert ended.value.code == 2 and "from 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a" * 70])
def test_a_host_that_is_not_this_machine_is_one_line(host: str) -> None:
    with pytest.raises(UserError, match="--host") as caught:
        ui.check_port(host, free_port())
    assert "\n" not in str(caught.value)


def test_a_port_of_the_administrator_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "_cannot_listen", lambda place: PermissionError(13, "Permission denied"))
    with pytest.raises(UserError, match="--port 80: only the administrator .* above 1023"):
        ui.check_port("127.0.0.1", 80)


def test_the_command_shows_no_password_and_starts_one_worker(tracking_store: str) -> None:
    command, environment = ui.server_command(tracking_store, "127.0.0.1", 6060)
    text = " ".join(command)
    assert "--host 127.0.0.1" in text and "--port 6060" in text and "--workers 1" in text
    assert environment["MLFLOW_BACKEND_STORE_URI"] == tracking_store
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    command, environment = ui.server_command("postgresql://alice:SECRET@host/mlflow", "127.0.0.1", 6060)
    assert "SECRET" not in " ".join(command) and "SECRET" in environment["MLFLOW_BACKEND_STORE_URI"]
    with pytest.raises(UserError, match="open http://host:5000 in"):
        ui.server_command("http://alice:SECRET@host:5000", "127.0.0.1", 6060)


def test_it_opens_at_the_view_of_the_grid_that_was_at_work_last(
    tmp_path: Path, tracking_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, grids = RunStore(tmp_path / "store"), []
    assert "viewStateShareKey" not in ui.opening_page(tracking_store)
    for number, name in enumerate(("first", "second"), 1):
        trial = make_trial(number)
        finish(store, trial)
        grids.append(make_grid(trial, name=name))
        sync(store, grids[-1])
    assert ui.opening_page(tracking_store).endswith(f"viewStateShareKey={views.view_id(grids[1])}")
    sync(store, grids[0])
    assert ui.opening_page(tracking_store).endswith(f"viewStateShareKey={views.view_id(grids[0])}")
    client = MlflowClient(tracking_uri=tracking_store)
    client.delete_experiment(client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id)
    lines: list[str] = []
    assert ui.opening_page(tracking_store, lines.append) == "#/experiments"
    assert len(lines) == 1 and "codetr sync" in lines[0]


def started(store: RunStore, port: int, server: str = SERVER) -> tuple[subprocess.Popen[str], Path]:
    note = store.root / "child"
    command = [sys.executable, "-c", COMMAND, server, str(port), str(note)]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], **options), note


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_says_ready_when_it_answers_and_takes_its_children_along(number: int, store: RunStore) -> None:
    port = free_port()
    process, note = started(store, port)
    assert process.stdout is not None
    first, second = process.stdout.readline(), process.stdout.readline()
    assert first.startswith("starting MLflow")
    assert second == f"MLflow at http://127.0.0.1:{port}/#/view (ready; Ctrl-C stops it)\n"
    socket.create_connection(("127.0.0.1", port), timeout=5).close()  # it is ready indeed
    child = int(note.read_text())
    process.send_signal(number)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and rest == "MLflow is stopped\n"
    deadline = time.monotonic() + 5
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)
    assert "noise of the server" in (store.root / f"ui.{port}.log").read_text()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_server_that_cannot_start_is_one_line_with_its_last_words(store: RunStore) -> None:
    process, _ = started(store, free_port(), "import sys; print('no store at http://a:SECRET@h'); sys.exit(3)")
    out, _ = process.communicate(timeout=60)
    last = out.splitlines()[-1]
    assert "could not start (no store at http://a:***@h); its log: " in last and "SECRET" not in out


@pytest.mark.slow
def test_the_real_server_answers_and_ends(store: RunStore, tracking_store: str) -> None:
    port = free_port()
    command = [sys.executable, "-m", "harness", "ui", "--port", str(port)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    assert f"MLflow at http://127.0.0.1:{port}/" in lines[1] and "ready" in lines[1]
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and rest == "MLflow is stopped\n"
    ui.check_port("127.0.0.1", port)
