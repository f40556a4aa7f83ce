"""Gathers discriminability and query statistics batch by batch, and makes tables of them (docs/metrics.md).

A collector takes batches through `add` and gives a JSON table, scalars for the tracking store, and maps to draw.
That of the conflict stands in `compare.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.analyse import discriminability, feed, queries
from harness.analyse.grids import inside
from model.boxes import xyxy_to_cxcywh
from model.detector import Detector
from model.types import Batch

NUM_EXAMPLES = 8  # images whose maps and positions are kept for figures: the first with objects


@dataclass(frozen=True)
class Observed:
    """One batch, as the detector sees it."""

    batch: Batch
    root: feed.Root
    decoded: feed.Decoded
    crowd_xyxy: Tensor  # [B, N, 4] pixels of the batch; rows without area are padding
    examples: list[int]  # rows of the batch that are kept for figures


# ---- discriminability ---------------------------------------------------------------------------------------------


@dataclass
class Discriminability:
    """IoF-IoB curves of encoder features and decoder attention, by one or more readings of the definition."""

    readings: tuple[str, ...] = ("discriminability",)  # names of `discriminability.READINGS`
    shares: dict[tuple[str, str], list[np.ndarray]] = field(default_factory=dict)  # by reading and source
    maps: dict[str, np.ndarray] = field(default_factory=dict)

    @torch.no_grad()
    def add(self, seen: Observed) -> None:
        """Measure the images that have objects."""
        batch, root = seen.batch, seen.root
        height, width = batch.images.shape[-2:]
        size, cells = (height, width), root.cells(root.encoder_levels)
        foreground = discriminability.inside_boxes(batch.targets.boxes_xyxy, batch.targets.valid, size)
        some = torch.ones(seen.crowd_xyxy.shape[:2], dtype=torch.bool, device=foreground.device)
        ignored = discriminability.inside_boxes(seen.crowd_xyxy, some, size)
        valid = inside(batch.valid_hw, size)
        sources = {
            "encoder": ("image", root.features),
            "attention": ("attention", tuple(level[:, None] for level in seen.decoded.attention)),
        }
        for reading in self.readings:
            for name, (short, levels) in sources.items():
                maps = discriminability.READINGS[reading](levels, cells, size, batch.valid_hw)
                iof, iob = discriminability.iof_iob(maps, foreground, ignored, valid)
                rows = torch.stack([iof, iob], 1).cpu().numpy()  # [B, 2, 101]
                kept = self.shares.setdefault((reading, name), [])
                kept += [row for row in rows if np.isfinite(row).all()]
                for image in seen.examples if reading == self.readings[0] else ():
                    h, w = batch.valid_hw[image].tolist()
                    shown = maps[image, :h, :w].cpu().numpy().astype(np.float16)
                    self.maps[f"{short}_{batch.image_ids[image]}"] = shown

    def table(self, reading: str = "discriminability") -> dict[str, Any]:
        """The two curves by one reading."""
        curves = {}
        for name in ("encoder", "attention"):
            rows = self.shares.get((reading, name), [])
            both = np.array(rows).reshape(-1, 2, discriminability.NUM_THRESHOLDS)
            curves[name] = discriminability.curve(both[:, 0], both[:, 1])
        version = {"version": discriminability.VERSION} if reading == "discriminability" else {}
        used = {"thresholds": discriminability.thresholds().tolist(), "num_images_used": len(rows)}
        return {"reading": reading, **version, **used, **curves}


def discriminability_scalars(table: dict[str, Any]) -> dict[str, float | None]:
    """`discriminability/encoder_auc`, `discriminability/attention_auc`, and the version of the definition.

    Other readings have their own name in front: `discriminability.v1/encoder_auc`.
    """
    reading = table["reading"]
    areas = {f"{reading}/{name}_auc": table[name]["auc"] for name in ("encoder", "attention")}
    return areas | ({f"{reading}/version": table["version"]} if "version" in table else {})


# ---- queries ------------------------------------------------------------------------------------------------------


@dataclass
class Queries:
    """Positives per ground truth, and where customised queries lie."""

    heads: tuple[str, ...]
    counts: dict[str, np.ndarray] = field(default_factory=dict)  # by head: (positives, ground truths)
    distances: dict[str, list[list[float]]] = field(default_factory=dict)  # by head: (to positives, to negatives)
    examples: list[dict[str, Any]] = field(default_factory=list)

    @torch.no_grad()
    def add(self, seen: Observed, detector: Detector) -> None:
        """Count and measure the positives of every head."""
        batch, decoded = seen.batch, seen.decoded
        sides = batch.valid_hw.flip(1).float()[:, None]  # [B, 1, 2] (width, height)
        own = decoded.group.reference_cxcywh[..., :2] * sides
        centres = {feed.DECODER: (own, decoded.gt_index)}
        for name, positives in feed.positives(detector, seen.root, batch).items():
            centres[name] = (xyxy_to_cxcywh(positives.boxes_xyxy)[..., :2], positives.gt_index)
        diagonal = batch.valid_hw.float().norm(dim=1)
        for name, (points, gt_index) in centres.items():
            found = queries.positives_per_gt(gt_index, batch.targets.valid)
            self.counts[name] = self.counts.get(name, np.zeros(2)) + np.array(found)
            if name != feed.DECODER:
                both = queries.query_distances(points, gt_index, own, decoded.gt_index, diagonal)
                self.distances.setdefault(name, []).extend(torch.stack(both, 1).tolist())
        for image in seen.examples:
            self.examples.append(_example(batch, image, {n: (p / sides, g) for n, (p, g) in centres.items()}))

    def table(self) -> dict[str, Any]:
        """Counts, distances and the examples' positions."""
        distances = {}
        for name, rows in self.distances.items():
            values = np.array(rows)
            means = [float(own[np.isfinite(own)].mean()) if np.isfinite(own).any() else None for own in values.T]
            distances[name] = dict(zip(("to_positives", "to_negatives"), means, strict=True))
        return {
            "positives_per_gt": {name: float(own[0] / own[1]) if own[1] else None for name, own in self.counts.items()},
            "distances": distances,
            "examples": self.examples,
        }


def _example(batch: Batch, image: int, centres: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Objects and positives of one image, in shares of its width and height."""
    height, width = batch.valid_hw[image].tolist()
    objects = batch.targets.boxes_cxcywh(batch.valid_hw)[image][batch.targets.valid[image]]
    positions = {name: points[image][gt[image] >= 0] for name, (points, gt) in centres.items()}
    return {
        "image_id": batch.image_ids[image],
        "width": width,
        "height": height,
        "objects": _rounded(objects),
        **{name: _rounded(points) for name, points in positions.items()},
    }


def _rounded(values: Tensor) -> list[list[float]]:
    return [[round(number, 5) for number in row] for row in values.tolist()]


def queries_scalars(table: dict[str, Any]) -> dict[str, float | None]:
    """`queries/atss/positives_per_gt`, `queries/atss/distance_to_positives` and `…_negatives`."""
    found = {f"queries/{name}/positives_per_gt": value for name, value in table["positives_per_gt"].items()}
    for name, own in table["distances"].items():
        found |= {f"queries/{name}/distance_{where}": value for where, value in own.items()}
    return found
