"""Co-DINO with a ViT as released: its neck, and what it has besides. The backbone's names are ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from model.backbones.configs import ViTConfig

TABLE = [
    ("neck.p{N}.{rest}", "neck.p{N}.{rest}"),
]
# Beginnings of our names, and why a checkpoint may have them and the configuration not
LEFT_OUT = (
    (re.compile(r"backbone\.(blocks\.\d+\.attn\.rope|rope_(win|glb))\."), "rotations, which the backbone computes"),
)
WINDOWS, WHOLE = "backbone.rope_win.freqs_cos", "backbone.rope_glb.freqs_cos"
OF_BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.attn\.rope\.freqs_cos")


def check_attention(state: Mapping[str, Tensor], config: ViTConfig) -> None:
    """Compare how a backbone attends, which no parameter's shape tells, with what its tables of rotations tell.

    Raises:
        ValueError: something differs; one line with all of it.
    """
    if WINDOWS not in state or state[WINDOWS].dim() != 2:
        return
    tokens, channels = state[WINDOWS].shape
    found: dict[str, Any] = {"window": isqrt(tokens), "num_heads": config.channels // channels}
    found["image_size"] = 16 * isqrt(len(state[WHOLE])) if WHOLE in state else None
    blocks = {int(match[1]): len(own) for name, own in state.items() if (match := OF_BLOCK.fullmatch(name))}
    found["global_blocks"] = tuple(index for index in range(config.depth) if blocks.get(index) != tokens)
    other = {name: value for name, value in found.items() if value != getattr(config, name)}
    if other:
        theirs, ours = (
            ", ".join(f"{name} {own(name)}" for name in other)
            for own in (other.get, lambda name: getattr(config, name))
        )
        raise ValueError(f"its rotations are those of a ViT with {theirs}; model.backbone has {ours}")
