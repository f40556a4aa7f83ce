"""Group-DETR: replicas of the queries that never see each other (numbers of LW-DETR)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from model.attention import Visibility
from model.config import TransformerConfig
from model.decoders.deformable import DecoderLayer
from model.official import convert
from model.types import Memory, QueryGroup
from tests.golden_topics.case import FLOAT32, GRADIENT_NORM, Case, Comparison, Tolerance, leaf

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
    named = convert({OFFICIAL_LAYER + name: value for name, value in official.items()}, ())
    return {name.removeprefix(LAYER): value for name, value in named.items()}
