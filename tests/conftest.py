"""For the whole suite: no test touches the user's store, cache or tracking server, and nothing is sent anywhere."""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from harness.store.results import RunStore

pytest.register_assert_rewrite("tests.support", "tests.golden_topics")  # their assertions tell values, too

OWN_PLACES = pytest.StashKey[Path]()
LOADED = [0]  # modules, when they were last counted
LONGEST = (  # files, begun first when several processes share the tests: whoever begins one last works on alone
    *("test_schedule", "test_resume", "test_trial", "test_ranks", "test_figures", "test_unreadable", "test_apart"),
    *("test_detectors", "test_official_checkpoints", "test_trial_ranks", "test_analyse_trial", "test_parts"),
    *("test_presets", "test_onnx", "test_waits"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Set before anything is imported, so that processes which a test starts inherit it.

    The workers of pytest-xdist inherit it too: they share the cache with its compiled kernels, and nothing else.
    """
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        os.environ["CODETR_STORE"] += f"-{worker['workerid']}"
        return
    places = config.stash[OWN_PLACES] = Path(tempfile.mkdtemp(prefix="codetr-tests-"))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray reads its token once, when it is first imported, and some tests import it without starting it.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ["CODETR_CACHE"] = str(places / "cache")
    os.environ["CODETR_STORE"] = str(places / "store")
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def pytest_unconfigure(config: pytest.Config) -> None:
    if (places := config.stash.get(OWN_PLACES, None)) is not None:
        shutil.rmtree(places, ignore_errors=True)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Several processes run whole files each; what starts a Ray stays in one of them, as a machine has few cores."""
    from xdist.scheduler import LoadFileScheduling

    @cache  # it is asked again for every test that has ended
    def starts_ray(file: str) -> bool:
        return "pytest.mark.ray" in (config.rootpath / file).read_text()

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "ray" if starts_ray(file) else file

    config.option.loadscopereorder = False  # by `longest_first` instead
    return Files(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(trylast=True)  # when it is known what is left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        longest_first(items)


def longest_first(items: list[pytest.Item]) -> None:
    """The longest files in their order, then those with many tests."""
    known = {name: place for place, name in enumerate(LONGEST)}
    count = Counter(item.path for item in items)
    items.sort(key=lambda item: (known.get(item.path.stem, len(known)), -count[item.path], item.path))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    leave_to_no_collector()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    if len(sys.modules) > LOADED[0]:  # a library that was needed for the first time
        leave_to_no_collector()


def leave_to_no_collector() -> None:
    """Modules are never garbage; with torch and MLflow loaded, looking for it among them takes 0.2 s, many times."""
    LOADED[0] = len(sys.modules)
    gc.collect()
    gc.freeze()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    """The test's own, which is also the user's."""
    from harness.store.results import RunStore

    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    return RunStore()


@pytest.fixture
def without_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where MLflow is not installed."""
    monkeypatch.setattr("harness.tracking.tracking.available", lambda: False)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, so that nothing is known of other data sets."""
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and written, but hold no picture; test_figures.py and test_analyse_trial.py render all kinds."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda self, stream, **_: stream.write(b"a picture"))


@pytest.fixture(scope="session")
def template_store() -> Path:
    """An empty tracking database with its experiment; made once for all processes, since that takes seconds."""
    from harness.tracking import tracking

    path = Path(os.environ["CODETR_CACHE"]).with_name("mlflow.db")
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            new = path.with_name("new.db")
            tracking.ensure_store(f"sqlite:///{new}")
            new.rename(path)
    return path


@pytest.fixture
def tracking_store(template_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a fresh tracking store, which is also where `tracking_uri()` points."""
    copy = tmp_path / "tracking" / "mlflow.db"
    copy.parent.mkdir()
    shutil.copy(template_store, copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy}")
    return f"sqlite:///{copy}"
