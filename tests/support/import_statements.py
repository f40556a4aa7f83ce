"""Which modules a file imports, read from its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


@cache
def imported(path: Path, root: Path = ROOT) -> tuple[str, ...]:
    """Dotted names of the modules that `path` below `root` imports, relative ones resolved; each file is read once.

    Imports inside functions count too; those under TYPE_CHECKING need nothing at run time and do not.
    """
    return tuple(_imported(path, root))


def _imported(path: Path, root: Path) -> Iterator[str]:
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = list(path.relative_to(root).parts[: -node.level]) if node.level else []
            module = ".".join(package + ([node.module] if node.module else []))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        todo.extend(ast.iter_child_nodes(node))
