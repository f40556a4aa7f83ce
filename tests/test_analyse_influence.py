"""What heads teach the parts that they share: closed forms, and a slow reference in plain steps."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.analyse import shared
from harness.analyse.gradients import Gradients, gradient_scalars, magnitude_similarity
from harness.analyse.influence import measure
from harness.analyse.shared import HeadGradients
from harness.analyse.transfer import LENGTHS, Transfer, transfer_scalars
from model.detector import Detector
from model.heads import HEADS
from model.types import Batch, Targets
from tests.support.scattered_detector import build_detector
from tests.support.tiny import ON_ONE_LEVEL, PLAIN, tiny_batch

CPU = torch.device("cpu")


def images(number: int = 6, count: int = 3) -> list[Batch]:
    return [tiny_batch((count,), ((64, 64 + 16 * (seed % 2)),), seed=seed) for seed in range(number)]


def measured(detector: Detector, batches: list[Batch], heads: tuple[str, ...], floor: Detector | None = None):
    """The tables of both analyses."""
    gradients, transfer = Gradients(heads), Transfer(heads)
    measure(detector, batches, [gradients, transfer], CPU, floor=floor)
    return gradients.table(), transfer.table()


@pytest.fixture
def echoes(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Heads whose loss is the decoder's, and its negative."""

    def losses(detector: Detector, seen: shared.Seen, targets: Targets) -> dict[str, Tensor]:
        own = shared.decoder_loss(detector, seen, targets)
        return {"same": 2 * own, "opposite": -own}

    monkeypatch.setattr(shared, "head_losses", losses)
    return ("decoder", "same", "opposite")


def test_a_head_with_the_decoders_loss_helps_it_and_its_negative_harms(echoes: tuple[str, ...]) -> None:
    twice = [batch for batch in images(3, 1) for _ in range(2)]  # what is held out is what gave the gradient
    _, transfer = measured(build_detector("atss", **PLAIN), twice, echoes)  # no query is chosen by rank: a smooth loss
    found = transfer_scalars(transfer)
    for metric in LENGTHS:
        own = found[f"{metric}/decoder-decoder"]
        assert own is not None and own > 0
        assert found[f"{metric}/same-decoder"] == pytest.approx(own, rel=1e-5)
        assert found[f"{metric}/opposite-decoder"] < 0  # type: ignore[operator]
        heads = transfer[metric]["heads"]["same"]
        assert heads["low"] <= heads["value"] <= heads["high"]
    assert found["transfer.far/decoder-decoder"] > found["transfer/decoder-decoder"]  # type: ignore[operator]


def test_cosines_of_equal_and_of_opposite_gradients(echoes: tuple[str, ...]) -> None:
    gradients, _ = measured(build_detector("atss"), images(), echoes)
    found = gradient_scalars(gradients)
    for prefix, more in (("gradient", "gradient."), ("gradient.shared", "gradient.shared_")):
        assert found[f"{prefix}/decoder-same"] == pytest.approx(1, abs=1e-6)
        assert found[f"{prefix}/decoder-opposite"] == pytest.approx(-1, abs=1e-6)
        assert found[f"{more}below_zero/decoder-same"] == 0 and found[f"{more}below_zero/decoder-opposite"] == 1
        assert found[f"{more}magnitude/decoder-same"] == pytest.approx(0.8)  # 2 · 1 · 2 / (1 + 4)
        assert found[f"{more}magnitude/decoder-opposite"] == pytest.approx(1)
        assert -1 < found[f"{prefix}/ceiling"] < 1  # type: ignore[operator]


def test_a_head_that_teaches_nothing_neither_helps_nor_harms(monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(detector: Detector, seen: shared.Seen, targets: Targets) -> dict[str, Tensor]:
        return {"nothing": 0 * shared.decoder_loss(detector, seen, targets)}

    monkeypatch.setattr(shared, "head_losses", losses)
    gradients, transfer = measured(build_detector("atss"), images(4), ("decoder", "nothing"))
    assert transfer["transfer"]["heads"]["nothing"]["value"] == 0
    assert gradients["root"]["num_images_used"] == 0 and gradients["root"]["cosine"][0][1] is None


def test_gradients_by_hand() -> None:
    """Three images of two losses: at right angles, equal and opposite; the second one's floor."""
    gradients = Gradients(("decoder", "atss"))
    first = torch.tensor([3.0, 0.0])
    for second in ([0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]):
        own = torch.stack([first, torch.tensor(second)])
        elsewhere = torch.stack([first, torch.tensor([0.0, 1.0])])
        again = HeadGradients(torch.stack([first, -torch.tensor(second)]), torch.zeros(2, 5))
        gradients.add(HeadGradients(own, own), HeadGradients(elsewhere, elsewhere), again)
    found = gradient_scalars(gradients.table())
    assert found["gradient/decoder-atss"] == pytest.approx(0)
    assert found["gradient.below_zero/decoder-atss"] == pytest.approx(1 / 3)
    assert found["gradient.magnitude/decoder-atss"] == pytest.approx(0.6)  # 2 · 3 · 1 / (9 + 1)
    # (decoder here, atss elsewhere): 0; (atss here, decoder elsewhere): 0, 1, -1
    assert found["gradient/ceiling"] == pytest.approx(0)
    assert found["gradient/floor"] == pytest.approx(0)  # mean of 1 for the decoder and -1 for the head
    assert "gradient.shared/floor" not in found  # of a detector with other shared parameters


def test_a_loss_without_a_gradient_leaves_the_image_out() -> None:
    gradients = Gradients(("decoder", "atss"))
    nothing, something = torch.zeros(2, 3), torch.ones(2, 3)
    for own in (nothing, something):
        gradients.add(HeadGradients(own, own), HeadGradients(own, own), None)
    table = gradients.table()
    assert table["root"]["num_images_used"] == 1 and table["root"]["cosine"][0][1] == pytest.approx(1)
    assert gradient_scalars(Gradients(("decoder", "atss")).table())["gradient/decoder-atss"] is None
    assert np.isnan(magnitude_similarity(np.zeros(2))).all()


def test_the_floor_leaves_out_what_has_no_gradient() -> None:
    """Two trainings that are one and the same agree wherever they can be compared."""
    gradients = Gradients(("decoder", "atss"))
    something = torch.tensor([[3.0, 4.0], [0.0, 1e-9]])
    for own in (something, torch.zeros(2, 2), torch.stack([something[0], torch.zeros(2)])):
        both = HeadGradients(own, own)
        gradients.add(both, both, both)
    found = gradient_scalars(gradients.table())
    assert found["gradient/floor"] == pytest.approx(1) == found["gradient.shared/floor"]


def plain_transfer(detector: Detector, batches: list[Batch], head: str, length: float) -> float:
    """T_h(ρ), step by step on copies of the detector."""

    def loss(model: Detector, batch: Batch, name: str) -> Tensor:
        _, found = model(batch)
        own = [n for n in found if n.startswith(f"{name}." if name == "decoder" else f"{name}/")]
        return sum((found[n] * model.loss_weights[n] for n in own), torch.zeros(()))

    def held_out(model: Detector) -> float:
        with torch.no_grad():
            return float(sum(loss(model, batch, "decoder") for batch in batches[1::2]))

    stepped = copy.deepcopy(detector)
    for batch in batches[::2]:
        loss(stepped, batch, head).backward()
    named = [(n, p) for n, p in stepped.named_parameters() if n.split(".")[0] in shared.SHARED]
    size = torch.cat([p.detach().flatten() for _, p in named]).norm()
    slopes = [torch.zeros_like(p) if p.grad is None else p.grad for _, p in named]
    slope = torch.cat([g.flatten() for g in slopes]).norm()
    with torch.no_grad():
        for (_, parameter), own in zip(named, slopes, strict=True):
            parameter -= length * size * own / slope
    return 1 - held_out(stepped) / held_out(detector)


@pytest.mark.parametrize("head", ["decoder", "atss", "retinanet"])
def test_transfer_against_plain_steps(head: str) -> None:
    detector, batches = build_detector("atss", "retinanet"), images()
    _, transfer = measured(detector, batches, ("decoder", "atss", "retinanet"))
    for metric, length in LENGTHS.items():
        expected = plain_transfer(detector, batches, head, length)
        assert transfer_scalars(transfer)[f"{metric}/{head}-decoder"] == pytest.approx(expected, abs=2e-5, rel=1e-3)


def test_the_detector_is_afterwards_what_it_was() -> None:
    detector = build_detector("atss", "faster_rcnn")
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    measured(detector, images(4), ("decoder", "atss", "faster_rcnn"))
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in detector.parameters())


def test_the_same_twice_and_the_same_training_as_floor() -> None:
    """Heads that draw samples draw the same ones; a training is as near to itself as can be."""
    detector, heads = build_detector("faster_rcnn"), ("decoder", "faster_rcnn")
    first, second = (measured(detector, images(4), heads, detector) for _ in range(2))
    assert first == second
    gradients, transfer = first
    assert gradients["root"]["floor"]["value"] == pytest.approx(1) == gradients["shared"]["floor"]["value"]
    own = transfer["transfer"]
    assert own["floor"]["value"] == pytest.approx(own["heads"]["faster_rcnn"]["value"], rel=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_has_gradients(head: str) -> None:
    detector = build_detector(head)
    gradients, transfer = measured(detector, images(4), ("decoder", head))
    for place in ("root", "shared"):
        assert -1 <= gradients[place]["cosine"][0][1] <= 1 and gradients[place]["num_images_used"] == 2
    assert abs(transfer["transfer"]["heads"][head]["value"]) < 0.5


@pytest.mark.parametrize("name", ON_ONE_LEVEL)
def test_every_kind_of_detector(name: str) -> None:
    detector = build_detector("atss", **ON_ONE_LEVEL[name])
    gradients, transfer = measured(detector, images(4), ("decoder", "atss"))
    assert gradients["shared"]["num_images_used"] == 2
    assert 0 < abs(transfer["transfer"]["heads"]["decoder"]["value"]) < 0.5


def test_without_heads_there_is_the_decoder_alone() -> None:
    gradients, transfer = measured(build_detector(), images(4), ("decoder",))
    assert set(transfer_scalars(transfer)) == {"transfer/decoder-decoder", "transfer.far/decoder-decoder"}
    assert gradient_scalars(gradients) == {} and transfer["transfer"]["ceiling"] is None


@pytest.mark.parametrize("number", [0, 1, 2])
def test_few_images(number: int) -> None:
    """Nothing is held out of one, and nothing can be said of none."""
    gradients, transfer = measured(build_detector("atss"), images(number), ("decoder", "atss"))
    assert gradients["root"]["num_images_used"] == min(number, 1)
    value = transfer["transfer"]["heads"]["atss"]["value"]
    assert (value is None) == (number < 2)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_ceiling_needs_a_second_image(number: int) -> None:
    """Of a single one that gives gradients nothing is another image; the number would be the head's own."""
    told: list[tuple[int, int]] = []
    collectors = gradients, transfer = Gradients(("decoder", "atss")), Transfer(("decoder", "atss"))
    on_batch = lambda *counts: told.append(counts)  # noqa: E731
    measure(build_detector("atss"), images(number), collectors, CPU, on_batch=on_batch)
    found = gradient_scalars(gradients.table()) | transfer_scalars(transfer.table())
    for metric in ("gradient", "gradient.shared", *LENGTHS):
        assert (found[f"{metric}/ceiling"] is None) == (number < 3), metric
    assert told[-1][0] == told[-1][1] == len(told)
