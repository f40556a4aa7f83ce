"""Heads, transformer and queries of every released layout, whatever its backbone, and what one changed key does.

Names and shapes only: backbone and neck are left out, and have tests of their own where they are built.
"""

from __future__ import annotations

import random

import pytest
import torch

from harness.revisit.key_report import trouble
from model.official import Translation
from tests.support.layouts import BOTH, COUNTS, LAYOUTS, State, filled, translated

RPN = "rpn: {test_candidates: 8000, test_proposals: 2000, test_nms_threshold: 0.9}"
ROI = "roi: {num_convs: 4, num_fcs: 1, class_agnostic: true, delta_stds: [0.05, 0.05, 0.1, 0.1]}"
ONE_BOX = f"model.heads=[{{name: faster_rcnn, {RPN}, {ROI}}}, atss]"  # of ViT-L on COCO
DINO = "model.preset=dino_5scale"

SETTINGS: dict[str, tuple[str, ...]] = {
    "co_deformable_detr_mask_r50_1x_coco": ("model.heads=[mask_rcnn, atss]",),
    "co_deformable_detr_r50_1x_coco": (BOTH,),
    "co_deformable_detr_swin_large_900q_3x_coco": (BOTH, "model.num_queries=900"),
    "co_deformable_detr_swin_tiny_1x_coco": (BOTH,),
    "co_dino_5scale_9encoder_lsj_r50_3x_coco": (DINO, BOTH, "model.transformer.num_encoder_layers=9"),
    "co_dino_5scale_lsj_swin_large_16e_o365tolvis": (DINO, BOTH),
    "co_dino_5scale_lsj_vit_large_lvis": (DINO, BOTH),
    "co_dino_5scale_r50_1x_coco": (DINO, BOTH),
    "co_dino_5scale_swin_large_16e_o365tococo": (DINO, BOTH),
    "co_dino_5scale_vit_large_coco": (DINO, ONE_BOX, "model.num_queries=1500"),
    "co_dino_5scale_vit_large_coco_instance": (DINO, ONE_BOX, "model.num_queries=1500"),
}
LEFT_OUT = ("backbone.", "neck.")


def read(layout: str, state: State) -> Translation:
    return translated(state, *SETTINGS[layout], drop=LEFT_OUT)


def state_of(layout: str) -> State:
    return filled(LAYOUTS[layout])


def own(names: set[str]) -> set[str]:
    return {name for name in names if not name.startswith(LEFT_OUT)}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_all_behind_the_neck_has_its_place(layout: str) -> None:
    state = state_of(layout)
    found = read(layout, state)
    assert not own({*found.missing}) and not found.unknown and not found.unexpected and not found.misshapen
    assert found.num_classes == (1203 if "lvis" in layout else 80)
    assert own({*found.renamed} | {*found.dropped}) == own(state.keys())
    beyond = {name for name in found.dropped if name.startswith(("mask_head.", "mask_iou_head."))}
    assert own({*found.dropped}) == beyond and (len(beyond) > 60) == ("instance" in layout)
    assert all("not built" in found.dropped[name] for name in beyond)


def test_the_convolutions_of_the_regions_come_in_order() -> None:
    found = read("co_dino_5scale_vit_large_coco", state_of("co_dino_5scale_vit_large_coco"))
    ours = "heads.faster_rcnn.stages.boxes.convs.3"
    assert found.renamed["roi_head.0.bbox_head.shared_convs.3.gn.bias"] == f"{ours}.norm.bias"
    assert found.tensors[f"{ours}.conv.weight"].shape == (256, 256, 3, 3)
    assert found.tensors["heads.faster_rcnn.stages.boxes.box.weight"].shape == (4, 1024)
    wrong = translated(state_of("co_dino_5scale_vit_large_coco"), DINO, BOTH, "model.num_queries=1500", drop=LEFT_OUT)
    assert "roi_head.0.bbox_head.shared_convs.0.conv.weight" in wrong.unexpected
    assert wrong.misshapen["heads.faster_rcnn.stages.boxes.box.bias"] == "4 instead of 320"


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_one_changed_key_is_told(layout: str) -> None:
    """Renamed, missing, or of another shape: each is in the one line that ends the command, by its name."""
    names = own({name for name in LAYOUTS[layout] if not name.startswith(("mask_head.", "mask_iou_head."))})
    before = trouble(read(layout, state_of(layout)))  # of what is left out
    for number, name in enumerate(random.Random(layout).sample(sorted(names), 3)):
        state = state_of(layout)
        tensor = state.pop(name)
        if number == 0:
            state[f"{name}_"] = tensor
        elif number == 1:
            state[name] = torch.zeros(()).expand(*tensor.shape, 2)
        found = read(layout, state)
        told = trouble(found)
        assert told != before and "\n" not in told and not found.fits
        ours = {*own({*found.missing}), *found.misshapen, *found.unknown, *found.unexpected}
        assert ours, name


def test_a_count_of_batches_may_be_missing() -> None:
    layout = "co_dino_5scale_r50_1x_coco"
    state = {name: tensor for name, tensor in state_of(layout).items() if not name.endswith("num_batches_tracked")}
    found = translated(state, *SETTINGS[layout])
    assert found.fits and COUNTS not in found.dropped.values()
