"""For the whole suite: no test touches the user's store, cache or tracking server, and nothing is sent anywhere."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.support", "tests.golden_topics")  # their assertions tell values, too

OWN_PLACES = pytest.StashKey[Path]()


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


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several processes run whole files each; what starts a Ray stays in one of them, as a machine has few cores."""
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def template_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty tracking database with its experiment; made once, since that takes seconds."""
    from harness.tracking import tracking

    path = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    tracking.ensure_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def tracking_store(template_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a fresh tracking store, which is also where `tracking_uri()` points."""
    copy = tmp_path / "tracking" / "mlflow.db"
    copy.parent.mkdir()
    shutil.copy(template_store, copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy}")
    return f"sqlite:///{copy}"
