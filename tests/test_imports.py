"""Imports go one way: harness -> model -> torch, and inside harness down the story. Read from the source, so that
imports inside functions count too; those under TYPE_CHECKING need nothing at run time and do not."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.import_statements import imported

ROOT = Path(__file__).parents[1]
FILES = sorted(path for package in ("harness", "model") for path in (ROOT / package).rglob("*.py"))

# The story, read from the commands down to the leaves: a file or package imports only what stands below it.
STORY = [
    *(
        "__main__",
        "arguments",
        "store_commands",
        "commands",
        "doctor",
        "submit",
        "revisit",
        "choose",
        "compare",
        "decide",
    ),
    *("schedule", "trial", "report", "tracking", "figures", "analyse", "mistakes", "store", "spec", "data", "system"),
    *("config", "files", "errors", "passwords"),
]
ON_TOP = 12  # files of harness/ that lie in no package

MODEL_MAY_IMPORT = {"model", "numpy", "safetensors", "scipy", "torch", "transformers"}

ROOMS = {  # foreign service: the only files that know it
    "ray": tuple(f"harness/schedule/{name}.py" for name in ("on_ray", "cluster", "workers", "actors", "tuner")),
    "mlflow": ("harness/tracking/tracking.py", "harness/tracking/mlflow_runs.py"),
    "pycocotools": ("harness/trial/evaluators.py", "harness/analyse/resample.py", "harness/data/masks.py"),
    "faster_coco_eval": ("harness/trial/evaluators.py",),
    "transformers": ("model/backbones/from_transformers.py",),
    "huggingface_hub": ("harness/spec/hub.py",),
    "onnx": ("harness/revisit/onnx_file.py",),
    "onnxruntime": ("harness/revisit/onnx_file.py",),
    "onnxscript": ("harness/revisit/onnx_file.py",),
    "matplotlib": tuple(path.relative_to(ROOT).as_posix() for path in (ROOT / "harness/figures").glob("*.py")),
}


def step(module: str) -> str:
    """`harness.data.coco` belongs to the step `data`."""
    return module.split(".")[1]


def test_imports_go_one_way():
    assert len(FILES) > 200
    assert not [f"{path.relative_to(ROOT)} {wrong}" for path in FILES for wrong in wrong_imports(path)]


def wrong_imports(path: Path) -> Iterator[str]:
    """What a file imports and may not, each as a sentence about it."""
    name = path.relative_to(ROOT).as_posix()
    modules = set(imported(path))
    tops = {module.split(".")[0] for module in modules}
    for service, files in ROOMS.items():
        if service in tops and name not in files:
            yield f"imports {service}, which is known only to {files}"
    if name.startswith("model/"):
        if foreign := tops - MODEL_MAY_IMPORT - set(sys.stdlib_module_names):
            yield f"imports {sorted(foreign)}, which the model may not"
    elif name != "harness/__init__.py":
        here = step(name.removesuffix(".py").replace("/", "."))
        if here not in STORY:
            yield f"needs a place in STORY for {here}"
            return
        below = set(STORY[STORY.index(here) :])
        if upwards := {module for module in modules if module.startswith("harness.") and step(module) not in below}:
            yield f"imports {sorted(upwards)}, which stand above {here} in the story"


def test_few_files_lie_in_no_package():
    assert len(list((ROOT / "harness").glob("*.py"))) <= ON_TOP


@pytest.mark.parametrize("package", [".", "analyse", "data", "decide", "figures", "mistakes", "report", "revisit"])
def test_a_reading_order_leaves_no_module_out(package):
    """The docstrings of these packages say what each of their modules is for."""
    folder = ROOT / "harness" / package
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    named = {name.removesuffix(".py") for name in re.findall(r"`([\w.]+)`", text)}
    modules = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert not modules - {"__init__"} - named, f"harness/{package}/__init__.py does not name them"


def test_packages_alone_load_nothing_heavy():
    names = ("spec", "schedule", "trial", "system", "store", "tracking")
    code = f"import sys, {', '.join(f'harness.{name}' for name in names)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert not {"torch", "ray", "mlflow", "numpy"} & set(loaded.split())


@pytest.mark.parametrize("package", ["harness", "model"])
def test_files_import_each_other_in_no_circle(package):
    """Inside a folder too; that a module's folder is loaded before it does not count."""
    needs = {}
    for path in (ROOT / package).rglob("*.py"):
        bases = {ROOT.joinpath(*module.split(".")) for module in imported(path) if module.startswith(f"{package}.")}
        files = {base.with_suffix(".py") for base in bases} | {base / "__init__.py" for base in bases}
        needs[path] = {file for file in files if file.exists() and file not in (path, path.parent / "__init__.py")}
    while free := {path for path, others in needs.items() if not others & needs.keys()}:
        needs = {path: others for path, others in needs.items() if path not in free}
    assert not needs, f"a circle is among {sorted(str(path.relative_to(ROOT)) for path in needs)}"


def test_only_the_detector_builds_parts():
    """No part asks for another by name: which parts there are is said in one place."""
    dicts = {f"model.{path.parent.name}" for path in (ROOT / "model").glob("*/__init__.py")}
    asking = set()
    for path in (ROOT / "model").rglob("*.py"):
        names = {module for module in imported(path) if module.rpartition(".")[2].isupper()}
        if {name.rpartition(".")[0] for name in names} & dicts:
            asking.add(path.relative_to(ROOT).as_posix())
    assert asking == {"model/detector.py", "model/config.py"}


def test_no_test_file_is_imported():
    """What several need lies in tests/support/."""
    paths = sorted((ROOT / "tests").rglob("*.py"))
    tests = {path.stem for path in paths if path.stem.startswith("test_")}
    found = {path.name: tests & {part for module in imported(path) for part in module.split(".")} for path in paths}
    wrong = {name: sorted(files) for name, files in found.items() if files}
    assert not wrong, "what both need belongs in a module of tests/support"


def test_reads_imports_wherever_they_are(tmp_path):
    path = tmp_path / "harness" / "data" / "loader.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import ray.tune as tune\n"
        "from ..config import DataConfig\n"
        "if TYPE_CHECKING:\n    import pandas\n"
        "def read():\n    from . import coco\n    import mlflow\n"
    )
    assert set(imported(path, tmp_path)) == {
        *("ray.tune", "mlflow", "harness.config", "harness.config.DataConfig", "harness.data", "harness.data.coco")
    }
