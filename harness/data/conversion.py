"""What the label files of a YOLO or VOC folder say, as COCO's tables; all that is wrong with them in one list."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from harness.data.disk import ABSENT, NotAFile, no_access, open_file
from harness.data.files import Verdict, inspect
from harness.data.foreign import LARGEST_TEXT, Foreign, Labels, Picture
from harness.data.layout import SPLITS, Split
from harness.data.ticker import Progress, Ticker
from harness.data.voc_labels import VocLabels
from harness.data.yolo_images import label_places, orphans, shared_labels
from harness.data.yolo_labels import YoloLabels

THREADS, FILES_AT_ONCE = 8, 256
NOT_YET = " from the annotation file"  # which a YOLO or VOC folder has none of


class _Look(NamedTuple):
    """What the files of a picture hold."""

    verdict: Verdict | None  # of the image
    trouble: str  # with either file
    content: bytes  # of the label file


def read_all(found: Foreign, progress: Progress) -> tuple[dict[Split, dict[str, Any]], int]:
    """COCO's tables of both splits, and the number of classes.

    Args:
        found: the folder; its problems take the notes.
        progress: takes a line now and then.

    Raises:
        UserError: everything that is wrong with the folder, in one message.
    """
    problems = found.problems
    reader: Labels = YoloLabels(found) if found.kind == "YOLO" else VocLabels(found)
    _note_missing(found)
    ticker = Ticker(progress, f"reading a {found.kind} folder", sum(map(len, found.pictures.values())))
    images: dict[Split, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    rows: dict[Split, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    done, turned = 0, []
    for split in SPLITS:
        _, names = folders_and_names([picture.image for picture in found.pictures[split]])
        looks = _looks(found.pictures[split])
        for number, (picture, look) in enumerate(zip(found.pictures[split], looks, strict=True), 1):
            ticker.at(done := done + 1)
            if look.verdict is None:
                problems.add(" ".join(look.trouble.split()[:3]), f"{found.place(picture.image)} {look.trouble}")
                continue
            if look.trouble and picture.labels:
                problems.add("label file", f"{found.place(picture.labels)} {look.trouble}")
            width, height, traits = look.verdict[1:4]
            images[split].append({"id": number, "file_name": names[number - 1], "width": width, "height": height})
            turned += [found.place(picture.image)] if any(trait.startswith("orientation") for trait in traits) else []
            if picture.labels and not look.trouble:  # an empty file too: YOLO's means no objects, VOC's is broken
                own = reader.rows(look.content, found.place(picture.labels), (width, height))
                rows[split] += [{"image_id": number, **row} for row in own]
    if turned and found.kind == "YOLO":
        told = "have an EXIF orientation: shares are taken of the sides as stored, so store them upright if labels are"
        problems.note(f"{len(turned):,} images {told} of the image as viewers show it ({turned[0]} is the first)")
    categories = reader.categories()
    problems.raise_if_any()
    return {split: _table(found, images[split], rows[split], categories) for split in SPLITS}, len(categories)


def folders_and_names(images: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Which folders hold the images, and the images' names from there: the same wherever the data set lies.

    Args:
        images: absolute paths.

    Returns:
        `folders`: the uppermost folders that hold an image, by their name from the folder that all lie in; "" is the
        name of a single one. `names`: in order, from that same folder.
    """
    uppermost: list[list[str]] = []
    for parts in sorted(folder.split(os.sep) for folder in {os.path.dirname(image) for image in images}):
        if not uppermost or parts[: len(uppermost[-1])] != uppermost[-1]:
            uppermost.append(parts)
    folders = [os.sep.join(parts) or os.sep for parts in uppermost]
    above = os.path.commonpath(folders) if folders else os.sep
    links = {"" if folder == above else os.path.relpath(folder, above): folder for folder in folders}
    return links, [image[len(above) :].lstrip(os.sep) for image in images]


def _table(
    found: Foreign, images: list[dict[str, Any]], rows: list[dict[str, Any]], categories: dict[Any, dict[str, Any]]
) -> dict[str, Any]:
    """COCO's JSON of a split."""
    annotations = []
    for number, row in enumerate(rows, 1):
        category = categories[row.pop("category")]["id"]
        annotations.append({"id": number, "image_id": row["image_id"], "category_id": category, **row})
    info = {"description": f"converted from a {found.kind} folder"}
    return {"info": info, "images": images, "annotations": annotations, "categories": list(categories.values())}


def _note_missing(found: Foreign) -> None:
    """Images without a label file, and label files without an image."""
    pictures = [picture for split in SPLITS for picture in found.pictures[split]]
    bare = [picture for picture in pictures if picture.labels is None]
    if pictures and len(bare) == len(pictures):
        places = " or ".join(map(found.place, label_places(pictures[0].image)))
        told = f"none of {len(pictures):,} images has a label file; that of {found.place(pictures[0].image)} would be"
        found.problems.add("labels", f"{told} {places}; put label files there")
    elif bare:
        told = f"{len(bare):,} of {len(pictures):,} images have no label file and count as images without objects"
        found.problems.note(f"{told} ({found.place(bare[0].image)} is the first)")
    if found.kind == "YOLO" and (left := orphans(found)):
        told = f"{len(left):,} label files have no image of their own, so nobody reads them"
        found.problems.note(f"{told} ({found.place(left[0])} is the first)")
    if found.kind == "YOLO" and (shared := shared_labels(found)):
        told = f"{len(shared):,} label files go with several images of one name each"
        found.problems.note(f"{told} ({found.place(shared[0])} is the first)")


def _looks(pictures: Sequence[Picture]) -> Iterator[_Look]:
    """What the files of each picture hold, in order."""
    with ThreadPoolExecutor(THREADS) as pool:  # storage answers several questions at once
        for start in range(0, len(pictures), FILES_AT_ONCE):
            yield from pool.map(_look, pictures[start : start + FILES_AT_ONCE])


def _look(picture: Picture) -> _Look:
    verdict, trouble = inspect(Path(picture.image), None)
    if verdict is None or picture.labels is None:
        return _Look(verdict, trouble.replace(NOT_YET, ""), b"")
    try:
        with open_file(picture.labels) as stream:
            content = stream.read(LARGEST_TEXT + 1)
    except OSError as error:
        if isinstance(error, NotAFile | IsADirectoryError) or error.errno in ABSENT:
            return _Look(verdict, f"cannot be read ({error.strerror}); put the label file there", b"")
        raise no_access(picture.labels, error) from error
    if len(content) > LARGEST_TEXT:
        return _Look(verdict, f"is larger than {LARGEST_TEXT // 10**6} MB, which no label file is", b"")
    return _Look(verdict, "", content)
