"""The decoder of DAB-DETR (Liu et al. 2022): queries are boxes, which give their positions and move in each layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.attention import Visibility
from model.boxes import inverse_sigmoid
from model.branches import MLP, xavier_matrices
from model.config import DetectorConfig
from model.decoders.conditional import ConditionalStack, check_memory
from model.decoders.configs import DabDecoderConfig
from model.position import box_position_encoding
from model.types import DecoderOutput, Memory, QueryGroup

SMALLEST_SIDE = 1e-6  # of a reference where attention is divided by it; official: none, and a side of 0 is infinite


class DabDecoder(ConditionalStack):
    """A point counts as a box half as wide and high as the image."""

    def __init__(self, config: DabDecoderConfig, *, model: DetectorConfig, num_classes: int):
        super().__init__(config, model=model, num_classes=num_classes)
        self.look_forward_twice = model.look_forward_twice
        self.position_head = MLP(2 * self.channels, self.channels, self.channels)
        self.size_head = MLP(self.channels, self.channels, 2)
        for head in (self.position_head, self.size_head):
            xavier_matrices(head)

    def forward(self, groups: Sequence[QueryGroup], memory: Memory, *, look: bool = False) -> DecoderOutput:
        """See the contract."""
        check_memory(memory, "dab")
        states = torch.cat([group.content for group in groups], 1)
        reference = torch.cat([group.reference_cxcywh for group in groups], 1)
        visibility = Visibility.of(groups)
        looked_at: list[tuple[Tensor, Tensor]] = []
        found, references = [], [reference]  # a layer's boxes are offsets from the reference that it started from
        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            encoded = box_position_encoding(reference[..., [1, 0, 2, 3]], self.channels // 2)  # official: y, x, w, h
            encoded = encoded.to(states.dtype)
            sine = self.scaled(encoded[..., : self.channels], states, i)
            states = layer(
                states,
                self.position_head(encoded),
                self._modulated(sine, states, reference),
                visibility=visibility,
                memory=memory,
                looked_at=looked_at if look and last else None,
            )
            found.append(states)
            if not last:  # references move by the layer's own output, predictions come from the normalised one
                offset = self.box_branch(states).float()
                moved = (offset + inverse_sigmoid(reference, self.epsilon)).sigmoid()
                reference = moved.detach()
                references.append(moved if self.look_forward_twice else reference)
        return self.predict(torch.stack(found), torch.stack(references), looked_at)

    def _modulated(self, sine: Tensor, states: Tensor, reference: Tensor) -> Tensor:
        """`sine` [B, Q, D] with attention as wide and high as each query's object (DAB-DETR Eq. 8)."""
        sides = self.size_head(states).float().sigmoid() / reference[..., 2:].clamp(min=SMALLEST_SIDE)  # for x, for y
        halves = sine.unflatten(-1, (2, -1)) * sides.flip(-1)[..., None]  # y lies before x
        return halves.flatten(-2)
