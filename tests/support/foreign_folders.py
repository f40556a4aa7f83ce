"""YOLO and VOC folders for tests: small, whole, easy to break in one place, and how they are read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest
from PIL import Image

from harness.config import DataConfig
from harness.data import fingerprint, open_splits
from harness.data.coco import CocoDataset
from harness.errors import UserError

NAMES = ("ant", "bee", "cow")
WIDTH, HEIGHT = 64, 48
OBJECTS: dict[str, list[tuple[int, int, int, int, int]]] = {  # class, x, y, width, height in pixels; by image
    "train/a": [(0, 4, 6, 20, 12), (1, 30, 20, 16, 24)],
    "train/b": [(2, 0, 0, 64, 48)],
    "train/c": [],
    "val/d": [(1, 8, 8, 32, 16)],
}


def save_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), seed: int = 0) -> None:
    """A noise image of `size` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *path.stem.encode()]).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def yolo_line(category: int, x: float, y: float, w: float, h: float, size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    """An object as shares of the image's sides."""
    numbers = ((x + w / 2) / size[0], (y + h / 2) / size[1], w / size[0], h / size[1])
    return " ".join([str(category), *(f"{number:.6f}" for number in numbers)])


def write(path: Path, text: str | bytes) -> None:
    """A file of text or bytes, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def write_yolo(
    root: Path, images: str = "images/{split}", yaml: str | None = "train: images/train\nval: images/val\n"
) -> Path:
    """A YOLO folder; `images` says where a split's images lie, `yaml` what data.yaml says besides names."""
    for key, objects in OBJECTS.items():
        split, name = key.split("/")
        place = images.format(split=split)
        save_image(root / place / f"{name}.png")
        labels = root / place.replace("images", "labels") / f"{name}.txt"
        write(labels, "".join(f"{yolo_line(*one)}\n" for one in objects))
    if yaml is not None:
        write(root / "data.yaml", f"{yaml}names: [{', '.join(NAMES)}]\n")
    return root


def voc_object(name: str, x: float, y: float, w: float, h: float, more: str = "") -> str:
    """An object of VOC's XML, pixels counted from 1."""
    corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
    box = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
    return f"<object><name>{escape(name)}</name>{more}<bndbox>{box}</bndbox></object>\n"


def voc_xml(filename: str, objects: Iterable[str], size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    """A whole XML file."""
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation>\n<filename>{filename}</filename>{sides}\n{''.join(objects)}</annotation>\n"


def write_voc(root: Path, by_lists: bool = True) -> Path:
    """A VOC folder with lists, or with folders train/ and val/ that hold images and XML files."""
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for key, objects in OBJECTS.items():
        split, name = key.split("/")
        lists[split].append(name)
        xml = voc_xml(f"{name}.png", [voc_object(NAMES[one[0]], *one[1:]) for one in objects])
        save_image(root / ("JPEGImages" if by_lists else split) / f"{name}.png")
        write(root / ("Annotations" if by_lists else split) / f"{name}.xml", xml)
    for split, names in lists.items() if by_lists else ():
        write(root / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{name}\n" for name in names))
    return root


def coco_as_yolo(source: Path, root: Path) -> Path:
    """A data set in COCO layout as a YOLO folder; images are linked."""
    for split in ("train", "val"):
        content = json.loads((source / "annotations" / f"instances_{split}.json").read_text())
        numbers = {row["id"]: number for number, row in enumerate(content["categories"])}
        lines: dict[int, list[str]] = {row["id"]: [] for row in content["images"]}
        sizes = {row["id"]: (row["width"], row["height"]) for row in content["images"]}
        for row in content["annotations"]:
            own = yolo_line(numbers[row["category_id"]], *row["bbox"], sizes[row["image_id"]])
            lines[row["image_id"]].append(own)
        for row in content["images"]:
            image = root / "images" / split / row["file_name"]
            image.parent.mkdir(parents=True, exist_ok=True)
            image.symlink_to(source / split / row["file_name"])
            write(root / "labels" / split / f"{image.stem}.txt", "\n".join(lines[row["id"]]))
    names: list[Any] = [row["name"] for row in content["categories"]]
    write(root / "data.yaml", f"path: .\ntrain: images/train\nval: images/val\nnames: {json.dumps(names)}\n")
    return root


# ---- how they are read --------------------------------------------------------------------------------------------


def opened(root: Path, masks: bool = False) -> tuple[CocoDataset, CocoDataset, list[str]]:
    """Both splits of a folder, and what is said of it."""
    said: list[str] = []
    train, val = open_splits(DataConfig(path=str(root)), progress=said.append, with_masks=masks)
    return train, val, said


def of(root: Path) -> str:
    """The fingerprint of a folder."""
    return fingerprint(DataConfig(path=str(root)))


def complaint(root: Path) -> str:
    """Why a folder is refused."""
    with pytest.raises(UserError) as caught:
        open_splits(DataConfig(path=str(root)), progress=lambda line: None)
    return str(caught.value)


def objects(*splits: CocoDataset) -> dict[str, list[tuple[str, list[float]]]]:
    """Class and x, y, width, height of each object, by the image's bare name."""
    found: dict[str, list[tuple[str, list[float]]]] = {}
    for data in splits:
        rows = data.ground_truth["annotations"]
        names = dict(zip(data.category_ids, data.category_names, strict=True))
        for image, name in zip(data.image_ids, data.file_names, strict=True):
            own = [(names[row["category_id"]], row["bbox"]) for row in rows if row["image_id"] == image]
            found[Path(name).stem] = own
    return found


def check(root: Path) -> list[str]:
    """Both splits are those of `OBJECTS`; returns what is said."""
    train, val, said = opened(root)
    found = objects(train, val)
    for key, rows in OBJECTS.items():
        own = found[key.split("/")[1]]
        assert [name for name, _ in own] == [NAMES[row[0]] for row in rows]
        for (_, box), row in zip(own, rows, strict=True):
            np.testing.assert_allclose(box, row[1:], atol=1e-3)
    assert (len(train), len(val)) == (3, 1)
    assert len(list(train.load_image(0).shape)) == 3
    return said
