"""The package brings what it imports, at the versions it was tested with, and the README says only what exists."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from harness.__main__ import build_parser
from harness.errors import install_hint
from harness.spec.grid import open_grid
from model.backbones.from_transformers import INSTALL

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
OPERATING = (ROOT / "docs" / "operating.md").read_text()
PAGES = [
    *(ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "docs/mini-paper/first/README.md"),
    *(
        ROOT / "docs/mini-paper/README.md",
        ROOT / "ablations/README.md",
        ROOT / "benchmarks/results.md",
        ROOT / "deploy/README.md",
    ),
]

REQUIRED = [Requirement(line) for line in PROJECT["dependencies"]]
OPTIONAL = {extra: [Requirement(line) for line in lines] for extra, lines in PROJECT["optional-dependencies"].items()}
PINNED = {
    canonicalize_name(pin.name): pin
    for pin in map(Requirement, re.findall(r"^[^#\s].*", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
}


PINNED_BY_TORCH = {"nvidia-cuda-nvrtc"}  # in its CUDA builds; a second opinion would make them uninstallable


def pinned_version(name: str) -> str:
    (specifier,) = PINNED[canonicalize_name(name)].specifier
    assert specifier.operator == "==", f"{name} is not pinned to one version"
    return specifier.version


def test_extras_are_installed_in_one_way_at_the_pinned_versions():
    """Messages take `harness.errors.install_hint`; the pages say the same."""
    folders = ("harness", "model", "benchmarks", "docs", "deploy", "ablations")
    files = [path for folder in folders for end in ("*.py", "*.md", "*.yaml") for path in (ROOT / folder).rglob(end)]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *files]}
    assert not [name for name, text in texts.items() if f"{PROJECT['name']}[" in text]
    assert install_hint("backbones") == INSTALL
    named = {extra for text in texts.values() for extra in re.findall(r"-e ['\"]\.\[(\w+)\]", text)}
    assert named and named <= set(OPTIONAL)


def test_constraints_pin_every_direct_dependency_within_its_range():
    named = REQUIRED + [requirement for extra in OPTIONAL.values() for requirement in extra]
    direct = [requirement for requirement in named if requirement.name not in PINNED_BY_TORCH]
    assert {canonicalize_name(requirement.name) for requirement in direct} == set(PINNED)
    for requirement in direct:
        assert pinned_version(requirement.name) in requirement.specifier, f"constraints.txt: {requirement.name}"


@pytest.mark.parametrize("requirement", REQUIRED + OPTIONAL["dev"], ids=lambda requirement: requirement.name)
def test_installed_versions_are_the_pinned_ones(requirement):
    try:
        installed = Version(version(requirement.name))
    except PackageNotFoundError:
        pytest.fail(f"{requirement.name} is not installed; run: make test")
    if requirement.name in PINNED_BY_TORCH:
        assert installed in requirement.specifier
        return
    assert installed.public == pinned_version(requirement.name), "run: pip install -c constraints.txt -e '.[dev]'"


def test_every_import_is_a_declared_dependency():
    declared = {
        canonicalize_name(requirement.name) for requirement in REQUIRED + OPTIONAL["backbones"] + OPTIONAL["onnx"]
    }
    brought_by = packages_distributions()
    own = {"codetr_harness", "harness", "model"} | set(sys.stdlib_module_names)
    for path in [*(ROOT / "harness").rglob("*.py"), *(ROOT / "model").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for top in {name.split(".")[0] for name in names} - own:
                distributions = {canonicalize_name(name) for name in brought_by.get(top, [top])}
                assert distributions & declared, f"{path.relative_to(ROOT)} imports {top}: not in pyproject.toml"


def test_every_data_file_of_a_package_is_installed():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    installed = {
        path
        for package, names in patterns.items()
        for n in names
        for path in (ROOT / package.replace(".", "/")).glob(n)
    }
    for package in ("harness", "model", "ablations", "csrc"):
        for path in (ROOT / package).rglob("*.*"):
            if path.suffix not in (".py", ".pyc"):
                assert path in installed, f"pyproject.toml's package-data lacks {path.relative_to(ROOT)}"


def commands() -> list[list[str]]:
    """Lines of the pages' console blocks that start with `$ `, as words."""
    blocks = re.findall(r"^```console\n(.*?)^```", README + OPERATING, re.MULTILINE | re.DOTALL)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [shlex.split(line) for line in dict.fromkeys(lines)]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_understood(words):
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {words[1]}"
        return
    if "harness" in words:  # python -m harness, perhaps after ray job submit
        words = ["codetr", *words[words.index("harness") + 1 :]]
    if words[0] == "codetr":
        args = build_parser().parse_args(words[1:])
        if words[1] == "submit":
            args = build_parser().parse_args(["run", *args.run])
        for file in getattr(args, "files", []):
            grid = open_grid(ROOT / file, args.preset or "digits", args.overrides, require_data=False)
            assert grid.trials
    else:
        assert words[0] in {"export", "pip", "ray", "source"}, f"nothing checks `{words[0]}`"


def test_every_command_is_explained():
    (table,) = re.findall(r"^\| command \|.*?\n\n", OPERATING, re.MULTILINE | re.DOTALL)
    names = set(re.findall(r"`([\w-]+)`", " ".join(line.split("|")[1] for line in table.splitlines() if line)))
    assert names == set(subcommands())


def subcommands() -> list[str]:
    (action,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return list(action.choices)


def test_readme_example_of_an_ablation_file_is_valid(tmp_path):
    (example,) = re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.yaml").write_text(example)
    grid = open_grid(tmp_path / "mine.yaml", "digits", [], require_data=False)
    assert len(grid.rows) == example.count("- label:")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for path, heading in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not heading or heading in headings(target), f"{path}#{heading}"


def headings(page: Path) -> set[str]:
    """A page's headings as links name them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


# what docs/add-a-head.md and docs/add-a-part.md write
WRITTEN_FROM_NOTHING = ("center_point", "backbones/plain", "groups/jittered", "assign/aligned", "own_parts")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_name_files_that_exist(page):
    for path in re.findall(r"\b(?:ablations|harness|model|tests)/[\w./]*\w\.(?:py|yaml|md)\b", page.read_text()):
        if "my_" not in path and not any(name in path for name in WRITTEN_FROM_NOTHING):
            assert (ROOT / path).exists(), path


def test_readme_links_to_every_page():
    for page in PAGES[1:]:
        assert f"]({page.relative_to(ROOT).as_posix()})" in README, f"README.md does not link to {page.name}"


def test_readme_tree_is_the_repository():
    """Each path of the annotated tree exists, and each package stands in it."""
    tree = re.search(r"^```text\n(codetr.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert tree, "README.md has no annotated tree"
    paths = tree_paths(tree[1])
    for path in paths:
        assert (ROOT / path).exists(), f"README.md's tree names {path}"
    for module in [*ROOT.glob("harness/*/*.py"), *ROOT.glob("model/*/*.py")]:
        package = f"{module.parent.relative_to(ROOT).as_posix()}/"
        assert package in paths, f"README.md's tree lacks {package}"


def tree_paths(tree: str) -> list[str]:
    """Paths of an annotated tree: two spaces a level, names up to two spaces or the line's end."""
    paths, folders = [], []
    for line in tree.splitlines()[1:]:
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        names = re.split(r"\s{2,}", line.strip())[0].split()
        parent = "".join(folders[:depth])
        paths += [parent + name for name in names]
        if names[0].endswith("/"):
            folders[depth:] = [names[0]]
    return paths
