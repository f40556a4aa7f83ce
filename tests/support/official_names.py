"""State dicts as official programs write them, made of ours: the tables of names, read from right to left."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from model.heads import HEADS
from model.official import co_detr, co_dino, conditional_detr, deformable_detr
from model.official.table import our_names

State = dict[str, Tensor]
Table = list[tuple[str, str]]


def as_co_detr(state: State, heads: Iterable[str], num_layers: int) -> State:
    """With mmdetection's names; `heads` as in the configuration, all RoI heads before the dense ones."""
    names = list(heads)
    regions = [name for name in names if name.partition(".")[0] in co_detr.REGION_HEADS]
    found: State = {}
    embeddings = {}
    for name, tensor in _of_last_branch(state, num_layers).items():
        room, _, rest = name.partition(".")
        module, _, rest = rest.partition(".")
        if room in ("heads", "positive_queries"):
            number = names.index(module.replace(":", "."))
            if rest == "head_embedding":
                embeddings[number] = tensor[:1]
                continue
            if rest == "level_scales":
                dense = number - len(regions)
                found |= {f"bbox_head.{dense}.scales.{level}.scale": scale for level, scale in enumerate(tensor)}
                continue
            dense = room == "heads" and number >= len(regions)
            name = f"{room}.{number - len(regions) if dense else number}.{rest}"
        found[name] = tensor
    table = [(official, ours.replace("{rpn}", "0")) for official, ours in co_detr.TABLE if "{heads}" not in ours]
    official = _renamed(found, [*table, *co_dino.TABLE])
    if embeddings:
        official["query_head.transformer.head_pos_embed.weight"] = torch.stack(
            [embeddings[number] for number in sorted(embeddings)]
        )
    if "queries.content.weight" in official:
        official["query_head.query_embedding.weight"] = official.pop("queries.content.weight")
    return official


def as_deformable_detr(state: State, num_layers: int, *, dino: bool = False) -> State:
    """With the names of Deformable-DETR's, H-Deformable-DETR's or DINO's own repository."""
    num_lateral = sum(name.startswith("neck.lateral.") and name.endswith("conv.weight") for name in state)
    found = state if dino else _of_last_branch(state, num_layers)
    found = {_flat(name, num_lateral): tensor for name, tensor in found.items()}
    official = _renamed(found, deformable_detr.SHARED + (deformable_detr.DINO if dino else deformable_detr.DEFORMABLE))
    if not dino and "queries.content.weight" in official:
        official["query_embed.weight"] = official.pop("queries.content.weight")
    for name in [name for name in official if name.startswith(("class_embed.0.", "bbox_embed.0."))]:
        branch, _, rest = name.split(".", 2)
        for layer in range(1, num_layers):  # where all layers share a branch, it is listed again and again
            official.setdefault(f"{branch}.{layer}.{rest}", official[name])
    twice = {name: tensor for name, tensor in official.items() if name.startswith(("class_embed.", "bbox_embed."))}
    if dino:
        label = official["label_enc.weight"]
        official["label_enc.weight"] = torch.cat([label, label.new_zeros(1, label.shape[1])])
    return official | {f"transformer.decoder.{name}": tensor for name, tensor in twice.items()}


def as_conditional_detr(state: State) -> State:
    """With the names of DAB-DETR's or Conditional-DETR's repository."""
    dab = "queries.anchors.weight" in state
    official = _renamed(
        state, conditional_detr.SHARED + (conditional_detr.DAB if dab else conditional_detr.CONDITIONAL)
    )
    twice = {name: tensor for name, tensor in official.items() if dab and name.startswith("bbox_embed.")}
    return official | {f"transformer.decoder.{name}": tensor for name, tensor in twice.items()}


def head_names(heads: Iterable[str]) -> tuple[str, ...]:
    """Instance names of heads that a configuration lists by their kind."""
    return HEADS.instance_names(tuple(HEADS[name].Config() for name in heads))


def _renamed(state: State, table: Table) -> State:
    names = our_names(state, [(ours, official) for official, ours in table])
    return {names.get(name, name): tensor for name, tensor in state.items()}


def _of_last_branch(state: State, num_layers: int) -> State:
    """The encoder's branches behind the decoder's, as all but DINO list them."""
    places = {
        "queries.class_branch.": f"decoder.class_branches.{num_layers}.",
        "queries.box_branch.": f"decoder.box_branches.{num_layers}.",
    }
    found = {}
    for name, tensor in state.items():
        for ours, official in places.items():
            name = name.replace(ours, official)
        found[name] = tensor
    return found


def _flat(name: str, num_lateral: int) -> str:
    """The neck's levels in one list."""
    if not name.startswith("neck."):
        return name
    _, kind, level, rest = name.split(".", 3)
    return f"neck.{int(level) + (num_lateral if kind == 'extra' else 0)}.{rest}"
