"""What a transformer of the Deformable family starts training from, where that shall be the official way."""

from __future__ import annotations

from torch import nn

from model.attention import DeformableAttention

BRANCHES = ("class_branch", "box_branch")  # belong to the head officially, and have starts of their own


def draw_official_weights(*rooms: nn.Module) -> None:
    """Every matrix of a linear layer Xavier uniform, then deformable attention anew (official: `init_weights`).

    Branches and embeddings stay as they are, vectors too.
    """
    for room in rooms:
        for name, module in room.named_modules():
            if isinstance(module, nn.Linear) and not any(part.startswith(BRANCHES) for part in name.split(".")):
                nn.init.xavier_uniform_(module.weight)
        for module in room.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
