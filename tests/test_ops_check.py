"""Operators are compared with their definitions before anything relies on them; wrong ones never run."""

from __future__ import annotations

import functools
import logging

import pytest
import torch
from torch import Tensor

from model import kernels, ops, ops_check, ops_compiled, ops_cuda, ops_reference
from model.ops_check import Differs, compare, problems, trusted
from model.ops_reference import REGISTERED
from tests.support.operators import LEVELS, MAP, attention_inputs, reference_attention, regions, same, with_gradients

CPU = torch.device("cpu")
ALL = problems(torch.float32, torch.bfloat16)
NAMES = [f"{problem.operator}{problem.told.partition('(')[2][:4]}" for problem in ALL]

needs_library = pytest.mark.skipif(kernels.library() is None, reason="no C++ compiler: only the reference runs here")


def spoilt(operator: str, change, *, output: int = 0):
    """The definition of an operator, of which one output is not what it should be."""

    def run(*arguments):
        results = REGISTERED[operator](*arguments)
        several = [results] if isinstance(results, Tensor) else list(results)
        several[output] = change(several[output])
        return several

    return run


def one_number(tensor: Tensor) -> Tensor:
    """The mistake of one lane: a single number is off."""
    changed = tensor.clone()
    place = (-1,) * changed.dim()
    changed[place] = ~changed[place] if changed.dtype == torch.bool else changed[place] + 0.05 * changed.abs().max()
    return changed


@pytest.mark.parametrize("problem", ALL, ids=NAMES)
def test_a_definition_passes_and_one_wrong_number_does_not(problem):
    operator = REGISTERED[problem.operator]
    compare(operator, operator, CPU, problem)
    outputs = 3 if problem.operator == "ms_deform_attn_backward" else 1
    for output in range(outputs):
        with pytest.raises(
            Differs, match=f"{problem.operator}.* on this cpu gives other numbers than its definition, by"
        ):
            compare(spoilt(problem.operator, one_number, output=output), operator, CPU, problem)


@pytest.mark.parametrize("problem", ALL[:2] + ALL[4:6], ids=NAMES[:2] + NAMES[4:6])
def test_what_is_not_a_number_and_other_shapes_differ(problem):
    operator = REGISTERED[problem.operator]
    with pytest.raises(Differs, match="by nan"):
        compare(spoilt(problem.operator, lambda t: t / 0 * 0), operator, CPU, problem)
    with pytest.raises(Differs, match="other shapes than its definition"):
        compare(spoilt(problem.operator, lambda t: t[:1]), operator, CPU, problem)


@needs_library
@pytest.mark.parametrize("problem", problems(torch.float32), ids=lambda problem: problem.operator)
def test_the_cpu_kernels_pass(problem):
    compare(ops_compiled.KERNELS[problem.operator], REGISTERED[problem.operator], CPU, problem)


@pytest.mark.parametrize("dtype", ops_cuda.TYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 1, 1), (8, 32, 5, 4), (1, 160, 7, 2)], ids=str)
def test_attention_of_any_shape_and_type_has_a_problem_that_rounding_passes(dtype, shape):
    """float32 against float64: no location lies where that decides which cells it reads."""
    for problem in ops_check.attention_problems(dtype, *shape):
        compare(REGISTERED[problem.operator], REGISTERED[problem.operator], CPU, problem)


def test_the_check_leaves_random_numbers_and_modes_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        assert trusted(ops_compiled.KERNELS if kernels.library() else REGISTERED, CPU, problems(torch.float32))
        assert torch.equal(torch.rand(2, device=CPU), expected) and torch.is_inference_mode_enabled()


def test_one_line_says_what_differs_and_an_error_where_kernels_are_demanded(caplog, monkeypatch):
    monkeypatch.delenv("CODETR_OPS", raising=False)
    wrong = REGISTERED | {"roi_align": spoilt("roi_align", one_number)}
    with caplog.at_level(logging.WARNING):
        assert not trusted(wrong, CPU, ALL)
    (line,) = caplog.messages
    assert line.startswith("roi_align on this cpu gives other numbers") and "pure-torch operators run instead" in line
    monkeypatch.setenv("CODETR_OPS", "compiled")
    with pytest.raises(Differs):
        trusted(wrong, CPU, ALL)


def test_a_failed_build_is_told_and_a_full_device_is_not_taken_for_one(caplog, monkeypatch):
    monkeypatch.delenv("CODETR_OPS", raising=False)

    def failing(error: Exception):
        def run(*_):
            raise error

        return {problem.operator: run for problem in ALL}

    assert not trusted(failing(kernels.BuildError("no compiler")), CPU, ALL)
    assert not trusted(failing(RuntimeError("CUDA driver: invalid argument")), CPU, ALL)
    assert [message.partition(";")[0] for message in caplog.messages] == [
        "no compiler",
        "CUDA driver: invalid argument",
    ]
    with pytest.raises(torch.OutOfMemoryError):
        trusted(failing(torch.OutOfMemoryError("full")), CPU, ALL)


# ---- what runs then -----------------------------------------------------------------------------------------------


@pytest.fixture
def wrong_library(monkeypatch):
    """A compiler that makes NMS keep everything: none of its library's operators may run."""
    monkeypatch.delenv("CODETR_OPS", raising=False)
    monkeypatch.setattr(ops_compiled, "_right", functools.cache(ops_compiled._right.__wrapped__))

    def wrong(boxes_xyxy: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
        return torch.ones(len(boxes_xyxy), dtype=torch.bool)

    monkeypatch.setitem(ops_compiled.KERNELS, "nms", wrong)


@needs_library
def test_a_library_that_is_wrong_never_runs(wrong_library, caplog):
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 2)
    with caplog.at_level(logging.WARNING):
        assert ops.nms(boxes, torch.tensor([0.5, 0.6]), torch.zeros(2), 0.5).tolist() == [1]
        assert ops.implementation() == "reference"
    (line,) = caplog.messages
    assert line.startswith("nms on this cpu gives other numbers")
    # what `torch.compile` calls:
    assert torch.ops.codetr.nms.default(boxes, torch.zeros(2).long(), 0.5).tolist() == [True, False]


@pytest.mark.parametrize("mode", ["wrong", "reference"])
def test_a_graph_without_kernels_has_the_gradients_of_the_reference(mode, monkeypatch, request):
    """There the registered operators are called, in which torch records nothing by itself."""
    if mode == "wrong" and kernels.library():
        request.getfixturevalue("wrong_library")
    else:
        monkeypatch.setattr(kernels, "library", lambda: None)
    sizes = [side for shape in LEVELS for side in shape]
    operators = torch.ops.codetr
    tensors = attention_inputs()
    found = with_gradients(lambda t: operators.ms_deform_attn.default(t[0], sizes, t[1], t[2]), tensors)
    same(found, with_gradients(reference_attention, tensors, LEVELS))
    rois = regions(9)
    found = with_gradients(lambda t: operators.roi_align.default(t[0], rois, 3, 0.25), (MAP,))
    same(found, with_gradients(lambda t: ops_reference.roi_align(t[0], rois, 3, 0.25), (MAP,)))
