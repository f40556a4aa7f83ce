"""Arrays by official parameter names under ours: parameters, and norms of their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from model.official import co_detr

State = dict[str, Tensor]


def of_co_detr(official: State, heads: Sequence[str] = (), *, num_roi_heads: int = 0) -> State:
    """With the names of mmdetection; unknown ones stay. Without heads there is no adapter either."""
    found = _renamed(official, co_detr.rename(official, heads, num_roi_heads))
    if not heads:
        found = {name: value for name, value in found.items() if not name.startswith("coarser.")}
    return co_detr.merge(found, channels=1)


def of_detr(official: State, rename: Callable[[State], dict[str, str]]) -> State:
    """With the names of one of DETR's descendants; unknown ones stay."""
    return _renamed(official, rename(official))


def _renamed(official: State, names: dict[str, str]) -> State:
    return {names.get(name, name): value for name, value in official.items()}
