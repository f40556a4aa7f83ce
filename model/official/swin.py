"""Swin Transformers by the names of four programs, under ours, which are those of transformers.

- Microsoft's (`layers.0.blocks.0.attn.qkv.weight`), which Co-DETR's released detectors have below `backbone.`;
- timm's, the same names; newer versions have each merging of patches at the beginning of a stage, not at its end;
- mmdetection's (`stages.0.blocks.0.attn.w_msa.qkv.weight`), where the four patches that are merged into one follow each
  other within each channel (nn.Unfold), and not the other way round;
- those of transformers 5, and of 4, which files on its hub have.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor
from torch.nn import functional as F

from model.official.table import our_names, unwrapped

BLOCK = "layers.{stage}.blocks.{N}"
QKV = f"{BLOCK}.attention.qkv.{{rest}}"  # three of ours, see `merge`
UNFOLDED = "layers.{stage}.unfolded.{rest}"  # ours in another order, see `merge`
TABLE_NAME = "relative_position_bias_table"
BIASES = f"attention.relative_position_bias.{TABLE_NAME}"
EMBEDDING = "embeddings.patch_embeddings.projection"

# official beside ours; the norm of a stage's output has the stage's number, from 0 on
TABLE = [
    ("patch_embed.proj.{rest}", f"{EMBEDDING}.{{rest}}"),
    ("patch_embed.norm.{rest}", "embeddings.norm.{rest}"),
    (f"{BLOCK}.norm1.{{rest}}", f"{BLOCK}.layernorm_before.{{rest}}"),
    (f"{BLOCK}.norm2.{{rest}}", f"{BLOCK}.layernorm_after.{{rest}}"),
    (f"{BLOCK}.attn.qkv.{{rest}}", QKV),
    (f"{BLOCK}.attn.proj.{{rest}}", f"{BLOCK}.attention.o_proj.{{rest}}"),
    (f"{BLOCK}.attn.{TABLE_NAME}", f"{BLOCK}.{BIASES}"),
    (f"{BLOCK}.mlp.{{rest}}", f"{BLOCK}.mlp.{{rest}}"),
    ("layers.{stage}.downsample.{rest}", "layers.{stage}.downsample.{rest}"),
    ("norm{N}.{rest}", "norms.{N}.{rest}"),
]
OF_MMDETECTION = [
    ("patch_embed.projection.{rest}", f"{EMBEDDING}.{{rest}}"),
    ("stages.{stage}.blocks.{N}.norm1.{rest}", f"{BLOCK}.layernorm_before.{{rest}}"),
    ("stages.{stage}.blocks.{N}.norm2.{rest}", f"{BLOCK}.layernorm_after.{{rest}}"),
    ("stages.{stage}.blocks.{N}.attn.w_msa.qkv.{rest}", QKV),
    ("stages.{stage}.blocks.{N}.attn.w_msa.proj.{rest}", f"{BLOCK}.attention.o_proj.{{rest}}"),
    (f"stages.{{stage}}.blocks.{{N}}.attn.w_msa.{TABLE_NAME}", f"{BLOCK}.{BIASES}"),
    ("stages.{stage}.blocks.{N}.ffn.layers.0.0.{rest}", f"{BLOCK}.mlp.fc1.{{rest}}"),
    ("stages.{stage}.blocks.{N}.ffn.layers.1.{rest}", f"{BLOCK}.mlp.fc2.{{rest}}"),
    ("stages.{stage}.downsample.{rest}", UNFOLDED),
]
OF_TRANSFORMERS = [
    (f"encoder.{BLOCK}.attention.self.query.{{rest}}", f"{BLOCK}.attention.q_proj.{{rest}}"),
    (f"encoder.{BLOCK}.attention.self.key.{{rest}}", f"{BLOCK}.attention.k_proj.{{rest}}"),
    (f"encoder.{BLOCK}.attention.self.value.{{rest}}", f"{BLOCK}.attention.v_proj.{{rest}}"),
    (f"encoder.{BLOCK}.attention.self.{TABLE_NAME}", f"{BLOCK}.{BIASES}"),
    (f"encoder.{BLOCK}.attention.output.dense.{{rest}}", f"{BLOCK}.attention.o_proj.{{rest}}"),
    (f"encoder.{BLOCK}.intermediate.dense.{{rest}}", f"{BLOCK}.mlp.fc1.{{rest}}"),
    (f"encoder.{BLOCK}.output.dense.{{rest}}", f"{BLOCK}.mlp.fc2.{{rest}}"),
    ("encoder.{rest}", "{rest}"),
    ("embeddings.{rest}", "embeddings.{rest}"),
    *((f"hidden_states_norms.stage{stage + 1}.{{rest}}", f"norms.{stage}.{{rest}}") for stage in range(4)),
]
WRAPPERS = ("module.", "model.", "backbone.")  # what stands before all names
# Tables that follow from the window, and what classifies images behind the last stage
FOLLOWS = re.compile(r".*\.(relative_position_index|attn_mask)")
CLASSIFIER = re.compile(r"(head|classifier|norm|layernorm|pooler)\..+")
BIAS_TABLE = re.compile(rf"layers\.\d+\.blocks\.\d+\.{re.escape(BIASES)}")


def rename(names: Iterable[str]) -> dict[str, str]:
    """Our name of each official one that a table knows. What `FOLLOWS` from the window keeps its own name."""
    names = list(names)
    plain = {name: name.removeprefix("swin.") for name in names}
    found = our_names(plain.values(), [*TABLE, *OF_MMDETECTION, *OF_TRANSFORMERS])
    merges = [name for name in found.values() if ".downsample." in name]
    if merges and not any(name.startswith("layers.0.") for name in merges):  # newer timm: of the stage behind
        found = {name: _of_stage_before(ours) if ours in merges else ours for name, ours in found.items()}
    found |= {name: name for name in plain.values() if FOLLOWS.fullmatch(name)}
    return {name: found[short] for name, short in plain.items() if short in found}


def _of_stage_before(name: str) -> str:
    layers, stage, rest = name.split(".", 2)
    return f"{layers}.{int(stage) - 1}.{rest}"


def merge(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of `rename`, where an official one is three of ours, or has another order of channels."""
    merged: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        before, kind, rest = name.rpartition(".qkv.")
        if kind and len(tensor) % 3 == 0:
            merged |= {f"{before}.{own}_proj.{rest}": part for own, part in zip("qkv", tensor.chunk(3), strict=True)}
        elif ".unfolded." in name:
            merged[name.replace(".unfolded.", ".downsample.")] = _patch_by_patch(tensor)
        else:
            merged[name] = tensor
    return merged


def _patch_by_patch(tensor: Tensor) -> Tensor:
    """[…, C * 4] of nn.Unfold, by channel, row and column, as [… , 4 * C] by column, row and channel."""
    if tensor.shape[-1] % 4:
        return tensor
    return tensor.unflatten(-1, (-1, 2, 2)).transpose(-3, -1).flatten(-3)


def translate(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors under our names; unknown ones keep theirs. Left out is what a backbone does without.

    Tables of relative positions of another window are resized (bicubic, as the official program does), and stages
    behind the last of ours are left out, as are norms of stages that give no output.

    Args:
        state: tensors by official name, perhaps those of a whole classifier.
        expected: the backbone's own state dict.
    """
    state = unwrapped(state, WRAPPERS)
    kept = {name: value for name, value in state.items() if not FOLLOWS.fullmatch(name)}
    kept = {name: value for name, value in kept.items() if not CLASSIFIER.fullmatch(name.removeprefix("swin."))}
    names = rename(kept)
    tensors = merge({names.get(name, name): value for name, value in kept.items()})
    left_out = _beyond(tensors, expected)
    tensors = {name: value for name, value in tensors.items() if name not in left_out}
    tables = [name for name in tensors if name in expected and BIAS_TABLE.fullmatch(name)]
    return tensors | {name: _resized(tensors[name], expected[name]) for name in tables}


def _beyond(names: Iterable[str], expected: Collection[str]) -> set[str]:
    """Names behind the last stage that the backbone has, and of norms that it does without."""
    last = max(int(name.split(".")[1]) for name in expected if name.startswith("layers."))
    behind = re.compile(rf"layers\.(?:{last}\.downsample|[{last + 1}-9])\..+|norms\.\d\..+")
    return {name for name in names if behind.fullmatch(name) and name not in expected}


def _resized(table: Tensor, expected: Tensor) -> Tensor:
    """[(2 w - 1)², heads] for another window; as it is where that cannot be."""
    before, after = (round(len(own) ** 0.5) for own in (table, expected))
    square = table.dim() == 2 and table.shape[1:] == expected.shape[1:] and before**2 == len(table)
    if not square or before == after or not table.is_floating_point():
        return table
    maps = table.float().T.reshape(1, -1, before, before)
    return F.interpolate(maps, (after, after), mode="bicubic").flatten(2)[0].T.to(table.dtype).contiguous()
