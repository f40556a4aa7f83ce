"""Which queries see which, in the slow and obvious form that the decoder's attention is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from model.attention import Visibility


def seen_by(visibility: Visibility, batch_size: int, num_queries: int) -> Tensor:
    """[B, Q, Q] bool, True where the first query sees the second."""
    seen = torch.zeros(batch_size, num_queries, num_queries, dtype=torch.bool)
    for start, stop, main in visibility.blocks:
        seen[:, start:stop, :main] = True
        seen[:, start:stop, start:stop] = True
    return seen if visibility.hidden is None else seen & ~visibility.hidden.cpu()[:, None]
