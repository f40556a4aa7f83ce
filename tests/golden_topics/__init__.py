"""One adaptor per topic of the official numbers: it recomputes a file's outputs with this package.

An adaptor takes a `Case` and yields comparisons. Every array of a file must be read, or be named in the topic's
`unread` with the reason, so that nothing passes by being left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.golden_topics import (
    candidates,
    denoising,
    dino,
    end_to_end,
    from_levels,
    functions,
    heads,
    hybrid,
    lvis,
    plain_vit,
    recipe,
    regions,
    replicas,
    single_scale,
    single_scale_parts,
    swin,
    transformer,
)
from tests.golden_topics.case import Case, Comparison


class Topic(NamedTuple):
    """How to check the files of one topic."""

    compare: Callable[[Case], Iterator[Comparison]]
    unread: tuple[str, ...] = ()  # arrays this package has no counterpart for


TOPICS: dict[str, Topic] = {
    # Sizes and labels that the other arrays already contain; the assigner sees one class.
    "assign_atss": Topic(candidates.assign_atss, ("img_hw", "featmap_hw")),
    "assign_maxiou_rpn": Topic(regions.assign_maxiou_rpn, ("img_hw", "featmap_hw", "num_level_anchors")),
    "assign_maxiou_rcnn": Topic(regions.assign_maxiou_rcnn, ("img_hw",)),
    "assign_maxiou_retina": Topic(candidates.assign_max_iou_retinanet, ("img_hw", "featmap_hw", "num_level_anchors")),
    "assign_maxiou_paa": Topic(candidates.assign_max_iou_paa, ("img_hw", "featmap_hw", "num_level_anchors")),
    "fcos_targets_plain": Topic(candidates.fcos_plain, ("img_hw",)),
    "fcos_targets_center": Topic(candidates.fcos_center, ("img_hw",)),
    "fcos_targets_center_norm": Topic(candidates.fcos_center_norm, ("img_hw",)),
    "paa_reassign": Topic(candidates.paa_reassign, ("img_hw",)),
    "gfl_targets": Topic(candidates.gfl_targets, ("img_hw",)),
    "anchors": Topic(candidates.anchors),
    "box_coders": Topic(functions.box_coders),
    "losses": Topic(functions.losses),
    "hungarian": Topic(functions.hungarian),
    "nms": Topic(functions.suppression),
    "roi_align": Topic(functions.roi_align_adaptive),
    "msda_op": Topic(transformer.msda_op),
    "msda_module": Topic(transformer.msda_module),
    "aux_queries": Topic(transformer.aux_queries),
    "detr_parts": Topic(transformer.detr_parts),
    "head_co_atss": Topic(heads.co_atss, ("batch_hw",)),
    "head_rcnn": Topic(regions.head_rcnn, ("batch_hw",)),
    "head_retina": Topic(heads.retinanet, ("batch_hw",)),
    "head_fcos": Topic(heads.fcos, ("batch_hw",)),
    "head_fcos_center": Topic(heads.fcos_center, ("batch_hw",)),
    "head_paa": Topic(heads.paa, ("batch_hw",)),
    "head_gfl": Topic(heads.gfl, ("batch_hw",)),
    "e2e_main": Topic(end_to_end.main, end_to_end.UNREAD),
    "e2e_plain": Topic(end_to_end.plain, end_to_end.UNREAD),
    "h_matching": Topic(hybrid.h_matching, from_levels.UNREAD),
    "e2e_h": Topic(hybrid.e2e_h, from_levels.UNREAD),
    "dab_parts": Topic(single_scale_parts.dab_parts),
    "conditional_parts": Topic(single_scale_parts.conditional_parts),
    "e2e_dab": Topic(single_scale.e2e_dab),
    "e2e_conditional": Topic(single_scale.e2e_conditional),
    "dn_queries": Topic(denoising.dn_queries),
    "e2e_dino": Topic(dino.e2e_dino, dino.UNREAD),
    "e2e_dino5": Topic(dino.e2e_dino5, dino.UNREAD_5),
    # Sizes that the masks and ratios contain.
    "group_layer": Topic(replicas.group_layer, ("batch_hw", "valid_hw")),
    "group_matching": Topic(replicas.group_matching, from_levels.UNREAD),
    # What logits and boxes are computed from.
    "e2e_group": Topic(replicas.e2e_group, (*from_levels.UNREAD, "states", "references_unact", "enc_selected_memory")),
    "e2e_group_ddetr": Topic(replicas.e2e_group_ddetr, from_levels.UNREAD),
    "crop_recipe": Topic(recipe.crop_recipe),
    "lsj_recipe": Topic(recipe.lsj_recipe),
    "copy_paste": Topic(recipe.copy_paste),
    "group_sampler": Topic(recipe.group_sampler),
    "param_groups": Topic(recipe.param_groups),
    "vit": Topic(plain_vit.vit),
    "sfp": Topic(plain_vit.sfp),
    "swin": Topic(swin.swin),
    "swin_mmdet": Topic(swin.swin),
    "lvis_eval": Topic(lvis.lvis_eval, ("kind",)),
    "repeat_factor": Topic(lvis.repeat_factor, ("num_classes",)),
}

# Topics whose files are too large to keep beside the tests: they are checked where GOLDEN_DIR holds them.
LARGE = frozenset({"assign_maxiou_rpn", "e2e_dino", "head_fcos", "head_rcnn", "swin", "swin_mmdet"})
