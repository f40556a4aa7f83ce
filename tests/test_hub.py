"""Weights by their name on the Hugging Face Hub. A small hub on this machine answers the library's own client."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import close_session
from safetensors.torch import save

from harness.__main__ import main
from harness.errors import UserError, install_hint
from harness.report import identified
from harness.spec import hub as names
from harness.spec import pretrained
from harness.spec.grid import Grid, Trial, open_grid
from harness.spec.identity import recorded_id
from harness.store.results import RunStore
from harness.trial.trial import run_trial
from model.backbones.configs import ResNetConfig
from tests.support.hub import COMMIT, Hub, served
from tests.support.pretrained import FAST, ONE_ROW, SMALL, sha256, state_of

ROOT = Path(__file__).parents[1]
NAME = "hub:owner/resnet/model.safetensors"
WEIGHTS = save(state_of(FAST))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """One repository with a file of weights, which the library asks, with an empty cache."""
    files = {"owner/resnet/model.safetensors": WEIGHTS, "owner/resnet/readme.md": b"#"}
    with served(Hub(files)) as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        template = f"{found.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        close_session()
        yield found
        close_session()


@pytest.fixture
def store(store: RunStore, without_mlflow: None) -> RunStore:
    return store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "table.yaml"
    path.write_text(ONE_ROW)
    return path


@pytest.fixture
def grid_of(file: Path) -> Callable[..., Grid]:
    def open_named(name: str = NAME, *overrides: str, **options: Any) -> Grid:
        return open_grid(file, "digits_fast", [f"model.backbone.weights={name}", *overrides], **options)

    return open_named


@pytest.fixture
def said(file: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, list[str]]]:
    def run(command: str, name: str, *more: str) -> tuple[int, str, list[str]]:
        capsys.readouterr()
        options = ["--preset", "digits_fast", "--set", f"model.backbone.weights={name}"]
        code = main([command, str(file), *options, *more])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    return run


def one(grid: Grid) -> Trial:
    [trial] = grid.trials
    return trial


def silent(event: dict[str, Any]) -> None: ...


# ---- names


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hub:a/b/c.pth", ("a/b", None, "c.pth", None)),
        ("hub:a/b-1.x@v2/folder/c.bin", ("a/b-1.x", "v2", "folder/c.bin", None)),
        ("hub:a/b@refs/pr/3/c.pth", ("a/b", "refs/pr/3", "c.pth", None)),
        (f"hub:a/b/c.pth#sha256={'AB' * 32}", ("a/b", None, "c.pth", "ab" * 32)),
    ],
)
def test_the_parts_of_a_name(name, parts):
    assert names.is_hub(name) and names.read_name(name) == parts


MALFORMED = [
    *(
        "hub:resnet",
        "hub:owner/resnet",
        "hub:owner/resnet@main",
        "hub:owner/resnet@/f.pth",
        "hub:a/b/../c.pth",
    ),
    *(
        "hub:/a/b/c.pth",
        "hub:a/b//c.pth",
        "hub:a/b/c.pth#sha256=12",
        "hub:a/b/c.pth@main",
        "hub:a b/c/d.pth",
        "HUB:a/b/c.pth",
    ),
]


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_malformed_name_is_told_where_it_was_written(said, name, command):
    code, out, [line] = said(command, name)
    assert code == 2 and not out
    assert line.startswith(f"error: --set model.backbone.weights={name.strip(chr(39))}: ")
    assert "hub:OWNER/NAME/FILE" in line and not line.endswith("; ")


@pytest.mark.parametrize("name", ["hub:a--b/c..d/f.bin", "hub:a-/b/f.bin"])
def test_a_name_that_the_library_refuses_is_told_in_one_line(hub, said, name):
    code, _, [line] = said("run", name, "--executor", "local")
    assert code == 2 and f"{name} names no file on the Hugging Face Hub (" in line


def test_what_is_not_written_as_a_name_is_told_with_how(said):
    for name, told in (
        ("'pip:'", "names no package with weights"),
        ("Pip:a", "pip:DISTRIBUTION"),
        ("'hub:'", "hub:OWNER/NAME/FILE"),
    ):
        code, _, [line] = said("plan", name)
        assert code == 2 and "--set model.backbone.weights=" in line and told in line, line
    for name in ("pip:", "hub:"):  # which YAML takes for a mapping
        code, _, [line] = said("plan", name)
        assert code == 2 and f"model.backbone.weights.{name[:-1]}: " in line


# ---- identity


def test_a_file_of_the_hub_and_its_copy_are_one_trial(hub, grid_of, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(WEIGHTS)
    of_hub, local = one(grid_of()), one(grid_of(str(copy)))
    assert of_hub.trial_id == local.trial_id and of_hub.weights_hash == sha256(copy)
    for other in (f"hub:owner/resnet@{COMMIT}/model.safetensors", f"{NAME}#sha256={sha256(copy)}"):
        assert one(grid_of(other)).trial_id == local.trial_id
    assert of_hub.config.model.backbone.weights == NAME


def test_it_is_fetched_once_and_read_from_the_cache_without_network(hub, grid_of, monkeypatch, capsys):
    first = one(grid_of())
    told = capsys.readouterr()
    assert not told.out and told.err == f"fetching {NAME}, {len(WEIGHTS) / 1e6:.1f} MB, from {hub.url}\n"
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert one(grid_of()).trial_id == first.trial_id
    assert one(grid_of("hub:owner/resnet@main/model.safetensors")).trial_id == first.trial_id
    assert not hub.asked and capsys.readouterr().err == ""


def test_a_long_download_tells_how_far_it_is(hub, monkeypatch, tmp_path):
    hub.files["owner/resnet/large.pth"] = bytes(30_000_000)
    monkeypatch.setattr(names, "INTERVAL_SECONDS", 0.0)
    lines: list[str] = []
    names.local_file("hub:owner/resnet/large.pth", lines.append)
    assert lines[0].endswith(f"30.0 MB, from {hub.url}") and len(lines) > 2
    assert all(line.startswith("fetching hub:owner/resnet/large.pth: ") for line in lines[1:])
    assert lines[1].partition(" of ")[2].startswith("30 MB, about ") and lines[-1].endswith("about 0 s left")


def test_plan_in_a_process_of_its_own(hub, file, tmp_path):
    """The variables of the library count, and neither torch nor, without such a name, the library is loaded."""
    code = (
        "import sys; from harness.__main__ import main; name, loaded = sys.argv[1:]; "
        f"assert main(['plan', {str(file)!r}, '--preset', 'digits_fast', '--set', name]) == 0; "
        "assert ('huggingface_hub' in sys.modules) == (loaded == 'yes'); assert 'torch' not in sys.modules"
    )

    def plan(weights: str, loaded: str, **variables: str) -> str:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), **variables}
        command = [sys.executable, "-c", code, f"model.backbone.weights={weights}", loaded]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert f"fetching {NAME}" in plan(NAME, "yes") and (tmp_path / "home" / "hub").is_dir()
    again = plan(NAME, "yes", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert "fetching" not in again and "1 trial: 1 pending" in again
    plan("null", "no")


def test_a_report_without_the_file_knows_it_by_its_name(hub, grid_of, store, tmp_path):
    trial = one(grid_of(NAME, *SMALL))
    run_trial(trial, store, report=silent)
    shutil.rmtree(tmp_path / "hf")
    hub.files.clear()
    found = one(identified(grid_of(NAME, *SMALL, require_data=False), store))
    assert found.has_id and found.trial_id == trial.trial_id
    other = "hub:owner/other/model.safetensors"  # a file of the same name, which is a common one
    assert not one(identified(grid_of(other, *SMALL, require_data=False), store)).has_id


# ---- a trial


def test_a_trial_starts_from_it_and_its_record_keeps_the_name(hub, grid_of, store):
    trial = one(grid_of(NAME, *SMALL))
    record = run_trial(trial, store, report=silent)
    assert record["status"] == "finished" and recorded_id(record) == trial.trial_id
    assert record["config"]["model"]["backbone"]["weights"] == NAME
    assert record["weights_hash"] == trial.weights_hash


def test_a_worker_elsewhere_fetches_it_itself(hub, grid_of, store, tmp_path):
    trial = one(grid_of(NAME, *SMALL))
    shutil.rmtree(tmp_path / "hf")
    events: list[dict[str, Any]] = []
    assert run_trial(trial, store, report=events.append)["status"] == "finished"
    assert [event["message"] for event in events if f"fetching {NAME}" in str(event.get("message"))]


def test_a_worker_refuses_what_the_revision_has_become(hub, grid_of, store, tmp_path):
    trial = one(grid_of(NAME, *SMALL))
    shutil.rmtree(tmp_path / "hf")
    hub.files["owner/resnet/model.safetensors"] = save(state_of(FAST, seed=1))
    with pytest.raises(UserError, match=r"has changed since trial .* or name a commit \(@HEX\), or run again"):
        run_trial(trial, store, report=silent)
    assert store.status(trial.trial_id) == "failed"


def test_a_preset_may_name_it(hub, tmp_path, grid_of):
    (tmp_path / "own.yaml").write_text(
        (ROOT / "ablations" / "presets" / "digits_fast.yaml").read_text() + f"\nmodel.backbone.weights: {NAME}\n"
    )
    grid = open_grid(tmp_path / "table.yaml", str(tmp_path / "own.yaml"))
    assert one(grid).trial_id == one(grid_of()).trial_id


def test_analyse_reads_a_file_of_weights(hub, capsys, tmp_path, monkeypatch):
    import torch

    from model.detector import Detector

    monkeypatch.chdir(tmp_path)
    overrides = ["model.heads=[]", *SMALL]
    (tmp_path / "table.yaml").write_text(ONE_ROW)
    config = one(open_grid(tmp_path / "table.yaml", "digits_fast", overrides)).config
    torch.manual_seed(0)
    hub.files["owner/codetr/model.safetensors"] = save(Detector(config.model, 10).state_dict())
    options = [word for text in overrides for word in ("--set", text)]
    name = "hub:owner/codetr/model.safetensors"
    assert main(["analyse", name, "--preset", "digits_fast", *options, "--metrics", "evaluation"]) == 0
    assert f"{name}: evaluated on 2 images" in capsys.readouterr().out
    assert main(["analyse", "hub:owner/codetr/other.pth", "--preset", "digits_fast", *options]) == 2
    assert "error: hub:owner/codetr/other.pth is no file of its repository" in capsys.readouterr().err


# ---- what goes wrong

OTHER = "0" * 64
REFUSALS = [
    ("hub:owner/resnet@v9/model.safetensors", {}, ["is of the unknown revision 'v9'", "/owner/resnet shows branches"]),
    ("hub:owner/resnet/modl.safetensors", {}, ["is no file of its repository; did you mean model.safetensors?"]),
    ("hub:owner/nothing/m.pth", {}, ["a repository that does not exist or is private", "correct its name"]),
    ("hub:owner/secret/m.pth", {"owner/secret": (401, "RepoNotFound")}, ["is private", "set HF_TOKEN"]),
    ("hub:owner/secret/m.pth", {"owner/secret": (403, "")}, ["is private", "set HF_TOKEN"]),
    (
        "hub:owner/gated/m.pth",
        {"owner/gated": (403, "GatedRepo")},
        ["accept its licence at", "/owner/gated and set HF_T"],
    ),
    ("hub:owner/down/m.pth", {"owner/down": (503, "")}, ["(HTTP status 503); try again later, or fetch it elsewhere"]),
    (f"{NAME}#sha256={OTHER}", {}, ["has the SHA-256", "instead of 000000000000…, which its name asks for"]),
]


@pytest.mark.parametrize(("name", "refusals", "told"), REFUSALS, ids=range(len(REFUSALS)))
def test_what_cannot_be_had_is_told_in_one_line(hub, said, store, name, refusals, told):
    hub.refusals.update(refusals)
    code, out, err = said("run", name, "--executor", "local")
    *fetching, line = err
    assert code == 2 and not out and not store.trials() and all(own.startswith("fetching ") for own in fetching)
    assert line.startswith(f"error: model.backbone.weights: {name.partition('#')[0]} ")
    assert all(part in line for part in told), line
    code, out, err = said("plan", name)  # as of a file that is not there
    assert code == 0 and err[-1].startswith("note: model.backbone.weights: hub:") and "1 pending" in out


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://nowhere.invalid"])
def test_without_a_network(hub, said, monkeypatch, url):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/{revision}/{filename}")
    code, _, [line] = said("run", NAME)
    assert code == 2 and f"{NAME} is not in the cache and cannot be fetched from {url} (" in line
    assert "or fetch it elsewhere (`hf download`)" in line


def test_where_the_network_is_forbidden(hub, said, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    code, _, [line] = said("run", NAME)
    assert code == 2 and f"{NAME} is not in the cache ({tmp_path / 'hf'}), and HF_HUB_OFFLINE forbids" in line


def test_without_the_package(said, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, _, [line] = said("run", NAME)
    assert code == 2 and f"{NAME} needs the package huggingface_hub: {install_hint('backbones')}" in line


def test_a_server_that_is_no_hub(hub, said):
    hub.commit = ""
    hub.answer = lambda path: (200, "", b"<html>sign in</html>")  # type: ignore[method-assign]
    code, _, [line] = said("run", NAME)
    assert code == 2 and "is no Hugging Face Hub; see to HF_ENDPOINT and your proxy" in line


def test_a_full_disk(hub, said, monkeypatch, tmp_path):
    monkeypatch.setattr(names.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    code, _, [line] = said("run", NAME)
    assert code == 2 and "0 MB that are free); make room there, or set HF_HOME" in line
    assert not (tmp_path / "hf").exists()


def test_a_disk_that_fills_while_it_is_written(hub, said, monkeypatch, tmp_path):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    code, _, [*_, line] = said("run", NAME)
    assert code == 2 and f"cannot be kept in the cache {tmp_path / 'hf'} (No space left on device); make room" in line
    monkeypatch.undo()


def test_a_broken_download_leaves_nothing_that_would_be_taken_for_the_file(hub, grid_of, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library tries again
    hub.sent = 1000
    with pytest.raises(UserError, match=r"cannot be fetched from .* \(peer closed connection"):
        grid_of()
    hub.sent = None
    assert one(grid_of()).has_id


def test_a_file_that_was_cut_short_in_the_cache_is_told(hub, grid_of, said, tmp_path):
    grid_of()
    blob = next((tmp_path / "hf").glob("*/blobs/*"))
    os.truncate(blob, 1000)
    code, _, [line] = said("run", NAME)
    folder = tmp_path / "hf" / "models--owner--resnet"
    assert code == 2 and f"{NAME} is cut short or damaged in the cache; remove {folder} and it is fetched" in line
    shutil.rmtree(folder)
    assert one(grid_of()).has_id


def test_a_file_of_something_else_is_told_by_its_name(hub, said, tmp_path):
    hub.files["owner/resnet/model.safetensors"] = save(state_of(ResNetConfig(depths=(2, 2, 2, 2), block="basic")))
    code, _, [*_, line] = said("run", NAME)
    assert code == 2 and f"model.backbone.weights: {NAME} ({tmp_path / 'hf'}" in line
    assert "looks like a ResNet-18 of torchvision or timm" in line
    hub.files["owner/resnet/page.pth"] = b"<html>not found</html>"
    with pytest.raises(UserError, match=r"^model.backbone.weights: hub:owner/resnet/page.pth \(/.*holds no state dict"):
        pretrained.check_backbones(
            open_grid(
                tmp_path / "table.yaml", "digits_fast", ["model.backbone.weights=hub:owner/resnet/page.pth"]
            ).trials
        )
