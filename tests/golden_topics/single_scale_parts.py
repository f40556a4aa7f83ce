"""DAB-DETR and Conditional-DETR in pieces: encodings, an encoder layer, two decoder layers, costs and losses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from model.assign.hungarian import match, matching_costs
from model.boxes import added_area, cxcywh_to_xyxy, giou_pairwise, inverse_sigmoid
from model.branches import MLP
from model.classification.configs import FocalConfig
from model.config import DetectorConfig, LossWeights, TransformerConfig
from model.criterion import set_losses
from model.decoders import DECODERS
from model.encoders import ENCODERS
from model.layers import downsample_mask
from model.losses import Focal
from model.official.conditional_detr import rename
from model.position import box_position_encoding, sine_position_encoding, valid_ratios
from model.types import Memory, QueryGroup, Targets, padding_mask
from tests.golden_topics.case import EXACT, Case, Comparison, Tolerance, leaf
from tests.golden_topics.official import of_detr
from tests.golden_topics.single_scale import (
    BOXES,
    CONDITIONAL,
    DAB,
    ENCODING,
    GRADIENTS,
    LOSSES,
    STATES,
    TERMS,
    detector_config,
    norms,
    watched,
)

SINE = Tolerance(1e-4, 3e-4)  # divided by the sides of boxes
SIDE = 1024  # pixels of an image in which normalised boxes keep every bit
POINT_HEAD = "queries.point_head."


def dab_parts(case: Case) -> Iterator[Comparison]:
    """References are boxes, which move."""
    boxes = case["sine_boxes"]
    for name, order in (("boxes", [1, 0, 2, 3]), ("points", [1, 0])):
        encoded = box_position_encoding(boxes[..., order], 128)
        yield Comparison(f"sine_embed_{name}", encoded, case[f"sine_embed_{name}"], ENCODING)
    config, mask, parameters = _config(case, DAB), _mask(case), _parameters(case)
    yield from _encoded(case, config, mask, parameters)
    content, anchors = leaf(case["tgt"]), leaf(case["refpoints"])
    group = QueryGroup(content, None, anchors.sigmoid(), has_size=True)
    yield from _decoded(case, config, group, {"tgt": content, "refpoints": anchors})
    yield from _functions(case, config)


def conditional_parts(case: Case) -> Iterator[Comparison]:
    """References are points, made of the positions."""
    encoded = box_position_encoding(case["sine_points"].flip(-1), 128)
    yield Comparison("sine_embed_points", encoded, case["sine_embed_points"], ENCODING)
    config, mask, parameters = _config(case, CONDITIONAL), _mask(case), _parameters(case)
    yield from _encoded(case, config, mask, parameters)
    content, position = leaf(case["tgt"]), leaf(case["query_pos"])
    point_head = MLP(position.shape[2], position.shape[2], 2)
    point_head.load_state_dict(_below(POINT_HEAD, parameters))
    points = point_head(position).sigmoid()
    group = QueryGroup(content, position, torch.cat([points, torch.full_like(points, 0.5)], -1), has_size=False)
    yield from _decoded(case, config, group, {"tgt": content, "query_pos": position}, point_head)
    yield from _functions(case, config)


def _mask(case: Case) -> Tensor:
    size = (case["pos_embed"].shape[2], case["pos_embed"].shape[3])
    return downsample_mask(padding_mask(case["valid_hw"], *case["batch_hw"].tolist()), size)


def _config(case: Case, model: dict[str, Any]) -> DetectorConfig:
    channels = case["pos_embed"].shape[1]
    transformer = TransformerConfig(
        channels,
        num_levels=1,
        num_attention_heads=int(case["num_heads"]),
        num_encoder_layers=1,
        num_decoder_layers=2,
        feedforward_channels=channels + 8,
    )
    return detector_config(transformer, LossWeights(giou_epsilon=1e-6 if model is DAB else 0.0), model)


def _parameters(case: Case, kind: str = "param.") -> dict[str, Tensor]:
    return of_detr({f"transformer.{name}": value for name, value in case.under(kind).items()}, rename)


def _below(prefix: str, named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def _encoded(case: Case, config: DetectorConfig, mask: Tensor, parameters: dict[str, Tensor]) -> Iterator[Comparison]:
    yield Comparison("mask", mask, case["mask"], EXACT)
    encoding = sine_position_encoding(mask, config.transformer.channels, 0.0, config.encoder.position_temperature)
    yield Comparison("pos_embed", encoding, case["pos_embed"], ENCODING)
    encoder = ENCODERS.build(config.encoder, model=config)
    encoder.load_state_dict(_below("encoder.", parameters))
    level = case["encoder_in"].transpose(1, 2).unflatten(2, tuple(mask.shape[1:]))
    memory = encoder([level], [mask], padded=True, level_embedding=None)
    yield Comparison("pos_embed of tokens", memory.position, encoding.flatten(2).transpose(1, 2), EXACT)
    yield Comparison("encoder_out", memory.tokens, case["encoder_out"], STATES)


class _Steps:
    """What goes through each layer of a decoder."""

    def __init__(self, decoder: nn.Module):
        self.layers: list[dict[str, Tensor]] = []
        self.looked_at: list[tuple[Tensor, Tensor]] = []
        self.scales: list[Tensor] = []
        self.modulations: list[Tensor] = []
        for layer in decoder.layers:
            layer.register_forward_pre_hook(self._enter, with_kwargs=True)
            for part, name in PARTS_OF_A_LAYER.items():
                layer.get_submodule(part).register_forward_hook(self._note(name))
            layer.register_forward_hook(self._note("output"))
        decoder.query_scale.register_forward_hook(lambda module, given, scale: self.scales.append(scale))
        if hasattr(decoder, "size_head"):
            decoder.size_head.register_forward_hook(lambda module, given, own: self.modulations.append(own.sigmoid()))

    def _enter(self, layer: nn.Module, given: tuple[Tensor, ...], named: dict[str, Any]) -> Any:
        self.layers.append(dict(zip(("input", "query_pos", "query_sine"), given, strict=True)))
        return given, {**named, "looked_at": self.looked_at}

    def _note(self, name: str) -> Any:
        def note(module: nn.Module, given: Any, output: Tensor) -> None:
            self.layers[-1][name] = output

        return note

    def comparisons(self, case: Case) -> Iterator[Comparison]:
        for number, found in enumerate(self.layers):
            for name, value in found.items():
                tolerance = SINE if name == "query_sine" else STATES
                yield Comparison(f"layer{number}.{name}", value, case[f"layer{number}.{name}"], tolerance)
            weights = self.looked_at[number][1]
            yield Comparison(f"layer{number} weights", weights, case[f"layer{number}.cross_attn_weights"], STATES)
        for number, scale in enumerate(self.scales, 1):
            yield Comparison(f"layer{number}.query_scale", scale, case[f"layer{number}.query_scale"], STATES)
        for number, own in enumerate(self.modulations):
            yield Comparison(f"layer{number}.modulation", own, case[f"layer{number}.modulation"], STATES)


PARTS_OF_A_LAYER = {"self_attention": "self_attn", "self_norm": "after_norm1", "cross_attention": "cross_attn"}


def _decoded(
    case: Case,
    config: DetectorConfig,
    group: QueryGroup,
    leaves: dict[str, Tensor],
    point_head: nn.Module | None = None,
) -> Iterator[Comparison]:
    """Both layers step by step, then the gradients."""
    decoder = DECODERS.build(config.decoder, model=config, num_classes=1)
    left = decoder.load_state_dict(_below("decoder.", _parameters(case)), strict=False)
    assert not left.unexpected_keys and all("_branch." in name for name in left.missing_keys)
    tokens, mask = leaf(case["memory"]), case["mask"]
    position = case["pos_embed"].flatten(2).transpose(1, 2)
    memory = Memory(tokens, (tuple(mask.shape[1:]),), mask.flatten(1), valid_ratios([mask]), position)
    steps = _Steps(decoder)
    with watched(decoder) as found:
        decoder([group], memory)
    yield from steps.comparisons(case)
    states, references = found["states"], found["references"].reshape(case["references"].shape)
    yield Comparison("states", states, case["states"], STATES)
    yield Comparison("references", references, case["references"], BOXES)
    ((states * case["grad_states"]).sum() + (references * case["grad_references"]).sum()).backward()
    for name, tensor in {**leaves, "memory": tokens}.items():
        assert tensor.grad is not None
        yield Comparison(f"grad_{name}", tensor.grad, case[f"grad_{name}"], GRADIENTS)
    official = _parameters(case, "gradnorm.")
    ours = {f"decoder.{name}": parameter for name, parameter in decoder.named_parameters()}
    if point_head is not None:
        ours |= {POINT_HEAD + name: parameter for name, parameter in point_head.named_parameters()}
    assert ours.keys() - official.keys() == {f"decoder.{name}" for name in left.missing_keys}
    yield from norms(iter([(name, ours[name]) for name in official]), official)


def _functions(case: Case, config: DetectorConfig) -> Iterator[Comparison]:
    """Logits of references, costs, matching and losses of one image."""
    epsilon, weights = config.decoder.inverse_sigmoid_epsilon, config.loss_weights
    logits = inverse_sigmoid(case["inv_sigmoid_in"], epsilon)
    yield Comparison("inv_sigmoid_out", logits, case["inv_sigmoid_out"], STATES)
    reference, moved = case["update_reference"], case["update_delta"].clone()
    moved[..., : reference.shape[-1]] += inverse_sigmoid(reference, epsilon)
    yield Comparison("update_result", moved.sigmoid(), case["update_result"], BOXES)

    logits, boxes, gt_boxes = case["cost_logits"][None, None], case["cost_boxes"], case["cost_gt_boxes"]
    valid_hw, pixels = torch.tensor([[SIDE, SIDE]]), cxcywh_to_xyxy(gt_boxes) * SIDE
    more = added_area(weights.giou_epsilon, valid_hw[0].float())
    giou = giou_pairwise(cxcywh_to_xyxy(boxes) * SIDE, pixels, more)
    yield Comparison("giou", giou, case["giou"], STATES)
    targets = Targets(pixels[None], case["cost_gt_labels"][None])
    given = logits, boxes[None, None], targets, valid_hw
    costs = matching_costs(*given, weights, config.assign.log_epsilon)
    yield Comparison("cost_total", costs, case["cost_total"], STATES)
    assigned = match(*given, weights, log_epsilon=config.assign.log_epsilon)
    yield Comparison("cost_assigned", assigned, case["cost_assigned"], EXACT)
    losses = set_losses(
        logits,
        boxes[None, None],
        assigned,
        targets,
        valid_hw,
        classification=Focal(FocalConfig()),
        num_objects=targets.valid.sum(),
        giou_epsilon=weights.giou_epsilon,
    )
    for term, official in TERMS.items():
        yield Comparison(term, losses[term], case[f"loss.loss_{official}"], LOSSES)
