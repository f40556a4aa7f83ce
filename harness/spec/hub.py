"""Files of weights by their name on the Hugging Face Hub: `hub:OWNER/NAME[@REVISION]/FILE[#sha256=HEX]`.

What was fetched once is read from the cache of `huggingface_hub` (`HF_HOME`), and no network is asked again. The
package is loaded where such a name is looked up, and nowhere else.
"""

from __future__ import annotations

import difflib
import errno
import logging
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from harness.data.disk import shown
from harness.data.ticker import INTERVAL_SECONDS, print_aside
from harness.errors import UserError, install_hint, one_line

PREFIX = "hub:"
FORM = "hub:OWNER/NAME/FILE, with @REVISION behind NAME and #sha256=HEX behind FILE if you like"
PART = r"[A-Za-z0-9][\w.-]*"
NAME = re.compile(
    rf"{PREFIX}(?P<repository>{PART}/{PART})(?:@(?P<revision>refs/(?:pr|convert)/[^/#@\s]+|[^/#@\s]+))?"
    r"/(?P<file>[^#@\\]+?)(?:#sha256=(?P<sha256>[0-9a-fA-F]{64}))?",
    re.ASCII,
)
EXTRA = install_hint("backbones")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")  # of files that a remark names
SETTINGS = "config.json"  # of transformers: says of a model what its weights do not
MEGA = 1e6
Say = Callable[[str], None]


class HubFile(NamedTuple):
    """What a name says."""

    repository: str
    revision: str | None
    file: str
    sha256: str | None


def is_hub(name: str) -> bool:
    """Whether a name is meant to be one of the Hub, and no path."""
    return name.startswith(PREFIX)


def read_name(name: str) -> HubFile:
    """The parts of a name.

    Raises:
        ValueError: it is none; one line.
    """
    found = NAME.fullmatch(name)
    parts = found["file"].split("/") if found else []
    if found is None or not all(part.strip() and part not in (".", "..") for part in parts):
        raise ValueError(f"{shown(name)} names no file on the Hugging Face Hub; write {FORM}")
    sha256 = found["sha256"]
    return HubFile(found["repository"], found["revision"], found["file"], sha256 and sha256.lower())


def title(name: str) -> str:
    """How a file of weights is called in a report: a name of the Hub without its hash, or a path's last part."""
    return name.partition("#")[0] if is_hub(name) else Path(name).name


def local_file(name: str, say: Say | None = None) -> Path:
    """Where the file of a name lies: a path as it is, a file of the Hub in the cache; fetched where it is not there.

    Args:
        name: a path, or a name of the Hub.
        say: takes a line now and then while it is fetched; None prints it to standard error.

    Raises:
        UserError: it cannot be fetched; one line that begins with the name.
    """
    if not is_hub(name):
        return Path(name)
    try:
        wanted = read_name(name)
    except ValueError as error:
        raise UserError(str(error)) from error
    library = _library(name)
    try:
        cached = library.try_to_load_from_cache(wanted.repository, wanted.file, revision=wanted.revision)
        if isinstance(cached, str):
            return Path(cached)
        with _quiet():
            return _fetched(wanted, name, say or print_aside)
    except UserError:
        raise
    except Exception as error:  # a library and a network may fail in any way
        raise UserError(f"{name} {_explained(error, wanted)}") from error


def check_content(name: str, path: Path, sha256: str) -> None:
    """Is the file the one that a name of the Hub asks for, and whole?

    Args:
        name: a path, of which nothing is asked, or a name of the Hub.
        path: where the file lies.
        sha256: of its content.

    Raises:
        UserError: it is another one, or damaged; one line that begins with the name.
    """
    if not is_hub(name):
        return
    blob = Path(os.readlink(path)) if path.is_symlink() else path  # a large file is kept under its SHA-256
    if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name) and blob.name != sha256:
        raise UserError(f"{name} is cut short or damaged in the cache; {again(path)}")
    pinned = read_name(name).sha256
    if pinned not in (None, sha256):
        raise UserError(
            f"{name.partition('#')[0]} has the SHA-256 {sha256[:12]}… instead of {pinned[:12]}…, which its name asks "
            f"for; name the revision that has it, or #sha256={sha256}"
        )


def again(path: Path) -> str:
    """How a file of the cache is fetched again."""
    folder = next((parent for parent in path.parents if parent.name.startswith("models--")), path.parent)
    return f"remove {folder} and it is fetched again"


# ---- fetching -----------------------------------------------------------------------------------------------------


def _library(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{name} needs the package huggingface_hub: {EXTRA}") from error
    return huggingface_hub


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own remarks: what matters is told in one line."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _fetched(wanted: HubFile, name: str, say: Say) -> Path:
    """Fetch a file into the cache. It is asked for alone first: without a connection that fails at once."""
    import huggingface_hub as library
    from huggingface_hub import constants

    url = library.hf_hub_url(wanted.repository, wanted.file, revision=wanted.revision)
    found = library.get_hf_file_metadata(url)
    if not found.commit_hash:
        raise UserError(f"{name}: {constants.ENDPOINT} is no Hugging Face Hub; see to HF_ENDPOINT and your proxy")
    size = found.size or 0
    _check_room(Path(constants.HF_HUB_CACHE), size)
    told = f"fetching {name.partition('#')[0]}"
    say(f"{told}, {size / MEGA:,.1f} MB, from {constants.ENDPOINT}")
    path = library.hf_hub_download(
        wanted.repository, wanted.file, revision=wanted.revision, tqdm_class=_lines(told, size, say)
    )
    with suppress(Exception):  # most repositories have none
        beside = f"{wanted.file.rpartition('/')[0]}/{SETTINGS}".lstrip("/")
        library.hf_hub_download(
            wanted.repository, beside, revision=wanted.revision, tqdm_class=_lines("", 0, lambda line: None)
        )
    return Path(path)


def _check_room(folder: Path, size: int) -> None:
    there = next((own for own in (folder, *folder.parents) if own.is_dir()), None)
    free = shutil.disk_usage(there).free if there else size
    if free < size:
        raise OSError(errno.ENOSPC, f"{size / MEGA:,.0f} MB do not fit into the {free / MEGA:,.0f} MB that are free")


def _lines(what: str, size: int, say: Say) -> type:
    """A progress bar that says a line now and then instead of drawing itself."""
    from huggingface_hub.utils import tqdm

    started = last = time.monotonic()
    done = 0.0

    class Lines(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal last, done
            self.n += n or 0
            done = max(done, self.n)  # the library may have a bar for what arrives and one for what is written
            now = time.monotonic()
            if now - last >= INTERVAL_SECONDS and 0 < done <= size:
                last = now
                left = (now - started) / done * (size - done)
                say(f"{what}: {done / MEGA:,.0f} of {size / MEGA:,.0f} MB, about {left:.0f} s left")

    return Lines


# ---- what goes wrong ----------------------------------------------------------------------------------------------


def _explained(error: Exception, wanted: HubFile) -> str:
    """What went wrong and what to do, to stand behind the name."""
    from huggingface_hub import constants, errors

    where, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    page = f"{where}/{wanted.repository}"
    elsewhere = f"or fetch it elsewhere (`hf download`) and give its path, or a copy of the cache {cache}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"is not in the cache ({cache}), and HF_HUB_OFFLINE forbids to fetch it; unset that, {elsewhere}"
    if isinstance(error, errors.GatedRepoError):
        return f"is in a gated repository; accept its licence at {page} and set HF_TOKEN to your access token"
    if isinstance(error, errors.DisabledRepoError):
        return f"is in a repository that has been disabled (see {page}); name another"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"is of the unknown revision '{wanted.revision or 'main'}'; {page} shows branches, tags and commits"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"is no file of its repository{_near(wanted)}"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return (
            f"is in a repository that does not exist or is private ({page}); "
            "correct its name, or set HF_TOKEN to the access token of somebody who may read it"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return f"cannot be fetched from {where} (HTTP status {status}); try again later, {elsewhere}"
    if isinstance(error, errors.HFValidationError):
        return f"names no file on the Hugging Face Hub ({one_line(error)}); write {FORM}"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
        return f"cannot be kept in the cache {cache} ({one_line(error)}); make room there, or set HF_HOME"
    return (
        f"is not in the cache and cannot be fetched from {where} ({one_line(error)}); see to the network, {elsewhere}"
    )


def _near(wanted: HubFile) -> str:
    """The names most like it among the files of its repository, as far as that tells."""
    import huggingface_hub as library

    names: list[str] = []
    with suppress(Exception):
        names = list(library.HfApi().list_repo_files(wanted.repository, revision=wanted.revision))
    weights = [name for name in names if name.endswith(SUFFIXES)]
    near = difflib.get_close_matches(wanted.file, weights, n=3, cutoff=0.4) or weights[:3]
    return f"; did you mean {' or '.join(near)}?" if near else ", which has no file of weights" if names else ""
