"""Submitting: what Ray's client is asked for, and what is refused before anything is uploaded."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from harness import submit
from harness.__main__ import main

ROOT = Path(__file__).parents[1]
FILE = "ablations/quickstart.yaml"


@pytest.fixture
def ray(tmp_path, monkeypatch):
    """A `ray` on the PATH that notes its arguments and mode, and ends with $RAY_EXIT; call it for what it was asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    lines = [
        "#!/bin/sh",
        f'printf "%s\\0" "$@" > {tmp_path}/asked',
        f'echo "$RAY_AUTH_MODE $PYTHONUNBUFFERED" > {tmp_path}/mode',
    ]
    (folder / "ray").write_text("\n".join([*lines, "exit ${RAY_EXIT:-0}"]))
    (folder / "ray").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("CODETR_STORE", "/shared/codetr")
    monkeypatch.chdir(ROOT)
    return lambda: (tmp_path / "asked").read_text().split("\0")[:-1] if (tmp_path / "asked").exists() else None


def test_a_job_gets_the_code_version_the_store_and_the_tracking_server(ray, monkeypatch, tmp_path):
    monkeypatch.setattr(submit, "code_version", lambda: ("abc123", True))
    argv = ["submit", "--address", "http://head:8265", FILE, "--preset", "digits_fast", "--seeds", "0,1"]
    assert main(argv) == 0
    asked = ray()
    start, end = asked[: asked.index("--")], asked[asked.index("--") + 1 :]
    assert start[:4] == ["job", "submit", "--address", "http://head:8265"] and "--no-wait" not in start
    assert start[start.index("--working-dir") + 1] == "."
    environment = json.loads(start[start.index("--runtime-env-json") + 1])["env_vars"]
    assert environment == {
        "CODETR_COMMIT": "abc123",
        "CODETR_DIRTY": "1",
        "CODETR_STORE": "/shared/codetr",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
    }
    assert end == ["python", "-m", "harness", "run", FILE, "--preset", "digits_fast", "--seeds", "0,1"]
    assert (tmp_path / "mode").read_text() == "token 1\n", "and the job's lines come at once, into a file too"


def test_its_exit_code_is_the_clients(ray, monkeypatch):
    monkeypatch.setenv("RAY_EXIT", "7")
    assert main(["submit", "--no-wait", "--store", "/elsewhere", FILE]) == 7
    assert "--no-wait" in ray() and any('"CODETR_STORE": "/elsewhere"' in word for word in ray())


def test_from_another_folder_the_clusters_own_code_runs(ray, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CODETR_COMMIT", "abc123")
    (tmp_path / "mine.yaml").write_text("rows: [{label: a}]")
    monkeypatch.chdir(tmp_path)
    assert main(["submit", "mine.yaml"]) == 0
    assert not any("CODETR_COMMIT" in word for word in ray())
    assert ray()[ray().index("--") + 1 :][:4] == ["python", "-m", "codetr_harness", "run"], (
        "which no file there is called"
    )
    assert "the cluster's own runs" in capsys.readouterr().err


def test_the_store_may_stand_behind_the_file(ray, monkeypatch):
    monkeypatch.delenv("CODETR_STORE")
    assert main(["submit", FILE, "--store", "/behind"]) == 0
    assert any('"CODETR_STORE": "/behind"' in word for word in ray())
    assert main(["submit", FILE, "--store=behind", "--seeds", "0"]) == 0
    assert any(f'"CODETR_STORE": "{ROOT}/behind"' in word for word in ray())
    assert ray()[-3:] == [FILE, "--seeds", "0"], "or the job would keep records in its own folder"
    with pytest.raises(SystemExit):
        main(["submit", "--store", "/one", FILE, "--store", "/another"])


def test_the_job_finds_files_from_its_own_folder(ray, monkeypatch, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("rows: [{label: a}]")
    (tmp_path / "small.yaml").write_text((ROOT / "ablations/presets/digits_fast.yaml").read_text())
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path)
    for given in (["--preset", f"{tmp_path}/small.yaml"], [f"--preset={tmp_path}/small.yaml"]):
        assert main(["submit", f"{tmp_path}/mine.yaml", *given]) == 0
        run = ray()[ray().index("--") + 1 :][4:]
        assert (
            run[0] == "mine.yaml" and "=".join(run[1:]).endswith("=small.yaml") and str(tmp_path) not in " ".join(run)
        )
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.chdir(tmp_path / "link")
    assert main(["submit", f"{tmp_path}/link/mine.yaml", "--preset", f"{tmp_path}/small.yaml"]) == 0
    assert ray()[-3:] == ["mine.yaml", "--preset", "small.yaml"]
    monkeypatch.chdir(tmp_path / "job")
    (tmp_path / "job" / "mine.yaml").write_text("rows: [{label: a}]")
    assert main(["submit", "mine.yaml", "--preset", f"{tmp_path}/small.yaml"]) == 2
    assert "small.yaml: lies outside of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([FILE, "--preset", "digit"], "preset 'digit': unknown preset; did you mean 'digits'?"),
        (["{elsewhere}/mine.yaml"], "lies outside of"),
    ],
)
def test_mistakes_are_told_here_and_nothing_is_submitted(ray, tmp_path, argv, told, capsys):
    (tmp_path / "mine.yaml").write_text("rows: [{label: a}]")
    assert main(["submit", *(word.format(elsewhere=tmp_path) for word in argv)]) == 2
    assert told in capsys.readouterr().err and ray() is None


def test_options_of_run_are_checked_before(ray, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["submit", FILE, "--executer", "ray"])
    assert caught.value.code == 2 and "--executer" in capsys.readouterr().err and ray() is None


def test_a_job_needs_a_store(ray, monkeypatch, capsys):
    monkeypatch.delenv("CODETR_STORE")
    assert main(["submit", FILE]) == 2
    assert "--store" in capsys.readouterr().err and ray() is None


def test_too_large_an_upload_names_the_largest_files(ray, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "table.yaml").write_text("rows: [{label: a}]")
    for name, megabytes in (("a.bin", 60), ("b.bin", 50), ("c.bin", 1)):
        with open(folder / name, "wb") as file:
            file.truncate(megabytes * 2**20)
    monkeypatch.chdir(folder)
    assert main(["submit", "table.yaml"]) == 2
    told = capsys.readouterr().err
    assert "111 MB, Ray takes 100" in told and ".rayignore" in told and "a.bin (60 MB), b.bin (50 MB)" in told
    (folder / ".rayignore").write_text("a.*\n")
    assert main(["submit", "table.yaml"]) == 0


def test_an_upload_is_what_ray_would_send(tmp_path):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    for name in ("kept.py", "left.log", "data/big.bin", "sub/kept.txt", "sub/left.txt", "runs/1/result.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("12345")
    (tmp_path / ".gitignore").write_text("*.log\nruns/\n")
    (tmp_path / "sub" / ".gitignore").write_text("left.txt\n")
    (tmp_path / ".rayignore").write_text("data/\n")
    found = submit.upload(tmp_path)
    assert set(found) == {"kept.py", "sub/kept.txt", ".gitignore", ".rayignore", "sub/.gitignore"}
    assert found["kept.py"] == 5


def test_this_repository_is_small_enough():
    submit.check_size(ROOT)
    names = set(submit.upload(ROOT))
    assert {"harness/__main__.py", "model/detector.py", "csrc/nms.cpp", FILE} <= names
    assert not any(name.startswith(("tests/", "docs/", ".venv/", ".git/")) for name in names)
