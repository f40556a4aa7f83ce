"""The data side of the released recipe: what a training sample shows of its image, and which images go together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pycocotools.mask import encode
from torch import Tensor

from harness.config import DataConfig, TrainConfig
from harness.data.augment import View, Window
from harness.data.jitter import Jitter, jitter_of, jittered_hw, largest_offsets, on_square
from harness.data.order import aspect_groups, epoch_order
from harness.data.paste import Cutout, Objects, boxes_of, most_pasted, paste
from harness.data.transforms import flip_boxes, resized_hw, scale_boxes
from harness.trial.train import build_optimizer
from model.backbones.configs import ViTConfig
from model.config import DetectorConfig
from model.detector import Detector
from model.necks.configs import SimpleFpnConfig
from tests.golden_topics.case import EXACT, Case, Comparison, Tolerance
from tests.support.tiny import NUM_CLASSES, PLAIN, tiny_config

CROP_SHORT_SIDES = DataConfig().crop_short_sides
# OpenCV rounds its fixed-point sums down, and torch's to the nearest: at most one grey level for each resize, and an
# eighth of one in the mean.
GREY_LEVELS = 1
MEAN_GREY = 0.15


def crop_recipe(case: Case) -> Iterator[Comparison]:
    """The official numbers that were drawn give the official boxes, masks and pixels."""
    hw, boxes = pair(case["img_hw"]), case["boxes"].numpy()
    mirrored, cut = bool(case["flip"]), bool(case["with_crop"])
    yield same("boxes_flipped", flip_boxes(boxes, hw[1]) if mirrored else boxes, case)
    window = _window(case, hw) if cut else None
    short, limit = pair(case["scale2"])
    seen = window.hw if window else hw
    view = View(hw, resized_hw(*seen, short, limit), mirrored, window, "official")
    if window:
        yield from _middle(case, boxes, mirrored, hw, window)
    yield same("scale2_index", [list(range(480, 801, 32)).index(short)], case)
    yield same("final_hw", view.hw, case)
    yield same("final_factor", scale_boxes(np.ones((1, 4), np.float32), seen, view.hw), case)
    shown, shows = view.boxes(boxes)
    yield same("final_boxes", shown, case)
    yield same("final_kept", np.flatnonzero(shows), case)
    if "final_mask_areas" in case:
        yield from _masks(case, view, boxes[shows])
    image = view.image(picture(*hw))
    y, x = case["probe_yx"].numpy().T
    resizes = 2 if cut else 1
    probes, means = torch.from_numpy(image[y, x]).float(), torch.from_numpy(image.mean((0, 1)))
    yield Comparison("probe_rgb", probes, case["probe_rgb"].float(), Tolerance(0, resizes * GREY_LEVELS))
    yield Comparison("image_mean", means, case["image_mean"], Tolerance(0, resizes * MEAN_GREY))


def _window(case: Case, hw: tuple[int, int]) -> Window:
    (height, width), (top, left) = case["crop_draws"][:2, 2].tolist(), case["crop_draws"][2:, 2].tolist()
    return Window(resized_hw(*hw, *pair(case["scale1"])), top, left, height, width)


def _middle(case: Case, boxes: np.ndarray, mirrored: bool, hw: tuple[int, int], window: Window) -> Iterator[Comparison]:
    """Sizes and boxes on the way, and the bounds between which a window is drawn."""
    yield same("scale1_index", [CROP_SHORT_SIDES.index(pair(case["scale1"])[0])], case)
    yield same("resized1_hw", window.from_hw, case)
    yield same("resized1_factor", scale_boxes(np.ones((1, 4), np.float32), hw, window.from_hw), case)
    whole = View(hw, window.from_hw, mirrored, None, "official")
    resized, _ = whole.boxes(boxes)
    yield same("resized1_boxes", resized, case)
    smallest, largest = DataConfig().crop_sides
    bounds = [(min(side, smallest), min(side, largest) + 1) for side in window.from_hw]
    bounds += [(0, side - part + 1) for side, part in zip(window.from_hw, window.hw, strict=True)]
    yield Comparison("crop_draws", torch.tensor(bounds), case["crop_draws"][:, :2], EXACT)
    corners = (window.left, window.top, window.left + window.width, window.top + window.height)
    yield same("crop_window_xyxy", corners, case)
    yield same("crop_hw", window.hw, case)
    inside, shows = window.boxes(resized)
    yield same("crop_boxes", inside, case)
    yield same("crop_kept", np.flatnonzero(shows), case)


def _masks(case: Case, view: View, boxes: np.ndarray) -> Iterator[Comparison]:
    """Pixels of the ellipses in the original boxes, by the sources of each pixel of the view."""
    areas, tight, middle = [], [], []
    for box in boxes:
        ellipse = inscribed(view.from_hw, box)
        rows, columns = view.sources()
        seen = ellipse[rows[:, None], columns]
        areas.append(int(seen.sum()))
        tight.append(_tight(seen))
        if view.window is not None:
            cut = View(view.from_hw, view.window.hw, view.mirrored, view.window, "official")
            rows, columns = cut.sources()
            middle.append(int(ellipse[rows[:, None], columns].sum()))
    yield same("final_mask_areas", areas, case)
    yield same("final_mask_boxes", np.array(tight, np.float32), case)
    if view.window is not None:
        yield same("crop_mask_areas", middle, case)


def lsj_recipe(case: Case) -> Iterator[Comparison]:
    """Large-scale jitter with the official numbers: sizes, boxes around masks, what is dropped, pixels."""
    hw, square, boxes = pair(case["img_hw"]), int(case["size"]), case["boxes"].numpy()
    config = DataConfig(square=square, jitter_scales=(0.1, 2.0), resize="official")
    resized = jittered_hw(hw, config, case["ratio_u"].item())
    yield same("resized_hw", resized, case)
    low, high = config.jitter_scales
    yield same("scale", [int(square * (case["ratio_u"].item() * (high - low) + low))] * 2, case)
    whole = Jitter(hw, Window(resized, 0, 0, *resized), False, "official")
    yield same("resized_boxes", whole.boxes(boxes)[0], case)
    ellipses = [_ellipse(hw, box) for box in boxes]
    yield same("resized_mask_areas", [Cutout.seen(own, whole.sources()).area for own in ellipses], case)
    offsets = pair(case["crop_draws"][2:, 2])
    bounds = [(min(side, square), min(side, square) + 1) for side in resized]
    bounds += [(0, most + 1) for most in largest_offsets(resized, square)]
    yield Comparison("crop_draws", torch.tensor(bounds), case["crop_draws"][:, :2], EXACT)
    for mirrored, prefix, kept in ((False, "crop", "crop_kept"), (bool(case["flip"]), "final", "final_kept")):
        view = jitter_of(hw, resized, offsets, mirrored, config)
        _, shows = view.boxes(boxes)
        cutouts = tuple(Cutout.seen(own, view.sources()) for own, seen in zip(ellipses, shows, strict=True) if seen)
        objects = Objects(boxes_of(cutouts), np.flatnonzero(shows), cutouts)
        filtered = objects.with_area()
        if prefix == "crop":
            yield same("crop_hw", view.hw, case)
            yield same("dropped_image", [len(objects) > 0 and not len(filtered)], case)
            if "filtered_kept" in case:
                yield same("filtered_kept", filtered.labels, case)
        if prefix == "final" and "final_boxes" not in case:
            return  # another image takes its place
        shown = objects if prefix == "crop" else filtered
        yield same(f"{prefix}_boxes", shown.boxes_xyxy, case)
        yield same(kept, shown.labels, case)
    yield same("final_mask_areas", [own.area for own in filtered.cutouts or ()], case)
    yield same("img_shape_meta", view.hw, case)
    image = on_square(view.image(picture(*hw)), square)
    yield same("final_hw", image.shape[:2], case)
    y, x = case["probe_yx"].numpy().T
    probes, means = torch.from_numpy(image[y, x]).float(), torch.from_numpy(image.mean((0, 1)))
    yield Comparison("probe_rgb", probes, case["probe_rgb"].float(), Tolerance(0, GREY_LEVELS))
    yield Comparison("image_mean", means, case["image_mean"], Tolerance(0, MEAN_GREY))


def copy_paste(case: Case) -> Iterator[Comparison]:
    """The official objects, pasted: boxes, labels, masks and pixels to the last bit."""
    hw = pair(case["hw"])
    target, other = (_objects(case, name, hw) for name in ("dst", "src"))
    yield same("dst_boxes", target.boxes_xyxy, case)
    yield same("src_boxes", other.boxes_xyxy, case)
    yield Comparison("num_draw", torch.tensor([0, most_pasted(len(other), 99) + 1]), case["num_draw"][:2], EXACT)
    selected = case["selected"].numpy()
    assert len(selected) == int(case["num_draw"][2])
    image, objects = paste(picture(*hw), target, picture(*hw) + np.uint8(100), other.at(selected))
    masks = np.zeros((len(objects), *hw), bool)
    for mask, own in zip(masks, objects.cutouts or (), strict=True):
        mask[own.place] = own.pixels
    yield same("out_boxes", objects.boxes_xyxy, case)
    yield same("out_labels", objects.labels, case)
    yield same("out_mask_areas", masks.sum((1, 2)), case)
    yield same("out_image", image, case)
    yield same("out_masks", np.packbits(masks), case)


def _objects(case: Case, name: str, hw: tuple[int, int]) -> Objects:
    pixels = np.arange(hw[0]), np.arange(hw[1])
    boxes = case[f"{name}_ellipse_boxes"].numpy()
    cutouts = tuple(Cutout.seen(_ellipse(hw, box), pixels) for box in boxes)
    return Objects(boxes_of(cutouts), case[f"{name}_labels"].numpy(), cutouts)


def _ellipse(hw: tuple[int, int], box: np.ndarray) -> dict[str, Any]:
    """Packed run lengths of the pixels whose middle lies in the ellipse inscribed in a box."""
    return encode(np.asfortranarray(inscribed(hw, box).astype(np.uint8)))


def inscribed(hw: tuple[int, int], box: np.ndarray) -> np.ndarray:
    """[h, w] bool, the pixels whose middle lies in the ellipse inscribed in a box [4]."""
    y, x = np.mgrid[: hw[0], : hw[1]] + 0.5
    x0, y0, x1, y1 = box.astype(np.float64)
    ellipse: np.ndarray = ((x - (x0 + x1) / 2) / ((x1 - x0) / 2)) ** 2 + (
        (y - (y0 + y1) / 2) / ((y1 - y0) / 2)
    ) ** 2 <= 1
    return ellipse


def _tight(mask: np.ndarray) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(mask)
    return (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1) if len(ys) else (0, 0, 0, 0)


def picture(height: int, width: int) -> np.ndarray:
    """[height, width, 3] uint8 by the formula of the fixtures."""
    y, x, channel = np.ogrid[:height, :width, :3]
    checks = 40 * ((x // 23 + y // 31) % 2)
    return ((3 * x + 5 * y + 85 * channel + x * y // 64 + checks) % 256).astype(np.uint8)


def group_sampler(case: Case) -> Iterator[Comparison]:
    """The official order, with the official permutations."""
    size, ranks = int(case["samples_per_gpu"]), int(case["world_size"])
    widths, heights = case["width_height"].T
    image_hw = list(zip(heights.tolist(), widths.tolist(), strict=True))
    config = DataConfig(aspect_group_size=size)
    groups = aspect_groups(image_hw, config)
    flags = np.zeros(len(image_hw), np.int64)
    for group in groups:
        flags[group] = image_hw[group[0]][1] > image_hw[group[0]][0]
    yield same("flag", flags, case)
    generator = torch.Generator().manual_seed(int(case["seed"]) + int(case["epoch"]))
    order = epoch_order(groups, config, size * ranks, lambda n: torch.randperm(n, generator=generator).numpy())
    yield same("per_rank_length", [len(order) // ranks], case)
    yield same("indices_per_rank", order, case)


def param_groups(case: Case) -> Iterator[Comparison]:
    """Learning rate and weight decay of every parameter, by what it is in our detector."""
    rates, by_layer = case.table("lr_and_weight_decay"), "custom_keys" not in case
    factors = {} if by_layer else case.table("custom_keys")
    assert case.table("shapes").keys() == rates.keys() and case.table("rule")
    train = TrainConfig(
        learning_rate=case["lr"].item(),
        weight_decay=case["weight_decay"].item(),
        backbone_lr_factor=factors.get("backbone", 1.0),
        sampling_lr_factor=factors.get("sampling_offsets", 1.0),
        layer_decay=case["layer_decay_rate"].item() if by_layer else 1.0,
        weight_decay_of="matrices" if by_layer else "all",
    )
    config = tiny_config("atss", "faster_rcnn", **PLAIN)
    ours = _rates(_with_vit(config, int(case["num_layers"])) if by_layer else config, train)
    for name, official in rates.items():
        counterpart = next(ours_is for theirs, ours_is in COUNTERPARTS.items() if theirs in name)
        alike = [own for own in ours if counterpart in own and own.endswith(_kind(name))]
        found = {ours[own] for own in ([name] if name in ours else alike)}
        assert found, f"{name}: no parameter of ours has {counterpart!r} in its name"
        actual = torch.tensor(sorted(found), dtype=torch.float64)
        yield Comparison(name, actual, torch.tensor([official], dtype=torch.float64), Tolerance(1e-12, 0))


# Part of an official name, and of the names of the same parameters here; the first that fits.
COUNTERPARTS = {
    "backbone.": "backbone.",
    "neck.": "neck.",
    "level_embeds": "level_embedding",
    "sampling_offsets": "sampling_offsets",
    "value_proj": "value_proj",
    "norms.": "attention_norm",
    "reference_points": "queries.reference_points",
    "query_embed": "queries.embedding",
    "cls_branches": "class_branch",
    "roi_head": "heads.faster_rcnn",
    "bbox_head": "heads.atss",
    "rpn_head": "heads.faster_rcnn",
}


def _with_vit(config: DetectorConfig, depth: int) -> DetectorConfig:
    """The same with a backbone and a neck whose names are the official ones."""
    backbone = ViTConfig(channels=16, depth=depth, num_heads=2, global_blocks=(), pretrained_size=32)
    transformer = replace(config.transformer, num_levels=5)
    return replace(config, backbone=backbone, neck=SimpleFpnConfig(), transformer=transformer)


def _kind(name: str) -> str:
    """How the name of a like parameter ends, as far as names tell."""
    return name[name.rindex(".") :] if name.endswith((".weight", ".bias")) else ""


def _rates(config: DetectorConfig, train: TrainConfig) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay by the name of a parameter, of a small detector with both of the paper's heads."""
    detector = Detector(config, NUM_CLASSES)
    groups = build_optimizer(detector, train).param_groups
    rate_of = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: rate_of[id(p)] for name, p in detector.named_parameters() if p.requires_grad}


def pair(values: Tensor) -> tuple[int, int]:
    """Two numbers."""
    first, second = values.tolist()
    return first, second


def same(name: str, actual: object, case: Case) -> Comparison:
    """Equal to the official array of that name."""
    expected = case[name]
    return Comparison(name, torch.as_tensor(np.asarray(actual)).to(expected.dtype), expected, EXACT)
