"""Pretrained weights: their content is part of a trial, the file is checked before anything starts, and nothing random
stays frozen without somebody's consent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness.__main__ import main
from harness.compare import differences
from harness.errors import UserError
from harness.report import identified
from harness.revisit import trained
from harness.schedule.schedule import check_inputs, run_grid
from harness.spec import pretrained
from harness.spec.grid import Grid, Trial, open_grid
from harness.spec.identity import config_from_dict, config_to_dict, recorded_id, trial_id
from harness.spec.trials import identity_fields
from harness.store.parcel import Refused
from harness.store.results import RunStore
from harness.store.transfer import checked, import_records
from harness.trial import build
from harness.trial.trial import run_trial
from model.backbones.configs import ResNetConfig
from model.backbones.resnet import ResNet
from tests.support.fakes import record as write_record
from tests.support.pretrained import FAST, ONE_ROW, SMALL, sha256, state_of

ROOT = Path(__file__).parents[1]
SHIPPED_WEIGHTS = ROOT / "ablations" / "presets" / "digits_backbone.safetensors"


def silent(event: dict[str, Any]) -> None: ...


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file that fits the backbone of `digits_fast`, with a classifier besides."""
    path = tmp_path / "resnet.pth"
    torch.save({**state_of(), "fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)}, path)
    return path


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
    def open_text(text: str = ONE_ROW, *overrides: str, **options: Any) -> Grid:
        file.write_text(text)
        return open_grid(file, "digits_fast", overrides, **options)

    return open_text


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        return code, *capsys.readouterr()

    return run


def one(grid: Grid) -> Trial:
    [trial] = grid.trials
    return trial


def with_weights(path: object) -> str:
    return f"model.backbone.weights={path}"


def finished(store: RunStore, trial: Trial, **changes: Any) -> dict[str, Any]:
    return write_record(store, trial, "finished", **{**identity_fields(trial), **changes})


# ---- identity


def test_content_counts_and_the_path_does_not(grid_of, weights, tmp_path):
    first = one(grid_of(ONE_ROW, with_weights(weights)))
    assert first.weights_hash == sha256(weights) and first.has_id
    assert first.trial_id == trial_id(first.config, first.fingerprint, sha256(weights))
    copy = Path(shutil.copy(weights, tmp_path / "copy.pt"))
    assert one(grid_of(ONE_ROW, with_weights(copy))).trial_id == first.trial_id
    torch.save(state_of(seed=1), weights)
    second = one(grid_of(ONE_ROW, with_weights(weights)))
    assert second.trial_id != first.trial_id and second.config == first.config
    none = one(grid_of())
    assert none.weights_hash is None and none.trial_id == trial_id(none.config, none.fingerprint) != first.trial_id


def test_rows_with_the_same_content_under_two_paths_share_a_trial(grid_of, weights, tmp_path):
    shutil.copy(weights, tmp_path / "copy.pth")
    other = tmp_path / "other.pth"
    torch.save(state_of(seed=1), other)
    names = f"[{weights}, {tmp_path / 'copy.pth'}, {other}, null]"
    grid = grid_of(f"axes: {{model.backbone.weights: {names}, model.heads: [[]]}}")
    assert len(grid.rows) == 4 and len(grid.trials) == 3
    assert grid.rows[0].trial_ids == grid.rows[1].trial_ids
    assert "resnet.pth" in grid.rows[0].label and "copy.pth" in grid.rows[1].label  # a person sees the path
    assert "resnet.pth" in grid.trials[0].label and sha256(weights)[:12] not in grid.trials[0].label


@pytest.mark.parametrize("how", ["relative", "home", "link"])
def test_a_path_may_be_written_in_any_way_and_is_absolute_for_workers(grid_of, weights, how, monkeypatch):
    expected = one(grid_of(ONE_ROW, with_weights(weights)))
    monkeypatch.chdir(weights.parent)
    monkeypatch.setenv("HOME", str(weights.parent))
    Path("link.pth").symlink_to(weights)
    written = {"relative": "resnet.pth", "home": "~/resnet.pth", "link": "link.pth"}[how]
    trial = one(grid_of(ONE_ROW, with_weights(written)))
    assert trial.trial_id == expected.trial_id
    assert trial.config.model.backbone.weights == str(weights.parent / Path(written).name)


def test_id_and_import_follow_from_the_record_alone(grid_of, weights, store, tmp_path):
    trial = one(grid_of(ONE_ROW, with_weights(weights)))
    record = finished(store, trial)
    weights.unlink()
    assert record["weights_hash"] == trial.weights_hash and recorded_id(record) == trial.trial_id
    elsewhere = RunStore(tmp_path / "elsewhere")
    assert import_records(elsewhere, store.root).taken == [trial.trial_id]
    assert (elsewhere.read(trial.trial_id) or {})["weights_hash"] == trial.weights_hash


@pytest.mark.parametrize("changed", [None, "", "0" * 64, "resnet.pth", 5, "A" * 64])
def test_a_record_whose_hash_was_changed_is_not_taken(grid_of, weights, store, changed):
    trial = one(grid_of(ONE_ROW, with_weights(weights)))
    record = {**finished(store, trial), "weights_hash": changed}
    with pytest.raises(Refused):
        checked(trial.trial_id, {"result.json": json.dumps(record).encode()})


def test_records_of_before_the_hashes_keep_the_id_that_was_made_from_the_path(grid_of, weights, store):
    new = one(grid_of(ONE_ROW, with_weights(weights)))
    old = replace(new, trial_id=trial_id(new.config, new.fingerprint), weights_hash=None)
    record = finished(store, old)
    del record["weights_hash"]
    assert recorded_id(record) == old.trial_id != new.trial_id
    assert checked(old.trial_id, {"result.json": json.dumps(record).encode()}) == record
    moved = {**record, "config": json.loads(json.dumps(record["config"]).replace("resnet.pth", "moved.pth"))}
    with pytest.raises(Refused, match="was changed"):  # the path was all that it knew
        checked(old.trial_id, {"result.json": json.dumps(moved).encode()})


def test_a_file_is_hashed_once_and_again_when_it_changed_in_any_way(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))
    count = 0
    real = hashlib.file_digest

    def counting(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        return real(*arguments)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    first = pretrained.content_hash(str(weights))
    assert pretrained.content_hash(str(weights)) == first == sha256(weights) and count == 1
    other = tmp_path / "other.pth"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    times = weights.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(other, weights)  # the same size and modification time: two files out of one archive
    assert pretrained.content_hash(str(weights)) == sha256(weights) != first and count == 2
    for torn in (tmp_path / "cache" / "hashes").iterdir():
        torn.write_text("torn")
    assert pretrained.content_hash(str(weights)) == sha256(weights)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("no folder")  # costs time, nothing else
    assert pretrained.content_hash(str(weights)) == sha256(weights)


def test_plan_hashes_without_loading_torch(file, weights, tmp_path):
    code = (
        "import sys; from harness.__main__ import main; "
        f"assert main(['plan', {str(file)!r}, '--preset', 'digits_fast', '--set', {with_weights(weights)!r}]) == 0; "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- a file that is not there


@pytest.fixture
def spoilt(tmp_path: Path) -> Callable[[str], Path]:
    """A path from which nothing can be read."""

    def make(kind: str) -> Path:
        path = tmp_path / "spoilt.pth"
        if kind == "folder":
            path.mkdir()
        elif kind == "dangling link":
            path.symlink_to(tmp_path / "away.pth")
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "below a file":
            path.write_text("")
            path /= "resnet.pth"
        return path

    return make


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("missing", "does not exist"),
        ("folder", "is a folder; name the file in it"),
        ("dangling link", "does not exist (a link that leads nowhere)"),
        ("pipe", "is no ordinary file"),
        ("below a file", "does not exist"),
    ],
)
def test_without_the_file_plan_has_no_id_and_run_refuses(store, file, spoilt, said, kind, why):
    path = spoilt(kind)
    options = [file, "--preset", "digits_fast", "--set", with_weights(path)]
    code, out, err = said("plan", *options)
    assert code == 0 and f"note: model.backbone.weights: {path} {why}" in err and "once the file is there" in err
    [line] = [line for line in out.splitlines() if "pending" in line and "trial" not in line]
    assert line.split()[0] == "-"
    code, out, err = said("run", *options, "--executor", "local")
    assert code == 2 and not out
    [line] = err.splitlines()
    assert f"model.backbone.weights: {path} {why}" in line and "name a state dict of this backbone" in line
    code, out, _ = said("plan", *options, "--only", "seed=0")  # rows and factors are known all the same
    assert code == 0 and "1 trial: 1 pending" in out


def test_a_file_that_cannot_be_read_is_told_with_the_reason(grid_of, weights, monkeypatch):
    def fails(*_: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", fails)
    grid = grid_of(ONE_ROW, with_weights(weights), require_data=False)
    assert not one(grid).has_id and "cannot be read (Input/output error)" in grid.notes[0]
    with pytest.raises(UserError, match="Input/output error"):
        grid_of(ONE_ROW, with_weights(weights))


def test_rows_whose_files_are_missing_stay_apart(grid_of, tmp_path):
    text = f"axes: {{model.backbone.weights: [{tmp_path}/a.pth, {tmp_path}/b.pth], model.heads: [[]]}}"
    grid = grid_of(text, require_data=False)
    assert len(grid.trials) == 2 and len(grid.notes) == 2
    # nor is such an id that of a record of before the hashes
    assert {t.trial_id for t in grid.trials}.isdisjoint(trial_id(t.config, t.fingerprint) for t in grid.trials)


@pytest.mark.parametrize("command", ["status", "export", "retry"])
def test_commands_about_the_store_know_no_trial_without_its_file(
    store, file, grid_of, weights, said, command, tmp_path
):
    trial = one(grid_of(ONE_ROW, with_weights(weights)))
    finished(store, trial)
    weights.unlink()
    options = [command, file, "--preset", "digits_fast", "--set", with_weights(weights)]
    code, out, err = said(*options, *(["--out", tmp_path / "out"] if command == "export" else []))
    assert trial.trial_id not in out and "Traceback" not in err
    assert code == (2 if command == "export" else 0)


@pytest.mark.parametrize("text", ["''", "' '"])
def test_no_name_is_a_mistake(grid_of, text):
    with pytest.raises(UserError, match="weights must name a file"):
        grid_of(ONE_ROW, with_weights(text))


def test_a_home_that_nobody_has_is_told(grid_of):
    with pytest.raises(UserError, match="nosuchuser"):
        grid_of(ONE_ROW, with_weights("~nosuchuser/resnet.pth"))


# ---- reports without the file


def test_a_report_finds_the_records_by_the_file_s_name(grid_of, weights, store, tmp_path):
    trial = one(grid_of(ONE_ROW, with_weights(weights)))
    finished(store, trial)
    elsewhere = with_weights("/on/another/machine/resnet.pth")
    found = one(identified(grid_of(ONE_ROW, elsewhere, require_data=False), store))
    assert found.trial_id == trial.trial_id and found.weights_hash == trial.weights_hash and found.has_id
    assert not one(identified(grid_of(ONE_ROW, with_weights("/other.pth"), require_data=False), store)).has_id
    torch.save(state_of(seed=1), weights)
    finished(store, one(grid_of(ONE_ROW, with_weights(weights))))
    with pytest.raises(UserError, match=r"records of several files resnet\.pth fit"):
        identified(grid_of(ONE_ROW, elsewhere, require_data=False), store)


def test_a_report_takes_no_record_that_does_not_know_the_content(grid_of, weights, store):
    trial = one(grid_of(ONE_ROW, with_weights(weights)))
    finished(store, replace(trial, trial_id=trial_id(trial.config, trial.fingerprint)), weights_hash=None)
    weights.unlink()
    assert not one(identified(grid_of(ONE_ROW, with_weights(weights), require_data=False), store)).has_id


def test_differences_name_path_and_hash(grid_of, weights, store, tmp_path):
    first = finished(store, one(grid_of(ONE_ROW, with_weights(weights))))
    torch.save(state_of(seed=1), tmp_path / "other.pth")
    second = finished(store, one(grid_of(ONE_ROW, with_weights(tmp_path / "other.pth"))))
    told = {what: values for what, *values in differences(first, second)}
    assert told["model.backbone.weights"] == [str(weights), str(tmp_path / "other.pth")]
    assert told["weights_hash"] == [sha256(weights), sha256(tmp_path / "other.pth")]


def test_a_record_of_before_a_setting_does_not_differ_in_its_default(grid_of, store):
    new = finished(store, one(grid_of()))
    old = json.loads(json.dumps(new))
    del old["config"]["model"]["backbone"]["random_frozen"]
    assert differences(old, new) == []


# ---- searches


def search(ranges: str) -> str:
    return f"base: {{model.heads: []}}\nsearch: {{space: {{{ranges}}}, num_trials: 3, metric: AP}}"


def test_a_search_knows_files_by_their_content(grid_of, weights, tmp_path):
    shutil.copy(weights, tmp_path / "copy.pth")
    grid = grid_of(search(f"model.backbone.weights: {{choice: [{weights}, {tmp_path / 'copy.pth'}]}}"))
    assert one(grid).weights_hash == sha256(weights) and "holds only 1 trials" in grid.notes[0]


def test_what_a_search_suggests_starts_from_the_file_that_the_driver_saw(grid_of, weights, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    grid = grid_of(search("model.backbone.weights: {choice: [resnet.pth, null]}"))
    before, _ = grid.search.make({"model.backbone.weights": "resnet.pth"})
    (tmp_path / "worker").mkdir()
    monkeypatch.chdir(tmp_path / "worker")
    torch.save(state_of(seed=1), weights)
    after, _ = grid.search.make({"model.backbone.weights": "resnet.pth"})
    assert after == before and before.config.model.backbone.weights == str(weights)
    with pytest.raises(UserError, match="has changed since trial"):
        pretrained.check_start(after)


def test_a_search_without_its_file_is_planned_and_not_run(grid_of, file, said, store, tmp_path):
    file.write_text(search(f"model.backbone.weights: {{choice: [{tmp_path}/a.pth, null]}}"))
    code, out, err = said("plan", file, "--preset", "digits_fast")
    assert code == 0 and "a.pth does not exist" in err and any(line.split()[:1] == ["-"] for line in out.splitlines())
    assert said("run", file, "--preset", "digits_fast", "--executor", "local")[0] == 2


# ---- what is in the file


def without(names: int) -> dict[str, torch.Tensor]:
    return dict(list(state_of().items())[names:])


def below(prefix: str, state: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in (state or state_of()).items()}


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (without(5), ["lacks conv1.weight, bn1.weight, bn1.bias and 2 more, 5 of "]),
        (without(1), ["lacks conv1.weight, 1 of "]),
        (state_of(replace(FAST, width=24)), ["has another shape for conv1.weight (24x3x3x3 instead of 16x3x3x3)"]),
        (state_of(replace(FAST, depths=(1, 1, 2, 1))), ["has besides layer3.1.conv1.weight"]),
        (state_of(replace(FAST, norm="batch")), ["has besides bn1.running_mean", "files of torchvision suit"]),
        (below("module.", without(1)), ["lacks conv1.weight, bn1.weight", "whose names begin with 'module.' there"]),
        (below("student.") | below("teacher."), ["lacks conv1.weight", "whose names begin with 'student.' there"]),
        (state_of(replace(FAST, depths=(2, 2, 2, 2))), ["looks like a ResNet-18 of torchvision or timm; expected"]),
        ({"patch_embed.proj.weight": torch.zeros(96, 3, 4, 4)}, ["looks like a vision transformer (ViT)"]),
        ({**state_of(), "bn1.weight": torch.full((16,), torch.nan)}, ["has no finite numbers in bn1.weight"]),
        (
            {**state_of(), "bn1.weight": torch.ones(16, dtype=torch.int64)},
            ["has other numbers than floating-point ones of 16 to 64 bits in bn1.weight (int64)"],
        ),
        (
            {**state_of(), "bn1.weight": torch.ones(16).to(torch.float8_e4m3fn)},
            ["floating-point ones of 16 to 64 bits in bn1.weight (float8_e4m3fn)"],
        ),
        (
            {**without(2), "bn1.bias": torch.ones(9)},
            ["lacks conv1.weight, bn1.weight, 2 of ", "bn1.bias (9 instead of 16)"],
        ),
    ],
)
def test_a_misfit_is_told_in_one_line_before_anything_starts(store, file, said, tmp_path, state, told):
    torch.save(state, tmp_path / "resnet.pth")
    options = ["--preset", "digits_fast", "--set", with_weights(tmp_path / "resnet.pth")]
    code, _, err = said("run", file, *options)  # on Ray, which is not started
    [line] = [line for line in err.splitlines() if "model.backbone.weights" in line]
    assert code == 2 and "Traceback" not in err and not store.trials()
    assert all(part in line for part in told), line
    assert "expected are the names and shapes of torchvision's ResNet with basic blocks, depths [1, 1, 1, 1]" in line


def save_odd(kind: str, path: Path) -> None:
    """Write a file that holds no weights."""
    state = state_of()
    if kind in ("torch", "legacy"):
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch")
    elif kind == "safetensors":
        save_file(state, path)
    elif kind == "changed":
        torch.save(state, path)
        with zipfile.ZipFile(path) as archive:
            part = next(info for info in archive.infolist() if "/data/" in info.filename)
        content = bytearray(path.read_bytes())
        content[part.header_offset + 200] ^= 1
        path.write_bytes(content)
    elif kind == "list":
        torch.save([torch.zeros(1)], path)
    elif kind == "numbers":
        torch.save({"conv1.weight": 1.0}, path)
    elif kind == "nothing":
        torch.save({}, path)
    elif kind == "module":
        torch.save(torch.nn.Linear(2, 2), path)
    else:
        path.write_bytes({"empty": b"", "page": b"<html>not found</html>", "lfs": pointer()}[kind])


def pointer() -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["torch", "legacy", "safetensors"])
def test_a_file_that_is_cut_short_says_so(grid_of, tmp_path, kind, share):
    path = tmp_path / "resnet.pth"
    save_odd(kind, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "is cut short or damaged" in misfit(grid_of, path)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("empty", "it is empty"),
        ("page", "holds no state dict"),
        ("lfs", "git lfs pull"),
        ("list", "holds no state dict"),
        ("numbers", "holds no state dict"),
        ("nothing", "holds no state dict"),
        ("module", "Python objects besides tensors"),
        ("changed", "is cut short or damaged"),
    ],
)
def test_a_file_of_something_else_says_so(grid_of, tmp_path, kind, told):
    save_odd(kind, tmp_path / "resnet.pth")
    assert told in misfit(grid_of, tmp_path / "resnet.pth")


def misfit(grid_of: Callable[..., Grid], path: Path) -> str:
    with pytest.raises(UserError) as caught:
        pretrained.check_backbones(grid_of(ONE_ROW, with_weights(path)).trials)
    [line] = str(caught.value).splitlines()
    assert line.startswith(f"model.backbone.weights: {path} ") and "\x1b" not in line and len(line) < 500
    return line


@pytest.mark.parametrize("name", ["resnet.pth", "resnet.safetensors", "resnet"])
@pytest.mark.parametrize("kind", ["torch", "legacy", "safetensors", "wrapped"])
def test_a_file_fits_whatever_its_form_and_suffix(grid_of, tmp_path, kind, name):
    config = replace(FAST, norm="frozen_batch")
    state = {**state_of(config), "fc.weight": torch.zeros(3, 64), "bn1.num_batches_tracked": torch.tensor(7)}
    path = tmp_path / name
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "wrapped":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch")
    trial = one(grid_of(ONE_ROW, with_weights(path), "model.backbone.norm=frozen_batch"))
    pretrained.check_backbones([trial])
    loaded = ResNet(trial.config.model.backbone).state_dict()
    assert torch.equal(loaded["layer3.0.conv2.weight"], state["layer3.0.conv2.weight"])


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "model.backbone.", "backbone.0.body."])
def test_a_backbone_within_a_detector_is_taken(tmp_path, prefix):
    state = below(prefix) | {"neck.convs.0.weight": torch.zeros(3), f"{prefix}fc.weight": torch.zeros(3)}
    torch.save({"state_dict": state}, tmp_path / "detector.pth")
    loaded = ResNet(replace(FAST, weights=str(tmp_path / "detector.pth"))).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state_of().items())


RESNETS = [("bottleneck", [2, 1, 3, 1], [32, 64, 128, 256]), ("basic", [1, 2, 1, 1], [8, 16, 32, 64])]


@pytest.fixture
def in_transformers(tmp_path: Path) -> Callable[..., torch.nn.Module]:
    """Writes `model.safetensors` and `config.json` of a small ResNet, with its classifier, as transformers does."""
    import transformers

    def make(block: str, depths: list[int], sizes: list[int], **settings: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=sizes, depths=depths, layer_type=block, **settings
        )
        model = transformers.ResNetForImageClassification(config).eval()
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + (0.5 if name.endswith("var") else -0.5))
        model.save_pretrained(tmp_path)
        return model.resnet

    return make


@pytest.mark.parametrize(("block", "depths", "sizes"), RESNETS, ids=["bottleneck", "basic"])
def test_a_resnet_of_transformers_computes_the_same_here(in_transformers, tmp_path, block, depths, sizes):
    theirs = in_transformers(block, depths, sizes)
    path = str(tmp_path / "model.safetensors")
    ours = ResNet(ResNetConfig(block=block, depths=tuple(depths), width=8, stages=(1, 2, 3, 4), weights=path))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = theirs(images, output_hidden_states=True).hidden_states[1:]
        for mine, own in zip(ours.eval()(images, lambda stride: None), expected, strict=True):
            assert own.abs().max() > 0.1
            torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "settings", [{"downsample_in_bottleneck": True}, {"downsample_in_first_stage": True}, {"hidden_act": "gelu"}]
)
def test_a_resnet_of_transformers_that_computes_something_else_is_refused(in_transformers, tmp_path, settings):
    block, depths, sizes = RESNETS[0]
    in_transformers(block, depths, sizes, **settings)
    [key] = settings
    with pytest.raises(ValueError, match=f"config.json says {key}: .*, which the ResNet here does not compute") as told:
        ResNet(ResNetConfig(depths=tuple(depths), width=8, weights=str(tmp_path / "model.safetensors")))
    assert len(str(told.value).splitlines()) == 1


def test_every_file_of_a_grid_is_told_at_once(grid_of, weights, tmp_path):
    (tmp_path / "a.pth").write_bytes(b"")
    (tmp_path / "b.pth").write_bytes(b"<html>")
    names = f"[{tmp_path}/a.pth, {weights}, {tmp_path}/b.pth]"
    with pytest.raises(UserError) as caught:
        check_inputs(grid_of(f"axes: {{model.backbone.weights: {names}, model.heads: [[]]}}").trials, print)
    assert [line.split()[1] for line in str(caught.value).splitlines()] == [f"{tmp_path}/a.pth", f"{tmp_path}/b.pth"]


def test_weights_and_data_are_told_together(grid_of, tmp_path):
    from tests.support.folders import write_folder

    folder = write_folder(tmp_path / "coco")
    (tmp_path / "resnet.pth").write_bytes(b"")
    trials = grid_of(ONE_ROW, with_weights(tmp_path / "resnet.pth"), data=str(folder)).trials
    next((folder / "train").iterdir()).unlink()
    with pytest.raises(UserError) as caught:
        check_inputs(trials, lambda line: None)
    text = str(caught.value)
    assert text.startswith("model.backbone.weights: ") and "it is empty" in text and "is missing in" in text


# ---- a trial that starts


def test_a_trial_starts_from_its_weights_and_its_detector_needs_them_no_more(grid_of, weights, store):
    settings = (*SMALL, with_weights(weights), "train.learning_rate=1e-12", "train.backbone_lr_factor=0.0")
    trial = one(grid_of(ONE_ROW, *settings))
    record = run_trial(trial, store, report=silent)
    assert recorded_id(record) == trial.trial_id and record["weights_hash"] == sha256(weights)
    expected = state_of()["layer3.0.conv2.weight"]
    weights.unlink()
    detector = trained.build(trained.read_trial(store, trial.trial_id), torch.device("cpu")).detector
    assert torch.allclose(detector.backbone.state_dict()["layer3.0.conv2.weight"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: torch.save(state_of(seed=1), path), "has changed since trial"),
        (lambda path: path.unlink(), "does not exist"),
    ],
    ids=["changed", "gone"],
)
def test_a_trial_refuses_another_file_than_its_id_names(grid_of, weights, store, change, told):
    grid = grid_of(ONE_ROW, *SMALL, with_weights(weights))
    change(weights)
    lines: list[str] = []
    run_grid(grid, store, executor="local", run_trial=run_trial, check_data=lambda *_: None, out=lines.append)
    record = store.read(one(grid).trial_id) or {}
    assert record["status"] == "failed" and told in record["error"] and str(weights) in record["error"]
    assert recorded_id({**record, "config": config_to_dict(one(grid).config)}) == one(grid).trial_id


def test_a_file_that_is_replaced_while_the_trial_begins_is_not_trained_from(grid_of, weights, store, monkeypatch):
    """Between the look at the file and the detector lies the reading of the data, which may take minutes."""
    trial = one(grid_of(ONE_ROW, *SMALL, with_weights(weights)))
    opened = build.open_splits

    def slowly(*arguments: Any, **options: Any) -> Any:
        torch.save(state_of(seed=1), weights)
        return opened(*arguments, **options)

    monkeypatch.setattr(build, "open_splits", slowly)
    with pytest.raises(UserError, match="has changed since trial"):
        run_trial(trial, store, report=silent)
    assert store.status(trial.trial_id) == "failed"


def elsewhere(trial: Trial, name: str) -> Trial:
    """The trial as a driver plans it whose checkout is not on this machine."""
    backbone = replace(trial.config.model.backbone, weights=f"/a/checkout/ablations/presets/{name}")
    return replace(trial, config=replace(trial.config, model=replace(trial.config.model, backbone=backbone)))


def test_a_worker_has_the_shipped_file_where_its_own_code_lies(file, store):
    """A node without the driver's folder runs the packages that are installed there."""
    trial = one(open_grid(file, "digits", ["train.min_steps=1", *SMALL]))
    record = run_trial(elsewhere(trial, SHIPPED_WEIGHTS.name), store, report=silent)
    assert record["status"] == "finished" and recorded_id(record) == trial.trial_id
    assert record["weights_hash"] == sha256(SHIPPED_WEIGHTS)


@pytest.mark.parametrize(
    ("name", "changes"), [("other.safetensors", {}), (None, {"weights_hash": "0" * 64})], ids=["name", "content"]
)
def test_no_other_file_is_taken_for_it(file, store, name, changes):
    trial = one(open_grid(file, "digits", ["train.min_steps=1", *SMALL]))
    away = replace(elsewhere(trial, name or SHIPPED_WEIGHTS.name), **changes)
    with pytest.raises(UserError, match=f"/a/checkout/ablations/presets/{name or SHIPPED_WEIGHTS.name} does not exist"):
        run_trial(away, store, report=silent)


# ---- random and frozen


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"frozen_stages": -1, "norm": "group"}, ""),
        ({"frozen_stages": -1, "norm": "batch"}, ""),
        ({"frozen_stages": 0, "norm": "batch"}, "the stem"),
        ({"frozen_stages": 1, "norm": "group"}, "the stem and 1 stage"),
        ({"frozen_stages": 4, "norm": "batch"}, "the stem and 4 stages"),
        ({"frozen_stages": -1, "norm": "frozen_batch"}, "every norm"),  # the identity, for ever
        ({"frozen_stages": 1, "norm": "frozen_batch"}, "the stem and 1 stage, every norm"),
        ({"frozen_stages": 4, "norm": "frozen_batch", "weights": "resnet.pth"}, ""),
    ],
)
def test_what_stays_as_it_was_drawn(changes, parts):
    assert ResNetConfig(**changes).frozen_at_random == parts


FROZEN = "model.backbone.frozen_stages=1"
CONSENT = "model.backbone.random_frozen=true"


def test_plan_notes_what_run_refuses_and_consent_lets_pass(store, file, said):
    options = [file, "--preset", "digits_fast", "--set", FROZEN]
    code, out, err = said("plan", *options)
    line = "1 trial would freeze random weights (the stem and 1 stage): give model.backbone.weights=FILE, or"
    assert code == 0 and f"note: model.backbone: {line}" in err and "pending" in out
    code, _, err = said("run", *options)
    assert code == 2 and err.count(line) == 1 and "model.backbone.random_frozen: true" in err and not store.trials()
    assert "random" not in said("plan", *options, "--set", CONSENT)[2]
    grid = open_grid(file, "digits_fast", [FROZEN, CONSENT])
    pretrained.check_backbones(grid.trials)
    finished(store, one(open_grid(file, "digits_fast", [FROZEN])))
    assert "random" not in said("plan", *options)[2]  # it does not start again


def test_a_trial_of_that_kind_does_not_start_by_itself_either(grid_of, store):
    trial = one(grid_of(ONE_ROW, *SMALL, FROZEN))
    with pytest.raises(UserError, match="would freeze random weights"):
        run_trial(trial, store, report=silent)
    assert store.status(trial.trial_id) == "failed"
    willing = one(grid_of(ONE_ROW, *SMALL, FROZEN, CONSENT))
    assert run_trial(willing, store, report=silent)["status"] == "finished"


@pytest.mark.parametrize("preset", ["coco_r50_12e", "coco_r50_36e", "digits", "digits_fast"])
def test_which_presets_need_weights(preset, tmp_path):
    file = ROOT / "ablations" / "table09_components.yaml"
    line = pretrained.frozen_at_random(open_grid(file, preset, require_data=False).trials)
    assert bool(line) == preset.startswith("coco")
    assert not preset.startswith("coco") or "5 trials would freeze random weights (the stem and 1 stage, every" in line


def test_consent_counts_only_where_there_is_something_to_allow(grid_of, weights):
    for other in ([], [with_weights(weights), FROZEN]):
        ids = {one(grid_of(ONE_ROW, *other, *consent)).trial_id for consent in ([], [CONSENT])}
        assert len(ids) == 1
    plain = one(grid_of(ONE_ROW, FROZEN))
    record = config_to_dict(plain.config)
    del record["model"]["backbone"]["random_frozen"]  # as before there was this setting
    assert trial_id(config_from_dict(record), plain.fingerprint) == plain.trial_id
    assert one(grid_of(ONE_ROW, FROZEN, CONSENT)).trial_id != plain.trial_id


def test_a_search_that_could_come_to_it_is_refused_before_it_begins(grid_of, store):
    text = search("model.backbone.frozen_stages: {integer: [-1, 2]}").replace("num_trials: 3", "num_trials: 30")
    grid = grid_of(text.replace("metric", "algorithm: optuna, metric"))
    with pytest.raises(UserError, match="would freeze random weights"):
        run_grid(grid, store, out=[].append)
    assert not store.trials()
