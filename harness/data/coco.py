"""A data set in COCO layout: train/, val/, annotations/instances_train.json, annotations/instances_val.json.

COCO's own folders (train2017/ with annotations/instances_train2017.json) are found too. Everything is checked
when it is opened. Category ids may have gaps or start at 0: the network sees label indices 0 .. C-1 in order of id.
Images without objects are legal; crowd regions are kept apart, because nothing is learnt from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.checks import brief
from harness.data.classes import note_alike
from harness.data.columns import Column, Lists, Segmentations, Texts
from harness.data.disk import shown
from harness.data.duplicates import shared_images
from harness.data.federated import NEGATIVE, NOT_EXHAUSTIVE, other_frequencies
from harness.data.layout import Split, find_split, own_named
from harness.data.pixels import UNREADABLE, read_rgb
from harness.data.tables import Wanted, open_tables
from harness.data.ticker import Progress, print_line
from harness.errors import UserError
from harness.system.words import quantity

if TYPE_CHECKING:
    from harness.data.augment import View
    from harness.data.paste import Cutout


class CocoDataset:
    """One split, read and checked.

    Args:
        root: the folder in COCO layout.
        split: "train" or "val".
        progress: takes a line of text now and then when the checks take long; None prints it.
        name: for people; None takes the folder's.
        with_masks: read the segmentations too, which only some heads learn from and which fill the memory.
        clips_boxes: boxes may reach out of their images (`DataConfig.outside_boxes`).

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
        clips_boxes: bool = False,
    ) -> None:
        self.split = split
        self.name = name or Path(root).absolute().name
        self.annotation_file, self.image_folder = find_split(Path(root), split)
        self.has_masks = with_masks
        progress = progress or print_line
        wanted = Wanted(with_masks, clips_boxes)
        self._tables, self._marks = open_tables(self.annotation_file, self.image_folder, wanted, progress)
        self._take(self._tables.header)
        if (other := own_named(Path(root), split)) not in (None, self.annotation_file):
            progress(
                f"note: {self.annotation_file}: is taken, not {other.name} beside it; give that a folder of its own"
            )
        for note in self._tables.header["notes"]:
            progress(note)
        if self.num_clipped:
            most = max(1, math.ceil(self._tables.header["most_clipped"]))
            told = f"{self.num_clipped} boxes clipped by at most {quantity(most, 'pixel')}"
            progress(f"{self.annotation_file}: {told}")
        if self.num_left_out:
            progress(f"{self.annotation_file}: {self.num_left_out} known boxes without area left out")

    def _take(self, header: dict[str, Any]) -> None:
        arrays = self._tables.arrays
        self.category_ids: tuple[int, ...] = tuple(header["category_ids"])
        self.category_names: tuple[str, ...] = tuple(header["category_names"])
        self.protocol: str = header["protocol"]  # "coco", or "lvis": each image is annotated for some classes
        self.frequencies: tuple[str, ...] = tuple(header["frequencies"])  # LVIS: r, c, f of the classes; "": unknown
        self.area_bounds: tuple[float, float] = tuple(header["area_bounds"])
        self.num_clipped: int = header["num_clipped"]
        self.num_left_out: int = header["num_left_out"]
        self.image_ids: Sequence[int] = Column(arrays["image_ids"])
        self.image_hw: Sequence[tuple[int, int]] = Column(arrays["image_hw"])
        self._files = Texts(arrays["names"], arrays["name_ends"])
        self._starts, self._image, self._ids = (arrays[name] for name in ("starts", "image", "ids"))
        self._labels, self._crowd = arrays["labels"], arrays["crowd"]
        self._xywh, self._areas, self._xyxy = (arrays[name] for name in ("xywh", "areas", "xyxy"))
        if self.protocol == "lvis":
            self._negatives = Lists(arrays["negatives"], arrays["negative_ends"])
            self._not_exhaustive = Lists(arrays["not_exhaustives"], arrays["not_exhaustive_ends"])
        if self.has_masks:
            self._segmentations = Segmentations(*(arrays[name] for name in Segmentations.NAMES))

    def __getstate__(self) -> dict[str, Any]:
        """For a process that is not forked: it maps the tables too."""
        kept = ("split", "name", "annotation_file", "image_folder", "has_masks", "_tables", "_marks")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._take(self._tables.header)

    def __len__(self) -> int:
        return len(self.image_ids)

    def files(self) -> tuple[Path, Sequence[str], np.ndarray]:
        """The folder of the images, and by index their names and their marks [I, 3] when they were checked."""
        return self.image_folder, self._files, self._marks

    @property
    def num_classes(self) -> int:
        """Categories of the file, also those without an object in this split."""
        return len(self.category_ids)

    @property
    def file_names(self) -> Sequence[str]:
        """Of the images in order of their ids, as they stand in the annotation file."""
        return self._files

    @property
    def num_boxes(self) -> int:
        """Objects that are not crowd regions."""
        return int((~self._crowd).sum())

    def classes_of_images(self) -> tuple[np.ndarray, np.ndarray]:
        """[N] index of the image and [N] label of each object, without crowd regions."""
        return self._image[~self._crowd], self._labels[~self._crowd]

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

    def has_objects_with_sides(self, shortest: float) -> bool:
        """Whether `objects_with_sides` is true of any object."""
        return bool(((self._xywh[:, 2:].min(1) >= shortest) & (self._areas > 0) & ~self._crowd).any())

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
        hw = self.image_hw[index]
        masks = (decoded(self._segmentations.at(row, hw), *hw) for row in rows.tolist())
        grids = [grid_over_box(mask, box, sources) for mask, box in zip(masks, boxes, strict=True)]
        return np.stack(grids) if grids else np.zeros((0, MASK_CELLS, MASK_CELLS), np.uint8)

    def cutouts(self, index: int, chosen: np.ndarray, sources: tuple[np.ndarray, np.ndarray]) -> tuple[Cutout, ...]:
        """The masks of chosen objects of `boxes`, [G] bool, in a view of the image with these `View.sources`."""
        from harness.data.masks import packed
        from harness.data.paste import Cutout

        hw = self.image_hw[index]
        rows = self._objects(index)[chosen].tolist()
        return tuple(Cutout.seen(packed(self._segmentations.at(row, hw), *hw), sources) for row in rows)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """`load_image` and `boxes` together."""
        return (self.load_image(index), *self.boxes(index))

    @cached_property
    def ground_truth(self) -> dict[str, Any]:
        """COCO's JSON, every number as in the file; missing `area` and `iscrowd` filled in; masks as run lengths.

        Annotation ids are renumbered from 1: the evaluators take id 0 for "not matched".
        """
        image_ids, category_ids = self._tables.arrays["image_ids"], np.array(self.category_ids, np.int64)
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

            for index, (row, image) in enumerate(zip(annotations, self._image.tolist(), strict=True)):
                hw = self.image_hw[image]
                row["segmentation"] = packed(self._segmentations.at(index, hw), *hw)
        truth = {
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
        if self.protocol == "lvis":
            self._add_protocol(truth)
        return truth

    def _add_protocol(self, truth: dict[str, Any]) -> None:
        """What LVIS's format has besides COCO's."""
        ids = self.category_ids
        for row, negative, partly in zip(truth["images"], self._negatives, self._not_exhaustive, strict=True):
            row[NEGATIVE], row[NOT_EXHAUSTIVE] = ([ids[label] for label in labels] for labels in (negative, partly))
        for row, frequency in zip(truth["categories"], self.frequencies, strict=True):
            row |= {"frequency": frequency} if frequency else {}


def without_objects(data: CocoDataset) -> str:
    """Why there is nothing to learn from a split, or to measure; empty where there is something."""
    if data.num_boxes:
        return ""
    found = "has no annotations"
    if len(data._crowd):
        found = "all annotations are crowd regions (iscrowd: 1)"
    return f"{data.annotation_file}: {found}, so there is nothing to learn from or to measure; add objects"


def same_categories(train: CocoDataset, val: CocoDataset) -> None:
    """Raise `UserError` unless both splits name the same categories with the same ids, by one protocol."""
    if train.protocol != val.protocol:
        with_keys, without = (train, val) if train.protocol == "lvis" else (val, train)
        told = f"images of {with_keys.annotation_file.name} have {NEGATIVE}, as in LVIS"
        other = f"those of {without.annotation_file.name} do not; give both files one format"
        raise UserError(f"{val.annotation_file}: {told}, {other}")
    first, second = (dict(zip(data.category_ids, data.category_names, strict=True)) for data in (train, val))
    if first == second:
        return
    different = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
    raise UserError(
        f"{val.annotation_file}: its categories differ from those of {train.annotation_file.name} "
        f"(ids {', '.join(map(str, different[:5]))}{'…' if len(different) > 5 else ''}); give both files one list"
    )


def notes_across(train: CocoDataset, val: CocoDataset) -> list[str]:
    """What is odd about the two splits together: their images, their classes and the objects of these, frequencies."""
    notes = []
    both = shared_images(train.files(), val.files())
    if both:
        there, here = map(shown, both[0])
        names = here if there == here else f"{here}, there {there}"
        told = f"{len(both):,} of {len(val):,} images are in the training split too ({names})"
        notes.append(f"note: {val.annotation_file}: {told}: what is measured on them was learnt by heart")
    if val.protocol == "lvis" and (changed := other_frequencies(val.frequencies, train.frequencies)):
        label, told = changed[0], f"{len(changed):,} of its classes have another frequency in"
        own = f"{val.frequencies[label]} here, {train.frequencies[label]} there"
        told = f"{told} {train.annotation_file.name} ({brief(val.category_names[label])}: {own})"
        notes.append(f"note: {val.annotation_file}: {told}: APr, APc and APf go by what stands here")
    counts = sum(np.bincount(data._labels, minlength=data.num_classes) for data in (train, val))
    if alike := note_alike(train.category_names, np.asarray(counts).tolist()):
        notes.append(f"note: {train.annotation_file}: {alike}")
    unseen = np.setdiff1d(val._labels[~val._crowd], train._labels[~train._crowd])
    if len(unseen):
        names = ", ".join(brief(val.category_names[label]) for label in unseen[:5]) + (", …" if len(unseen) > 5 else "")
        told = f"{len(unseen):,} of its classes have no object in {train.annotation_file.name} ({names})"
        notes.append(f"note: {val.annotation_file}: {told}: nothing teaches them, so their AP will be 0")
    return notes
