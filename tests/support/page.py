"""A report's page as a reader of it sees it, and the command that writes one."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.store.results import RunStore
from tests.support.report_grid import make_record

VOID = {"meta", "link", "img", "br", "input", "line", "circle", "polygon"}


class Page(HTMLParser):
    """Elements with their attributes, words outside style, and whether every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def command_line_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **data) -> list[str]:
    """A store with finished records of the quickstart, and the arguments of a report on it."""
    from harness.spec.grid import open_grid
    from harness.spec.identity import config_to_dict

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    file = str(Path(__file__).parents[2] / "ablations" / "quickstart.yaml")
    grid = open_grid(file, "digits_fast", [], seeds=(0, 1), **data)
    store = RunStore(tmp_path / "store")
    for number, trial in enumerate(grid.trials):
        record = make_record(trial.trial_id, 30.0 + number, config=config_to_dict(trial.config))
        store.write_result(trial.trial_id, record | {"fingerprint": trial.fingerprint})
    own = ["--preset", "digits_fast", "--seeds", "0,1", "--store", str(store.root), "--out", str(tmp_path / "out")]
    return ["report", file, *own, *(["--data", data["data"]] if data else [])]
