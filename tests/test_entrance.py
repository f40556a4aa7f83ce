"""Our packages win over whatever has their names: in the command, its children, Ray's workers and their forks."""

from __future__ import annotations

import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness.system.entrance import ROOT, python_command, python_path
from harness.system.forkserver import ForkServer
from harness.system.launch import run_ranks

START = [sys.executable, str(Path(ROOT) / "codetr_harness.py")]
MODULE = [sys.executable, "-m", "harness"]
PLAN = ["plan", str(Path(ROOT) / "ablations" / "quickstart.yaml"), "--preset", "digits_fast"]
SHADOWS = (
    *("model", "torch", "yaml", "pydantic", "numpy", "mlflow", "ray", "rich"),  # ours, installed ones,
    *("types", "random", "argparse", "pathlib", "json", "logging", "enum", "re"),  # and Python's own
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a user's whose files would end everything that imports them."""
    found = tmp_path / "work"
    found.mkdir()
    for name in SHADOWS:
        (found / f"{name}.py").write_text(f"raise RuntimeError('the user\\'s {name}')")
    return found


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=env | environment, capture_output=True, text=True)


def python(code: str, folder: Path, **environment: str) -> str:
    done = run([sys.executable, "-P", "-c", f"import sys; sys.path.append({ROOT!r})\n{code}"], folder, **environment)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("command", [START, MODULE], ids=["codetr", "python -m harness"])
def test_files_of_the_working_folder_are_not_in_the_way(folder: Path, command: list[str]) -> None:
    (folder / "model").mkdir()  # a namespace package, which Python prefers to what an editable install finds
    if command is START:
        (folder / "harness").mkdir()
        (folder / "harness" / "__init__.py").write_text("raise RuntimeError('the user\\'s harness')")
    done = run([*command, *PLAN], folder, **({} if command is START else {"PYTHONPATH": ROOT}))
    assert (done.returncode, done.stderr) == (0, "") and "3 trials" in done.stdout


@pytest.mark.parametrize("name", ["model.py", "harness.py", "torch.py", "yaml.py", "rich/__init__.py", "model/a.txt"])
def test_nor_are_those_of_pythonpath(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise RuntimeError")
    done = run([*START, *PLAN], tmp_path, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", [START, MODULE], ids=["codetr", "python -m harness"])
def test_what_python_took_before_is_named_in_one_line(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "colorsys.py").write_text("")
    (tmp_path / "sitecustomize.py").write_text("import colorsys")
    done = run([*command, *PLAN], tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), ROOT]))
    told = f"error: {tmp_path}/colorsys.py is in the way of Python's own module 'colorsys'"
    assert done.returncode == 2 and done.stderr.startswith(told) and done.stderr.count("\n") == 1


def test_a_working_folder_that_was_deleted_is_told_in_one_line(tmp_path: Path) -> None:
    leave = f"mkdir gone && cd gone && rmdir ../gone && exec {shlex.join([*START, *PLAN])}"
    done = run(["bash", "-c", leave], tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: the working folder is not there any more")


def test_a_process_of_a_trial_begins_though_its_working_folder_was_deleted(tmp_path: Path) -> None:
    leave = f"mkdir gone && cd gone && rmdir ../gone && exec {shlex.join(python_command('import model; print(model)'))}"
    done = run(["bash", "-c", leave], tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and ROOT in done.stdout


def test_a_model_that_was_imported_first_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("mine = True")
    (tmp_path / "sitecustomize.py").write_text("import model; assert model.mine")
    done = run([*START, *PLAN], tmp_path, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


def test_folders_of_the_user_come_last_and_installed_packages_stay(tmp_path: Path) -> None:
    plain, installed = tmp_path / "plain", tmp_path / "site-packages"
    code = "import codetr_harness, os, site; print(sys.path); print(os.environ['PYTHONPATH']); print(site.__file__)"
    told = python(code, tmp_path, PYTHONPATH=os.pathsep.join([str(plain), str(installed)])).splitlines()
    path, passed_on, site = eval(told[0]), told[1], told[2]
    library = str(Path(site).parent)
    assert path.index(str(installed)) < path.index(library) < path.index(str(plain))
    assert passed_on == str(installed) and ROOT in path


def test_the_working_folder_is_on_nobodys_path(folder: Path) -> None:
    done = run([sys.executable, "-m", "codetr_harness", "--version"], folder, PYTHONPATH=ROOT)
    assert done.returncode == 0, done.stderr
    (folder / "sitecustomize.py").write_text("")
    code = "import codetr_harness, subprocess; print(sys.path)\n"
    code += "print(subprocess.run([sys.executable, '-m', 'random'], stdout=-3).returncode)"  # as `mlflow ui` is started
    told = python(code, folder).splitlines()
    assert str(folder) not in eval(told[0]) and told[1] == "0"


def test_a_file_of_the_user_is_found_where_nothing_else_has_its_name(tmp_path: Path) -> None:
    (tmp_path / "my_own_words.py").write_text("WORD = 'mine'")
    code = "import codetr_harness, my_own_words; print(my_own_words.WORD)"
    assert python(code, tmp_path, PYTHONPATH=str(tmp_path)) == "mine"


def where_from(*_: object, **__: object) -> str:
    import random

    import model

    return f"{model.__file__} {random.__file__}"


@pytest.fixture
def names(tmp_path: Path) -> Path:
    """A folder in which our names are taken."""
    for name in ("model", "harness"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('the user\\'s {name}')")
    return tmp_path


def test_forks_and_ranks_are_ours(names: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = names
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(Path(ROOT) / "tests"))
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    forks = ForkServer(preload=())
    try:
        found = forks.run(where_from)
    finally:
        forks.close()
    ranked = run_ranks(1, where_from, (), report=lambda event: None, should_stop=lambda: False)
    for told in (found, ranked):
        assert told.startswith(f"{ROOT}/model/__init__.py ") and str(folder) not in told


WORKER = """
import pickle, sys
sys.path[:0] = {path!r}
enter = pickle.load(open({file!r}, "rb"))
assert not [name for name in sys.modules if name.startswith(("harness", "model"))], "only names that it finds itself"
print(enter([1, 2], {task!r}))
"""


@pytest.mark.parametrize("there", [True, False], ids=["on this node", "installed elsewhere"])
def test_what_a_worker_is_sent_finds_ours_by_itself(names: Path, there: bool) -> None:
    from ray import cloudpickle

    from harness.schedule.workers import entrance
    from harness.spec.labels import show_value

    (names / "enter").write_bytes(cloudpickle.dumps(entrance(ROOT if there else "/nowhere", [])))
    task = pickle.dumps((show_value, {}))
    path = [str(names)] if there else [str(names), ROOT]
    program = WORKER.format(path=path, file=str(names / "enter"), task=task)
    done = run([sys.executable, "-P", "-c", program], names)
    assert done.stdout.strip() == "1,2", done.stderr


def test_a_worker_that_cannot_load_its_task_says_why() -> None:
    from harness.schedule.workers import entrance

    call = f"entrance({ROOT!r}, [])({{}}, b'cnowhere_at_all\\nmain\\n.')"
    code = f"from harness.schedule.workers import entrance; print({call})"
    told = eval(python(code, Path(ROOT)))
    assert told["outcome"] == "failed"
    assert told["reason"].startswith("ModuleNotFoundError: No module named 'nowhere_at_all' (on node ")
    assert callable(entrance("", []))


def test_a_child_has_the_path_of_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "only_here.py").write_text("")
    env = os.environ | {"PYTHONPATH": python_path()}
    assert subprocess.call([*python_command("import only_here, harness.errors")], env=env, cwd="/") == 0
