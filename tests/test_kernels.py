"""Building the kernels: once for all processes, never from a torn file, and no harm where it cannot be done."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import kernels, ops
from tests.support.compiler import COMPILER, needs_compiler

ROOT = Path(__file__).parents[1]

SHOW = """
import torch
from model import kernels, ops
value = torch.arange(4.0).view(1, 4, 1, 1)
output = ops.ms_deform_attn(value, ((2, 2),), torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 1, 1))
assert output.item() == 1.5
ops.ms_deform_attn(value, ((2, 2),), torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 1, 1))
print(ops.implementation())
"""


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache, and a process that has not built anything yet."""
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CODETR_OPS", raising=False)
    kernels.library.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    kernels.library.cache_clear()


def show(**environment: str) -> subprocess.CompletedProcess:
    """Use the operators in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", SHOW], cwd=ROOT, env=environment, capture_output=True, text=True)


def counting_compiler(folder: Path) -> tuple[Path, Path]:
    """A compiler that notes each library it makes in a file."""
    log, script = folder / "log", folder / "counting-c++"
    real = shlex.quote(str(COMPILER))
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *-shared*) echo built >> {shlex.quote(str(log))};; esac\nexec {real} "$@"\n'
    )
    script.chmod(0o755)
    return script, log


@needs_compiler
def test_twenty_processes_at_once_compile_once(fresh, monkeypatch):
    script, log = counting_compiler(fresh)
    monkeypatch.setenv("CXX", str(script))
    command = [sys.executable, "-c", "from model import kernels; print(kernels.library().path)"]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(20)]
    paths = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0] * 20
    assert len(paths) == 1 and paths.pop().strip().endswith(".so")
    assert log.read_text() == "built\n"


def test_without_a_compiler_one_line_says_so_and_results_are_right(fresh):
    empty = fresh / "bin"
    empty.mkdir()
    process = show(PATH=str(empty), CXX="")
    assert process.returncode == 0 and process.stdout == "reference\n"
    assert process.stderr.count("no C++ compiler") == 1 and process.stderr.count("\n") == 1
    assert "c++ nor g++ nor clang++" in process.stderr and "codetr doctor" in process.stderr


def test_a_compiler_that_fails_is_reported_with_its_first_error(fresh, monkeypatch, caplog):
    script = fresh / "broken-c++"
    script.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "broken 1.0" && exit 0\necho "x.h: fatal error: no x" >&2; exit 1\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with caplog.at_level(logging.WARNING):
        assert ops.implementation() == ops.implementation() == "reference"
    assert len(caplog.messages) == 1
    assert "x.h: fatal error: no x" in caplog.messages[0] and "\n" not in caplog.messages[0]
    kernels.library.cache_clear()
    monkeypatch.setenv("CODETR_OPS", "compiled")
    with pytest.raises(kernels.BuildError, match="fatal error: no x"):
        ops.implementation()


@needs_compiler
def test_a_damaged_library_is_built_again(fresh, monkeypatch):
    script, log = counting_compiler(fresh)
    (fresh / "tiny.cpp").write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setattr(kernels, "SOURCES", fresh)
    monkeypatch.setenv("CXX", str(script))
    path = kernels.load().path
    whole = path.read_bytes()
    for damaged in (whole[:1000], whole[:5000] + b"?" + whole[5001:], b""):
        for file in kernels.cache_folder().glob("*.so"):
            file.unlink()  # a loaded file must not be written to
        path.write_bytes(damaged)
        library = kernels.load()
        assert library.functions.answer() == 42
        (left,) = kernels.cache_folder().glob("*.so")
        assert left == library.path and left.stem.endswith(kernels._checksum(left.read_bytes()))
    kernels.load()
    assert log.read_text() == "built\n" * 4


def test_the_environment_chooses(fresh, monkeypatch):
    monkeypatch.setenv("CODETR_OPS", "reference")
    assert ops.implementation() == "reference" and not kernels.cache_folder().exists()
    kernels.library.cache_clear()
    monkeypatch.setenv("CODETR_OPS", "fastest")
    with pytest.raises(ValueError, match="CODETR_OPS is 'fastest': it must be auto, compiled or reference"):
        ops.implementation()


def test_a_cache_that_cannot_be_written_is_no_disaster(fresh, monkeypatch, caplog):
    (fresh / "cache").write_text("a file where the folder should be")
    assert ops.implementation() == "reference"
    assert COMPILER is None or "cannot be kept in" in caplog.text


@needs_compiler
def test_sources_and_flags_make_another_library(monkeypatch):
    keys = {kernels._key("c++ 1", None), kernels._key("c++ 2", None)}
    monkeypatch.setattr(kernels, "COMMON_FLAGS", ("-O1",))
    keys.add(kernels._key("c++ 1", None))
    monkeypatch.setattr(kernels, "_processor", lambda: "another")
    keys.add(kernels._key("c++ 1", None))
    monkeypatch.setattr(kernels, "source_files", lambda: [ROOT / "csrc" / "nms.cpp"])
    keys.add(kernels._key("c++ 1", None))
    assert len(keys) == 5


@needs_compiler
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="libraries of a process are listed on Linux only")
def test_there_is_one_pool_of_threads():
    """Ours and torch's code use the same OpenMP library, so they share its threads."""
    value, locations = torch.randn(4, 400, 4, 16), torch.rand(4, 400, 4, 1, 4, 2)
    torch.randn(500, 500) @ torch.randn(500, 500)
    ops.ms_deform_attn(value, ((20, 20),), locations, torch.rand(4, 400, 4, 1, 4))
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    openmp = {path for path in loaded if Path(path).name.startswith(("libgomp", "libomp", "libiomp"))}
    ours = [path for path in openmp if "sklearn" not in path and "scikit_learn" not in path]
    assert len(ours) == 1, ours
