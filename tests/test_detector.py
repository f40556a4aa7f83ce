"""The detector as a whole: what must not change its output, and what every configuration must be able to do."""

from __future__ import annotations

import pytest
import torch

from model.backbones.configs import ResNetConfig
from model.criterion import total_loss
from model.detector import Detector
from model.heads import HEADS
from model.types import Batch, QueryGroup, Targets
from tests.support.tiny import DINO, NUM_CLASSES, PLAIN, REFINED, single, tiny_batch, tiny_config

VARIANTS = {"plain": PLAIN, "refined": REFINED, "two_stage": {"mixed_selection": False}, "plus_plus": {}, "dino": DINO}


def build(*heads: str, seed: int = 0, **changes) -> Detector:
    torch.manual_seed(seed)
    return Detector(tiny_config(*heads, **changes), NUM_CLASSES)


def predictions(detector: Detector, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and boxes of the last layer of the one-to-one group."""
    detector.eval()
    with torch.no_grad():
        memory, _ = detector.encode(batch)
        group = detector.initial_queries(memory)
        output = detector.decoder([group], memory)
    return output.logits[-1], output.boxes_cxcywh[-1]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("heads", [(), ("atss",), ("atss", "atss")], ids=["K0", "K1", "K2"])
def test_every_variant_trains_and_detects(variant, heads):
    detector = build(*heads, **VARIANTS[variant])
    batch = tiny_batch(sizes=((96, 80), (64, 96)))
    total, losses = detector(batch)
    total.backward()
    assert torch.isfinite(total)
    assert losses.keys() == detector.loss_weights.keys()
    unused = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    found = detector.eval().detect(batch)
    for detections, (height, width) in zip(found, batch.valid_hw.tolist(), strict=True):
        assert len(detections.scores) == 12 * NUM_CLASSES
        assert (detections.scores.diff() <= 0).all()
        assert detections.boxes_xyxy[:, [0, 2]].max() <= width and detections.boxes_xyxy[:, [1, 3]].max() <= height
        assert detections.boxes_xyxy.min() >= 0


def test_losses_are_named_by_head_and_meaning():
    _, losses = build("atss", "atss")(tiny_batch())
    heads = {name.split("/")[0] for name in losses}
    assert heads == {
        *("decoder.0", "decoder.1", "encoder", "atss", "atss.2"),
        *("queries.atss.0", "queries.atss.1", "queries.atss.2.0", "queries.atss.2.1"),
    }


@pytest.mark.parametrize(("auxiliary_loss", "positive_queries"), [(True, False), (False, True), (False, False)])
def test_components_switch_on_their_own(auxiliary_loss, positive_queries):
    detector = build("atss", auxiliary_loss=auxiliary_loss, positive_queries=positive_queries)
    _, losses = detector(tiny_batch())
    assert any(name.startswith("atss/") for name in losses) == auxiliary_loss
    assert any(name.startswith("queries.") for name in losses) == positive_queries


def test_weights_follow_the_papers_objective():
    weights = build("atss", lambda1=0.5, lambda2=3.0).loss_weights
    assert weights["decoder.1/l1"] == 5.0
    assert weights["queries.atss.0/l1"] == 2.5  # lambda1
    assert weights["atss/boxes"] == 3.0 * 2 * 2.0  # lambda2, once per decoder layer, the head's own weight


def test_a_loss_without_a_weight_is_an_error_and_the_reverse():
    one = torch.ones(())
    assert total_loss({"a": one, "b": one}, {"a": 2.0, "b": 0.5}) == 2.5
    with pytest.raises(ValueError, match=r"losses without a weight \['b'\]"):
        total_loss({"a": one, "b": one}, {"a": 1.0})
    with pytest.raises(ValueError, match=r"weights without a loss \['b'\]"):
        total_loss({"a": one}, {"a": 1.0, "b": 1.0})


@pytest.mark.parametrize("variant", ["plain", "plus_plus"])
@pytest.mark.parametrize("head", sorted(HEADS))
def test_heads_change_nothing_at_inference(head, variant):
    """Same seed, same detector with and without a head; and the head's parameters are not even read."""
    batch = tiny_batch(sizes=((96, 96), (70, 90)))
    bare, full = build(**VARIANTS[variant]), build(head, **VARIANTS[variant])
    for plain, with_heads in zip(bare.eval().detect(batch), full.eval().detect(batch), strict=True):
        assert torch.equal(plain.boxes_xyxy, with_heads.boxes_xyxy)
        assert torch.equal(plain.scores, with_heads.scores)
        assert torch.equal(plain.labels, with_heads.labels)
    training_only = [p for n, p in full.named_parameters() if n.startswith(("heads.", "positive_queries.", "coarser."))]
    before = full.detect(batch)[0].scores
    with torch.no_grad():
        for parameter in training_only:
            parameter.fill_(torch.nan)
    assert torch.equal(before, full.detect(batch)[0].scores)
    names = {n for n, _ in full.named_parameters()} - {n for n, _ in bare.named_parameters()}
    assert len(names) == len(training_only) > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_batched_equals_one_by_one_and_padding_changes_nothing(variant):
    detector = build("atss", **VARIANTS[variant])
    sizes = ((96, 96), (64, 90), (50, 64))
    batch = tiny_batch(counts=(3, 1, 2), sizes=sizes)
    logits, boxes = predictions(detector, batch)
    branches = detector.detect_branches(batch, ("atss",))["atss"]
    for i, canvas in enumerate([(96, 96), (64, 96), (64, 64)]):
        alone = single(batch, i, canvas)
        own_logits, own_boxes = predictions(detector, alone)
        torch.testing.assert_close(own_logits[0], logits[i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(own_boxes[0], boxes[i], atol=1e-5, rtol=1e-5)
        own = detector.detect_branches(alone, ("atss",))["atss"][0]
        torch.testing.assert_close(own.scores, branches[i].scores, atol=1e-5, rtol=1e-4)
    wider = tiny_batch(counts=(3, 1, 2), sizes=sizes, canvas=(128, 160))
    wide_logits, wide_boxes = predictions(detector, wider)
    torch.testing.assert_close(wide_logits, logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(wide_boxes, boxes, atol=1e-5, rtol=1e-5)


def test_padding_changes_no_loss():
    losses = []
    for canvas in ((96, 96), (128, 160)):
        detector = build("atss")
        torch.manual_seed(1)
        batch = tiny_batch(counts=(3, 2), sizes=((96, 96), (64, 90)), canvas=canvas)
        # The fill with random negatives draws as many numbers as there are anchors: leave it out.
        detector.config = tiny_config("atss", positive_queries=False)
        detector.positive_queries.clear()
        detector.loss_weights = {n: w for n, w in detector.loss_weights.items() if not n.startswith("queries")}
        losses.append(detector(batch)[1])
    for name, value in losses[0].items():
        torch.testing.assert_close(losses[1][name], value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("counts", [(0, 2), (0, 0)])
@pytest.mark.parametrize("variant", ["plain", "plus_plus", "dino"])
def test_images_without_objects_are_fine(counts, variant):
    detector = build("atss", **VARIANTS[variant])
    total, losses = detector(tiny_batch(counts=counts))
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)
    if counts == (0, 0):
        assert losses["decoder.0/l1"] == 0 and losses["decoder.0/classification"] > 0


def test_query_groups_never_see_each_other():
    detector = build("atss").eval()
    batch = tiny_batch(sizes=((96, 96), (64, 90)))
    with torch.no_grad():
        memory, _ = detector.encode(batch)
        group = detector.initial_queries(memory)
        other = QueryGroup(torch.randn(2, 7, 32), torch.randn(2, 7, 32), torch.rand(2, 7, 4) * 0.5 + 0.2, has_size=True)
        alone = detector.decoder([group], memory)
        joint, second = detector.decoder([group, other], memory).split([12, 7])
        second_alone = detector.decoder([other], memory)
    torch.testing.assert_close(joint.logits, alone.logits, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(second.boxes_cxcywh, second_alone.boxes_cxcywh, atol=1e-6, rtol=1e-5)


def test_points_and_boxes_decode_in_one_pass():
    """A group of points (one-stage) beside a group of boxes gives what each gives alone."""
    detector = build("atss", **PLAIN).eval()
    batch = tiny_batch()
    with torch.no_grad():
        memory, _ = detector.encode(batch)
        points = detector.initial_queries(memory)
        boxes = QueryGroup(points.content, points.position, torch.rand(2, 12, 4) * 0.5 + 0.2, has_size=True)
        together = detector.decoder([points, boxes], memory).split([12, 12])
        apart = [detector.decoder([group], memory) for group in (points, boxes)]
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one.boxes_cxcywh, other.boxes_cxcywh, atol=1e-6, rtol=1e-5)


def test_unknown_branch_lists_the_known_ones():
    with pytest.raises(ValueError, match="no branch 'fcos'; this detector has decoder, atss"):
        build("atss").detect_branches(tiny_batch(), ("decoder", "fcos"))


def test_more_queries_than_positions_is_explained():
    torch.manual_seed(0)
    detector = Detector(tiny_config(), NUM_CLASSES)
    detector.num_proposals = 10_000
    with pytest.raises(ValueError, match=r"model\.num_queries with model\.groups \(10000\) exceeds the \d+ positions"):
        detector(tiny_batch())


@pytest.mark.parametrize("variant", ["plus_plus", "dino"])
def test_bf16_keeps_matching_and_boxes_in_fp32(variant):
    detector, batch = build("atss", **VARIANTS[variant]), tiny_batch()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        total, losses = detector(batch)
    total.backward()
    assert torch.isfinite(total)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    torch.manual_seed(0)
    exact = detector(batch)[0]
    assert abs(float(total.detach()) / float(exact.detach()) - 1) < 0.1


@pytest.mark.parametrize("depths", [(2, 2, 2, 2), (3, 4, 6, 3)], ids=["18", "34"])
def test_basic_resnets_have_torchvisions_names(depths):
    names = backbone_names("basic", depths)
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight"} <= names
    assert f"layer4.{depths[3] - 1}.bn2.bias" in names and "layer1.0.downsample.0.weight" not in names


def test_resnet50_has_torchvisions_names_and_size():
    detector = Detector(tiny_config(backbone=ResNetConfig()), 2)
    state = detector.backbone.state_dict()
    assert state["layer3.5.conv2.weight"].shape == (256, 256, 3, 3)
    assert state["layer1.0.downsample.1.running_mean"].shape == (256,)
    # torchvision's ResNet-50 holds 25,557,032 parameters, 2,049,000 of them in its classifier.
    kinds = ("weight", "bias")
    assert sum(v.numel() for n, v in state.items() if n.endswith(kinds)) == 25_557_032 - 2_049_000
    assert not any(
        p.requires_grad for n, p in detector.backbone.named_parameters() if n.startswith(("conv1", "layer1"))
    )


def backbone_names(block: str, depths: tuple[int, ...]) -> set[str]:
    config = ResNetConfig(block=block, depths=depths, width=8, norm="frozen_batch")
    return set(Detector(tiny_config(backbone=config), 2).backbone.state_dict())


def test_backbone_weights_load_and_misfits_are_explained(tmp_path):
    config = ResNetConfig(block="basic", depths=(1, 1, 1, 1), width=8)
    source = Detector(tiny_config(backbone=config), 2).backbone.state_dict()
    source |= {"fc.weight": torch.zeros(10, 64), "bn1.num_batches_tracked": torch.tensor(3)}
    torch.save(source, tmp_path / "resnet.pth")
    loaded = ResNetConfig(block="basic", depths=(1, 1, 1, 1), width=8, weights=str(tmp_path / "resnet.pth"))
    state = Detector(tiny_config(backbone=loaded), 2).backbone.state_dict()
    assert torch.equal(state["layer3.0.conv2.weight"], source["layer3.0.conv2.weight"])
    deeper = ResNetConfig(block="basic", depths=(1, 1, 2, 1), width=8, weights=str(tmp_path / "resnet.pth"))
    with pytest.raises(ValueError, match=r"lacks layer3\.1"):
        Detector(tiny_config(backbone=deeper), 2)
    absent = ResNetConfig(weights=str(tmp_path / "absent.pth"))
    with pytest.raises(ValueError, match="does not exist"):
        Detector(tiny_config(backbone=absent), 2)


def test_targets_stack_pads_with_background():
    targets = Targets.stack([torch.ones(2, 4), torch.zeros(0, 4)], [torch.tensor([1, 0]), torch.zeros(0).long()])
    assert targets.labels.tolist() == [[1, 0], [-1, -1]]
    assert targets.num_boxes.tolist() == [2, 0]
