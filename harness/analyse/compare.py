"""Gathers the conflict of heads batch by batch: matrix, distances, and the anchors that give them a scale.

The ceiling is the distance when the second head looks at another image; the floor that between two trainings of one
head, if a second detector is given. Distances and anchors come with their 95 % interval.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.analyse import conflict, feed
from harness.analyse.bootstrap import interval, mean_interval, resamples
from harness.analyse.collect import Observed
from harness.analyse.grids import inside, resize
from harness.config import ConflictVariant
from model.detector import Detector
from model.types import Batch


@dataclass
class Heads:
    """What the heads of one detector look at in one batch."""

    maps: dict[ConflictVariant, list[Tensor]]  # by variant: one grid or one per level, [B, H, h, w] in [0, 1]
    usable: Tensor  # [B, G]


@dataclass
class Conflict:
    """Distances between heads, for one or more variants of the metric."""

    heads: tuple[str, ...]
    variants: tuple[ConflictVariant, ...]
    floor_detector: Detector | None = None  # the same heads from another training
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    num_gts: int = 0
    num_usable: int = 0
    divergence: dict[str, list[np.ndarray]] = field(default_factory=dict)  # by variant, [H, H] per image
    rms: dict[str, list[np.ndarray]] = field(default_factory=dict)
    floor: dict[str, list[float]] = field(default_factory=dict)
    uniform: dict[str, np.ndarray] = field(default_factory=dict)  # by variant, all-zero maps per head
    kept: dict[str, list[list[Tensor]]] = field(default_factory=dict)  # by variant and image, grids [H, h, w]

    def add(self, seen: Observed, detector: Detector) -> None:
        """Compare the heads on the images that have a usable ground truth."""
        found = look(detector, seen.root, seen.decoded, seen.batch, self.variants)
        used = found.usable.any(1)
        self.num_gts += int(seen.batch.targets.valid.sum())
        self.num_usable += int(found.usable.sum())
        other = self._other(seen.batch)
        for variant, grids in found.maps.items():
            way = conflict.VARIANTS[variant]
            cells = seen.root.cells(seen.root.numbers(way.added)[: len(grids)])
            pairs, rms, between, blank = [], [], [], []
            for number, (maps, own) in enumerate(zip(grids, cells, strict=True)):
                valid = inside(own, (maps.shape[2], maps.shape[3]))
                wide = valid[:, None].expand_as(maps)
                logs = conflict.log_distribution(maps, wide, way)
                flat = valid.flatten(1)
                pairs.append(conflict.divergences(logs, logs, flat))
                rms.append(conflict.rms_differences(maps, valid))
                blank.append((maps.flatten(2).amax(2) == 0) & used[:, None])
                if other is not None:
                    others = conflict.log_distribution(other.maps[variant][number], wide, way)
                    both = conflict.divergences(logs, others, flat) + conflict.divergences(others, logs, flat)
                    between.append(both.diagonal(dim1=1, dim2=2).mean(1) / 2)
            self._keep(variant, used, torch.stack(pairs).mean(0), torch.stack(rms).mean(0))
            self.uniform[variant] = self.uniform.get(variant, 0) + torch.stack(blank).all(0).sum(0).cpu().numpy()
            if other is not None:
                both_used = used & other.usable.any(1)
                self.floor.setdefault(variant, []).extend(torch.stack(between).mean(0)[both_used].tolist())
            self._keep_maps(variant, grids, cells, used, seen)

    def _other(self, batch: Batch) -> Heads | None:
        if self.floor_detector is None:
            return None
        root = feed.encode(self.floor_detector, batch)
        decoded = feed.decode(self.floor_detector, root, batch)
        return look(self.floor_detector, root, decoded, batch, self.variants)

    def _keep(self, variant: str, used: Tensor, pairs: Tensor, rms: Tensor) -> None:
        self.divergence.setdefault(variant, []).extend(pairs[used].cpu().numpy())
        self.rms.setdefault(variant, []).extend(rms[used].cpu().numpy())

    def _keep_maps(self, variant: str, grids: list[Tensor], cells: list[Tensor], used: Tensor, seen: Observed) -> None:
        kept = self.kept.setdefault(variant, [])
        for image in used.nonzero().flatten().tolist():
            cropped = []
            for maps, own in zip(grids, cells, strict=True):
                h, w = own[image].tolist()
                cropped.append(maps[image, :, :h, :w].cpu())
            kept.append(cropped)
            if image in seen.examples and variant == self.variants[0]:
                for head, drawn in zip(self.heads, cropped[0], strict=True):
                    self.maps[f"cam_{head}_{seen.batch.image_ids[image]}"] = drawn.numpy().astype(np.float16)

    def table(self, variant: ConflictVariant) -> dict[str, Any]:
        """Matrix, distances and anchors of one variant."""
        count = len(self.heads)
        pairs = np.array(self.divergence.get(variant, [])).reshape(-1, count, count) * (1 - np.eye(count))
        rms = np.array(self.rms.get(variant, [])).reshape(-1, count, count)
        uniform = self.uniform.get(variant, np.zeros(count, int))
        undefined = [[None] * count for _ in range(count)]
        matrices = {"matrix": undefined, "low": undefined, "high": undefined, "rms": undefined}
        if len(pairs):
            low, high = mean_interval(pairs)
            found = {"matrix": pairs.mean(0), "low": low, "high": high, "rms": rms.mean(0)}
            matrices = {name: values.tolist() for name, values in found.items()}
        return {
            "variant": variant,
            "heads": list(self.heads),
            **matrices,
            "distance": _distances(self.heads, pairs),
            "ceiling": summary(self._ceiling(variant)) if count > 1 else None,
            "floor": summary(np.array(self.floor.get(variant, []))) if self.floor_detector is not None else None,
            "num_images_used": len(pairs),
            "left_out_share": 1 - self.num_usable / self.num_gts if self.num_gts else None,
            "uniform_maps": dict(zip(self.heads, uniform.tolist(), strict=True)),
        }

    def _ceiling(self, variant: ConflictVariant) -> np.ndarray:
        """[num_images] mean divergence of pairs of heads when the second looks at another image, half the set away."""
        way, kept = conflict.VARIANTS[variant], self.kept.get(variant, [])
        apart = ~torch.eye(len(self.heads), dtype=torch.bool)
        values = []
        for number, grids in enumerate(kept if len(kept) > 1 else []):
            partners = kept[(number + len(kept) // 2) % len(kept)]
            pairs = []
            for maps, partner in zip(grids, partners, strict=True):
                valid = torch.ones_like(maps, dtype=torch.bool)
                first, second = (conflict.log_distribution(m, valid, way)[None] for m in (maps, fit(partner, maps)))
                pairs.append(conflict.divergences(first, second, valid[:1].flatten(1))[0])
            values.append(float(torch.stack(pairs).mean(0)[apart].mean()))
        return np.array(values)


@torch.no_grad()
def fit(maps: Tensor, like: Tensor) -> Tensor:
    """Maps [H, h, w] of another image at the size of `like` [H, h', w'], in [0, 1] as before."""
    if maps.shape == like.shape:
        return maps
    size = (like.shape[1], like.shape[2])
    old, new = (torch.tensor([m.shape[1:]] * len(m)) for m in (maps, like))
    return conflict.unit_map(resize(maps, old, size, new), torch.ones_like(like, dtype=torch.bool))


def look(
    detector: Detector, root: feed.Root, decoded: feed.Decoded, batch: Batch, variants: tuple[ConflictVariant, ...]
) -> Heads:
    """The maps of all heads of a detector on a batch: one backward pass per head serves every variant."""
    scores = feed.scores(detector, root, decoded, batch)
    usable = conflict.usable_gts(list(scores.values()))
    by_head: dict[ConflictVariant, list[list[Tensor]]] = {variant: [] for variant in variants}
    for score in scores.values():
        gradients = feed.gradients(root, score, usable)
        for variant, rows in by_head.items():
            way = conflict.VARIANTS[variant]
            numbers = root.numbers(way.added)
            features, own = ([levels[number] for number in numbers] for levels in (root.pyramid.levels, gradients))
            rows.append(conflict.head_maps([level.detach() for level in features], own, root.cells(numbers), way))
    maps = {variant: [torch.stack(grid, 1) for grid in zip(*rows, strict=True)] for variant, rows in by_head.items()}
    return Heads(maps, usable)


def _distances(heads: tuple[str, ...], pairs: np.ndarray) -> dict[str, Any]:
    """S_i of every head with its interval; nothing without a second head."""
    if len(heads) < 2:
        return {}
    if not len(pairs):
        return {head: summary(np.array([])) for head in heads}
    per_image = conflict.distances(pairs)  # [num_images, H]: S_i is linear in the matrix
    return {head: summary(per_image[:, index]) for index, head in enumerate(heads)}


def summary(values: np.ndarray) -> dict[str, float | None]:
    """Mean over images with its 95 % interval; None without any."""
    if not len(values):
        return {"value": None, "low": None, "high": None}
    low, high = interval(resamples(len(values)) @ values)
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def conflict_scalars(table: dict[str, Any]) -> dict[str, float | None]:
    """`conflict/atss` (S_i), `conflict/decoder-atss` (both directions' mean), `conflict/mean`, anchors, left out.

    Another variant than cam-v1 has its name in front: `conflict.cam-v1-l1/atss`.
    """
    variant, heads, matrix = table["variant"], table["heads"], table["matrix"]
    found: dict[str, float | None] = {head: own["value"] for head, own in table["distance"].items()}
    for i, first in enumerate(heads):
        for j in range(i + 1, len(heads)):
            defined = matrix[i][j] is not None
            found[f"{first}-{heads[j]}"] = (matrix[i][j] + matrix[j][i]) / 2 if defined else None
    if found:
        known = [own["value"] for own in table["distance"].values() if own["value"] is not None]
        found["mean"] = float(np.mean(known)) if known else None
    for anchor in ("ceiling", "floor"):
        if table[anchor] is not None:
            found[anchor] = table[anchor]["value"]
    if found:
        found["left_out_share"] = table["left_out_share"]
    prefix = "conflict" if variant == "cam-v1" else f"conflict.{variant}"
    return {f"{prefix}/{name}": value for name, value in found.items()}
