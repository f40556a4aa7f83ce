"""One adaptor per topic of the official numbers: it recomputes a file's outputs with this package.

An adaptor takes a `Case` and yields comparisons. Every array of a file must be read, or be named in the topic's
`unread` with the reason, so that nothing passes by being left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from golden_topics import candidates, end_to_end, functions, heads, transformer
from golden_topics.case import Case, Comparison


class Topic(NamedTuple):
    """How to check the files of one topic."""

    compare: Callable[[Case], Iterator[Comparison]]
    unread: tuple[str, ...] = ()  # arrays this package has no counterpart for


TOPICS: dict[str, Topic] = {
    # Sizes and labels that the other arrays already contain; the assigner sees one class.
    "assign_atss": Topic(candidates.assign_atss, ("img_hw", "featmap_hw")),
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
    "e2e_main": Topic(end_to_end.main, end_to_end.UNREAD),
    "e2e_plain": Topic(end_to_end.plain, end_to_end.UNREAD),
}

NOT_YET_BUILT = frozenset(
    {
        "assign_maxiou_paa",
        "assign_maxiou_rcnn",
        "assign_maxiou_retina",
        "assign_maxiou_rpn",
        "dn_queries",
        "e2e_dino",
        "fcos_targets_center",
        "fcos_targets_center_norm",
        "fcos_targets_plain",
        "gfl_targets",
        "head_fcos",
        "head_fcos_center",
        "head_gfl",
        "head_paa",
        "head_rcnn",
        "head_retina",
        "paa_reassign",
    }
)
