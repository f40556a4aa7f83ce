"""Puts this project's packages first: the command `codetr` and every process that it starts come through here.

`harness` and `model` are names that anybody may give a file, and Python takes the first one it finds: in the working
folder, in a folder of $PYTHONPATH. Importing this module (whose name nobody else uses) makes both names mean the
folders beside it, and has folders of the user's searched last, behind Python's own library and what is installed. So
it imports nothing that such a folder could hold.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as in typing, which is not loaded yet
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

ROOT = os.path.dirname(os.path.abspath(__file__))
PACKAGES = ("harness", "model")
LIBRARY = os.path.dirname(os.path.abspath(os.__file__))  # Python's own
ZIPPED = f"python{sys.version_info[0]}{sys.version_info[1]}.zip"  # stands before it on every path
INSTALLED = ("site-packages", "dist-packages")  # a folder of such a name keeps its place: somebody chose it


class Finder:
    """Finds `harness` and `model` beside this file, before Python looks anywhere else."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The specification of a package of ours; None for any other module."""
        if path is not None or name not in PACKAGES:
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, [ROOT])


def come_first() -> str:
    """Search the user's folders last, and forget modules of other people that have our names.

    Returns:
        One line about a file that this process has already taken for a module of Python's own library; else nothing.
        A working folder that has been deleted is no harm here: trials go on when that happens while they run.
    """
    if not any(finder is Finder for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder)
    passed_on = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    before = sys.path[: _length_before_library()]
    rest = sys.path[len(before) :]
    users = [entry for entry in before if not _is_installed(entry)]
    if users and not sys.flags.safe_path and users[0] == sys.path[0] and users[0] not in passed_on:
        sys.path[:1] = []  # the working folder of `python -m`, or the folder of a script: nobody asked for them
    found = [entry for entry in before if _is_installed(entry) and entry not in rest] + rest
    sys.path[:] = found + [entry for entry in sys.path if entry in users and entry not in found]
    if not any(_absolute(entry) == ROOT for entry in sys.path):
        sys.path.append(ROOT)  # for processes that are given this path and nothing else
    os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in passed_on if _is_installed(entry))
    os.environ["PYTHONSAFEPATH"] = "1"  # processes that this one starts leave the working folder out as well
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in PACKAGES and not _is_ours(module):
            del sys.modules[name]
    return _in_the_way({_absolute(entry) for entry in users})


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError:  # the working folder has been deleted, so that nothing is found by a relative path
        return path


def _length_before_library() -> int:
    for number, entry in enumerate(sys.path):
        if _absolute(entry) == LIBRARY or os.path.basename(entry) == ZIPPED:
            return number
    return 0


def _is_installed(entry: str) -> bool:
    return os.path.basename(entry.rstrip(os.sep)) in INSTALLED


def _is_ours(module: object) -> bool:
    file = getattr(module, "__file__", None) or ""
    return _absolute(file).startswith(tuple(os.path.join(ROOT, name) + os.sep for name in PACKAGES))


def _in_the_way(folders: set[str]) -> str:
    for name in sorted(sys.stdlib_module_names.intersection(sys.modules)):
        file = _absolute(getattr(sys.modules[name], "__file__", None) or os.devnull)
        if {os.path.dirname(file), os.path.dirname(os.path.dirname(file))} & folders:
            return f"{file} is in the way of Python's own module '{name}': rename it, or take its folder off PYTHONPATH"
    return ""


problem = come_first()


def main() -> int:
    """The command `codetr`; returns the exit code."""
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    try:
        os.getcwd()
    except OSError as error:
        print(f"error: the working folder is not there any more ({error.strerror}); cd to one that is", file=sys.stderr)
        return 2
    from harness.__main__ import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
