"""`codetr submit`: `codetr run` as a job of a Ray cluster, by Ray's own `ray job submit`.

The upload of a job has no .git and knows nothing of this machine's environment, so the version of the code, the store
and the tracking server travel in the job's environment. Ray takes 100 MB at most, and says so late: here it is first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.errors import UserError
from harness.store.source import code_version

_STORE = re.compile(r"--st(?:or?|ore)?(?:=.*)?", re.DOTALL)  # as argparse takes it
LIMIT = 100 * 2**20  # bytes that Ray takes as a working directory
PASSED_ON = ("CODETR_STORE", "CODETR_OPS", "MLFLOW_TRACKING_URI")  # a cache is each cluster's own


def hand_over(run: Sequence[str], files: Sequence[str], address: str | None = None, wait: bool = True) -> int:
    """Submit `codetr run` with the arguments `run`, from the current folder; returns the exit code of Ray's client.

    Args:
        run: arguments of `codetr run`, the files among them.
        files: the ablation files, and a preset's where one is named; they must lie in the current folder, which is
            uploaded, and the job finds them from there.
        address: the cluster's dashboard (http://head:8265); None: as Ray finds it.
        wait: follow the job's output until it ends.

    Raises:
        UserError: nothing was submitted, and why.
    """
    folder = Path.cwd()
    for file in files:
        if not Path(file).resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{file}: lies outside of {folder}, which is what a job gets; submit from a folder above it"
            )
    from_here = {file: _from(folder.resolve(), Path(file)) for file in files}
    words = from_here | {f"--preset={file}": f"--preset={here}" for file, here in from_here.items()}
    run = [words.get(word, word) for word in _without_store(run)]
    check_size(folder)
    environment = job_environment(folder)
    ray = shutil.which("ray") or shutil.which("ray", path=str(Path(sys.executable).parent))
    if ray is None:
        raise UserError("submit: there is no command `ray` here; install this package, or put ray on the PATH")
    command = [ray, "job", "submit", *(["--address", address] if address else []), *([] if wait else ["--no-wait"])]
    command += ["--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": environment})]
    # The job client sends the cluster's token only in this mode; and it would keep the job's lines back in a pipe.
    own = {"RAY_AUTH_MODE": "token", "PYTHONUNBUFFERED": "1", **os.environ}
    # A checkout brings its own code; elsewhere nothing in the folder may be taken for the cluster's.
    module = "harness" if _is_checkout(folder) else "codetr_harness"
    return subprocess.call([*command, "--", "python", "-m", module, "run", *run], env=own)


def _from(folder: Path, file: Path) -> str:
    """The file as a process in `folder` finds it; links count where they stay in there."""
    near = os.path.relpath(file.absolute().parent.resolve() / file.name, folder)
    return os.path.relpath(file.resolve(), folder) if near.startswith("..") else near


def _without_store(run: Sequence[str]) -> list[str]:
    """Arguments of `codetr run` without the store, which the job has from its environment, and not from its folder."""
    left, skips = [], False
    for word in run:
        if not skips and not (is_store := bool(_STORE.fullmatch(word))):
            left.append(word)
        skips = not skips and is_store and "=" not in word
    return left


def job_environment(folder: Path) -> dict[str, str]:
    """The variables that a job from this folder gets.

    Raises:
        UserError: no store is named: a job's own home folder may vanish with it.
    """
    if not os.environ.get("CODETR_STORE"):
        raise UserError("submit: where does the cluster keep records? Give --store /shared/folder or set CODETR_STORE")
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        print("note: MLFLOW_TRACKING_URI is not set; the job keeps MLflow's database in its store", file=sys.stderr)
    found = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    if not _is_checkout(folder):
        print("note: the code is not in this folder, so the cluster's own runs", file=sys.stderr)
        return found
    commit, dirty = code_version()
    if commit is None:
        print("note: no git here, so records will not name the code's version", file=sys.stderr)
        return found
    return found | {"CODETR_COMMIT": commit, "CODETR_DIRTY": "" if dirty is None else str(int(dirty))}


def _is_checkout(folder: Path) -> bool:
    return Path(__file__).resolve().parents[1] == folder.resolve()


def check_size(folder: Path) -> None:
    """Raise `UserError` with the largest files when a folder is more than Ray takes."""
    sizes = upload(folder)
    total = sum(sizes.values())
    if total > LIMIT:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
        named = ", ".join(f"{name} ({sizes[name] / 2**20:.0f} MB)" for name in largest)
        raise UserError(
            f"{folder}: a job would upload {total / 2**20:.0f} MB, Ray takes {LIMIT // 2**20}; "
            f"name what it does not need in .rayignore; largest: {named}"
        )


def upload(folder: Path) -> dict[str, int]:
    """Bytes of every file that Ray would upload: all but .git and what .gitignore and .rayignore name."""
    names = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != ".git"]
        names += [os.path.relpath(os.path.join(root, name), folder) for name in files]
    left_out = _ignored(folder, names)
    return {name: (folder / name).lstat().st_size for name in names if name not in left_out}


def _ignored(folder: Path, names: Sequence[str]) -> set[str]:
    """Which of these files .gitignore and .rayignore name, as git reads such files; none where there is no git."""
    git = shutil.which("git")
    if git is None:
        return set()
    with tempfile.TemporaryDirectory() as bare:  # so that it works outside of a repository, and for tracked files
        subprocess.run([git, "init", "--quiet", "--bare", bare], check=True)
        options = ["-c", f"core.excludesFile={(folder / '.rayignore').absolute()}", f"--git-dir={bare}"]
        command = [git, *options, f"--work-tree={folder}", "check-ignore", "--no-index", "--stdin", "-z"]
        done = subprocess.run(command, cwd=folder, input=os.fsencode("\0".join(names)), capture_output=True)
    return set(os.fsdecode(done.stdout).split("\0"))
