"""Extra query groups beside the original queries: what they change of a loss, and that they change no detection."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.spec.parts import read_detector
from model.decoders.configs import DeformableDecoderConfig
from model.detector import Detector
from model.groups import GROUPS
from model.groups.configs import DenoisingConfig, HybridConfig, ReplicasConfig
from model.proposals.configs import AnchorsConfig, BinaryConfig, PerGroupConfig
from model.types import DecoderOutput
from tests.support.rooms import TINY, padded_batch, shake
from tests.support.tiny import NUM_CLASSES, OF_REFERENCES, PLAIN, REFINED, tiny_config

EXTRA = {name: GROUPS.config_of(name)(**TINY["groups"][name]) for name in GROUPS.names}
LW_DETR = {"decoder": DeformableDecoderConfig(position="reference", final_norm=True, shared_branches=True)}
VARIANTS: dict[str, dict[str, Any]] = {
    "one-stage": PLAIN,
    "anchors": {**REFINED, **LW_DETR, "proposals": AnchorsConfig(content="learned")},
    "two-stage": {"proposals": BinaryConfig()},
    "of references": OF_REFERENCES,
    "a head per group": {"proposals": PerGroupConfig()},
    "lw-detr": {**LW_DETR, "proposals": PerGroupConfig()},
    "lw-detr, unrefined": {
        **{**LW_DETR, "proposals": PerGroupConfig()},
        **{"box_refinement": False, "look_forward_twice": False},
    },
}
EACH_VARIANT = pytest.mark.parametrize("variant", VARIANTS)


def predictions(output: DecoderOutput) -> tuple[Tensor, Tensor]:
    return output.logits, output.boxes_cxcywh


def detector_of(*groups: Any, heads: tuple[str, ...] = (), **changes: Any) -> Detector:
    torch.manual_seed(0)
    detector = Detector(tiny_config(*heads, groups=groups, **changes), NUM_CLASSES)
    shake(detector.decoder)
    return detector


# ---- inference ----------------------------------------------------------------------------------------------------


@EACH_VARIANT
@pytest.mark.parametrize("group", [HybridConfig(24, 3), ReplicasConfig(2)], ids=["hybrid", "replicas"])
def test_inference_says_of_the_first_queries_what_training_says(variant: str, group: Any) -> None:
    """The official H-DETR and LW-DETR hold the same to 2e-5."""
    detector, batch = detector_of(group, **VARIANTS[variant]), padded_batch()
    seen: list[Tensor] = []
    detector.decoder.register_forward_hook(lambda module, inputs, output: seen.extend(predictions(output)))
    detector(batch)
    detector.eval().detect(batch)
    (logits, boxes), (alone_logits, alone_boxes) = seen[:2], seen[2:]
    assert alone_logits.shape[2] == 12 and logits.shape[2] == 36
    torch.testing.assert_close(logits[:, :, :12], alone_logits, rtol=0, atol=2e-5)
    torch.testing.assert_close(boxes[:, :, :12], alone_boxes, rtol=0, atol=2e-5)


# ---- the mean over groups -----------------------------------------------------------------------------------------


def same_queries(number: int, reduction: str) -> tuple[Detector, Detector]:
    """A detector without replicas, and one whose replicas are copies of the original queries."""
    plain = detector_of(**PLAIN)
    copies = detector_of(ReplicasConfig(number, reduction), **PLAIN)  # type: ignore[arg-type]
    state = plain.state_dict()
    state["queries.embedding.weight"] = state["queries.embedding.weight"].repeat(1 + number, 1)
    copies.load_state_dict(state)
    return plain, copies


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1), ("sum", None)])
def test_replicas_that_equal_the_original_queries_have_their_losses(
    number: int, reduction: str, factor: int | None
) -> None:
    plain, copies = same_queries(number, reduction)
    batch = padded_batch((3, 0, 2))
    (total, alone), (both, losses) = plain(batch), copies(batch)
    for name, loss in alone.items():
        torch.testing.assert_close(losses[name], loss)
        torch.testing.assert_close(losses[name.replace("decoder", "replicas")], loss)
    torch.testing.assert_close(both, total * (factor or 1 + number))


def test_without_an_object_all_groups_together_are_divided_by_one() -> None:
    """As officially: not each group, so that the mean is the sum then."""
    plain, copies = same_queries(2, "mean")
    batch = padded_batch((0, 0, 0))
    torch.testing.assert_close(copies(batch)[0], 3 * plain(batch)[0])


def test_main_weighs_as_much_as_each_averaged_group() -> None:
    groups = (ReplicasConfig(2), HybridConfig(24, 3, 0.5), ReplicasConfig(3, "sum"), ReplicasConfig(1))
    weights = detector_of(*groups, proposals=PerGroupConfig()).loss_weights
    expected = {"decoder": 1 / 4, "replicas": 2 / 4, "hybrid": 0.5, "replicas.2": 3, "replicas.3": 1 / 4}
    for name, weight in expected.items():
        assert weights[f"{name}.1/l1"] == pytest.approx(5 * weight)
    # a head for each of 1 + 2 + 2 + 3 + 1 groups of 12 queries, each with main's weight
    assert weights["encoder/l1"] == pytest.approx(5 * 9 / 4)


def test_the_mean_over_groups_leaves_heads_and_denoising_queries_their_weights() -> None:
    """Replicas share the weight of the original queries, and that alone."""
    groups = (ReplicasConfig(2), DenoisingConfig(7, weight=0.5))
    weights = detector_of(*groups, heads=("atss",), lambda1=0.7).loss_weights
    expected = {"decoder": 1 / 3, "replicas": 2 / 3, "denoising": 0.5, "queries.atss": 0.7}
    for name, weight in expected.items():
        assert weights[f"{name}.1/l1"] == pytest.approx(5 * weight)
    alone = detector_of(heads=("atss",), lambda1=0.7).loss_weights
    assert all(weights[name] == weight for name, weight in alone.items() if name.startswith(("atss/", "encoder/")))


def test_a_group_that_is_no_multiple_of_the_queries_has_no_head_per_group() -> None:
    with pytest.raises(
        ValueError, match=r"^the proposals per_group have a head for each num_queries.*hybrid takes 9: [^\n]*$"
    ):
        tiny_config(groups=(HybridConfig(9, 3),), proposals=PerGroupConfig())


def test_two_stages_without_refinement_are_for_heads_per_group_alone() -> None:
    settings = {"box_refinement": False, "look_forward_twice": False}
    assert not tiny_config(proposals=PerGroupConfig(), **settings).box_refinement
    with pytest.raises(ValueError, match="two_stage needs box_refinement: true"):
        tiny_config(**settings)


def test_a_file_may_ask_for_two_stages_without_refinement() -> None:
    """It is read part after part: no rule may speak before all are known."""
    told: list[Any] = []
    tree: dict[str, Any] = {"box_refinement": False, "look_forward_twice": False, "proposals": {"name": "per_group"}}
    config, _ = read_detector(tree, lambda *mistake: told.append(mistake), lambda *conflict: told.append(conflict) or 0)
    assert not told and config is not None and config.proposals == PerGroupConfig()
    read_detector({**tree, "proposals": {}}, lambda *_: None, lambda *conflict: told.append(conflict[0].rule) or 0)
    assert told == ["two_stage needs box_refinement: true"]


# ---- mixtures -----------------------------------------------------------------------------------------------------


def groups_together() -> list[tuple[str, ...]]:
    return [*combinations(EXTRA, 2), tuple(EXTRA)]


@pytest.mark.parametrize("names", groups_together(), ids="+".join)
def test_groups_go_with_each_other_and_with_heads(names: tuple[str, ...]) -> None:
    groups = [EXTRA[name] for name in names]
    detector = detector_of(*groups, heads=("atss", "fcos"))
    total, losses = detector(padded_batch((3, 0, 2)))
    own = [{name.split(".")[0] for name in group.loss_weights()} for group in detector.groups.values()]
    assert own == [{name} for name in names]
    expected = {"decoder", "encoder", "queries", "atss", "fcos", *names}
    assert {name.split(".")[0].split("/")[0] for name in losses} == expected
    assert losses.keys() == detector.loss_weights.keys() and all(torch.isfinite(loss) for loss in losses.values())
    total.backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_what_a_group_learns_is_nobody_elses_concern() -> None:
    """The losses of the same queries beside other groups: one-stage, so that they start from the same parameters."""
    batch, config = padded_batch(), HybridConfig(24, 3)
    alone = detector_of(config, **PLAIN)
    both = detector_of(config, ReplicasConfig(2), **PLAIN)
    state = alone.state_dict()
    more = both.state_dict()["queries.embedding.weight"][-24:]
    state["queries.embedding.weight"] = torch.cat([state["queries.embedding.weight"], more])
    both.load_state_dict(state)
    expected, losses = alone(batch)[1], both(batch)[1]
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss)
