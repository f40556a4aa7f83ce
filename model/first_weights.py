"""The weights that a transformer of the Deformable family starts from, where that shall be the official way."""

from __future__ import annotations

import math

from torch import nn

from model.attention import DeformableAttention

BRANCHES = ("class_branch", "box_branch")  # belong to the head officially, and have starts of their own


def draw_official_weights(*rooms: nn.Module) -> None:
    """Every matrix of a linear layer Xavier uniform, then deformable attention anew (official: `init_weights`).

    The heads' embeddings are one matrix [K, ...] officially, and drawn as such. Branches and vectors stay as they are.
    """
    for room in rooms:
        for name, module in room.named_modules():
            if isinstance(module, nn.Linear) and not any(part.startswith(BRANCHES) for part in name.split(".")):
                nn.init.xavier_uniform_(module.weight)
        for module in room.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        embeddings = [value for name, value in room.named_parameters() if name.endswith("head_embedding")]
        for value in embeddings:
            bound = math.sqrt(6 / (len(embeddings) + len(value)))  # Xavier uniform of that matrix
            nn.init.uniform_(value, -bound, bound)
