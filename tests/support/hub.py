"""A Hugging Face Hub on this machine, for the library's own client."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What it has, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)  # "owner/name/file" → content
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)  # "owner/name" → status, code of the error
    sent: int | None = None  # bytes after which a connection ends; None: all are sent
    commit: str = COMMIT
    asked: list[str] = field(default_factory=list)  # method and path
    url: str = ""

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, code of the error and content."""
        parts = path.strip("/").split("/")
        api = parts[0] == "api"
        repository = "/".join(parts[2:4] if api else parts[:2])
        if repository in self.refusals:
            return *self.refusals[repository], b""
        if not any(name.startswith(f"{repository}/") for name in self.files):
            return 404, "RepoNotFound", b""
        names = [name.removeprefix(f"{repository}/") for name in self.files if name.startswith(f"{repository}/")]
        if api:
            tree = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
            return 200, "", json.dumps(tree).encode()
        if parts[3] not in ("main", self.commit):
            return 404, "RevisionNotFound", b""
        content = self.files.get(f"{repository}/{'/'.join(parts[4:])}")
        return (404, "EntryNotFound", b"") if content is None else (200, "", content)


@contextmanager
def served(hub: Hub) -> Iterator[Hub]:
    """The hub at `hub.url` while this lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:  # noqa: N802
            self._send(False)

        def do_GET(self) -> None:  # noqa: N802
            self._send(True)

        def _send(self, whole: bool) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            status, error, content = hub.answer(self.path.partition("?")[0])
            self.send_response(status)
            if error:
                self.send_header("X-Error-Code", error)
            else:
                self.send_header("X-Repo-Commit", hub.commit)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if whole:
                self.wfile.write(content[: hub.sent])

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
