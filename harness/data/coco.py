"""A data set in COCO layout: train/, val/, annotations/instances_train.json, annotations/instances_val.json.

COCO's own folders (train2017/ with annotations/instances_train2017.json) are found too. Everything is checked
when it is opened. Category ids may have gaps or start at 0: the network sees label indices 0 .. C-1 in order of id.
Images without objects are legal; crowd regions are kept apart, because nothing is learnt from them.
"""

from __future__ import annotations

import json
from array import array
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harness.data.checks import (
    KNOWN_EMPTY_BOXES,
    Problems,
    brief,
    check_annotations,
    check_categories,
    check_images,
    check_tables,
    is_number,
)
from harness.data.disk import no_access, open_file, shown
from harness.data.duplicates import Mark, check_same_image, file_marks, note_same_objects, shared_images
from harness.data.files import check_files
from harness.data.layout import Split, find_split
from harness.data.pixels import UNREADABLE, read_rgb
from harness.data.plausibility import check_boxes, object_areas
from harness.data.segmentations import check_segmentations
from harness.data.ticker import Progress, print_line
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.data.augment import View

COCO_AREA_BOUNDS = (32.0**2, 96.0**2)
LARGE_FILE = 50_000_000  # bytes of an annotation file that take long enough to say so


class CocoDataset:
    """One split, read and checked.

    Args:
        root: the folder in COCO layout.
        split: "train" or "val".
        progress: takes a line of text now and then when the checks take long; None prints it.
        name: for people; None takes the folder's.
        with_masks: read the segmentations too, which only some heads learn from and which fill the memory.

    Raises:
        UserError: everything that is wrong with the split, in one message.
    """

    def __init__(
        self,
        root: Path | str,
        split: Split,
        *,
        progress: Progress | None = None,
        name: str | None = None,
        with_masks: bool = False,
    ) -> None:
        self.split = split
        self.name = name or Path(root).absolute().name
        self.annotation_file, self.image_folder = find_split(Path(root), split)
        self.has_masks = with_masks
        content = _read_json(self.annotation_file, progress or print_line, with_masks)
        problems = Problems(self.annotation_file)
        check_tables(content, problems)
        if self.annotation_file.stat().st_size > LARGE_FILE:
            (progress or print_line)(f"checking {len(content['annotations']):,} annotations")
        check_categories(content["categories"], problems)
        check_images(content["images"], problems)
        sound = check_annotations(content, problems)
        check_boxes(sound, content["images"], problems)
        if with_masks:
            check_segmentations(content, problems)
        notes = check_files(self.image_folder, content["images"], problems, progress)
        marks = file_marks(self.image_folder, (row.get("file_name") for row in content["images"]))
        check_same_image(content["images"], sound, marks, problems)
        self.area_bounds = _area_bounds(content, problems)
        problems.raise_if_any()
        self._read_tables(content, problems)
        gone = Mark(0, -1, -1)  # since it was checked; told when it is loaded
        self._marks = np.array([marks.get(name, gone) for name in self._files], np.int64)
        for note in (*notes, *problems.notes):
            (progress or print_line)(note)
        if self.num_clipped:
            (progress or print_line)(f"{self.annotation_file}: {self.num_clipped} boxes clipped by at most 1 pixel")
        if self.num_left_out:
            (progress or print_line)(f"{self.annotation_file}: {self.num_left_out} known boxes without area left out")

    def _read_tables(self, content: dict[str, Any], problems: Problems) -> None:
        """Turn the checked lists into arrays: annotations sorted by image. What is odd is noted in `problems`."""
        categories = sorted(content["categories"], key=lambda row: row["id"])
        self.category_ids: tuple[int, ...] = tuple(row["id"] for row in categories)
        self.category_names: tuple[str, ...] = tuple(row["name"] for row in categories)
        images = sorted(content["images"], key=lambda row: row["id"])
        self.image_ids: tuple[int, ...] = tuple(row["id"] for row in images)
        self.image_hw: tuple[tuple[int, int], ...] = tuple((row["height"], row["width"]) for row in images)
        self._files = [row["file_name"] for row in images]
        position = {image_id: index for index, image_id in enumerate(self.image_ids)}
        label = {category: index for index, category in enumerate(self.category_ids)}
        kept = [row for row in content["annotations"] if (row["image_id"], row["id"]) not in KNOWN_EMPTY_BOXES]
        self.num_left_out = len(content["annotations"]) - len(kept)
        kept.sort(key=lambda row: position[row["image_id"]])
        count = len(kept)
        self._ids = np.fromiter((row["id"] for row in kept), np.int64, count)
        self._image = np.fromiter((position[row["image_id"]] for row in kept), np.int64, count)
        self._labels = np.fromiter((label[row["category_id"]] for row in kept), np.int64, count)
        self._crowd = np.fromiter((bool(row.get("iscrowd", 0)) for row in kept), bool, count)
        self._xywh = np.array([row["bbox"] for row in kept], np.float64).reshape(count, 4)
        self._areas = object_areas(kept, self._xywh, problems)
        keys = np.stack([self._image, self._labels, self._crowd], 1)
        note_same_objects(keys, self._xywh, self._ids, np.array(self.image_ids)[self._image], problems)
        self._segmentations = [row["segmentation"] for row in kept] if self.has_masks else []
        self._starts = np.searchsorted(self._image, np.arange(len(images) + 1))
        corners = np.concatenate([self._xywh[:, :2], self._xywh[:, :2] + self._xywh[:, 2:]], 1)
        limits = np.array(self.image_hw, np.float64)[self._image][:, [1, 0, 1, 0]]
        clipped = np.clip(corners, 0, limits)
        self.num_clipped = int((np.abs(clipped - corners).max(1, initial=0) > 0.01).sum())
        self._xyxy = clipped.astype(np.float32)

    def __len__(self) -> int:
        return len(self.image_ids)

    def files(self) -> tuple[Path, list[str], list[Mark]]:
        """The folder of the images, and by index their names and marks when they were checked."""
        return self.image_folder, self._files, [Mark(*row) for row in self._marks.tolist()]

    @property
    def num_classes(self) -> int:
        """Categories of the file, also those without an object in this split."""
        return len(self.category_ids)

    @property
    def file_names(self) -> tuple[str, ...]:
        """Of the images in order of their ids, as they stand in the annotation file."""
        return tuple(self._files)

    @property
    def num_boxes(self) -> int:
        """Objects that are not crowd regions."""
        return int((~self._crowd).sum())

    @property
    def objects_of_images(self) -> np.ndarray:
        """[I] how many objects each image has, without crowd regions."""
        return np.bincount(self._image[~self._crowd], minlength=len(self))

    @property
    def most_objects(self) -> int:
        """Objects of the image that has most of them, without crowd regions."""
        return int(self.objects_of_images.max())

    def load_image(self, index: int) -> np.ndarray:
        """RGB uint8 [H, W, 3] of the image at `index` (order of image ids), read as `pixels` tells.

        Raises:
            UserError: the file has gone, broken or changed since it was checked.
        """
        path = self.image_folder / self._files[index]
        where = f"{shown(path)}: image {self.image_ids[index]}"
        try:
            image = read_rgb(path)
        except UNREADABLE as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{where} cannot be read: {said}; restore the file") from error
        if image.shape[:2] != self.image_hw[index]:
            raise UserError(f"{where} has another size than when it was checked; restore the file")
        return image

    def boxes(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the image at `index`: boxes_xyxy [G, 4] float32 pixels, labels [G] int64, crowd_xyxy [N, 4]."""
        rows = slice(self._starts[index], self._starts[index + 1])
        single = ~self._crowd[rows]
        return self._xyxy[rows][single], self._labels[rows][single], self._xyxy[rows][~single]

    def objects_with_sides(self, index: int, shortest: float) -> np.ndarray:
        """[G] bool, which of `boxes` have an area, and no side below `shortest` pixels in the file."""
        rows = self._objects(index)
        return (self._xywh[rows, 2:].min(1) >= shortest) & (self._areas[rows] > 0)

    def _objects(self, index: int) -> np.ndarray:
        """[G] rows of the annotations of `boxes`."""
        rows = np.arange(self._starts[index], self._starts[index + 1])
        return rows[~self._crowd[rows]]

    def masks(self, index: int, chosen: np.ndarray | None = None, view: View | None = None) -> np.ndarray:
        """[G, MASK_CELLS, MASK_CELLS] uint8 of the image at `index`: the masks of `boxes`, as grids over them.

        Args:
            index: in order of image ids.
            chosen: [G] bool, those that are wanted; None: all.
            view: in which boxes and masks are seen; the chosen ones must show there. None: in the image.
        """
        from harness.data.masks import MASK_CELLS, decoded, grid_over_box

        rows = self._objects(index)
        rows = rows if chosen is None else rows[chosen]
        boxes, sources = self._xyxy[rows], None
        if view is not None:
            boxes, sources = view.boxes(boxes)[0], view.sources()
        masks = (decoded(self._segmentations[row], *self.image_hw[index]) for row in rows)
        grids = [grid_over_box(mask, box, sources) for mask, box in zip(masks, boxes, strict=True)]
        return np.stack(grids) if grids else np.zeros((0, MASK_CELLS, MASK_CELLS), np.uint8)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """`load_image` and `boxes` together."""
        return (self.load_image(index), *self.boxes(index))

    @cached_property
    def ground_truth(self) -> dict[str, Any]:
        """COCO's JSON, every number as in the file; missing `area` and `iscrowd` filled in; masks as run lengths.

        Annotation ids are renumbered from 1: the evaluators take id 0 for "not matched".
        """
        image_ids, category_ids = np.array(self.image_ids), np.array(self.category_ids)
        columns = zip(
            image_ids[self._image].tolist(),
            category_ids[self._labels].tolist(),
            self._xywh.tolist(),
            self._areas.tolist(),
            self._crowd.astype(int).tolist(),
            strict=True,
        )
        names = ("image_id", "category_id", "bbox", "area", "iscrowd")
        annotations = [
            {"id": number, **dict(zip(names, values, strict=True))} for number, values in enumerate(columns, 1)
        ]
        if self.has_masks:
            from harness.data.masks import packed

            for row, image, segmentation in zip(annotations, self._image, self._segmentations, strict=True):
                row["segmentation"] = packed(segmentation, *self.image_hw[image])
        return {
            "info": {"area_bounds": list(self.area_bounds)},
            "images": [
                {"id": image_id, "height": height, "width": width}
                for image_id, (height, width) in zip(self.image_ids, self.image_hw, strict=True)
            ],
            "annotations": annotations,
            "categories": [
                {"id": category, "name": name}
                for category, name in zip(self.category_ids, self.category_names, strict=True)
            ],
        }


def without_objects(data: CocoDataset) -> str:
    """Why there is nothing to learn from a split, or to measure; empty where there is something."""
    if data.num_boxes:
        return ""
    found = "has no annotations"
    if len(data._crowd):
        found = "all annotations are crowd regions (iscrowd: 1)"
    return f"{data.annotation_file}: {found}, so there is nothing to learn from or to measure; add objects"


def same_categories(train: CocoDataset, val: CocoDataset) -> None:
    """Raise `UserError` unless both splits name the same categories with the same ids."""
    first, second = (dict(zip(data.category_ids, data.category_names, strict=True)) for data in (train, val))
    if first == second:
        return
    different = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
    raise UserError(
        f"{val.annotation_file}: its categories differ from those of {train.annotation_file.name} "
        f"(ids {', '.join(map(str, different[:5]))}{'…' if len(different) > 5 else ''}); give both files one list"
    )


def notes_across(train: CocoDataset, val: CocoDataset) -> list[str]:
    """What is odd about the two splits together: images of both, classes that are measured but not learnt."""
    notes = []
    both = shared_images(train.files(), val.files())
    if both:
        there, here = map(shown, both[0])
        names = here if there == here else f"{here}, there {there}"
        told = f"{len(both):,} of {len(val):,} images are in the training split too ({names})"
        notes.append(f"note: {val.annotation_file}: {told}: what is measured on them was learnt by heart")
    unseen = np.setdiff1d(val._labels[~val._crowd], train._labels[~train._crowd])
    if len(unseen):
        names = ", ".join(brief(val.category_names[label]) for label in unseen[:5]) + (", …" if len(unseen) > 5 else "")
        told = f"{len(unseen):,} of its classes have no object in {train.annotation_file.name} ({names})"
        notes.append(f"note: {val.annotation_file}: {told}: nothing teaches them, so their AP will be 0")
    return notes


def _read_json(path: Path, progress: Progress, with_masks: bool) -> Any:
    """The file's content; segmentations would fill the memory, so they are left out or made compact on the way."""
    if path.stat().st_size > LARGE_FILE:
        progress(f"reading {path} ({path.stat().st_size / 1e6:.0f} MB)")
    try:
        hook = _with_compact_segmentation if with_masks else _without_segmentation
        with open_file(path) as stream:
            content = stream.read()
        return json.loads(content, object_hook=hook)
    except OSError as error:
        raise no_access(path, error) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: broken JSON: {error}; repair or replace the file") from error


def _without_segmentation(row: dict[str, Any]) -> dict[str, Any]:
    row.pop("segmentation", None)
    return row


def _with_compact_segmentation(row: dict[str, Any]) -> dict[str, Any]:
    """Lists of numbers become arrays; what is none stays for the checks to tell."""
    with suppress(TypeError, OverflowError):
        if isinstance(row.get("segmentation"), list):
            row["segmentation"] = [_compact("d", polygon) for polygon in row["segmentation"]]
        if isinstance(row.get("counts"), list):  # of run lengths, a mapping of their own
            row["counts"] = _compact("q", row["counts"])
    return row


def _compact(code: Literal["d", "q"], numbers: Any) -> array[Any]:
    """An array of numbers; `TypeError` where one is none, as `true` is."""
    if bool in map(type, numbers):
        raise TypeError
    return array(code, numbers)


def _area_bounds(content: dict[str, Any], problems: Problems) -> tuple[float, float]:
    """Bounds of small, medium and large in square pixels: COCO's unless `info.area_bounds` declares others."""
    info = content.get("info")
    bounds = info.get("area_bounds") if isinstance(info, dict) else None
    if bounds is None:
        return COCO_AREA_BOUNDS
    numbers = isinstance(bounds, list) and len(bounds) == 2 and all(map(is_number, bounds))
    if not numbers or not 0 < bounds[0] < bounds[1]:
        problems.add("area bounds", f"info.area_bounds {brief(bounds)} must be two rising areas in square pixels")
        return COCO_AREA_BOUNDS
    return float(bounds[0]), float(bounds[1])
