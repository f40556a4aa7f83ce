"""The files behind a trial's numbers, each with the digest of its content: a core that all trials share, and parts.

The core is what the trial's own rooms and `model/detector.py` import. A part (`heads.atss`: its room and its name) adds
what its file imports besides. Neither holds a room's dict, `{"atss": "model.heads.atss:ATSSHead"}`, which leads from
the name to the file, nor files of settings: what these say is part of a trial's id. Imports are read from the source,
those inside functions too, so that nothing is loaded.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DECIDING = (  # patterns below the repository
    "model/**/*.py",
    *("csrc/*.h", "csrc/*.cpp", "csrc/*.cu"),
    *("harness/trial/**/*.py", "harness/data/**/*.py", "harness/mistakes/**/*.py"),
    *("harness/spec/detection_metrics.py", "harness/spec/error_metrics.py", "harness/spec/training_length.py"),
    *("harness/system/process.py", "harness/system/precision.py"),
)
# Other files of `model/` count as far as a trial or these import them.
BUILDERS = ("model/detector.py", "model/parts.py")
SETTINGS = ("config.py", "configs.py")
PLACE = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*")  # of a part's class: `module:Class`

Digests = dict[str, str]  # file, its path below the repository -> first 12 hex digits of SHA-256 of its content


def deciding_files(root: Path = ROOT) -> list[Path]:
    """The files that may decide results, sorted by their path below `root`."""
    found = {path for pattern in DECIDING for path in root.glob(pattern) if path.is_file()}
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def code_of(parts: Collection[str], root: Path = ROOT) -> dict[str, Any]:
    """The code of a trial whose configuration names these parts.

    Returns:
        `core`: digests by file; `parts`: the same by the part's name. None stands for the files of a part that no dict
        in the source lists: it was put there while the program ran, and agrees with nothing.
    """
    source = read_source(root)
    return {"core": source.core, "parts": {part: source.closure(part) for part in sorted(parts)}}


@lru_cache(maxsize=8)  # of a process: what is edited later is not what runs
def read_source(root: Path = ROOT) -> Source:
    """The source of the repository at `root`."""
    return Source({path.relative_to(root).as_posix(): path.read_bytes() for path in deciding_files(root)})


class Source:
    """The deciding files of a repository, and who imports whom.

    Args:
        contents: by the files' posix paths below the repository.
    """

    def __init__(self, contents: Mapping[str, bytes]):
        self._contents = contents
        self.parts: dict[str, str] = {}  # module by `room.name`
        self.left_out = {file for file in contents if file.rpartition("/")[2] in SETTINGS}
        self._imports: dict[str, list[str]] = {}  # file -> files
        for file in contents:
            if named := _parts_of_room(file, contents[file]):
                self.left_out.add(file)
                self.parts |= named
        roots = [file for file in contents if not file.startswith("model/") or file in BUILDERS]
        self.core: Digests = self._digests(self._reached(roots))

    def closure(self, part: str) -> Digests | None:
        """Digests of the files that this part has besides the core; None for one that the source does not list.

        Of a part that lies elsewhere, that of its own file, by the name of its module.
        """
        module = self.parts.get(part)
        if module is None:
            return None
        file = self._file(module)
        return _elsewhere(module) if file is None else self._digests(self._reached([file], known=self.core))

    def _digests(self, files: Iterable[str]) -> Digests:
        return {file: _digest(self._contents[file]) for file in sorted(files)}

    def _reached(self, roots: Iterable[str], known: Collection[str] = ()) -> set[str]:
        """These files and what they import, and so on; without what is `known`."""
        todo, reached = list(roots), set[str]()
        while todo:
            file = todo.pop()
            if file in reached or file in known or file in self.left_out:
                continue
            reached.add(file)
            todo += self._imported(file)
        return reached

    def _imported(self, file: str) -> list[str]:
        if file not in self._imports:
            modules = _modules(file, self._contents[file]) if file.endswith(".py") else ()
            self._imports[file] = [found for module in modules if (found := self._file(module))]
        return self._imports[file]

    def _file(self, module: str) -> str | None:
        path = module.replace(".", "/")
        return next((file for file in (f"{path}/__init__.py", f"{path}.py") if file in self._contents), None)


def _elsewhere(module: str) -> Digests | None:
    """The digest of a module's file, wherever Python finds it; None where it finds none."""
    with suppress(ImportError, ValueError, OSError):
        spec = find_spec(module)
        if spec is not None and spec.origin is not None:
            return {module: _digest(Path(spec.origin).read_bytes())}
    return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _parts_of_room(file: str, content: bytes) -> dict[str, str]:
    """Modules by `room.name` where the file is `model/<room>/__init__.py` and holds a dict of parts; else empty."""
    package, room, *rest = file.split("/")
    if package != "model" or rest != ["__init__.py"] or b":" not in content:
        return {}
    own = [node for node in _parsed(content).body if isinstance(node, ast.Assign | ast.AnnAssign)]
    dicts = [node for statement in own for node in ast.walk(statement) if isinstance(node, ast.Dict)]
    lines = [line for found in dicts for line in zip(map(_text, found.keys), map(_text, found.values), strict=True)]
    found = {f"{room}.{name}": place[1] for name, value in lines if name and (place := PLACE.fullmatch(value))}
    return found if any(module.startswith("model.") for module in found.values()) else {}


def _parsed(content: bytes) -> ast.Module:
    """A file that is no Python, as while it is edited, imports nothing; whoever runs it is told by Python."""
    try:
        return ast.parse(content)
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def _text(node: ast.expr | None) -> str:
    """The text that an expression is; empty for any other."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _modules(file: str, content: bytes) -> Iterator[str]:
    """Dotted names that the file imports, modules and what may be a module in them, with the packages around them."""
    todo: list[ast.AST] = [_parsed(content)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_packages(alias.name)
        elif isinstance(node, ast.ImportFrom):
            package = file.split("/")[: -node.level] if node.level else []
            module = ".".join([*package, *([node.module] if node.module else [])])
            yield from _with_packages(module)
            yield from (f"{module}.{alias.name}" for alias in node.names)
        else:
            todo += _statements(node)


def _with_packages(module: str) -> Iterator[str]:
    """`a`, `a.b` and `a.b.c`: Python runs all of them."""
    names = module.split(".")
    return (".".join(names[: count + 1]) for count in range(len(names)))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """The statements directly inside of one; those for type checkers alone are left out."""
    checked = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    for field in ("orelse",) if checked else ("body", "orelse", "finalbody", "handlers", "cases"):
        inside = getattr(node, field, None)
        yield from inside if isinstance(inside, list) else ()  # an expression has none: `a if b else c`, lambda
