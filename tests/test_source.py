"""Which code a number comes from: its commit, and a digest of the files that decide results."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from harness.files import write_atomic
from harness.store import source


def test_code_version_from_git_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODETR_COMMIT", raising=False)

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert source.code_version(tmp_path) == (None, None)
    source._git_version.cache_clear()
    git("init")
    write_atomic(tmp_path / "model" / "a.py", "")
    git("add", ".")
    git("commit", "-m", "start")
    commit, dirty = source.code_version(tmp_path)
    assert commit is not None and len(commit) == 40 and dirty is False
    write_atomic(tmp_path / "model" / "new_head.py", "")
    assert source.code_version(tmp_path) == (commit, False)  # a process has one version
    source._git_version.cache_clear()
    assert source.code_version(tmp_path) == (commit, True)
    assert source.code_version(tmp_path / "model") == (None, None)  # not this package's repository
    monkeypatch.setenv("CODETR_COMMIT", "abc")
    monkeypatch.setenv("CODETR_DIRTY", "0")
    assert source.code_version(tmp_path) == ("abc", False)
    assert source.provenance()["commit"] == "abc" and source.provenance()["python"].startswith("3.")


@pytest.fixture
def copy(tmp_path):
    """The files that decide, and some that do not, in another place and without .git."""
    for path in source.deciding_files():
        target = tmp_path / path.relative_to(source.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (tmp_path / "README.md").write_text("words")
    (tmp_path / "harness" / "commands.py").write_text("")
    yield tmp_path
    source.code_digest.cache_clear()


def digest(root: Path) -> str:
    source.code_digest.cache_clear()
    return source.code_digest(root)


def test_the_digest_is_of_contents_wherever_they_lie(copy):
    assert digest(copy) == digest(source.ROOT) == source.provenance()["code"]
    assert len(digest(copy)) == 12


@pytest.mark.parametrize("name", ["model/detector.py", "model/heads/atss.py", "csrc/nms.cpp", "harness/trial/train.py"])
def test_a_changed_or_new_or_renamed_file_changes_it(copy, name):
    before = digest(copy)
    path = copy / name
    path.write_bytes(path.read_bytes() + b"\n")
    changed = digest(copy)
    path.rename(path.with_stem("renamed"))
    assert len({before, changed, digest(copy)}) == 3


def test_words_and_commands_do_not_change_it(copy):
    before = digest(copy)
    (copy / "README.md").write_text("other words")
    (copy / "harness" / "commands.py").write_text("print()")
    (copy / "model" / "__pycache__").mkdir()
    (copy / "model" / "__pycache__" / "detector.pyc").write_bytes(b"x")
    assert digest(copy) == before


def test_a_process_has_one_digest(copy):
    before = digest(copy)
    (copy / "model" / "detector.py").write_text("")
    assert source.code_digest(copy) == before


DECIDE_NOTHING = {  # what a trial imports besides: names, files and messages; configuration is part of the id
    *("config.py", "errors.py", "files.py", "passwords.py"),
    *("spec", "store", "tracking"),
    *("system/endings.py", "system/entrance.py", "system/launch.py", "system/memory.py"),
    *("analyse", "figures", "report"),  # look at a trained detector, and may do so again with other code
}


def test_what_a_trial_imports_is_counted_or_known_to_decide_nothing():
    """A new module in a trial's way must take a side: a line in `source.DECIDING`, or one above."""
    from tests.support.import_statements import imported

    counted = set(source.deciding_files())
    todo, seen = [source.ROOT / "harness" / "trial" / "trial.py"], set()
    while todo:
        path = todo.pop()
        seen.add(path)
        for module in imported(path):
            base = source.ROOT.joinpath(*module.split("."))
            found = [base.with_suffix(".py"), base / "__init__.py"]
            todo += [file for file in found if module.startswith("harness.") and file.exists() and file not in seen]
    inside = [path.relative_to(source.ROOT / "harness") for path in seen - counted if path.name != "__init__.py"]
    undecided = {path.as_posix() for path in inside if not {path.as_posix(), path.parts[0]} & DECIDE_NOTHING}
    assert not undecided, f"{sorted(undecided)}: do they decide results? See harness/store/source.py"
