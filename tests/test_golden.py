"""The official implementation's numbers, recomputed: every file of `$GOLDEN_DIR` (default `tests/golden/`)."""

from __future__ import annotations

import os
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.golden_topics import LARGE, TOPICS
from tests.golden_topics.case import Case

DEFAULT = Path(__file__).parent / "golden"


def files_of(folder: Path) -> list[Path]:
    """`<topic>__case<NN>` with arrays or as JSON. Layouts of released checkpoints are no cases of a topic."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".npz", ".json") and "__case" in path.stem)


FILES = files_of(Path(os.environ.get("GOLDEN_DIR", DEFAULT)))


def topic_of(path: Path) -> str:
    """What stands before `__case<NN>`."""
    return path.stem.split("__")[0]


def test_there_are_files() -> None:
    assert FILES, f"no .npz or .json file in {os.environ.get('GOLDEN_DIR', DEFAULT)}"


def test_the_default_files_cover_every_topic_but_the_large_ones() -> None:
    assert TOPICS.keys() >= LARGE
    assert {topic_of(path) for path in files_of(DEFAULT)} == TOPICS.keys() - LARGE


@pytest.mark.parametrize("topic", sorted({topic_of(path) for path in FILES}))
def test_topic_has_an_adaptor(topic: str) -> None:
    assert topic in TOPICS, f"write an adaptor for {topic!r} in tests/golden_topics"


@pytest.mark.parametrize("path", [path for path in FILES if topic_of(path) in TOPICS], ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    topic = TOPICS[topic_of(path)]
    case = Case(path)
    comparisons = list(topic.compare(case))
    assert comparisons
    for comparison in comparisons:
        comparison.check()
    left_out = {name for name in case if name not in case.read and not any(fnmatch(name, p) for p in topic.unread)}
    assert not left_out, f"arrays that no comparison looks at: {sorted(left_out)}"
