"""`codetr export-model`: the decoder's branch of a trained detector as an ONNX file, compared with torch first.

The file says of itself what a program must know that runs it, by the keys of `METADATA`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.data.categories import Categories
from harness.errors import UserError, install_hint
from harness.files import exists, is_folder, to_json, write_atomic
from harness.revisit.classes import classes_by_id, named_classes
from harness.revisit.trained import Found, build
from harness.system.precision import as_torch_starts
from model.exported import DecoderBranch, program
from model.pixels import MEAN, STD
from model.postprocess.configs import TopKConfig

if TYPE_CHECKING:
    from model.detector import Detector

SUFFIX = ".onnx"
OPSET = 18
TOLERANCE = 1e-4  # of scores, and of boxes as shares of the longer side
CHECKED = ((1, 128, 192), (2, 161, 130))  # images, height and width that the file is compared at; none was traced
LARGEST = 2**31 - 1  # bytes that one ONNX file can hold
INPUT, OUTPUTS = "images", ("boxes_xyxy", "scores", "labels")
METADATA = {  # by key, what its value is
    "codetr_input": "what `images` must be",
    "codetr_output": "what the outputs are",
    "codetr_mean": "per channel, RGB in [0, 1]",
    "codetr_std": "per channel, likewise",
    "codetr_classes": "[id, name] of each label",
    "codetr_sides": "short and long side of images at evaluation",
}
WORDS_IN = (
    "float32 [batch, 3, height, width], RGB; (value / 255 - mean) / std; images of a batch have one size and no padding"
)
WORDS_OUT = (
    "boxes_xyxy [batch, N, 4]: left, top, right, bottom in pixels of the input; scores [batch, N], best first; "
    "labels [batch, N] int64: places in codetr_classes; no NMS, no threshold"
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """What was written."""

    difference: float  # the largest between onnxruntime and torch
    checked: str  # on what


def target(name: str, force: bool) -> Path:
    """The file to write.

    Raises:
        UserError: it has another suffix, or something is there.
    """
    path = Path(name)
    if path.suffix != SUFFIX:
        raise UserError(f"--onnx {path}: must end in {SUFFIX}")
    if is_folder(path):
        raise UserError(f"--onnx {path} is a folder; name the file in it")
    if exists(path) and not force:
        raise UserError(f"{path} is there already; --onnx names another, --force replaces it")
    return path


def write(found: Found, path: Path, *, data: str | None, say: Say) -> Made:
    """Trace the detector, write it, and compare what it gives.

    Args:
        found: the detector.
        path: of `target`.
        data: a folder whose classes its labels are, if one was named.
        say: takes notes.

    Raises:
        UserError: a package is missing, the weights do not fit, or the detector cannot be exported.
        StorageError: the file could not be written.
    """
    _check_packages()
    of_ids = classes_by_id(found, data)
    detector = build(found, torch.device("cpu"), category_ids=of_ids.ids if of_ids else (), say=say).detector
    classes = of_ids or named_classes(found, detector.num_classes, data, say)
    if not isinstance(found.config.model.postprocess, TopKConfig):
        say(f"note: {found.where} is evaluated with NMS, which the file leaves to whoever runs it")
    if detector.official:
        say(f"note: {found.where} is official: padding changes what it finds, and the file's images have none")
    say(f"{found.where}: tracing a graph for images of any size, which takes minutes for a large detector")
    content = as_onnx(detector, found.max_detections, found.where)
    content = _described(content, found, classes)
    made = compared(content, detector, found.max_detections, found.where)
    write_atomic(path, content)
    return made


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: {install_hint('onnx')}") from error


def as_onnx(detector: Detector, max_detections: int, where: str) -> bytes:
    """An ONNX file of `model.exported.DecoderBranch`.

    Raises:
        UserError: a part of it cannot be traced, or has no ONNX; or it is too large.
    """
    try:
        with _quietly(), _uncached(), as_torch_starts():
            made = torch.onnx.export(
                program(detector, max_detections),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                opset_version=OPSET,
                dynamo=True,
                optimize=False,  # onnxruntime does it when it opens the file
            )
            assert made is not None
            model = made.model_proto
    except Exception as error:  # torch's tracer and exporter may fail in any way
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{where} cannot be exported: {first[:300]}") from error
    if model.ByteSize() > LARGEST:
        raise UserError(f"{where} cannot be exported: an ONNX file holds at most 2 GiB")
    return bytes(model.SerializeToString())


def _uncached() -> AbstractContextManager[None]:
    """Without torch's table of what operators gave for which shapes: with symbols for sizes it costs a third more."""
    import torch._dynamo.config as settings

    patched: AbstractContextManager[None] = settings.patch(fake_tensor_cache_enabled=False)
    return patched


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch, onnxscript and onnx_ir say of their own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _described(content: bytes, found: Found, classes: Categories) -> bytes:
    """The same file with what a program must know that runs it."""
    import onnx

    model, data = onnx.load_from_string(content), found.config.data
    sides = [data.square] * 2 if data.square else [data.eval_short_side, data.evaluated_long_side]
    known: dict[str, Any] = {
        "codetr_input": WORDS_IN,
        "codetr_output": WORDS_OUT,
        "codetr_mean": to_json([round(float(value), 6) for value in MEAN]),
        "codetr_std": to_json([round(float(value), 6) for value in STD]),
        "codetr_sides": to_json(sides),
        **classes.to_metadata(),
    }
    onnx.helper.set_model_props(model, known)
    model.graph.doc_string = f"{WORDS_IN}. {WORDS_OUT}."
    return bytes(model.SerializeToString())


def compared(content: bytes, detector: Detector, max_detections: int, where: str) -> Made:
    """What onnxruntime gives of a file, beside what torch gives of the detector, on noise of sizes of its own.

    Raises:
        UserError: they differ by more than `TOLERANCE`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: what it cannot fold it computes
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    branch, draws, largest = DecoderBranch(detector, max_detections).eval(), torch.Generator().manual_seed(0), 0.0
    for count, height, width in CHECKED:
        images = torch.randn(count, 3, height, width, generator=draws)
        with torch.no_grad():
            expected = [values.numpy() for values in branch(images)]
        boxes, scores, labels = session.run(None, {INPUT: images.numpy()})
        differences = [np.abs(boxes - expected[0]).max() / max(height, width), np.abs(scores - expected[1]).max()]
        largest = max(largest, *map(float, differences))
        if not largest <= TOLERANCE or not np.array_equal(labels, expected[2]):
            raise UserError(f"{where} cannot be exported: onnxruntime's numbers differ from torch's by {largest:.1g}")
    return Made(largest, " and ".join(f"{n} of {h} x {w}" for n, h, w in CHECKED))
