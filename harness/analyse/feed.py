"""From a detector and a batch to what the analyses compare: one forward pass, one backward pass per head.

The backbone and the encoder run once without a graph. Their output, cut off there, is the root that the decoder and
every head read: features for the discriminability, and what the conflict differentiates towards. The detector must be
in evaluation mode; nothing here changes it, its gradients or the random state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.analyse import conflict
from harness.analyse.discriminability import attention_strength
from harness.analyse.grids import valid_cells
from model.detector import DECODER, Detector
from model.heads.dense import mean_positive_logit
from model.types import Batch, DecoderOutput, Memory, Positives, Pyramid, QueryGroup


@dataclass(frozen=True)
class Root:
    """The encoder's output as leaves of a graph: what each head reads."""

    pyramid: Pyramid  # the encoder's levels, and with auxiliary heads those that the adapter adds
    memory: Memory  # the encoder's levels as the decoder's tokens, made of the same leaves
    encoder_levels: tuple[int, ...]  # where they stand in the pyramid

    def numbers(self, added: bool) -> tuple[int, ...]:
        """Levels of the pyramid by number: all, or without those that the adapter `added`."""
        return tuple(range(len(self.pyramid.levels))) if added else self.encoder_levels

    def cells(self, numbers: tuple[int, ...]) -> list[Tensor]:
        """[B, 2] valid rows and columns of each of these levels."""
        return [valid_cells(self.pyramid.valid_hw, self.pyramid.strides[number]) for number in numbers]

    @property
    def features(self) -> tuple[Tensor, ...]:
        """The encoder's own levels [B, D, h, w]."""
        return tuple(self.pyramid.levels[number] for number in self.encoder_levels)


@dataclass(frozen=True)
class Decoded:
    """The original queries, and what became of them in the last decoder layer."""

    group: QueryGroup
    output: DecoderOutput
    gt_index: Tensor  # [B, Q], by the Hungarian matching of the last layer
    attention: list[Tensor]  # L maps [B, h, w] of the last layer, of matched queries


def heads_of(detector: Detector) -> tuple[str, ...]:
    """All that is compared: the decoder first, then the auxiliary heads in the configuration's order."""
    return (DECODER, *(name for name, _ in detector.named_heads()))


@torch.no_grad()
def encode(detector: Detector, batch: Batch) -> Root:
    """The root of a batch."""
    memory, mask_at = detector.encode(batch)
    if len(detector.heads):
        pyramid = detector.pyramid(memory, batch, mask_at)
    else:
        masks = tuple(mask_at(stride) for stride in detector.strides)
        pyramid = Pyramid(tuple(memory.maps()), detector.strides, batch.valid_hw, masks)
    leaves = tuple(level.detach().float().contiguous().requires_grad_() for level in pyramid.levels)
    own = tuple(pyramid.strides.index(stride) for stride in detector.strides)
    with torch.enable_grad():
        tokens = torch.cat([leaves[number].flatten(2).transpose(1, 2) for number in own], 1)
    return Root(replace(pyramid, levels=leaves), replace(memory, tokens=tokens), own)


def decode(detector: Detector, root: Root, batch: Batch) -> Decoded:
    """The original group through the decoder, its matching, and where the matched queries look."""
    group = detector.initial_queries(root.memory)
    output: DecoderOutput = detector.decoder([group], root.memory, look=True)
    last = output.logits[-1:].detach(), output.boxes_cxcywh[-1:].detach()
    gt_index = detector.assign(*last, batch.targets, batch.valid_hw)[0]
    assert output.looked_at is not None
    attention = attention_strength(*output.looked_at, root.memory.sizes, gt_index >= 0)
    return Decoded(group, output, gt_index, attention)


def scores(detector: Detector, root: Root, decoded: Decoded, batch: Batch) -> dict[str, Tensor]:
    """[B, G] of every head: the mean logit of each ground truth's class over its own positives; nan without any.

    The decoder's positives are the queries that its last layer matches.
    """
    found = {DECODER: mean_positive_logit(decoded.output.logits[-1], decoded.gt_index, batch.targets)}
    for name, head in detector.named_heads():
        found[name] = head.score_positives(root.pyramid, batch.targets)
    return found


def gradients(root: Root, score: Tensor, usable: Tensor) -> tuple[Tensor, ...]:
    """Gradient [B, D, h, w] of a head's scalar towards every level of the pyramid; zero where it does not look."""
    leaves = root.pyramid.levels
    total = conflict.scalar(score, usable)
    if not total.requires_grad:  # no ground truth in the batch
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return tuple(torch.zeros_like(leaf) if own is None else own for own, leaf in zip(found, leaves, strict=True))


@torch.no_grad()
def positives(detector: Detector, root: Root, batch: Batch) -> dict[str, Positives]:
    """All positives of every auxiliary head."""
    return {name: head.positives(root.pyramid, batch.targets) for name, head in detector.named_heads()}
