"""What the heads teach the parts that they share: each head's loss, and its gradients where all of them meet.

They meet at the encoder's output and at the parameters before it: backbone, neck and encoder. One image at a time, so
that its numbers are its own: losses of a batch have one normaliser. The detector must be in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from model.criterion import total_loss
from model.detector import DECODER, Detector
from model.types import Batch, DecoderOutput, Memory, QueryGroup, Step, Targets

SHARED = ("backbone", "neck", "encoder", "level_embedding")  # parts before the encoder's output
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """One image up to the encoder's output and through the decoder, with the graph behind it."""

    step: Step
    queries: QueryGroup
    output: DecoderOutput


@dataclass(frozen=True)
class HeadGradients:
    """Of H losses on one image, the decoder's first."""

    root: Tensor  # [H, S * D] towards the encoder's output
    shared: Tensor  # [H, P] towards the shared parameters


def shared_parameters(detector: Detector) -> list[nn.Parameter]:
    """All that train among the parameters before the encoder's output."""
    named = detector.named_parameters()
    return [own for name, own in named if own.requires_grad and name.partition(".")[0] in SHARED]


def see(detector: Detector, batch: Batch) -> Seen:
    """An image through the detector as it is at inference."""
    memory, mask_at = detector.encode(batch)
    step = Step(batch, memory, detector.queries(memory, detector.config.num_queries), mask_at)
    queries = detector.main.queries(step)
    return Seen(step, queries, detector.decoder([queries], memory))


def losses(detector: Detector, seen: Seen, targets: Targets) -> Losses:
    """L_dec of the original queries, and L_enc of each head (paper Eq. 5), weighted as in training."""
    return {DECODER: decoder_loss(detector, seen, targets), **head_losses(detector, seen, targets)}


def decoder_loss(detector: Detector, seen: Seen, targets: Targets) -> Tensor:
    """L_dec: one-to-one losses of all decoder layers."""
    step = replace(seen.step, batch=replace(seen.step.batch, targets=targets))
    found = detector.main.losses(seen.output, seen.queries, step)
    return total_loss(found, {name: detector.loss_weights[name] for name in found})


def head_losses(detector: Detector, seen: Seen, targets: Targets) -> Losses:
    """L_enc of each auxiliary head; by the head's own weights where the training counts customised queries alone."""
    if not len(detector.heads):
        return {}
    step = seen.step
    pyramid = detector.pyramid(step.memory, step.batch, step.mask_at)
    found: Losses = {}
    for name, head in detector.named_heads():
        own = head.train_step(pyramid, targets, with_losses=True)[0]
        weights = head.loss_weights()
        found[name] = total_loss(
            own, {term: detector.loss_weights.get(f"{name}/{term}", weights[term]) for term in own}
        )
    return found


def gradients(found: Losses, memory: Memory, parameters: list[nn.Parameter]) -> HeadGradients:
    """Of each loss; zero where it does not reach. The graph stays."""
    inputs = [memory.tokens, *parameters]
    root, shared = [], []
    for loss in found.values():
        at_root, *own = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
        root.append(_flat([at_root], inputs[:1]))
        shared.append(_flat(own, parameters))
    return HeadGradients(torch.stack(root), torch.stack(shared))


def _flat(values: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    parts = [torch.zeros_like(own) if value is None else value for value, own in zip(values, like, strict=True)]
    return torch.cat([part.flatten().float() for part in parts]) if parts else torch.zeros(0)


def with_objects_of(other: Batch, batch: Batch) -> Targets:
    """The objects of another image, at the same places in shares of the sides, as targets of this one."""
    scale = (batch.valid_hw.float() / other.valid_hw.float()).flip(1).repeat(1, 2)[:, None]  # [1, 1, 4]
    return replace(other.targets, boxes_xyxy=other.targets.boxes_xyxy * scale)


@contextmanager
def moved(parameters: list[nn.Parameter], direction: Tensor, length: float) -> Iterator[None]:
    """The parameters less `length` times their norm along `direction` [P]; afterwards what they were, to the bit.

    A direction of zero moves nothing.
    """
    before = [own.detach().clone() for own in parameters]
    size = torch.cat([own.flatten() for own in before]).double().norm() if before else torch.zeros(())
    norm = direction.double().norm()
    factor = float(length * size / norm) if norm > 0 else 0.0
    pieces = direction.split([own.numel() for own in parameters]) if before else ()
    try:
        with torch.no_grad():
            for own, piece in zip(parameters, pieces, strict=True):
                own.sub_(piece.view_as(own).to(own.dtype), alpha=factor)
        yield
    finally:
        with torch.no_grad():
            for own, value in zip(parameters, before, strict=True):
                own.copy_(value)
