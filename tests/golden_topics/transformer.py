"""Deformable attention, customised queries and the small parts of the transformer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from model.attention import DeformableAttention
from model.boxes import inverse_sigmoid
from model.groups.positives import select_positives
from model.layers import downsample_mask
from model.ops import ms_deform_attn
from model.position import box_position_encoding, encoder_reference_points, sine_position_encoding, valid_ratios
from model.proposals.tokens import encoder_anchors
from model.types import BACKGROUND, Memory, Positives, Pyramid, Targets, padding_mask
from tests.golden_topics.case import EXACT, FLOAT32, FLOAT64, Case, Comparison, leaf


def _sizes(shapes: Tensor) -> tuple[tuple[int, int], ...]:
    return tuple((height, width) for height, width in shapes.tolist())


def msda_op(case: Case) -> Iterator[Comparison]:
    """The sampling operator and its three gradients."""
    inputs = {name: leaf(case[name]) for name in ("value", "sampling_locations_xy", "attention_weights")}
    value, locations, weights = inputs.values()
    output = ms_deform_attn(value, _sizes(case["spatial_shapes_hw"]), locations, weights)
    output.backward(case["grad_output"])
    yield Comparison("output", output, case["output"], FLOAT64)
    for name, tensor in inputs.items():
        official = f"grad_{name.removesuffix('_xy')}"
        assert tensor.grad is not None
        yield Comparison(official, tensor.grad, case[official], FLOAT64)


def msda_module(case: Case) -> Iterator[Comparison]:
    """Official tensors are sequence-first, and the module adds the residual."""
    sizes = _sizes(case["spatial_shapes_hw"])
    parameters = case.under("param.")
    channels = len(parameters["value_proj.bias"])
    # The files do not hold the number of heads. Of the few that fit the weights, take the one nearest to the output.
    rows = len(parameters["attention_weights.bias"]) // len(sizes)  # heads x points
    modules = []
    for num_heads in (heads for heads in (1, 2, 4, 8) if rows % heads == 0 and channels % heads == 0):
        module = DeformableAttention(channels, num_heads, len(sizes), rows // num_heads).double()
        module.load_state_dict(parameters)
        with torch.no_grad():
            error = (_attend(module, case, case["query"], case["value"]) - case["output"]).abs().max()
        modules.append((float(error), num_heads, module))
    module = min(modules, key=lambda entry: entry[:2])[2]

    query, value = leaf(case["query"]), leaf(case["value"])
    output = _attend(module, case, query, value)
    output.backward(case["grad_output"])
    yield Comparison("output", output, case["output"], FLOAT64)
    for name, tensor in (("grad_query", query), ("grad_value", value)):
        assert tensor.grad is not None
        yield Comparison(name, tensor.grad, case[name], FLOAT64)
    gradients = {name: case[f"grad.{name}"] for name in parameters}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        yield Comparison(f"grad.{name}", parameter.grad, gradients[name], FLOAT64)


def _attend(module: DeformableAttention, case: Case, query: Tensor, value: Tensor) -> Tensor:
    attended = module(
        (query + case["query_pos"]).transpose(0, 1),
        case["reference_points"],
        None,
        value.transpose(0, 1),
        _sizes(case["spatial_shapes_hw"]),
        case["key_padding_mask"],
    )
    return attended.transpose(0, 1) + query


def aux_queries(case: Case) -> Iterator[Comparison]:
    """`get_aux_targets` where "random" takes the first ones; label 5 is negative. Each positive is its own object."""
    boxes, labels = case["in_coords"], case["in_labels"]
    num_candidates = boxes.shape[1]
    positive = labels < 5
    gt_index = torch.arange(num_candidates).where(positive, BACKGROUND)
    targets = Targets(case["in_targets"], labels.where(positive, BACKGROUND))
    pyramid = Pyramid(case.sequence("feat_level"), (8, 16, 32, 64, 128), case["valid_hw"], (None,) * 5)
    token_index = torch.arange(num_candidates) // int(case["anchors_per_location"])
    if "in_roi_feats" in case:
        positives = Positives(boxes, gt_index, features=case["in_roi_feats"])
    else:
        positives = Positives(boxes, gt_index, token_index=token_index)
    first_ones_first = 1 - torch.arange(1, num_candidates + 1) / (num_candidates + 1)
    selection = select_positives(
        positives,
        pyramid,
        minimum=9,
        maximum=max(9, int(case["max_pos_coords"])),  # the official minimum wins over a smaller cap
        priority=first_ones_first.expand_as(labels),
    )
    index = selection.gt_index.clamp(min=0)
    chosen = selection.gt_index >= 0
    yield Comparison("aux_coords", selection.boxes_cxcywh, case["aux_coords"], FLOAT32)
    yield Comparison("aux_labels", targets.labels.gather(1, index).where(chosen, 5), case["aux_labels"], EXACT)
    target_boxes = targets.boxes_cxcywh(case["valid_hw"]).gather(1, index[..., None].expand(-1, -1, 4))
    yield Comparison("aux_targets", target_boxes.where(chosen[..., None], 0.0), case["aux_targets"], FLOAT32)
    # With fewer candidates than queries are wanted the official weights are longer than the queries.
    there = slice(case["aux_coords"].shape[1])
    yield Comparison("aux_label_weights", selection.weight, case["aux_label_weights"][:, there], EXACT)
    box_weights = chosen[..., None].expand(-1, -1, 4).float()
    yield Comparison("aux_bbox_weights", box_weights, case["aux_bbox_weights"][:, there], EXACT)
    yield Comparison("aux_feats", selection.features, case["aux_feats"], EXACT)


def detr_parts(case: Case) -> Iterator[Comparison]:
    """Masks, encodings, reference points and encoder proposals."""
    sizes = _sizes(case["featmap_hw"])
    height, width = case["batch_hw"].tolist()
    full = padding_mask(case["valid_hw"], height, width)
    masks = [downsample_mask(full, size) for size in sizes]
    flat = torch.cat([mask.flatten(1) for mask in masks], 1)
    yield Comparison("mask_flat", flat, case["mask_flat"], EXACT)

    channels = case["pos_deformable"].shape[-1]
    for name, offset, temperature in (("pos_deformable", -0.5, 10000.0), ("pos_dino", 0.0, 20.0)):
        encodings = [sine_position_encoding(mask, channels, offset, temperature).flatten(2) for mask in masks]
        yield Comparison(name, torch.cat(encodings, 2).transpose(1, 2), case[name], FLOAT32)
    ratios = valid_ratios(masks)
    yield Comparison("valid_ratios_wh", ratios, case["valid_ratios_wh"], FLOAT32)
    points = encoder_reference_points(list(sizes), ratios)
    yield Comparison("encoder_reference_points", points, case["encoder_reference_points"], FLOAT32)

    tokens, logits, _ = encoder_anchors(Memory(case["memory"], sizes, flat, ratios))
    yield Comparison("proposal_memory_zeroed", tokens, case["proposal_memory_zeroed"], EXACT)
    yield Comparison("proposal_logits", logits, case["proposal_logits"], FLOAT32)
    encoded = box_position_encoding(case["box_logits"].sigmoid(), channels // 2)
    yield Comparison("proposal_pos_embed", encoded, case["proposal_pos_embed"], FLOAT32)
    y_first = box_position_encoding(case["boxes01"][..., [1, 0, 2, 3]], channels // 2)
    yield Comparison("dino_sine_embed", y_first, case["dino_sine_embed"], FLOAT32)
    for name, epsilon in (("inv_sigmoid_eps1e5", 1e-5), ("inv_sigmoid_eps1e3", 1e-3)):
        yield Comparison(name, inverse_sigmoid(case["inv_sigmoid_in"], epsilon), case[name], FLOAT32)
