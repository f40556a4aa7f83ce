"""Annotations that would give wrong numbers, take all memory or end the process: told before any training."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from harness.config import DataConfig
from harness.data import content as content_room
from harness.data import disk, open_splits, pixels
from harness.data.coco import CocoDataset
from harness.data.masks import packed
from harness.data.segmentations import decoded_areas
from harness.errors import UserError
from harness.trial.evaluate import evaluate_detections
from tests.support.folders import real_data, tables, write_folder, write_split

Content = dict[str, Any]
Edit = Callable[[Content], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "set")


def change(folder: Path, edit: Edit, split: str = "train") -> None:
    path = folder / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def told(folder: Path, split: str = "train", *, with_masks: bool = False) -> tuple[str, list[str]]:
    """What a split is refused with, or nothing; and the notes."""
    said: list[str] = []
    try:
        CocoDataset(folder, split, progress=said.append, with_masks=with_masks)
    except UserError as error:
        assert all(line.strip() for line in str(error).split("\n"))
        return str(error), []
    return "", [line for line in said if line.startswith("note: ")]


def each(**values: Any) -> Edit:
    return lambda content: [row.update(values) for row in content["annotations"]]


def first(**values: Any) -> Edit:
    return lambda content: content["annotations"][0].update(values)


# ---- areas


def areas(folder: Path) -> list[float]:
    rows = CocoDataset(folder, "train", progress=lambda line: None).ground_truth["annotations"]
    return [row["area"] for row in rows]


def box_areas() -> list[float]:
    return [row["bbox"][2] * row["bbox"][3] for row in tables(0)["annotations"]]


@pytest.mark.parametrize(
    ("edit", "note"),
    [
        (each(area=0), "6 of 6 objects have no area, or an area of 0: annotation 1 (image 10) has area 0 and bbox"),
        (each(area=0.0), "6 of 6 objects have no area, or an area of 0"),
        (each(area=None), "6 of 6 objects have no area, or an area of 0"),
        (lambda content: [row.pop("area") for row in content["annotations"]], "6 of 6 objects have no area"),
        (first(area=0), "1 of 6 objects have no area, or an area of 0: annotation 1 (image 10)"),
        (first(area=1e308), "1 of 6 objects have an area larger than the box: annotation 1 (image 10) has area 1e+308"),
        (first(area=96 * 64 * 2), "1 of 6 objects have an area larger than the box"),
        (each(area=0.2), "6 of 6 objects have areas that look like shares of the image: annotation 1 (image 10)"),
    ],
)
def test_an_area_that_cannot_be_right_is_that_of_the_box(folder: Path, edit: Edit, note: str) -> None:
    change(folder, edit)
    refused, [line] = told(folder)
    assert (
        not refused
        and note in line
        and line.endswith("its box's area is taken instead, by which APS, APM and APL sort it")
    )
    assert areas(folder) == box_areas()


def test_real_areas_of_masks_stay(folder: Path) -> None:
    """Half a box, a sliver of one, and two overlapping pieces that together have more than the box."""
    shares = [0.5, 0.001, 1.9, 1, 1, 1]
    wanted = [share * area for share, area in zip(shares, box_areas(), strict=True)]
    change(folder, lambda content: [row.update(area=a) for row, a in zip(content["annotations"], wanted, strict=True)])
    assert told(folder) == ("", []) and areas(folder) == wanted


@pytest.mark.parametrize("area", ["12", -1, math.nan, math.inf, True, [3], {"a": 1}, 10**400])
def test_an_area_that_is_no_number_is_refused(folder: Path, area: Any) -> None:
    change(folder, first(area=area))
    assert "annotation 1 has area" in told(folder)[0]


def test_sizes_of_objects_without_area_follow_their_boxes(tmp_path: Path) -> None:
    content = tables(sizes=[(200, 200)])
    content["annotations"] = [
        {"id": number, "image_id": 10, "category_id": 0, "area": 0, "iscrowd": 0, "bbox": [20, 20, side, side]}
        for number, side in enumerate((20, 50, 120), 1)
    ]
    write_split(tmp_path, "val", content)
    val = CocoDataset(tmp_path, "val", progress=lambda line: None)
    own = [row | {"score": 0.9} for row in val.ground_truth["annotations"]]
    assert [evaluate_detections(val, own[:2], "pycocotools")[name] for name in ("APS", "APM", "APL")] == pytest.approx(
        [100, 100, 0]
    )


# ---- nothing to learn from, nothing to measure


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda content: content["annotations"].clear(), "has no annotations, so there is nothing to learn from"),
        (each(iscrowd=1), "all annotations are crowd regions (iscrowd: 1)"),
    ],
)
def test_a_split_without_objects_is_refused(folder: Path, edit: Edit, line: str, split: str) -> None:
    change(folder, edit, split)
    with pytest.raises(UserError) as caught:
        open_splits(DataConfig(path=str(folder)), progress=lambda line: None)
    assert (
        line in str(caught.value) and f"instances_{split}.json" in str(caught.value) and "\n" not in str(caught.value)
    )


def test_both_splits_without_objects_are_told_together(folder: Path) -> None:
    for split in ("train", "val"):
        change(folder, lambda content: content["annotations"].clear(), split)
    with pytest.raises(UserError) as caught:
        open_splits(DataConfig(path=str(folder)), progress=lambda line: None)
    assert str(caught.value).count("has no annotations") == 2


def across(folder: Path) -> list[str]:
    said: list[str] = []
    open_splits(DataConfig(path=str(folder)), progress=said.append)
    return [line for line in said if line.startswith("note: ")]


def test_classes_without_objects(folder: Path) -> None:
    """Some of the list in no file, or not in val: fine. In val but not in train: noted."""
    unused = {"id": 91, "name": "dog"}
    for split in ("train", "val"):
        change(folder, lambda content: content["categories"].append(unused), split)
    change(folder, each(category_id=7), "val")
    assert across(folder) == []
    change(folder, each(category_id=91), "val")
    [note] = across(folder)
    assert "1 of its classes have no object in instances_train.json ('dog')" in note and "AP will be 0" in note


# ---- twice


def second_id(content: Content, name: str | None = None, objects: tuple[int, ...] = (1,)) -> None:
    """List the first image again as number 100, which takes some of its objects over."""
    image = content["images"][0]
    content["images"].append({**image, "id": 100, "file_name": name or image["file_name"]})
    for index in objects:
        content["annotations"][index]["image_id"] = 100


@pytest.mark.parametrize(
    "name", [None, "./10.jpg", "../train/10.jpg", "sub/../10.jpg", "link.jpg", "hard.jpg", "HERE/10.jpg"]
)
def test_one_file_under_two_ids_is_refused(folder: Path, name: str | None) -> None:
    (folder / "train" / "sub").mkdir()
    (folder / "train" / "link.jpg").symlink_to("10.jpg")
    os.link(folder / "train" / "10.jpg", folder / "train" / "hard.jpg")
    name = name and name.replace("HERE", str(folder / "train"))
    change(folder, lambda content: second_id(content, name))
    refused, _ = told(folder)
    assert "images 10 and 100 are one file" in refused and "with different objects" in refused and "\n" not in refused
    change(folder, lambda content: content["annotations"][1].update(image_id=10))
    assert "images 10 and 100 are one file" in told(folder)[0]  # the second has no objects


def test_one_file_under_two_ids_with_the_same_objects_is_noted(folder: Path) -> None:
    """As who wants an image to count twice lists it."""

    def edit(content: Content) -> None:
        second_id(content, objects=())
        again = [dict(row, id=row["id"] + 100, image_id=100) for row in content["annotations"] if row["image_id"] == 10]
        content["annotations"] += again

    change(folder, edit)
    refused, [note] = told(folder)
    assert not refused and "images 10 and 100 are one file (10.jpg) with the same objects: it counts each time" in note


@pytest.mark.parametrize("copy", [shutil.copy, shutil.copy2])
def test_copies_of_an_image_are_noted(folder: Path, copy: Any) -> None:
    """No name, no time tells of them: a browser writes `10 (1).jpg`."""
    train = folder / "train"
    copy(train / "10.jpg", train / "10 (1).jpg")
    change(folder, lambda content: second_id(content, "10 (1).jpg"))
    refused, [note] = told(folder)
    assert not refused and f"{train}: 1 image is a copy of another, byte for byte (10.jpg and 10 (1).jpg)" in note
    assert "what is marked in one of them alone is background in the other" in note
    copy(train / "10.jpg", train / "a.jpg")
    copy(train / "40.jpg", train / "b.jpg")

    def more(content: Content) -> None:
        content["images"].append({**content["images"][0], "id": 101, "file_name": "a.jpg"})
        content["images"].append({**content["images"][3], "id": 102, "file_name": "b.jpg"})

    change(folder, more)
    assert "3 images are copies of others, byte for byte (10.jpg and 10 (1).jpg, …)" in told(folder)[1][0]


@pytest.mark.parametrize("place", [None, 3000, -1])
def test_only_files_whose_every_byte_is_the_same_are_copies(folder: Path, place: int | None) -> None:
    """Not those of equal size and time, nor those whose ends are the same."""
    first, second = folder / "train" / "10.bmp", folder / "train" / "copy.bmp"
    Image.new("RGB", (96, 64)).save(first)
    content = bytearray(first.read_bytes())
    if place is not None:
        content[place] ^= 1
    second.write_bytes(content)
    os.utime(second, ns=(first.stat().st_atime_ns, first.stat().st_mtime_ns))

    def edit(content: Content) -> None:
        content["images"][0]["file_name"] = "10.bmp"
        second_id(content, "copy.bmp")

    change(folder, edit)
    assert len(told(folder)[1]) == (place is None)


def test_pictures_with_the_same_border_are_not_read_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, colour in (("10.bmp", "red"), ("other.bmp", "green")):
        image = Image.new("RGB", (96, 64))
        image.paste(colour, (0, 20, 96, 44))
        image.save(folder / "train" / name)

    def edit(content: Content) -> None:
        content["images"][0]["file_name"] = "10.bmp"
        second_id(content, "other.bmp")

    change(folder, edit)
    monkeypatch.setattr("harness.data.duplicates.file_hash", lambda path: pytest.fail(f"{path} was read"))
    assert told(folder)[1] == []


def test_copies_are_looked_for_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(folder / "train" / "10.jpg", folder / "train" / "copy.jpg")
    change(folder, lambda content: second_id(content, "copy.jpg"))
    _, first = told(folder)
    opened: list[str] = []
    monkeypatch.setattr(content_room, "open_file", lambda path: opened.append(str(path)) or disk.open_file(path))
    monkeypatch.setattr(pixels, "open_file", lambda path: opened.append(str(path)) or disk.open_file(path))
    assert told(folder)[1] == first and not opened


def test_an_object_annotated_twice_is_noted(folder: Path) -> None:
    change(folder, lambda content: content["annotations"].append(dict(content["annotations"][0], id=77)))
    refused, [note] = told(folder)
    assert not refused and "1 objects are annotated twice" in note and "annotations 1 and 77 (image 10)" in note
    change(folder, lambda content: content["annotations"][-1].update(category_id=90))
    assert told(folder) == ("", [])  # two classes at one place are no mistake


@pytest.mark.parametrize("how", ["copy", "link", "path", "other name"])
def test_images_of_both_splits_are_noted(folder: Path, how: str) -> None:
    name = "10.jpg"
    own = folder / "val" / name
    own.unlink()
    if how == "copy":
        shutil.copy(folder / "train" / "10.jpg", own)
    elif how == "link":
        own.symlink_to("../train/10.jpg")
    elif how == "path":
        name = "../train/10.jpg"
    else:
        name = "77.jpg"
        shutil.copy2(folder / "train" / "10.jpg", folder / "val" / name)
    change(folder, lambda content: content["images"][0].update(file_name=name), "val")
    [note] = across(folder)
    assert "1 of 4 images are in the training split too" in note and name in note


REPEATED = {  # a text of the file, the one that stands there instead, and the key that is told
    "annotations": ('"categories": ', '"annotations": [], "categories": '),
    "images": ('"annotations": ', '"images": [], "annotations": '),
    "image_id": ('"image_id": 10, ', '"image_id": 10, "image_id": 20, '),
    "bbox": ('"image_id": 10, ', '"bbox": [1, 1, 9, 9], "image_id": 10, '),
    "name": ('"name": "ant"', '"name": "ant", "name": "bee"'),
    "counts": ('"image_id": 10, ', '"image_id": 10, "segmentation": {"counts": "a", "counts": [1]}, '),
}


@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize("key", REPEATED)
def test_a_key_that_is_there_twice_is_refused(folder: Path, key: str, with_masks: bool) -> None:
    """JSON's readers keep the last one: objects vanish, or lie in another image."""
    path = folder / "annotations" / "instances_train.json"
    whole, (before, after) = path.read_text(), REPEATED[key]
    path.write_text(whole.replace(before, after, 1))
    refused, _ = told(folder, with_masks=with_masks)
    assert refused.startswith(f"{path}: '{key}' is there twice in {{'") and refused.endswith("}; keep one of them")
    assert "\n" not in refused and len(refused) < 500
    if key == "image_id":
        assert "'id': 1" in refused


# ---- boxes that cannot be pixels


def boxes(convert: Callable[[float, float, float, float, int, int], list[float]]) -> Edit:
    def edit(content: Content) -> None:
        sizes = {row["id"]: (row["width"], row["height"]) for row in content["images"]}
        for row in content["annotations"]:
            row["bbox"] = convert(*row["bbox"], *sizes[row["image_id"]])

    return edit


@pytest.mark.parametrize(
    ("convert", "parts"),
    [
        (
            lambda x, y, w, h, iw, ih: [x / iw, y / ih, w / iw, h / ih],
            ["6 of 6 boxes lie in the first pixel", "give pixels"],
        ),
        (lambda x, y, w, h, iw, ih: [0, 0, 1, 1], ["6 of 6 boxes lie in the first pixel of their images"]),
        (lambda x, y, w, h, iw, ih: [x, y, w / iw, h / ih], ["6 of 6 boxes are smaller than a pixel"]),
        (
            lambda x, y, w, h, iw, ih: [iw / 2, ih / 2, iw, ih],
            ["6 of 6 boxes reach outside their images, but all fit as x1, y1, x2, y2", "convert them to x, y, width"],
        ),
        (
            lambda x, y, w, h, iw, ih: [ih / 2, iw / 2, ih, iw],
            ["fit as y1, x1, y2, x2", "annotation 1 (image 10) has bbox"],
        ),
        (lambda x, y, w, h, iw, ih: [iw - w / 2, ih - h / 2, w, h], ["fit as centre x, centre y, width, height"]),
        (
            lambda x, y, w, h, iw, ih: [x, y, 3 * iw, 3 * ih],
            ["6 problems", "reaches outside the image of 96x64 pixels"],
        ),
    ],
)
def test_boxes_in_another_form_are_refused(folder: Path, convert: Any, parts: list[str]) -> None:
    change(folder, boxes(convert))
    refused, _ = told(folder)
    for part in parts:
        assert part in refused


def test_one_small_box_among_others_is_noted(folder: Path) -> None:
    change(folder, first(bbox=[3, 4, 0.5, 0.25], area=0.125))
    refused, [note] = told(folder)
    assert (
        not refused
        and "1 of 6 boxes are smaller than a pixel: annotation 1 (image 10) has bbox [3, 4, 0.5, 0.25]" in note
    )


@pytest.mark.parametrize("box", [[3, 4, 1e-9, 5], [3, 4, 5, 1e-300], [95.99999999, 4, 1, 5], [-0.99999999, 3, 1, 3]])
def test_a_box_of_which_nothing_is_left_is_refused(folder: Path, box: list[float]) -> None:
    change(folder, first(bbox=box))
    assert "annotation 1 (image 10): bbox" in told(folder)[0]


# ---- absurd numbers, anywhere

ABSURD = [
    math.nan,
    math.inf,
    -math.inf,
    1e308,
    -1e308,
    1e9,
    10**30,
    10**400,
    -(10**400),
    True,
    "12",
    None,
    [],
    [[1]],
    {},
]


def deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


PLACES: dict[str, Callable[[Content, Any], Any]] = {
    "x": lambda content, value: content["annotations"][0]["bbox"].__setitem__(0, value),
    "width of a box": lambda content, value: content["annotations"][0]["bbox"].__setitem__(2, value),
    "box": lambda content, value: content["annotations"][0].update(bbox=value),
    "image id": lambda content, value: content["images"][0].update(id=value),
    "image of an object": lambda content, value: content["annotations"][0].update(image_id=value),
    "category of an object": lambda content, value: content["annotations"][0].update(category_id=value),
    "category id": lambda content, value: content["categories"][0].update(id=value),
    "width": lambda content, value: content["images"][0].update(width=value),
    "height": lambda content, value: content["images"][0].update(height=value),
    "polygon": lambda content, value: content["annotations"][0]["segmentation"][0].__setitem__(2, value),
    "polygons": lambda content, value: content["annotations"][0].update(segmentation=value),
    "count": lambda content, value: content["annotations"][1]["segmentation"]["counts"].__setitem__(1, value),
    "counts": lambda content, value: content["annotations"][1]["segmentation"].update(counts=value),
    "size of a mask": lambda content, value: content["annotations"][1]["segmentation"]["size"].__setitem__(0, value),
    "sizes of a mask": lambda content, value: content["annotations"][1]["segmentation"].update(size=value),
    "category name": lambda content, value: content["categories"][0].update(name=value),
}


def with_masks() -> Content:
    """A polygon, run lengths in a list and compressed ones."""
    content = tables(0)
    sizes = {row["id"]: [row["height"], row["width"]] for row in content["images"]}
    for number, row in enumerate(content["annotations"]):
        x, y, w, h = row["bbox"]
        size = sizes[row["image_id"]]
        if number % 3 == 0:
            row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        elif number % 3 == 1:
            row["segmentation"] = {"size": size, "counts": [5, 10, size[0] * size[1] - 15]}
        else:
            pixels = np.zeros(size, np.uint8, order="F")
            pixels[y : y + h, x : x + w] = 1
            row["segmentation"] = {"size": size, "counts": coco_mask.encode(pixels)["counts"].decode()}
    return content


@pytest.mark.parametrize("place", PLACES)
def test_an_absurd_value_is_refused_in_lines(folder: Path, place: str) -> None:
    path = folder / "annotations" / "instances_train.json"
    path.write_text(json.dumps(with_masks()))
    assert told(folder, with_masks=True) == ("", [])
    for value in [*ABSURD, deep(900)]:
        content = with_masks()
        PLACES[place](content, value)
        path.write_text(json.dumps(content))
        refused, _ = told(folder, with_masks=True)
        assert (refused or (place, value) == ("category name", "12")) and len(refused) < 2000, value


@pytest.mark.parametrize("value", [math.nan, 1e308, 10**400, deep(500), "\ud800"], ids=str)
def test_what_nobody_reads_does_no_harm(folder: Path, value: Any) -> None:
    def edit(content: Content) -> None:
        content["info"] = {"year": value}
        content["licenses"] = value
        for name in ("images", "annotations", "categories"):
            content[name][0]["extra"] = value
        content["annotations"][0]["segmentation"] = value

    change(folder, edit)
    assert told(folder) == ("", [])


def test_texts_that_cannot_be_written_are_refused(folder: Path) -> None:
    change(folder, lambda content: content["categories"][0].update(name="a\ud800"))
    refused, _ = told(folder)
    assert r"category 0 has name 'a\ud800', which is no text" in refused and refused.encode()


# ---- names of classes


def named(*names: str) -> Edit:
    return lambda content: [row.update(name=name) for row, name in zip(content["categories"], names, strict=False)]


def test_two_classes_without_a_name_are_refused(folder: Path) -> None:
    """One would take the other's place wherever numbers are told by class."""
    change(folder, named("", ""))
    assert "2 categories are called ''; give each its own name" in told(folder)[0]


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "\t", "a\u2028b", "a\0", "a\x85"])
def test_a_name_that_breaks_lines_or_colours_them_is_refused(folder: Path, name: str) -> None:
    change(folder, named(name))
    refused, _ = told(folder)
    assert f"category 0 has name {name!r}, which has control characters; write it without" in refused
    assert "\n" not in refused and refused.isprintable()


@pytest.mark.parametrize("name", ["", " ", "naïve\xa0café", "می\u200cروم", "👩\u200d🌾", "漢字"])
def test_other_names_stay_as_they_are(folder: Path, name: str) -> None:
    for split in ("train", "val"):
        change(folder, named(name), split)
    assert across(folder) == []
    assert CocoDataset(folder, "val", progress=lambda line: None).category_names[0] == name


LOOK_ALIKE = {
    "a space": ("ant", "ant ", "'ant' (2 objects) and 'ant ' (2 objects)"),
    "a space within": ("antlion", "ant lion", "'antlion' (2 objects) and 'ant lion' (2 objects)"),
    "capitals": ("ant", "Ant", "'ant' (2 objects) and 'Ant' (2 objects)"),
    "composed letters": ("\xe9tui", "e\u0301tui", r"'étui' (2 objects) and 'e\u0301tui' (2 objects)"),
    "nothing that is seen": ("ant", "ant\u200b", r"'ant' (2 objects) and 'ant\u200b' (2 objects)"),
    "wide letters": ("ant", "ａｎｔ", "'ant' (2 objects) and 'ａｎｔ' (2 objects)"),
}


@pytest.mark.parametrize("case", LOOK_ALIKE)
def test_classes_whose_names_look_alike_are_noted(folder: Path, case: str) -> None:
    first_name, second, classes = LOOK_ALIKE[case]
    for split in ("train", "val"):
        change(folder, named(first_name, second), split)
        change(folder, lambda content: [row.update(category_id=90) for row in content["annotations"][2:]], split)
        change(folder, lambda content: content["annotations"][0].update(category_id=0), split)
        change(folder, lambda content: content["annotations"][1].update(category_id=7), split)
    [note] = across(folder)
    assert f"classes {classes} have names that look alike: if they are one class, give them one id" in note


# ---- masks


@pytest.mark.parametrize(
    ("polygon", "line"),
    [
        ([math.nan, 1, 30, 1, 30, 30], "has a polygon with nan; correct it"),
        ([1, 1, math.inf, 1, 30, 30], "has a polygon with inf; correct it"),
        ([1e308, 1, 1e308, 1, 30, 30], "has a polygon with 1e+308; correct it"),
        ([1, 1, 1e9, 1, 30, 30], "reaches outside the image of 96x64 pixels (x from 1 to 1e+09); clip or remove it"),
        ([1, 1, 30, -500, 30, 30], "(y from -500 to 30)"),
        ([1, 1, 30, 1], "has a polygon of fewer than three points"),
        ([1, 1, 30, 1, 30, 30, 5], "or with half a point"),
        ([1, 1, True, 1, 30, 30], "has a segmentation that is neither polygons"),
    ],
)
def test_polygons_that_cannot_be_drawn_are_refused(folder: Path, polygon: list[float], line: str) -> None:
    content = with_masks()
    content["annotations"][0]["segmentation"] = [[1, 1, 5, 1, 5, 5], polygon]
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))
    refused, _ = told(folder, with_masks=True)
    assert "annotation 1 (image 10) " in refused and line in refused and "\n" not in refused


def test_polygons_a_little_over_the_border_are_cut(folder: Path) -> None:
    content = with_masks()
    content["annotations"][0]["segmentation"] = [[-5, -5, 100, -5, 100, 68, -5, 68]]
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))
    data = CocoDataset(folder, "train", progress=lambda line: None, with_masks=True)
    assert (data.masks(0)[0] == 255).all()


UNSEEN = {
    "polygon beside its box": ([[80, 50, 90, 50, 90, 60]], "polygons beside its box"),
    "all points equal": ([[9, 9, 9, 9, 9, 9]], "a mask without a pixel"),
    "a line": ([[1, 9, 5, 9, 9, 9], [2, 2, 2, 2, 2, 2]], "a mask without a pixel"),
    "background alone": ({"size": [64, 96], "counts": [64 * 96]}, "a mask without a pixel"),
    "no pixels after it": ({"size": [64, 96], "counts": [64 * 96, 0]}, "a mask without a pixel"),
    "compressed background": (packed({"size": [64, 96], "counts": [64 * 96]}, 64, 96), "a mask without a pixel"),
}


@pytest.mark.parametrize("case", UNSEEN)
def test_masks_that_show_nothing_of_their_object_are_counted(folder: Path, case: str) -> None:
    segmentation, what = UNSEEN[case]
    content = with_masks()
    content["annotations"][0].update(bbox=[2, 2, 20, 20], area=9, segmentation=segmentation)
    path = folder / "annotations" / "instances_train.json"
    path.write_text(json.dumps(content))
    refused, [note] = told(folder, with_masks=True)
    assert not refused and f"1 of 6 masks show nothing of their objects: annotation 1 (image 10) has {what}" in note
    assert told(folder) == ("", []), "which nobody reads without masks"
    pieces = [[9, 9, 9, 9, 9, 9], [3, 3, 9, 3, 9, 9]]
    content["annotations"][3].update(bbox=[2, 2, 20, 20], area=9, segmentation=pieces)
    path.write_text(json.dumps(content))
    assert told(folder, with_masks=True)[1] == [note], "one of its polygons is enough"


def compressed(pixels: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"].decode()


def test_compressed_run_lengths_are_read_as_pycocotools_does() -> None:
    rng = np.random.default_rng(0)
    masks = [
        rng.random((int(h), int(w))) < p
        for h, w, p in zip(*rng.integers(1, 90, (2, 200)), rng.random(200), strict=True)
    ]
    masks += [np.zeros((3, 4)), np.ones((3, 4)), np.eye(2000) > 0, np.zeros((1, 1))]
    texts = [compressed(pixels) for pixels in masks]
    assert decoded_areas(texts) == [pixels.size for pixels in masks]
    assert decoded_areas([]) == [] and decoded_areas(["", "é"]) == [None, None]


@pytest.mark.parametrize("split", ["train", "val"])
def test_broken_run_lengths_are_refused_whatever_broke(folder: Path, split: str) -> None:
    """Each change of one character either is told or leaves a text of the image's size, which can be decoded."""
    content = with_masks()
    row = content["annotations"][2]
    whole = row["segmentation"]["counts"]
    texts = [
        whole[:at] + letter + whole[at + 1 :]
        for at in range(len(whole))
        for letter in ("", "0", "P", "o", "\x7f", "~", "é")
    ]
    texts += ["", "PPYo01O1O1Z", whole + "o", whole + "0", "o" * 400, "0" * 5000, "n" * 7 + "?" * 2, whole * 2]
    refusals = 0
    for text in texts:
        row["segmentation"]["counts"] = text
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        refused, _ = told(folder, split, with_masks=True)
        if refused:
            assert f"annotation {row['id']} (image {row['image_id']}) has a mask whose compressed counts" in refused
            refusals += 1
        else:
            height, width = row["segmentation"]["size"]
            assert coco_mask.decode(row["segmentation"]).shape == (height, width)
    assert refusals > len(texts) / 2


@pytest.mark.parametrize("name", ["bccd", "coco_mini", "cards"])
def test_real_data_keeps_its_numbers(name: str) -> None:
    root = real_data(name)
    said: list[str] = []
    for split in ("train", "val"):
        data = CocoDataset(root, split, progress=said.append, with_masks=name == "coco_mini")
        rows = json.loads((root / "annotations" / f"instances_{split}.json").read_text())["annotations"]
        assert sorted(row["area"] for row in rows) == sorted(row["area"] for row in data.ground_truth["annotations"])
    assert not [line for line in said if line.startswith("note: ")]


def test_checks_of_many_annotations_take_little_beside_reading_them(tmp_path: Path) -> None:
    """Real sets have a million: what all of them are compared for must not be compared pair by pair."""
    rng = np.random.default_rng(0)
    content = tables(sizes=[(200, 200)])
    corners = rng.integers(0, 100, (30_000, 2)).tolist()
    sides = rng.integers(2, 90, (30_000, 2)).tolist()
    content["annotations"] = [
        {"id": number, "image_id": 10, "category_id": 0, "bbox": [*corner, *side], "area": side[0] * side[1]}
        for number, (corner, side) in enumerate(zip(corners, sides, strict=True))
    ]
    write_split(tmp_path, "train", content)
    started = time.process_time()
    refused, notes = told(tmp_path)
    assert not refused and time.process_time() - started < 10  # takes 0.5 s; pair by pair minutes
    seen = [(*corner, *side) for corner, side in zip(corners, sides, strict=True)]
    assert f"{len(seen) - len(set(seen)):,} objects are annotated twice" in notes[0]
