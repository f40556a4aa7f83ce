"""Builds `csrc/` on first use and loads it: one C++ compiler is all it takes, and without one nothing breaks.

The library lies in `$CODETR_CACHE/ops` (default `~/.cache/codetr/ops`) under a name made of everything that decides
its content: sources, compiler, flags, processor. The name also holds the checksum of the file, so a torn or altered
one is noticed and built anew. Of many processes that start together one compiles, the others wait for it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "csrc"
COMMON_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-Wno-psabi", "-fno-math-errno", "-fno-trapping-math")
FLAG_SETS = (  # tried in this order; the first that the compiler takes is used
    ("-march=native", "-fopenmp"),
    ("-fopenmp",),
    ("-fopenmp-simd",),
    (),
)
NO_CONTRACTION = ("-ffp-contract=off",)  # decisions at a threshold: rounded as torch rounds
FLAGS_OF = {"nms.cpp": NO_CONTRACTION, "overlaps.cpp": NO_CONTRACTION}
COMPILERS = ("c++", "g++", "clang++")
COMPILE_SECONDS = 300.0  # then something hangs

logger = logging.getLogger("codetr")


class BuildError(RuntimeError):
    """The kernels cannot be had here; one line says why."""


@dataclass(frozen=True)
class Library:
    """The loaded kernels."""

    functions: ctypes.CDLL
    path: Path
    compiler: str  # name and version


def mode() -> str:
    """`$CODETR_OPS`: auto (compiled where possible), compiled (or an error), reference.

    Raises:
        ValueError: it says something else.
    """
    chosen = os.environ.get("CODETR_OPS") or "auto"
    if chosen not in ("auto", "compiled", "reference"):
        raise ValueError(f"CODETR_OPS is '{chosen}': it must be auto, compiled or reference")
    return chosen


@functools.cache
def library() -> Library | None:
    """The kernels, built if need be; None where the pure-torch reference runs, which is announced once.

    Raises:
        BuildError: `CODETR_OPS=compiled`, and they cannot be had.
        ValueError: `CODETR_OPS` is none of the three.
    """
    chosen = mode()
    if chosen == "reference":
        return None
    try:
        return load()
    except BuildError as error:
        if chosen == "compiled":
            raise
        announce(error)
        return None


def announce(error: Exception) -> None:
    """Say that the reference runs, and why."""
    logger.warning("%s; the slower pure-torch operators run instead (more: codetr doctor)", error)


def cache_folder() -> Path:
    """Where built libraries lie."""
    return Path(os.path.expanduser(os.environ.get("CODETR_CACHE") or "~/.cache/codetr")).absolute() / "ops"


def source_files() -> list[Path]:
    """Everything the C++ library is made of."""
    return sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")])


def find_compiler() -> tuple[str, str]:
    """Path and version line of `$CXX`, or of the first compiler on the path.

    Raises:
        BuildError: there is none.
    """
    named = os.environ.get("CXX")
    for name in (named,) if named else COMPILERS:
        path = shutil.which(name)
        if path:
            return path, _run([path, "--version"]).splitlines()[0]
    missing = f"{named}, which CXX names, is not" if named else f"neither {' nor '.join(COMPILERS)} is"
    raise BuildError(f"no C++ compiler: {missing} on the PATH")


def cached(key: str, suffix: str, build: Callable[[Path], Path]) -> Path:
    """The file made by `build` in a temporary folder, of this or an earlier process; `key` names all it depends on.

    Raises:
        BuildError: from `build`, or because the cache cannot be written.
    """
    folder = cache_folder()
    found = _find(folder, key, suffix)
    if found:
        return found
    try:
        import fcntl  # not on every system, and this is the one place that needs it

        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{key}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system, even if this process is killed
            return _find(folder, key, suffix) or _make(folder, key, suffix, build)
    except ImportError as error:
        raise BuildError(f"{platform.system()} has no file locks as the build needs them") from error
    except OSError as error:
        raise BuildError(f"the kernels cannot be kept in {folder}: {error.strerror or error}") from error


def _find(folder: Path, key: str, suffix: str) -> Path | None:
    for path in sorted(folder.glob(f"{key}-*{suffix}")):
        try:
            if path.stem == f"{key}-{_checksum(path.read_bytes())}":
                return path
        except OSError:
            continue  # just replaced by another process
    return None


def _make(folder: Path, key: str, suffix: str, build: Callable[[Path], Path]) -> Path:
    """Build, and put the file in its place with one rename. The lock is held."""
    for torn in folder.glob(f"{key}-*{suffix}"):
        torn.unlink()
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{key}.") as temporary:
        built = build(Path(temporary))
        path = folder / f"{key}-{_checksum(built.read_bytes())}{suffix}"
        with built.open("rb") as file:
            os.fsync(file.fileno())
        built.replace(path)
    return path


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


# ---- the C++ library ----------------------------------------------------------------------------------------------


def load() -> Library:
    """The kernels whatever `CODETR_OPS` says.

    Raises:
        BuildError: they cannot be had.
    """
    compiler, version = find_compiler()
    runtime = _openmp_runtime()
    path = cached(_key(version, runtime), ".so", lambda folder: _compile(folder, compiler, runtime))
    try:
        functions = ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"the kernels in {path} cannot be loaded: {error}") from error
    name = "clang" if "clang" in version else Path(compiler).name
    number = re.search(r"\d+(\.\d+)+", version)
    return Library(functions, path, f"{name} {number[0]}" if number else name)


def _key(version: str, runtime: Path | None) -> str:
    digest = hashlib.sha256()
    for path in source_files():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    flags = [*COMMON_FLAGS, *map(str, FLAG_SETS), str(FLAGS_OF)]
    for text in (version, *flags, runtime.name if runtime else "", _processor()):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def _processor() -> str:
    """The processor as `-march=native` sees it; nodes of different kinds may share one cache."""
    described = [platform.machine(), platform.system()]
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return " ".join([*described, platform.processor()])
    for field in ("model name", "flags", "CPU part", "Features"):
        found = re.search(rf"^{field}\s*:\s*(.*)$", text, re.MULTILINE)
        described.append(found[1] if found else "")
    return " ".join(described)


def _openmp_runtime() -> Path | None:
    """The OpenMP library that torch has loaded: with a second one, two pools of threads would fight for the cores."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"(/\S*/lib(?:gomp|iomp5|omp)[^/\s]*\.so[^/\s]*)$", maps, re.MULTILINE)
    return Path(found[1]) if found else None


def _compile(folder: Path, compiler: str, runtime: Path | None) -> Path:
    for flags in FLAG_SETS:
        try:
            return _compile_with(folder, compiler, flags, runtime)
        except BuildError as error:
            failure = error
    raise failure


def _compile_with(folder: Path, compiler: str, flags: tuple[str, ...], runtime: Path | None) -> Path:
    commands, objects = [], []
    for source in SOURCES.glob("*.cpp"):
        objects.append(str(folder / f"{source.stem}.o"))
        own = FLAGS_OF.get(source.name, ())
        commands.append([compiler, *COMMON_FLAGS, *flags, *own, "-c", str(source), "-o", objects[-1]])
    with ThreadPoolExecutor() as pool:  # each waits for a compiler of its own
        list(pool.map(_run, commands))
    result = folder / "library.so"
    openmp = [] if "-fopenmp" not in flags else [str(runtime)] if runtime else ["-fopenmp"]
    _run([compiler, "-shared", *objects, "-o", str(result), *openmp])
    return result


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=COMPILE_SECONDS, check=True
        )
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{command[0]} failed: {_first_error(error.stderr or error.stdout)}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    return done.stdout


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message")
