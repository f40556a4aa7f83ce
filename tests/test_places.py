"""A home and a folder for temporary files that can be used, in containers and batch systems as well."""

from __future__ import annotations

import getpass
import os
import pwd
import tempfile
from pathlib import Path

import pytest

from harness import files
from harness.errors import UserError
from harness.store.results import RunStore
from harness.system import places

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever is set comes back, and no cache is asked for yet."""
    for name in (*NAMES, *places.CACHES, "CODETR_HOMELESS", "TMPDIR", "HOME", "CODETR_STORE"):
        monkeypatch.setenv(name, "x")
        if name not in NAMES:
            monkeypatch.delenv(name)
    short = tempfile.mkdtemp(prefix="h-", dir="/tmp")
    monkeypatch.setenv("TMPDIR", short)
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(places, "SHORT_FOLDERS", (short,))


def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id without an entry, as in containers."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in (*NAMES, "HOME"):
        monkeypatch.delenv(name)


def test_where_all_is_well_nothing_changes() -> None:
    before = dict(os.environ)
    assert places.settle() == [] and dict(os.environ) == before


def test_without_a_home_caches_have_a_place_and_records_must_be_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody(monkeypatch)
    (note,) = places.settle()
    own = Path(os.environ["HOME"])
    assert note == f"there is no home folder; caches go to {own}"
    assert own.parent == Path(os.environ["TMPDIR"]) and own.stat().st_mode & 0o77 == 0
    assert getpass.getuser() == f"uid{os.getuid()}"
    assert files.cache_dir().is_relative_to(own) and Path(os.environ["MPLCONFIGDIR"]).is_relative_to(own)
    with pytest.raises(UserError, match="--store DIR or set CODETR_STORE"):
        files.store_dir()
    monkeypatch.setenv("CODETR_STORE", "/data/codetr")
    assert files.store_dir() == Path("/data/codetr")


@pytest.mark.parametrize("there", [True, False], ids=["read only", "not there"])
def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool) -> None:
    home = tmp_path / ("home" if there else "nowhere")
    monkeypatch.setenv("HOME", str(home))
    volume = home / ".cache" / "codetr"
    if there:
        volume.mkdir(parents=True)
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != home and writable(path, mode))
    (note,) = places.settle()
    assert (f"{home} cannot be written" if there else "no home") in note
    assert (os.environ["HOME"] == str(home)) is there, "what is readable there stays readable"
    assert "MPLCONFIGDIR" in os.environ and (files.cache_dir() == volume) is there
    assert files.store_dir() == home / "codetr" if there else os.environ["CODETR_HOMELESS"] == "1"


def test_a_folder_that_somebody_else_has_made_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody(monkeypatch)
    trap = Path(os.environ["TMPDIR"]) / f"codetr-{os.getuid()}"
    trap.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    trap.rename(trap.with_name("codetr-4242"))
    places.settle()
    assert Path(os.environ["HOME"]).name != "codetr-4242"


@pytest.mark.parametrize("name", ["a" * 40, "ä" * 20])
def test_a_long_folder_for_temporary_files_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    short, long = os.environ["TMPDIR"], tmp_path / name
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    (note,) = places.settle()
    assert note == f"TMPDIR={long} is too long for sockets, as Ray has; temporary files go to {short}"
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == short


def test_rays_longest_socket_just_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    room = places.SOCKET_BYTES - len(places.RAY_SOCKET)
    for length in (room, room + 1):
        folder = Path("/tmp") / ("t" * (length - len("/tmp/")))
        folder.mkdir(exist_ok=True)
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr(tempfile, "tempdir", None)
        assert bool(places.settle()) is (length > room)
        folder.rmdir()


@pytest.mark.parametrize("kind", ["nowhere", "a file"])
def test_a_folder_for_temporary_files_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("TMPDIR", str(tmp_path / kind))
    (note,) = places.settle()
    assert f"{kind} cannot be written; temporary files go to {os.environ['TMPDIR']}" in note


def test_no_folder_for_temporary_files_at_all_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(UserError, match="set TMPDIR"):
        places.settle()


@pytest.mark.parametrize("path", ["~", "~nobody_of_this_name/x"])
def test_a_tilde_of_nobody_is_a_name(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    nobody(monkeypatch)
    assert RunStore(path).root.is_absolute()
