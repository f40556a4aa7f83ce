"""Masks: from COCO's polygons and run lengths to grids over boxes, through the loader, and back to be evaluated."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from harness.config import DataConfig, DigitsConfig
from harness.data import open_dataset
from harness.data.coco import CocoDataset
from harness.data.digits import run_lengths
from harness.data.loader import Loader
from harness.data.masks import from_grids, grid_over_box, packed
from harness.errors import UserError
from harness.trial.detections import to_results
from harness.trial.evaluate import EVALUATORS, evaluate_detections
from model.heads.masks import resample
from model.types import MASK_CELLS, Batch, Detections
from tests.support.folders import write_folder

HEIGHT, WIDTH = 40, 60
DIGITS = DataConfig(digits=DigitsConfig(num_train=6, num_val=6))


def triangle() -> np.ndarray:
    """[HEIGHT, WIDTH] bool: the lower left half of the square from (10, 5) to (30, 25)."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:25, 10:30] = np.tri(20, dtype=bool)
    return mask


BOX = np.array([10, 5, 30, 25], np.float32)


def decoded(found: dict) -> np.ndarray:
    return coco_mask.decode(found).astype(bool)


def test_every_form_is_the_same_mask() -> None:
    counts = run_lengths(triangle())
    uncompressed = packed({"size": [HEIGHT, WIDTH], "counts": counts}, HEIGHT, WIDTH)
    text = packed(uncompressed, HEIGHT, WIDTH)
    assert text == uncompressed and isinstance(text["counts"], str)
    assert (decoded(text) == triangle()).all()
    rectangles = [[10.0, 5, 30, 5, 30, 15, 10, 15], [10.0, 20, 20, 20, 20, 25, 10, 25]]  # one object in two pieces
    both = decoded(packed(rectangles, HEIGHT, WIDTH))
    assert both[5:15, 10:30].all() and both[20:25, 10:20].all() and both.sum() == 250


def test_a_grid_holds_the_covered_shares() -> None:
    full = np.ones((HEIGHT, WIDTH), bool)
    grid = grid_over_box(full, BOX)
    assert grid.shape == (MASK_CELLS, MASK_CELLS) and grid.dtype == np.uint8 and (grid == 255).all()
    half = np.zeros((HEIGHT, WIDTH), bool)
    half[:, :20] = True
    grid = grid_over_box(half, BOX)
    assert (grid[:, :28] == 255).all() and (grid[:, 28:] == 0).all()
    off = BOX + np.array([0.5, 0, 0.5, 0], np.float32)  # a box between pixels: 9.5 of its 20 columns
    grid = grid_over_box(half, off)
    assert grid.mean() / 255 == pytest.approx(9.5 / 20, abs=0.002)


def test_a_grid_comes_back_as_the_mask() -> None:
    grid = grid_over_box(triangle(), BOX)
    found = from_grids(grid[None].astype(np.float32) / 255, BOX[None], HEIGHT, WIDTH)
    assert found[0]["size"] == [HEIGHT, WIDTH] and json.dumps(found)
    back = decoded(found[0])
    assert (back & triangle()).sum() / (back | triangle()).sum() > 0.95


def test_boxes_beyond_the_border_are_cut() -> None:
    found = from_grids(np.ones((2, 28, 28), np.float32), np.array([[-5.0, -5, 5, 5], [50, 30, 80, 60]]), HEIGHT, WIDTH)
    first, second = map(decoded, found)
    assert first[:5, :5].all() and first.sum() == 25
    assert second[30:, 50:].all() and second.sum() == 100


def test_resampling_takes_the_mean_of_what_is_covered() -> None:
    half = torch.zeros(1, 4, 4)
    half[..., :2] = 1  # left half of the box
    box = torch.tensor([[10.0, 10, 18, 18]])
    assert torch.equal(resample(half, box, box, 4), half)
    shifted = resample(half, box, box + torch.tensor([2.0, 0, 2, 0]), 4)[0]  # by one cell to the right
    assert torch.equal(shifted, torch.tensor([[1.0, 0, 0, 0]] * 4))
    assert resample(half, box, box + torch.tensor([1.0, 0, 1, 0]), 4)[0, 0].tolist() == [1, 0.5, 0, 0]
    larger = torch.tensor([[6.0, 6, 22, 22]])  # twice as wide and high around the same middle
    assert resample(half, box, larger, 4)[0].tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


# ---- data set and loader


@pytest.fixture(scope="module")
def digits() -> CocoDataset:
    return open_dataset(DIGITS, "val", progress=lambda line: None, with_masks=True)


def loader(dataset: CocoDataset, config: DataConfig, training: bool = False) -> Loader:
    return Loader(dataset, config, batch_size=3, training=training, seed=0, size_divisor=32)


def as_detections(batch: Batch) -> list[Detections]:
    """The ground truth with its masks at half the resolution."""
    assert batch.targets.masks is not None
    found = []
    for boxes, labels, masks in zip(batch.targets.boxes_xyxy, batch.targets.labels, batch.targets.masks, strict=True):
        valid = labels >= 0
        grids = torch.nn.functional.avg_pool2d(masks[valid].float()[:, None] / 255, 2)[:, 0]
        found.append(Detections(boxes[valid], torch.ones(int(valid.sum())), labels[valid], grids))
    return found


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("side", [160, 96])
def test_the_ground_truth_itself_is_nearly_perfect(digits: CocoDataset, evaluator: str, side: int) -> None:
    config = replace(DIGITS, eval_short_side=side)
    results = []
    for batch in loader(digits, config).epoch(0):
        results += to_results(batch, as_detections(batch), digits.category_ids)
    assert evaluate_detections(digits, results, evaluator, "segm")["AP"] > 98
    for row in results:  # the same boxes with everything in them: the mask is what is compared
        width, height = digits.image_hw[digits.image_ids.index(row["image_id"])][::-1]
        x, y, w, h = row["bbox"]
        whole = from_grids(np.ones((1, 4, 4), np.float32), np.array([[x, y, x + w, y + h]]), height, width)
        row["segmentation"] = whole[0]
    assert evaluate_detections(digits, results, evaluator, "segm")["AP"] < 60


def test_masks_are_loaded_only_when_asked_for(digits: CocoDataset) -> None:
    plain = open_dataset(DIGITS, "val", progress=lambda line: None)
    assert digits.has_masks and not plain.has_masks
    assert all("segmentation" in row for row in digits.ground_truth["annotations"])
    assert not any("segmentation" in row for row in plain.ground_truth["annotations"])
    with_masks, without = (next(loader(dataset, DIGITS).epoch(0)) for dataset in (digits, plain))
    assert without.targets.masks is None and with_masks.targets.masks is not None
    assert with_masks.targets.masks.shape == (*with_masks.targets.labels.shape, MASK_CELLS, MASK_CELLS)
    assert torch.equal(with_masks.targets.boxes_xyxy, without.targets.boxes_xyxy)
    assert with_masks.to("cpu").targets.masks is not None


def test_masks_are_mirrored_with_the_image(digits: CocoDataset) -> None:
    usual, mirrored = (
        next(loader(digits, replace(DIGITS, flip_probability=p), training=True).epoch(0)) for p in (0.0, 1.0)
    )
    assert usual.targets.masks is not None and mirrored.targets.masks is not None
    assert torch.equal(usual.targets.masks.flip(-1), mirrored.targets.masks)
    assert not torch.equal(usual.targets.masks, mirrored.targets.masks)


@pytest.mark.parametrize(
    ("segmentation", "told"),
    [
        (None, "has no segmentation, which a mask branch learns from; add it or choose a head without masks"),
        ([], "has no segmentation"),
        ([[1, 2, 3, 4]], "has a polygon of fewer than three points, or with half a point; correct it"),
        ([["a", 2, 3, 4, 5, 6]], "has a segmentation that is neither polygons (lists of x, y, …) nor run lengths"),
        ({"size": [1, 2], "counts": [2]}, "has a mask of size [1, 2], but the image's is"),
        ({"size": None, "counts": [1, 2]}, "has a mask whose counts do not add up to the image's area; correct it"),
    ],
)
def test_masks_are_checked(tmp_path, segmentation, told) -> None:
    folder = write_folder(tmp_path)
    path = folder / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    sizes = {row["id"]: [row["height"], row["width"]] for row in content["images"]}
    for row in content["annotations"]:
        row["segmentation"] = [[0, 0, 5, 0, 5, 5]]
    row = content["annotations"][0]
    if isinstance(segmentation, dict) and segmentation["size"] is None:
        segmentation["size"] = sizes[row["image_id"]]
    row["segmentation"] = segmentation
    path.write_text(json.dumps(content))
    CocoDataset(folder, "train", progress=lambda line: None)  # without masks nobody looks
    with pytest.raises(UserError) as error:
        CocoDataset(folder, "train", progress=lambda line: None, with_masks=True)
    assert f"annotation {row['id']} (image {row['image_id']}) {told}" in str(error.value)
