"""The compiled operators against their pure-torch definitions, on inputs nobody would train with."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from model import kernels, ops, ops_reference
from tests.support.operators import (
    LEVELS,
    MAP,
    attention_inputs,
    boxes_of,
    reference_attention,
    regions,
    same,
    with_gradients,
)

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no C++ compiler: only the reference runs here")


def compiled_attention(tensors, sizes) -> Tensor:
    return ops.ms_deform_attn(tensors[0], sizes, tensors[1], tensors[2])


# ---- deformable attention -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 3, 8, 16, 20, 32, 33])
def test_attention_of_any_width_equals_the_reference(width, dtype):
    tensors = attention_inputs(width=width, dtype=dtype)
    same(with_gradients(compiled_attention, tensors, LEVELS), with_gradients(reference_attention, tensors, LEVELS))


@pytest.mark.parametrize("points", [1, 3, 5, 70])  # 70: more than are handled together
@pytest.mark.parametrize("queries", [1, 200])  # few: gradients are added in place; many: in a copy
def test_attention_with_any_number_of_points_and_queries(points, queries):
    tensors = attention_inputs(width=8, points=points, queries=queries)
    same(with_gradients(compiled_attention, tensors, LEVELS), with_gradients(reference_attention, tensors, LEVELS))


def test_attention_far_outside_is_zero():
    value, locations, weights = attention_inputs()
    for far in (-2.0, 3.0, 1e30, -1e30):
        output, *gradients = with_gradients(
            compiled_attention, (value, torch.full_like(locations, far), weights), LEVELS
        )
        assert not output.any() and not any(gradient.any() for gradient in gradients)


def test_attention_at_the_centres_of_pixels_takes_the_same_side_as_the_reference():
    """There the derivative has two sides; untrained offsets put every location exactly there."""
    sizes = ((20, 20), (10, 10))
    value, locations, weights = attention_inputs(sizes, width=16, queries=400)
    column, row = torch.arange(400) % 20, torch.arange(400) // 20
    centres = torch.stack([(column + 0.5) / 20, (row + 0.5) / 20], -1)[None, :, None, None, None].expand(
        2, -1, 3, 2, 4, -1
    )
    tensors = (value, centres.contiguous(), weights)
    same(with_gradients(compiled_attention, tensors, sizes), with_gradients(reference_attention, tensors, sizes))


def test_a_location_that_is_not_a_number_is_not_hidden():
    value, locations, weights = attention_inputs()
    locations[1, 2, 0, 0, 0, 0] = torch.nan
    output = ops.ms_deform_attn(value, LEVELS, locations, weights)
    assert output[1, 2, :8].isnan().all() and output.isnan().sum() == 8


@pytest.mark.parametrize("nothing", ["batch", "queries", "heads", "points", "width"])
def test_attention_of_nothing(nothing):
    tensors = attention_inputs(**{"batch": 2, "queries": 5, "heads": 3, "points": 2, "width": 8, nothing: 0})
    output, *gradients = with_gradients(compiled_attention, tensors, LEVELS)
    assert output.shape == (len(tensors[0]), tensors[1].shape[1], tensors[0].shape[2] * tensors[0].shape[3])
    assert not output.any() and [g.shape for g in gradients] == [t.shape for t in tensors]
    assert not any(gradient.any() for gradient in gradients)


def test_attention_takes_tensors_as_they_lie_in_memory():
    tensors = attention_inputs(width=8)
    reordered = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in tensors]
    assert not any(t.is_contiguous() for t in reordered)
    leaves = [t.requires_grad_() for t in reordered]
    output = compiled_attention(leaves, LEVELS)
    gradients = torch.autograd.grad(output.sum(), leaves)  # the gradient of a sum is one number, expanded
    plain = [t.clone().requires_grad_() for t in tensors]
    expected = reference_attention(plain, LEVELS)
    same([output, *gradients], [expected, *torch.autograd.grad(expected.sum(), plain)])


@pytest.mark.parametrize("queries", [2, 40])
def test_attention_gradients_are_those_of_the_function(queries):
    tensors = attention_inputs(
        ((5, 4), (2, 3)), heads=2, width=3, queries=queries, points=2, dtype=torch.float64, batch=1
    )
    leaves = tuple(tensor.requires_grad_() for tensor in tensors)
    assert torch.autograd.gradcheck(lambda *t: compiled_attention(t, ((5, 4), (2, 3))), leaves, fast_mode=queries > 2)


def test_attention_has_no_second_derivative_and_says_so():
    tensors = [t.requires_grad_() for t in attention_inputs()]
    (first,) = torch.autograd.grad(compiled_attention(tensors, LEVELS).square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="ms_deform_attn has no second derivative"):
        first.sum().backward()


@pytest.mark.parametrize("queries", [4, 400])
def test_the_number_of_threads_changes_no_bit(queries, monkeypatch):
    """An interrupted trial may continue on a machine with other cores."""
    monkeypatch.setattr(ops.ops_compiled, "WORK_PER_THREAD", 1)
    sizes = ((20, 20), (10, 10), (5, 5))
    before, results = torch.get_num_threads(), []
    tensors = attention_inputs(sizes, width=16, queries=queries)
    boxes = torch.rand(60, 5) * 80
    boxes[:, 0] = torch.arange(60) % 2
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            attended = with_gradients(compiled_attention, tensors, sizes)
            results.append(attended + with_gradients(lambda t: ops.roi_align(t[0], boxes, 7, 0.25), (MAP,)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_attention_is_float32_under_autocast():
    value, locations, weights = attention_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = ops.ms_deform_attn(value.bfloat16(), LEVELS, locations, weights.bfloat16())
    assert output.dtype == torch.float32
    expected = ops_reference.ms_deform_attn(value.bfloat16().float(), LEVELS, locations, weights.bfloat16().float())
    same([output], [expected])


@pytest.mark.parametrize("running", ["compiled", "reference"])
def test_misfit_shapes_are_named(running, monkeypatch):
    if running == "reference":
        monkeypatch.setattr(kernels, "library", lambda: None)
    value, locations, weights = attention_inputs()
    with pytest.raises(ValueError, match="70 tokens of levels"):
        ops.ms_deform_attn(value, ((7, 10),), locations, weights)
    with pytest.raises(ValueError, match=r"weights \[B, Q, K, L, P\]; they are"):
        ops.ms_deform_attn(value, LEVELS, locations, weights[:, :, :2])
    with pytest.raises(ValueError, match=r"rois \[N, 5\] and the output at least one bin; they are"):
        ops.roi_align(MAP, torch.zeros(3, 4), 7, 0.25)


@pytest.mark.parametrize("running", ["compiled", "reference"])
@pytest.mark.parametrize("index", [2.0, -1.0, -0.5, 1e30, torch.inf, torch.nan])
def test_a_region_of_no_image_is_an_error(running, index, monkeypatch):
    if running == "reference":
        monkeypatch.setattr(kernels, "library", lambda: None)
    rois = torch.tensor([[1.0, 0, 0, 9, 9], [index, 5, 5, 5, 9], [0, 0, 0, 9, 9]])
    with pytest.raises(ValueError, match="must be an image index below 2"):
        ops.roi_align(MAP, rois, 7, 0.25)
    backward = torch.ops.codetr.roi_align_backward.default
    with pytest.raises(ValueError, match="must be an image index below 2"):
        backward(torch.zeros(3, 70, 7, 7), rois, list(MAP.shape), 0.25)


@pytest.mark.slow
def test_offsets_beyond_two_gigabytes():
    """2.4 GB of values; the last batch element begins beyond 2^31 bytes and 2^29 numbers."""
    value = torch.zeros(3, 700 * 900, 10, 32)
    value[2] = 1
    locations, weights = torch.full((3, 2, 10, 1, 1, 2), 0.999), torch.ones(3, 2, 10, 1, 1)
    output = ops.ms_deform_attn(value, ((700, 900),), locations, weights)
    assert not output[:2].any() and (output[2] == 1).all()


# ---- RoIAlign -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 64, 70])
@pytest.mark.parametrize("output_size", [1, 7])
def test_roi_align_equals_the_reference(channels, output_size):
    feature = MAP[:, :channels]
    for function in (lambda t: t[0], lambda t: t[0].contiguous(memory_format=torch.channels_last)):
        pooled = with_gradients(lambda t, f=function: ops.roi_align(f(t), regions(50), output_size, 0.25), (feature,))
        expected = with_gradients(lambda t: ops_reference.roi_align(t[0], regions(50), output_size, 0.25), (feature,))
        same(pooled, expected)


def test_roi_align_gradients_are_those_of_the_function():
    feature = MAP[:, :2, :6, :5].double().requires_grad_()
    rois = regions(12, torch.float64)
    assert torch.autograd.gradcheck(lambda f: ops.roi_align(f, rois, 2, 0.25), feature)


def test_regions_without_area_or_sense_give_zeros():
    rois = torch.tensor([[0, 5, 5, 5, 9], [0, 9, 9, 5, 5], [1, 500, 500, 600, 600], [1, torch.nan, 0, 9, 9]])
    assert not ops.roi_align(MAP, rois, 3, 0.25).any()
    assert ops.roi_align(MAP, rois[:0], 3, 0.25).shape == (0, 70, 3, 3)
    huge = torch.tensor([[0, -1e9, -1e9, 1e9, 1e9]])
    assert ops.roi_align(MAP, huge, 3, 0.25).isfinite().all()


# ---- suppression --------------------------------------------------------------------------------------------------


def reference_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    order = scores.argsort(descending=True, stable=True)
    return order[ops_reference.nms(boxes[order], labels[order], threshold)]


@pytest.mark.parametrize("labels", [1, 7])
@pytest.mark.parametrize("count", [0, 1, 400])
def test_nms_equals_the_reference(count, labels):
    for threshold in (0.0, 0.3, 0.5, 0.7, 1.0):
        given = boxes_of(count, labels)
        assert torch.equal(ops.nms(*given, threshold), reference_nms(*given, threshold))


def test_nms_decides_ties_at_the_threshold_as_the_reference_does():
    """Boxes on a coarse grid: many pairs have exactly the overlap that is asked about."""
    boxes, scores, labels = boxes_of(300, 2)
    boxes = (boxes / 20).round() * 20
    for threshold in (1 / 3, 0.5, 0.6, 0.7, 0.75):
        given = boxes, scores, labels, threshold
        assert torch.equal(ops.nms(*given), reference_nms(*given))


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8])
def test_soft_nms_equals_the_reference(threshold):
    boxes, scores, labels = boxes_of(120, 3)
    scores += torch.rand(120, generator=torch.Generator().manual_seed(6)) * 1e-3  # no ties
    numbers, kept = ops.soft_nms(boxes, scores, labels, threshold, 0.05)
    expected, expected_scores = ops_reference.soft_nms(boxes, scores, labels, threshold, 0.05)
    assert torch.equal(numbers, expected)
    torch.testing.assert_close(kept, expected_scores)
    assert (kept.diff() <= 0).all() and (kept >= 0.05).all()


def test_soft_nms_keeps_the_best_box_whatever_its_score():
    boxes, scores, labels = boxes_of(20, 3)
    for run in (ops.soft_nms, ops_reference.soft_nms):
        numbers, kept = run(boxes, scores * 1e-4, labels, 0.5, 0.05)
        assert numbers.tolist() == [int(scores.argmax())] and kept.tolist() == [(scores * 1e-4).max().item()]
        numbers, kept = run(boxes[:0], scores[:0], labels[:0], 0.5, 0.05)
        assert numbers.shape == kept.shape == (0,)


def test_soft_nms_leaves_other_labels_alone():
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 3)
    scores = torch.tensor([0.9, 0.8, 0.7])
    numbers, kept = ops.soft_nms(boxes, scores, torch.tensor([0, 1, 0]), 0.5)
    assert numbers.tolist() == [0, 1] and kept.tolist() == pytest.approx([0.9, 0.8])


# ---- as torch sees them -------------------------------------------------------------------------------------------


def registered() -> list[tuple]:
    value, locations, weights = attention_inputs(width=4, queries=5)
    sizes = [side for shape in LEVELS for side in shape]
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    boxes, _, labels = boxes_of(30, 2)
    operators = torch.ops.codetr
    return [
        (operators.ms_deform_attn, (leaves[0], sizes, leaves[1], leaves[2])),
        (
            operators.ms_deform_attn_backward,
            (torch.randn(2, 5, 12), value.detach(), sizes, locations.detach(), weights.detach()),
        ),
        (operators.roi_align, (MAP.clone().requires_grad_(), regions(5), 3, 0.25)),
        (operators.roi_align_backward, (torch.randn(5, 70, 3, 3), regions(5), list(MAP.shape), 0.25)),
        (operators.nms, (boxes, labels, 0.5)),
    ]


@pytest.mark.parametrize("number", range(5), ids=["attention", "attention-backward", "roi", "roi-backward", "nms"])
def test_operators_are_registered_as_torch_wants(number):
    operator, arguments = registered()[number]
    torch.library.opcheck(operator.default, arguments)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_compile_makes_one_graph():
    tensors = [t.requires_grad_() for t in attention_inputs(width=8)]
    rois = regions(4)

    def both(value: Tensor, locations: Tensor, weights: Tensor, feature: Tensor) -> Tensor:
        return (
            ops.ms_deform_attn(value * 2, LEVELS, locations, weights).sum()
            + ops.roi_align(feature, rois, 3, 0.25).sum()
        )

    torch._dynamo.reset()
    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    feature = MAP.clone().requires_grad_()
    results = [[f(*tensors, feature)] for f in (both, compiled)]
    for result in results:
        result += torch.autograd.grad(result[0], [*tensors, feature])
    same(*results)


def test_four_thousand_boxes_take_milliseconds():
    """Under 2 ms where nothing else runs (benchmarks/ops.py); the reference needs hundreds."""
    given = (*boxes_of(4000, 1)[:2], torch.zeros(4000, dtype=torch.int64), 0.7)
    ops.nms(*given)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        ops.nms(*given)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.02
