"""The contracts of `model/classification` and `model/postprocess`, as tests of a part."""

from __future__ import annotations

import pytest
import torch

from tests.support.rooms import make

LAYERS, IMAGES, QUERIES, CLASSES = 2, 3, 7, 4
SHAPE = (LAYERS, IMAGES, QUERIES)
VALID_HW = torch.tensor([[64, 96], [50, 41], [96, 30]])


def labelled(background: int = -1) -> torch.Tensor:
    """[N, B, Q] labels, every third of them background."""
    labels = torch.randint(0, CLASSES, SHAPE, generator=torch.Generator().manual_seed(0))
    labels[..., ::3] = background
    return labels


# ---- classification losses ----------------------------------------------------------------------------------------


class ClassificationContract:
    """What every part of `model/classification` keeps."""

    @pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
    def test_each_logit_has_a_finite_loss_and_gradient(self, case: str, scale: float) -> None:
        classification = make("classification", case)
        iou = torch.rand(SHAPE) if classification.needs_iou else None
        logits = (torch.randn(*SHAPE, CLASSES) * scale).requires_grad_()
        loss = classification(logits, labelled(), iou)
        assert loss.shape == (*SHAPE, CLASSES)
        assert torch.isfinite(loss).all() and (loss >= 0).all()
        loss.sum().backward()
        assert logits.grad is not None and torch.isfinite(logits.grad).all()

    def test_a_label_outside_the_classes_is_background(self, case: str) -> None:
        classification, logits = make("classification", case), torch.randn(*SHAPE, CLASSES)
        iou = torch.rand(SHAPE) if classification.needs_iou else None
        first = classification(logits, labelled(-1), iou)
        assert torch.equal(first, classification(logits, labelled(CLASSES), iou))
        sure = torch.full((*SHAPE, CLASSES), -8.0)  # no class anywhere
        nothing = torch.full(SHAPE, -1)
        assert classification(sure, nothing, iou).max() < 1e-3 < classification(-sure, nothing, iou).min()

    def test_the_right_class_costs_less_than_a_wrong_one(self, case: str) -> None:
        classification, labels = make("classification", case), torch.zeros(SHAPE, dtype=torch.int64)
        iou = torch.ones(SHAPE) if classification.needs_iou else None
        right, wrong = (torch.full((*SHAPE, CLASSES), -4.0) for _ in range(2))
        right[..., 0], wrong[..., 1] = 4.0, 4.0
        assert classification(right, labels, iou).sum() < classification(wrong, labels, iou).sum()

    def test_queries_have_their_losses_each_on_its_own(self, case: str) -> None:
        classification, logits, labels = make("classification", case), torch.randn(*SHAPE, CLASSES), labelled()
        iou = torch.rand(SHAPE) if classification.needs_iou else None
        some = slice(2, 5)
        alone = classification(logits[:, :, some], labels[:, :, some], None if iou is None else iou[:, :, some])
        torch.testing.assert_close(alone, classification(logits, labels, iou)[:, :, some])


# ---- postprocessing -----------------------------------------------------------------------------------------------


def boxes_beyond_the_border() -> torch.Tensor:
    centres = torch.rand(IMAGES, QUERIES, 2, generator=torch.Generator().manual_seed(0))
    return torch.cat([centres, torch.full_like(centres, 0.5)], -1)


class PostprocessContract:
    """What every part of `model/postprocess` keeps."""

    @pytest.mark.parametrize("limit", [1, 5, 10_000])
    def test_detections_lie_in_the_image_best_first(self, case: str, limit: int) -> None:
        logits = torch.randn(IMAGES, QUERIES, CLASSES, generator=torch.Generator().manual_seed(1))
        detections = make("postprocess", case)(logits, boxes_beyond_the_border(), VALID_HW, limit)
        assert len(detections) == IMAGES
        for image, (height, width) in zip(detections, VALID_HW.tolist(), strict=True):
            number = len(image.scores)
            assert 0 < number <= min(limit, QUERIES * CLASSES)
            assert image.boxes_xyxy.shape == (number, 4) and image.labels.shape == (number,)
            assert image.labels.dtype == torch.int64 and image.labels.min() >= 0 and image.labels.max() < CLASSES
            assert (image.scores.diff() <= 0).all() and image.scores.min() >= 0 and image.scores.max() <= 1
            x0, y0, x1, y1 = image.boxes_xyxy.unbind(1)
            assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= width).all() and (y1 <= height).all()
            assert (x1 >= x0).all() and (y1 >= y0).all()

    def test_the_best_query_comes_first_in_pixels(self, case: str) -> None:
        logits, boxes = torch.full((IMAGES, QUERIES, CLASSES), -5.0), boxes_beyond_the_border()
        logits[:, 4, 2], boxes[:, 4] = 5.0, torch.tensor([0.5, 0.5, 0.2, 0.4])
        for image, (height, width) in zip(
            make("postprocess", case)(logits, boxes, VALID_HW, 5), VALID_HW.tolist(), strict=True
        ):
            assert image.labels[0] == 2 and image.scores[0] > 0.9
            expected = torch.tensor([0.4 * width, 0.3 * height, 0.6 * width, 0.7 * height])
            torch.testing.assert_close(image.boxes_xyxy[0], expected, rtol=0, atol=1e-3)

    def test_images_are_processed_each_on_its_own(self, case: str) -> None:
        logits, boxes = torch.randn(IMAGES, QUERIES, CLASSES), boxes_beyond_the_border()
        together = make("postprocess", case)(logits, boxes, VALID_HW, 6)
        for index, image in enumerate(together):
            own = slice(index, index + 1)
            (alone,) = make("postprocess", case)(logits[own], boxes[own], VALID_HW[own], 6)
            torch.testing.assert_close(alone.boxes_xyxy, image.boxes_xyxy)
            assert torch.equal(alone.labels, image.labels) and torch.equal(alone.scores, image.scores)
