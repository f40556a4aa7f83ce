"""Which code a number comes from: its commit, and digests of the files that decide results."""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from harness.files import write_atomic
from harness.spec.identity import named_parts
from harness.spec.parts import ROOMS
from harness.store import closure, source
from harness.store.agreement import agree
from model.config import DetectorConfig
from model.detector import Detector
from model.heads.configs import ATSSConfig, GFLConfig
from tests.support.tiny import NUM_CLASSES, PLAIN, tiny_batch, tiny_config


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
    assert source.provenance(())["commit"] == "abc" and source.provenance(())["python"].startswith("3.")


TWO_HEADS = ("heads.atss", "heads.mask_rcnn")


@pytest.fixture
def copy(tmp_path):
    """The files that decide, and some that do not, in another place and without .git."""
    for path in closure.deciding_files():
        target = tmp_path / path.relative_to(closure.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (tmp_path / "README.md").write_text("words")
    (tmp_path / "harness" / "commands.py").write_text("")
    yield tmp_path
    closure.read_source.cache_clear()


def code(root: Path, *parts: str) -> dict:
    closure.read_source.cache_clear()
    return closure.code_of(parts, root)


def test_the_digests_are_of_contents_wherever_they_lie(copy):
    assert code(copy, *TWO_HEADS) == code(closure.ROOT, *TWO_HEADS) == source.provenance(TWO_HEADS)["code"]


@pytest.mark.parametrize("name", ["model/detector.py", "csrc/nms.cpp", "harness/trial/train.py"])
def test_a_changed_or_new_or_renamed_file_of_the_core_parts_trials(copy, name):
    before = code(copy)
    path = copy / name
    path.write_bytes(path.read_bytes() + b"\n")
    changed = code(copy)
    path.rename(path.with_stem("renamed"))
    renamed = code(copy)
    assert not any(agree(*pair) for pair in combinations((before, changed, renamed), 2))


def test_words_and_commands_do_not_change_it(copy):
    before = code(copy, *TWO_HEADS)
    (copy / "README.md").write_text("other words")
    (copy / "harness" / "commands.py").write_text("print()")
    (copy / "model" / "__pycache__").mkdir()
    (copy / "model" / "__pycache__" / "detector.pyc").write_bytes(b"x")
    assert code(copy, *TWO_HEADS) == before


def test_a_process_has_one_code(copy):
    before = code(copy, *TWO_HEADS)
    (copy / "model" / "detector.py").write_text("")
    (copy / "model" / "heads" / "atss.py").write_text("")
    assert closure.code_of(TWO_HEADS, copy) == before


DECIDE_NOTHING = {  # what a trial imports besides: names, files and messages; configuration is part of the id
    *("config.py", "errors.py", "files.py", "passwords.py"),
    *("spec", "store", "tracking"),
    *("system/endings.py", "system/entrance.py", "system/launch.py", "system/memory.py"),
    "system/words.py",
    *("analyse", "figures", "report"),  # look at a trained detector, and may do so again with other code
}


def test_what_a_trial_imports_is_counted_or_known_to_decide_nothing():
    """A new module in a trial's way must take a side: a line in `closure.DECIDING`, or one above."""
    from tests.support.import_statements import imported

    counted = set(closure.deciding_files())
    todo, seen = [closure.ROOT / "harness" / "trial" / "trial.py"], set()
    while todo:
        path = todo.pop()
        seen.add(path)
        for module in imported(path):
            base = closure.ROOT.joinpath(*module.split("."))
            found = [base.with_suffix(".py"), base / "__init__.py"]
            todo += [file for file in found if module.startswith("harness.") and file.exists() and file not in seen]
    inside = [path.relative_to(closure.ROOT / "harness") for path in seen - counted if path.name != "__init__.py"]
    undecided = {path.as_posix() for path in inside if not {path.as_posix(), path.parts[0]} & DECIDE_NOTHING}
    assert not undecided, f"{sorted(undecided)}: do they decide results? See harness/store/closure.py"


NO_CODE_OF_A_TRIAL = {  # files of `model/`, besides dicts of parts and settings
    "model/neck.py": "an old name, for heads of one's own",
    "model/exported.py": "what an ONNX file holds of a trained detector",
}
OFFICIAL = "model/official/"  # translates names of released weights, which are analysed and not trained


def test_every_file_of_the_model_is_of_the_core_or_of_a_part():
    """One that no trial seems to import would be changed without any trial's code changing."""
    found = closure.read_source()
    counted = {*found.core, *(file for part in found.parts for file in found.closure(part))}
    files = {path.relative_to(closure.ROOT).as_posix() for path in closure.deciding_files()}
    uncounted = {file for file in files - counted - found.left_out if not file.startswith(OFFICIAL)}
    assert uncounted == set(NO_CODE_OF_A_TRIAL)


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(**PLAIN),
        tiny_config("atss", "mask_rcnn"),
        tiny_config("paa", compatibility="official"),
    ],
    ids=["K0", "plain", "K2", "official"],
)
def test_what_runs_is_of_the_code_that_is_recorded(config):
    """Read from the source, the code must hold every file whose functions a step and an evaluation call."""
    Detector(config, NUM_CLASSES)(tiny_batch())[0].backward()  # what torch loads for the first time is many calls
    ran = set()
    sys.setprofile(lambda frame, event, argument: ran.add(frame.f_code.co_filename) if event == "call" else None)
    try:
        detector = Detector(config, NUM_CLASSES)
        detector(tiny_batch())[0].backward()
        detector.eval().detect(tiny_batch())
    finally:
        sys.setprofile(None)
    called = {
        Path(name).relative_to(closure.ROOT).as_posix() for name in ran if name.startswith(f"{closure.ROOT}/model")
    }
    made = closure.code_of(named_parts(config))
    recorded = {*made["core"], *(file for files in made["parts"].values() for file in files)}
    assert "model/detector.py" in called and None not in made["parts"].values()
    assert called - recorded - closure.read_source().left_out <= set(NO_CODE_OF_A_TRIAL)


def test_every_part_of_a_room_is_known_by_its_name():
    known = {f"{parts.room}.{name}" for parts in ROOMS.values() for name in parts}
    assert len(known) > 15 and known == set(closure.read_source().parts)
    named = named_parts(DetectorConfig(heads=(GFLConfig(), ATSSConfig(), GFLConfig())))
    assert [name for name in named if name.startswith("heads.")] == ["heads.gfl", "heads.atss"]
    assert {"proposals.binary", "groups.main", "groups.positives", "adapters.coarser"} <= set(named) <= known
    plain = named_parts(DetectorConfig(two_stage=False, mixed_selection=False))
    assert "proposals.learned" in plain and not {"groups.positives", "adapters.coarser", "proposals.binary"} & set(
        plain
    )
