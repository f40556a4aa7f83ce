"""Detections in columns: half a million of a branch would fill the memory as dictionaries, and take minutes to copy.

A row of COCO's results format is made when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from model.types import Batch, Detections

ROWS_AT_ONCE = 16_384  # that are made of columns in one go


@dataclass(frozen=True, eq=False)
class DetectionTable:
    """Detections of one branch on many images, in the order in which they were found."""

    image_ids: np.ndarray  # [N] int64
    category_ids: np.ndarray  # [N] int64, of the data set
    boxes_xywh: np.ndarray  # [N, 4] float64, pixels of the data set's images
    scores: np.ndarray  # [N] float64
    masks_hw: np.ndarray | None = None  # [N, 2] int64; None: the branch detects boxes only
    masks: Sequence[str] | None = None  # [N] packed run lengths

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows of COCO's results format: image_id, category_id, bbox, score and perhaps segmentation."""
        for start in range(0, len(self), ROWS_AT_ONCE):
            yield from self._rows(slice(start, start + ROWS_AT_ONCE))

    def _rows(self, part: slice) -> list[dict[str, Any]]:
        columns = (self.image_ids, self.category_ids, self.boxes_xywh, self.scores)
        rows = [
            {"image_id": image, "category_id": category, "bbox": box, "score": score}
            for image, category, box, score in zip(*(column[part].tolist() for column in columns), strict=True)
        ]
        if self.masks is not None and self.masks_hw is not None:
            for row, size, counts in zip(rows, self.masks_hw[part].tolist(), self.masks[part], strict=True):
                row["segmentation"] = {"size": size, "counts": counts}
        return rows

    def annotations(self, *, with_masks: bool) -> list[dict[str, Any]]:
        """Rows as the evaluators' own loaders would number and measure them; those fail on an empty list."""
        if with_masks:
            from harness.data.masks import area

            assert self.masks is not None or not len(self), "these detections have no masks"
            return [
                {**row, "id": number, "area": area(row["segmentation"]), "iscrowd": 0}
                for number, row in enumerate(self, 1)
            ]
        areas = self.boxes_xywh[:, 2] * self.boxes_xywh[:, 3]
        columns = (self.image_ids, self.category_ids, self.boxes_xywh, self.scores, areas)
        return [
            {
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "score": score,
                "id": number,
                "area": area,
                "iscrowd": 0,
            }
            for number, (image, category, box, score, area) in enumerate(
                zip(*(column.tolist() for column in columns), strict=True), 1
            )
        ]

    def to_json(self) -> bytes:
        """COCO's results file."""
        parts = (json.dumps(self._rows(slice(at, at + ROWS_AT_ONCE))) for at in range(0, len(self), ROWS_AT_ONCE))
        return b"[" + b", ".join(part[1:-1].encode() for part in parts) + b"]"

    def best_of_images(self, limit: int) -> DetectionTable:
        """The `limit` best detections of each image, in their order; of equal scores the earlier ones."""
        images = np.unique(self.image_ids, return_inverse=True)[1]
        counts = np.bincount(images)
        if counts.max(initial=0) <= limit:
            return self
        order = np.lexsort((-self.scores, images))  # stable: by image, then by score
        starts = np.cumsum(counts) - counts
        rank = np.arange(len(order)) - starts[images[order]]
        return self.at(np.sort(order[rank < limit]))

    def at(self, rows: np.ndarray) -> DetectionTable:
        """These rows [N'], in their order."""
        return DetectionTable(
            self.image_ids[rows],
            self.category_ids[rows],
            self.boxes_xywh[rows],
            self.scores[rows],
            None if self.masks_hw is None else self.masks_hw[rows],
            None if self.masks is None else [self.masks[row] for row in rows.tolist()],
        )

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> DetectionTable:
        """Columns of COCO's results format; masks where all rows have one."""
        rows = list(rows)
        with_masks = bool(rows) and all("segmentation" in row for row in rows)
        return cls(
            np.array([row["image_id"] for row in rows], np.int64),
            np.array([row["category_id"] for row in rows], np.int64),
            np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4),
            np.array([row["score"] for row in rows], np.float64),
            np.array([row["segmentation"]["size"] for row in rows], np.int64) if with_masks else None,
            [row["segmentation"]["counts"] for row in rows] if with_masks else None,
        )


def joined(tables: Sequence[DetectionTable]) -> DetectionTable:
    """One table of all rows, those of the first table first; masks where every table with rows has them."""
    tables = [table for table in tables if len(table)]
    if not tables:
        return DetectionTable.of(())
    masks = [mask for table in tables for mask in table.masks or ()]
    with_masks = len(masks) == sum(map(len, tables))
    return DetectionTable(
        np.concatenate([table.image_ids for table in tables]),
        np.concatenate([table.category_ids for table in tables]),
        np.concatenate([table.boxes_xywh for table in tables]),
        np.concatenate([table.scores for table in tables]),
        np.concatenate([table.masks_hw for table in tables if table.masks_hw is not None]) if with_masks else None,
        masks if with_masks else None,
    )


def to_results(batch: Batch, detections: list[Detections], category_ids: Sequence[int]) -> DetectionTable:
    """Detections of a batch in pixels of the data set's images, with packed masks where there are masks.

    Args:
        batch: with `original_hw`; boxes are scaled from its `valid_hw`, or from what of it the image takes
            (`content_hw`), and clipped to the image.
        detections: one per image, boxes in pixels of the batch.
        category_ids: COCO id of each label.

    Raises:
        FloatingPointError: boxes or scores are not finite.
    """
    assert batch.original_hw is not None, "the batch does not know the sizes of its images in the data set"
    tables = []
    shown_hw = batch.valid_hw.cpu() if batch.content_hw is None else batch.content_hw
    scales = (batch.original_hw.double() / shown_hw).flip(1).repeat(1, 2).numpy()  # [B, 4]
    limits = batch.original_hw.flip(1).repeat(1, 2).double().numpy()
    categories = np.array(category_ids, np.int64)
    for image_id, found, scale, limit in zip(batch.image_ids, detections, scales, limits, strict=True):
        reached = found.boxes_xyxy.detach().cpu().double().numpy() * scale
        boxes = np.clip(reached, 0, limit)
        scores = found.scores.detach().cpu().double().numpy()
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise FloatingPointError(f"boxes or scores of image {image_id} are not finite: the weights have diverged")
        sizes, masks = None, None
        if found.masks is not None:
            from harness.data.masks import from_grids

            width, height = map(int, limit[:2])
            grids = found.masks.detach().cpu().float().numpy()  # over the boxes as they are, also beside the image
            packed = from_grids(grids, reached, height, width)
            sizes, masks = np.full((len(boxes), 2), (height, width), np.int64), [mask["counts"] for mask in packed]
        tables.append(
            DetectionTable(
                np.full(len(boxes), image_id, np.int64),
                categories[found.labels.cpu().numpy()],
                np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1),
                scores,
                sizes,
                masks,
            )
        )
    return joined(tables)
