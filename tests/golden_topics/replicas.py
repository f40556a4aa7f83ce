"""Group-DETR: replicas of the queries that never see each other (numbers of LW-DETR)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from model.assign.configs import HungarianConfig
from model.assign.hungarian import Hungarian
from model.attention import Visibility
from model.backbones.configs import ResNetConfig
from model.classification.configs import FocalConfig
from model.config import DetectorConfig, TransformerConfig
from model.criterion import TERMS, Objective, loss_weights, total_loss
from model.decoders.configs import DeformableDecoderConfig
from model.decoders.deformable import DecoderLayer
from model.detector import Detector
from model.encoders.configs import NoneConfig
from model.groups.configs import MainConfig, ReplicasConfig
from model.groups.main import MainGroup
from model.groups.replicas import ReplicasGroup
from model.losses import Focal
from model.official import lw_detr
from model.proposals.configs import AnchorsConfig, PerGroupConfig
from model.proposals.per_group import PerGroupProposals
from model.types import Batch, DecoderOutput, Memory, Proposals, QueryGroup, Step
from tests.golden_topics.case import (
    EXACT,
    FLOAT32,
    GRADIENT,
    GRADIENT_NORM,
    Case,
    Comparison,
    Tolerance,
    leaf,
)
from tests.golden_topics.from_levels import (
    FEATURES,
    OFFICIAL,
    batch_of,
    compare_deformable,
    compare_gradients,
    compare_inference,
    decode,
    found_in,
    given_levels,
    load,
    targets_of,
    together,
)
from tests.golden_topics.hybrid import deformable_of
from tests.golden_topics.official import of_co_detr, of_detr

STATES = Tolerance(1e-4, 1e-4)
LAYER = "decoder.layers.0."
OFFICIAL_LAYER = "query_head.transformer.decoder.layers.0."


def group_layer(case: Case) -> Iterator[Comparison]:
    """One decoder layer: in training a block for each group, at inference the first group or all queries as one."""
    layer = DecoderLayer(TransformerConfig(32, feedforward_channels=64))
    layer.load_state_dict(_ours(case.under("param.")))
    content, position = leaf(case["tgt"]), leaf(case["query_pos"])
    sizes = tuple((height, width) for height, width in case["featmap_hw"].tolist())
    memory = Memory(case["memory"], sizes, case["mask_flat"], case["valid_ratios_wh"])
    number, each = int(case["num_groups"]), int(case["queries_per_group"])

    def run(count: int, blocks: tuple[int, ...] = ()) -> Tensor:
        reference = case["reference"][:, :count]
        group = QueryGroup(content[:, :count], position[:, :count], reference, has_size=True, blocks=blocks)
        output: Tensor = layer(
            group.content,
            position[:, :count],
            reference=reference[:, :, None] * memory.ratios.repeat(1, 1, 2)[:, None],
            has_size=None,
            visibility=Visibility.of([group]),
            memory=memory,
        )
        return output

    with torch.no_grad():
        yield Comparison("first group", run(each), case["output_eval_first_group"], STATES)
        yield Comparison("without groups", run(number * each), case["output_without_groups"], STATES)
    output = run(number * each, (each,) * number)
    yield Comparison("output", output, case["output"], STATES)
    output.backward(case["grad_output"])
    for name, tensor in (("tgt", content), ("query_pos", position)):
        assert tensor.grad is not None
        yield Comparison(f"grad_{name}", tensor.grad, case[f"grad_{name}"], FLOAT32)
    norms = _ours(case.under("gradnorm."))
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        yield Comparison(f"gradnorm {name}", parameter.grad.double().norm(), norms[name], GRADIENT_NORM)


def _ours(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layer's values under our names."""
    named = of_co_detr({OFFICIAL_LAYER + name: value for name, value in official.items()})
    return {name.removeprefix(LAYER): value for name, value in named.items()}


def group_matching(case: Case) -> Iterator[Comparison]:
    """Losses of all groups on given predictions; each block of each layer and of the encoder is matched by itself."""
    number, each = int(case["num_groups"]), int(case["queries_per_group"])
    if not case["training"]:
        number = 1
    config = DetectorConfig(
        transformer=TransformerConfig(32, num_decoder_layers=2),
        num_queries=each,
        groups=_replicas(case, number),
        proposals=PerGroupConfig(),
        loss_normaliser="objects",
    )
    assigner = Hungarian(HungarianConfig(), weights=config.loss_weights)
    objective = Objective(config, int(case["num_classes"]), Focal(FocalConfig()), assigner)
    main = MainGroup(MainConfig(), name="decoder", objective=objective)
    replicas = [ReplicasGroup(own, name="replicas", objective=objective) for own in config.groups]
    kinds = ("dec", *(("enc",) if "enc_logits" in case else ()))
    inputs = {f"{kind}_{what}": leaf(case[f"{kind}_{what}"]) for kind in kinds for what in ("logits", "boxes")}
    batch = Batch(torch.zeros(2, 3, 1, 1), case["img_hw"], targets_of(case))
    step = Step(batch, cast(Any, None), Proposals(cast(Any, None)), lambda stride: None)
    lengths = [each, *(each * (number - 1) for _ in replicas)]
    outputs = DecoderOutput(inputs["dec_logits"], inputs["dec_boxes"]).split(lengths)
    losses = {}
    for group, output in zip([main, *replicas], outputs, strict=True):
        losses |= group.losses(output, cast(Any, None), step)
    parts: list[Any] = [main, *replicas]
    if "enc_logits" in inputs:
        step.proposals.logits, step.proposals.boxes_cxcywh = inputs["enc_logits"][0], inputs["enc_boxes"][0]
        encoder = PerGroupProposals(PerGroupConfig(), num_proposals=number * each, objective=objective)
        losses |= encoder.losses(step)
        found = objective.assign_blocks(
            inputs["enc_logits"], inputs["enc_boxes"], batch.targets, batch.valid_hw, blocks=number
        )
        yield Comparison("match_enc", found[0], found_in(case, "enc"), EXACT)
        parts.append(encoder)
    yield from _matches(case, objective, replicas, outputs, step)
    weights = loss_weights(config, parts, {})
    yield from _losses(case, losses, weights, config)
    total = total_loss(losses, weights)
    yield Comparison("loss_total", total, case["loss_total"], FLOAT32)
    for name, gradient in zip(inputs, torch.autograd.grad(total, list(inputs.values())), strict=True):
        yield Comparison(f"grad_{name}", gradient, case[f"grad_{name}"], GRADIENT)


def _replicas(case: Case, number: int) -> tuple[ReplicasConfig, ...]:
    """Beside the original queries, of `number` groups in all."""
    added = "sum_group_losses" in case and bool(case["sum_group_losses"])
    return (ReplicasConfig(number - 1, "sum" if added else "mean"),) if number > 1 else ()


def _matches(
    case: Case, objective: Objective, replicas: list[ReplicasGroup], outputs: list[DecoderOutput], step: Step
) -> Iterator[Comparison]:
    main, *others = outputs
    found = [objective.assign(main.logits, main.boxes_cxcywh, step.batch.targets, step.batch.valid_hw)]
    found += [group.assign(output, step) for group, output in zip(replicas, others, strict=True)]
    for layer in range(2):
        name = f"layer{layer}"
        yield Comparison(name, torch.cat(found, 2)[layer], found_in(case, name), EXACT)


def _losses(
    case: Case, losses: dict[str, Tensor], weights: dict[str, float], config: DetectorConfig
) -> Iterator[Comparison]:
    """The official losses are those of all groups together; ours have the weight of a group beside the term's."""
    for term in TERMS:
        official = getattr(config.loss_weights, term)
        for prefix, suffix in (("0", "_0"), ("1", ""), ("encoder", "_enc")):
            names = [f"{group}.{prefix}/{term}" for group in ("decoder", "replicas")] + [f"{prefix}/{term}"]
            own = [weights[name] / official * losses[name] for name in names if name in losses]
            if own:
                name = f"loss_{OFFICIAL[term]}{suffix}"
                yield Comparison(name, torch.stack(own).sum(), case[f"loss.{name}"], FLOAT32)


def e2e_group_ddetr(case: Case) -> Iterator[Comparison]:
    """Two-stage Deformable-DETR whose groups share the encoder's ranks, from the neck's output on."""
    detector = deformable_of(case, int(case["queries_per_group"]), *_replicas(case, int(case["num_groups"])))
    levels = [leaf(level) for level in case.sequence("neck_level")]
    batch = batch_of(case)
    with given_levels(detector, levels):
        with torch.no_grad():
            step, _, outputs = yield from compare_deformable(case, detector, batch)
            yield from compare_inference(case, detector, batch, outputs[0])
        yield from _matches(case, detector.main.objective, list(detector.groups.values()), outputs, step)
        total, losses = detector(batch)
    yield from _losses(case, losses, detector.loss_weights, detector.config)
    yield Comparison("loss_total", total, case["loss_total"], FLOAT32)
    total.backward()
    named = {f"neck_level{index}": level for index, level in enumerate(levels)}
    yield from compare_gradients(detector, named, of_co_detr(case.under("gradnorm.")))


def e2e_group(case: Case) -> Iterator[Comparison]:
    """LW-DETR from the neck's output on: no encoder, heads for each group, positions from references."""
    detector, levels = lw_detr_of(case), [leaf(level) for level in case.sequence("level")]
    batch = batch_of(case)
    with given_levels(detector, levels):
        with torch.no_grad():
            step, groups, outputs = decode(detector, batch)
            yield from _proposed(case, step, detector.main.objective)
            yield Comparison("valid_ratios_wh", step.memory.ratios, case["valid_ratios_wh"], FLOAT32)
            content = torch.cat([group.content for group in groups], 1)
            reference = torch.cat([group.reference_cxcywh for group in groups], 1)
            yield Comparison("decin_query", content, case["decin_query"], FEATURES)
            yield Comparison("decin_reference_unact", reference, case["decin_reference_unact"].sigmoid(), FEATURES)
            output = together(outputs)
            yield Comparison("dec_cls_scores", output.logits, case["dec_cls_scores"], FEATURES)
            yield Comparison("dec_bbox_preds", output.boxes_cxcywh, case["dec_bbox_preds"], FEATURES)
            yield from compare_inference(case, detector, batch, outputs[0])
        yield from _matches(case, detector.main.objective, list(detector.groups.values()), outputs, step)
        total, losses = detector(batch)
    yield from _losses(case, losses, detector.loss_weights, detector.config)
    yield Comparison("loss_total", total, case["loss_total"], FLOAT32)
    total.backward()
    named = {f"level{index}": level for index, level in enumerate(levels)}
    yield from compare_gradients(detector, named, of_detr(case.under("gradnorm."), lw_detr.rename))


def lw_detr_of(case: Case) -> Detector:
    """Of the file's size, with its parameters."""
    parameters = of_detr(case.under("param."), lw_detr.rename)
    two_stage = any(name.startswith("queries.heads.") for name in parameters)
    refined = len(case["references_unact"]) > 1
    config = DetectorConfig(
        ResNetConfig(block="basic", depths=(1, 1, 1, 1), width=8),
        TransformerConfig(32, num_decoder_layers=2, feedforward_channels=64),
        num_queries=int(case["queries_per_group"]),
        two_stage=two_stage,
        mixed_selection=two_stage,
        box_refinement=refined,
        look_forward_twice=refined,
        compatibility="official",
        encoder=NoneConfig(),
        proposals=PerGroupConfig() if two_stage else AnchorsConfig(content="learned"),
        decoder=DeformableDecoderConfig(position="reference", final_norm=True, shared_branches=True),
        groups=_replicas(case, int(case["num_groups"])),
        loss_normaliser="objects",
    )
    return load(Detector(config, case["dec_cls_scores"].shape[-1]), parameters)


def _proposed(case: Case, step: Step, objective: Objective) -> Iterator[Comparison]:
    """What each group's head chose and says of it."""
    proposals = step.proposals
    if proposals.logits is None:
        return
    assert proposals.chosen is not None and proposals.boxes_cxcywh is not None
    number = int(case["num_groups"])
    yield Comparison("enc_topk_inds", proposals.chosen.unflatten(1, (number, -1)), case["enc_topk_inds"], EXACT)
    yield Comparison("enc_logits", proposals.logits, case["enc_logits"], FEATURES)
    yield Comparison("enc_selected_boxes", proposals.boxes_cxcywh, case["enc_selected_boxes"], FEATURES)
    largest = torch.stack(list(case.sequence("enc_cls_max_group")), 1).gather(2, case["enc_topk_inds"])
    yield Comparison("enc_cls_max_group", proposals.logits.amax(-1).view_as(largest), largest, FEATURES)
    found = objective.assign_blocks(
        proposals.logits[None], proposals.boxes_cxcywh[None], step.batch.targets, step.batch.valid_hw, blocks=number
    )
    yield Comparison("match_enc", found[0], found_in(case, "enc"), EXACT)
