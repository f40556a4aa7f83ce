"""`codetr export-model`: onnxruntime gives what torch gives, whatever the size and number of images.

The reference is `Detector.detect` on a padded batch with its masks. A graph for any size takes torch's tracer half a
minute of a detector however small: with `-m slow`. Without, the command writes a graph of a few operators, and what
would be traced is compared as it stands.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from harness.__main__ import main
from harness.errors import UserError
from harness.revisit import onnx_file
from harness.store.results import RunStore
from harness.system.precision import as_torch_starts
from model import exported as exported_branch
from model import ops
from model.constants import constant, of_sizes
from model.detector import Detector
from model.exported import DecoderBranch
from model.pixels import MEAN, STD, normalise
from model.types import Batch, Targets
from tests.support.detectors import PRESETS, scattered, tiny_preset
from tests.support.folders import write_folder
from tests.support.kept_trial import CLASSES, TRIAL, data_config, keep_trial
from tests.support.tiny import tiny_config

TRACING = "tracing a graph for images of any size, which takes minutes for a large detector"
NUMBER = 10  # detections of an image
SIZES = [((64, 64), 1), ((61, 90), 3), ((129, 77), 2)]  # of images, and how many


@cache
def exported(preset: str) -> tuple[Detector, onnxruntime.InferenceSession]:
    detector = scattered(tiny_preset(preset)).eval()
    content = onnx_file.as_onnx(detector, NUMBER, preset)
    return detector, onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def padded(images: torch.Tensor, divisor: int) -> Batch:
    """In a batch that is larger by more than a row and a column of the coarsest level."""
    count, _, height, width = images.shape
    canvas = torch.zeros(count, 3, *(-(-side // divisor) * divisor + divisor for side in (height, width)))
    canvas[:, :, :height, :width] = images
    nothing = Targets(torch.zeros(count, 1, 4), torch.full((count, 1), -1))
    return Batch(canvas, torch.tensor([[height, width]] * count), nothing)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_onnxruntime_gives_what_the_detector_gives_of_every_size(preset: str) -> None:
    detector, session = exported(preset)
    for (height, width), count in SIZES:
        images = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height))
        boxes, scores, labels = session.run(None, {"images": images.numpy()})
        assert boxes.shape == (count, NUMBER, 4) and labels.dtype == np.int64
        expected = detector.detect(padded(images, detector.size_divisor), NUMBER)
        for number, own in enumerate(expected):
            torch.testing.assert_close(torch.from_numpy(scores[number]), own.scores, rtol=0, atol=1e-5)
            torch.testing.assert_close(torch.from_numpy(boxes[number]), own.boxes_xyxy, rtol=0, atol=1e-2)
            assert labels[number].tolist() == own.labels.tolist()


class _Scaled(torch.nn.Module):
    """Asks for numbers on the device, as parts of a detector do."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * constant((2.0, 7.5), values, values.dtype) + of_sizes(torch.tensor, ((3, 5),), values.device)


def test_nothing_that_a_trace_made_is_kept() -> None:
    values = torch.ones(4, 2)
    with as_torch_starts():
        traced = torch.export.export(_Scaled(), (values,), strict=False).module()(values)
    assert type(constant((2.0, 7.5), values, values.dtype)) is torch.Tensor
    assert torch.equal(_Scaled()(values), traced)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_branch_is_the_detectors_own(preset: str) -> None:
    detector = scattered(tiny_preset(preset)).eval()
    images = torch.randn(2, 3, 96, 61, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        boxes, scores, labels = DecoderBranch(detector, NUMBER)(images)
    for number, own in enumerate(detector.detect(padded(images, detector.size_divisor), NUMBER)):
        torch.testing.assert_close(scores[number], own.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(boxes[number], own.boxes_xyxy, rtol=0, atol=1e-2)
        assert torch.equal(labels[number], own.labels)


def test_the_definitions_run_where_a_graph_is_made() -> None:
    assert ops._compiled(torch.zeros(1)) == ops.ops_compiled.available()
    with ops.as_defined():
        assert not ops._compiled(torch.zeros(1))
        with pytest.raises(KeyError), ops.as_defined():
            raise KeyError
        assert not ops._compiled(torch.zeros(1))
    assert ops._compiled(torch.zeros(1)) == ops.ops_compiled.available()


def test_numbers_known_on_the_host_are_kept_once() -> None:
    like = torch.zeros(1)
    assert constant((1, 2), like, torch.int64) is constant([1, 2], like, torch.int64)
    first = of_sizes(lambda sizes: torch.tensor(sizes), ((1, 2),), like.device)
    assert first.tolist() == [[1, 2]]


# ---- the command


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Detector:
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    config = tiny_config("atss", stages=(3, 4))
    config = replace(config, transformer=replace(config.transformer, num_decoder_layers=1))  # quickly traced
    return keep_trial(RunStore(), config, data_config(write_folder(tmp_path / "data")))


class Averages(torch.nn.Module):
    """In the place of the decoder's branch: it is traced at once."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scores = images.mean((2, 3))
        return scores[:, :, None].repeat(1, 1, 4), scores, torch.zeros_like(scores, dtype=torch.int64)


def test_a_trial_becomes_a_file_that_says_all_that_is_needed(
    tmp_path: Path, trial: Detector, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in (exported_branch, onnx_file):
        monkeypatch.setattr(room, "DecoderBranch", Averages)
    images, scores = written(tmp_path, capsys)
    np.testing.assert_allclose(scores, images.mean((0, 2, 3)), atol=1e-5)


@pytest.mark.slow
def test_the_file_of_a_trial_finds_what_the_trial_finds(
    tmp_path: Path, trial: Detector, capsys: pytest.CaptureFixture[str]
) -> None:
    images, scores = written(tmp_path, capsys)
    (own,) = trial.detect(padded(torch.from_numpy(images), trial.size_divisor))
    np.testing.assert_allclose(scores, own.scores.numpy(), atol=1e-5)


def written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[np.ndarray, np.ndarray]:
    """An image, made ready as the command's file says, and the scores that the file gives for it."""
    assert main(["export-model", TRIAL[:4], "--onnx", "mine/detector.onnx"]) == 0
    out, err = capsys.readouterr()
    assert err == f"trial {TRIAL}: {TRACING}\n"
    assert "onnxruntime gives torch's numbers up to" in out and "wrote mine/detector.onnx" in out
    model = onnx.load(tmp_path / "mine" / "detector.onnx")
    known = {entry.key: entry.value for entry in model.metadata_props}
    assert set(onnx_file.METADATA) <= set(known)
    assert json.loads(known["codetr_classes"]) == [list(pair) for pair in zip(*CLASSES, strict=True)]
    assert json.loads(known["codetr_sides"]) == [64, 96]
    pixels = np.random.default_rng(0).integers(0, 255, (1, 3, 70, 90), np.uint8)
    mean, std = (np.array(json.loads(known[key]), np.float32)[:, None, None] for key in ("codetr_mean", "codetr_std"))
    images = (pixels.astype(np.float32) / 255 - mean) / std
    expected = normalise(torch.from_numpy(pixels), torch.zeros(1, 70, 90, dtype=torch.bool))
    np.testing.assert_allclose(images, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose([mean.ravel(), std.ravel()], [MEAN, STD])
    session = onnxruntime.InferenceSession(tmp_path / "mine" / "detector.onnx", providers=["CPUExecutionProvider"])
    assert [own.name for own in session.get_inputs()] == ["images"]
    assert [own.name for own in session.get_outputs()] == ["boxes_xyxy", "scores", "labels"]
    return images, session.run(["scores"], {"images": images})[0][0]


def test_mistakes_are_one_line(
    trial: Detector, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("there.onnx").write_bytes(b"mine")
    Path("folder.onnx").mkdir()
    for words, told in (
        (("--onnx", "there.onnx"), "there.onnx is there already; --onnx names another, --force replaces it"),
        (("--onnx", "detector.pt"), "must end in .onnx"),
        (("--onnx", "folder.onnx"), "is a folder"),
        (("--onnx", "a.onnx", "--data", "nowhere"), "--data nowhere: no classes there"),
    ):
        assert main(["export-model", TRIAL, *words]) == 2
        assert told in capsys.readouterr().err.splitlines()[-1]

    def cannot(*_: object) -> None:
        raise RuntimeError("a part does what no graph can hold\nand more")

    monkeypatch.setattr(onnx_file, "program", cannot)
    assert main(["export-model", TRIAL, "--onnx", "a.onnx"]) == 2
    told = capsys.readouterr().err.splitlines()[1:]
    assert told == [f"error: trial {TRIAL} cannot be exported: a part does what no graph can hold"]
    assert not Path("a.onnx").exists() and Path("there.onnx").read_bytes() == b"mine"


@pytest.mark.parametrize(("protocol", "asked", "number"), [("lvis", 100, 300), ("lvis", 500, 500), (None, 100, 100)])
def test_as_many_detections_come_out_as_the_trials_protocol_counts(
    trial: Detector, monkeypatch: pytest.MonkeyPatch, protocol: str | None, asked: int, number: int
) -> None:
    store, numbers = RunStore(), []
    record = store.read(TRIAL) or {}
    record["config"]["evaluate"]["max_detections"] = asked
    store.write_result(TRIAL, record | {"provenance": {"protocol": protocol} if protocol else {}})
    monkeypatch.setattr(onnx_file, "as_onnx", lambda detector, limit, where: numbers.append(limit) or b"")
    monkeypatch.setattr(onnx_file, "_described", lambda content, *_: content)

    def compared(content: bytes, detector: Detector, limit: int, where: str) -> onnx_file.Made:
        numbers.append(limit)
        return onnx_file.Made(0.0, "nothing")

    monkeypatch.setattr(onnx_file, "compared", compared)
    assert main(["export-model", TRIAL, "--onnx", "a.onnx"]) == 0
    assert numbers == [number, number]


def test_without_the_packages_a_line_names_the_extra(
    trial: Detector, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export-model", TRIAL, "--onnx", "a.onnx"]) == 2
    assert capsys.readouterr().err == (
        "error: onnxruntime is not installed: pip install -c constraints.txt -e '.[onnx]'\n"
    )


def test_a_file_that_gives_other_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (scattered(tiny_config(stages=(3, 4)), seed).eval() for seed in (0, 1))

    class Session:
        """Of onnxruntime, with the numbers of another detector."""

        def __init__(self, *_: object, **__: object) -> None: ...

        @torch.no_grad()
        def run(self, _: object, given: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [values.numpy() for values in DecoderBranch(trained[0], NUMBER)(torch.from_numpy(given["images"]))]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    trained = [other]
    with pytest.raises(UserError, match="it cannot be exported: onnxruntime's numbers differ from torch's by "):
        onnx_file.compared(b"", one, NUMBER, "it")
    trained[0] = one
    assert onnx_file.compared(b"", one, NUMBER, "it").difference == 0
