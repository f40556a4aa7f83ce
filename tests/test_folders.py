"""YOLO and VOC folders as own data: which are read, as what, and the lines that tell what is wrong with one."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.__main__ import main
from harness.config import DataConfig
from harness.data import fingerprint, open_dataset, open_splits
from harness.data.coco import CocoDataset
from harness.errors import UserError
from harness.files import cache_dir
from tests.support.folders import real_data, write_folder
from tests.support.foreign_folders import (
    HEIGHT,
    NAMES,
    OBJECTS,
    WIDTH,
    coco_as_yolo,
    save_image,
    voc_object,
    voc_xml,
    write,
    write_voc,
    write_yolo,
    yolo_line,
)
from tests.support.refusals import refuse

always = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SHARED_CACHE = os.environ["CODETR_CACHE"]  # with compiled operators
TRAIN, VAL = "labels/train/a.txt", "labels/val/d.txt"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))


def opened(root: Path, masks: bool = False) -> tuple[CocoDataset, CocoDataset, list[str]]:
    said: list[str] = []
    train, val = open_splits(DataConfig(path=str(root)), progress=said.append, with_masks=masks)
    return train, val, said


def of(root: Path) -> str:
    return fingerprint(DataConfig(path=str(root)))


def complaint(root: Path) -> str:
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


# ---- layouts of YOLO ----------------------------------------------------------------------------------------------

YAMLS = {
    "as Ultralytics": ("images/{split}", "path: .\ntrain: images/train\nval: images/val\nnc: 3\n"),
    "without path": ("images/{split}", "train: images/train  # a remark\nval: images/val\ntest:\n"),
    "as Roboflow": ("{split}/images", "train: ../train/images\nval: ../val/images\n"),
    "relative and right": ("{split}/images", "path: ..\ntrain: set/train/images\nval: set/val/images\n"),
    "a folder of elsewhere": ("{split}/images", "path: /content/set\ntrain: train/images\nval: val/images\n"),
    "places of elsewhere": ("{split}/images", "train: /content/set/train/images\nval: /content/set/val/images\n"),
    "lists of folders": ("images/{split}", "train:\n  - images/train\nval: [images/val]\n"),
    "an empty path": ("images/{split}", "path:\ntrain: ./images/train/\nval: images/val/\n"),
    "Windows": ("images/{split}", "train: images\\train\nval: images\\val\n"),
    "splits by name": ("images/{split}", "nc: 3\n"),
}


@pytest.mark.parametrize("name", YAMLS)
def test_data_yaml_is_understood_wherever_it_leads(tmp_path, name):
    images, yaml = YAMLS[name]
    root = write_yolo(tmp_path / "set", images, yaml)
    said = check(root)
    assert said[0].startswith(f"{root}: a YOLO folder, 3 train images and 1 val images, 4 objects of 3 classes; ")
    assert check(root / "data.yaml")[0] == said[0]


@pytest.mark.parametrize("images", ["images/{split}", "{split}/images", "{split}"])
def test_folders_without_a_description_are_known_by_their_names(tmp_path, images):
    root = write_yolo(tmp_path / "set", images, None)
    write(root / "classes.txt", "ant\r\nbee\r\n\r\ncow\r\n")
    check(root)


def test_without_names_classes_go_by_their_numbers(tmp_path):
    train, _, said = opened(write_yolo(tmp_path / "set", yaml=None))
    assert train.category_names == ("0", "1", "2")
    assert any("no data.yaml, classes.txt or obj.names tells the names of the classes" in line for line in said)


def test_names_by_number_and_names_that_yaml_takes_for_something_else(tmp_path):
    root = write_yolo(tmp_path / "set")
    write(root / "data.yaml", "train: images/train\nval: images/val\nnames:\n  0: no\n  1: 007\n  2: 2024-01-01\n")
    assert opened(root)[0].category_names == ("no", "007", "2024-01-01")


MERGED = {
    "names": "d: &d\n  names: {0: ant, 1: bee, 2: cow}\n<<: *d\n",
    "all": "d: &d {train: images/train, val: elsewhere, names: [ant, bee, cow]}\n<<: *d\nval: images/val\n",
    "several": "a: &a {names: [ant, bee, cow]}\nb: &b {names: [x], nc: 3}\n<<: [*a, *b]\n",
    "nested": "a: &a {names: &n {0: ant, 1: wasp}}\nnames: {<<: *n, 1: bee, 2: cow}\n",
}


@pytest.mark.parametrize("name", MERGED)
def test_merge_keys_of_yaml_are_followed(tmp_path, name):
    root = write_yolo(tmp_path / "set")
    splits = "" if name == "all" else "train: images/train\nval: images/val\n"
    write(root / "data.yaml", splits + MERGED[name])
    assert not [line for line in check(root) if line.startswith("note")]


def test_two_keys_for_one_split_are_noted_where_they_differ(tmp_path):
    root = write_yolo(tmp_path / "set", yaml="train: images/train\nval: images/val\nvalid: images/train\n")
    told = f"note: {root / 'data.yaml'}: val: is taken for the val images; valid: is there too, which is not read"
    assert told in check(root)
    write(root / "data.yaml", "train: images/train\nval: images/val\nvalid: [images/val]\nnames: [ant, bee, cow]\n")
    assert not [line for line in check(root) if line.startswith("note")]


def test_two_folders_for_one_split_are_noted(tmp_path):
    for number, write_set in enumerate((write_yolo, write_voc)):
        root = write_set(tmp_path / str(number), **({"yaml": None} if write_set is write_yolo else {"by_lists": False}))
        write(root / "classes.txt", "ant\nbee\ncow\n")
        for folder in ("images/val", "labels/val", "val"):
            if (root / folder).is_dir():
                shutil.copytree(root / folder, (root / folder).with_name("valid"))
                shutil.copytree(root / folder, (root / folder).with_name("test"))
        places = ("images/val", "images/valid") if write_set is write_yolo else ("val", "valid")
        told = f"note: {root}: {places[0]} is taken for the val images; {places[1]} is there too, which is not read"
        assert told in check(root)


def test_lists_of_images(tmp_path):
    root = write_yolo(tmp_path / "set", "images", "train: train.txt\nval: val.txt\n")
    write(root / "train.txt", "./images/a.png\nimages/b.png\n/content/images/c.png\r\n\nimages/b.png\n")
    write(root / "val.txt", "d.png\n".replace("d.png", str(root / "images" / "d.png")))
    said = check(root)
    assert any("train.txt: 1 lines stand there twice and count once" in line for line in said)
    (root / "data.yaml").unlink()
    write(root / "obj.names", "ant\nbee\ncow\n")
    check(root)
    write(
        root / "obj.data", "classes = 3\ntrain = data/train.txt\nvalid=val.txt\nnames = data/obj.names\nbackup = b/\n"
    )
    (root / "train.txt").replace(root / "kept.txt")
    assert "train: 'data/train.txt' is not there" in complaint(root)
    write(root / "obj.data", "classes = 3\ntrain = kept.txt\ntrain = val.txt\nvalid=val.txt\nnames=obj.names\n")
    assert complaint(root) == f"{root / 'obj.data'}: 'train' stands there twice; correct it"
    (root / "kept.txt").replace(root / "data" / "train.txt") if (root / "data").is_dir() else None


def test_valid_and_test_stand_for_val(tmp_path):
    root = write_yolo(tmp_path / "set", yaml=None)
    write(root / "labels" / "classes.txt", "ant\nbee\ncow\n")
    for folder in ("images", "labels"):
        (root / folder / "val").rename(root / folder / "valid")
    check(root)
    for folder in ("images", "labels"):
        (root / folder / "valid").rename(root / folder / "test")
    assert f"note: {root}: images/test is taken for the val images" in check(root)


def test_another_data_set_above_is_not_taken_for_the_one_that_is_named(tmp_path):
    write_yolo(tmp_path, "{split}/images", None)
    root = write_yolo(tmp_path / "set", "{split}/images", "train: ../train/images\nval: ../val/images\n")
    (root / "train" / "labels" / "a.txt").write_text(yolo_line(2, 0, 0, 8, 8))
    assert objects(opened(root)[0])["a"] == [("cow", [0, 0, 8, 8])]


def test_a_folder_that_is_called_images_above_the_data_set(tmp_path):
    root = write_yolo(tmp_path / "images" / "set", "{split}", None)
    for path in root.parent.with_name("labels").rglob("*.txt"):  # where the helper puts them
        write(root / path.relative_to(root.parent.with_name("labels") / "set"), path.read_text())
    shutil.rmtree(tmp_path / "labels", ignore_errors=True)
    write(root / "classes.txt", "ant\nbee\ncow\n")
    check(root)


def test_links_that_lead_nowhere_and_folders_in_place_of_labels_are_told(tmp_path):
    root = write_yolo(tmp_path / "set")
    for path in (root / "images" / "train" / "a.png", root / "labels" / "val" / "d.txt", root / TRAIN):
        path.unlink()
    (root / "images" / "train" / "a.png").symlink_to("/nowhere/a.png")
    text = complaint(root)
    assert text.endswith(
        "images/train/a.png is a link to /nowhere/a.png that leads nowhere; restore the file or remove the link"
    )
    (root / "images" / "train" / "a.png").unlink()
    (root / "labels" / "val" / "d.txt").symlink_to("/nowhere/d.txt")
    (root / "labels" / "train" / "b.txt").unlink()
    (root / "labels" / "train" / "b.txt").mkdir()
    lines = complaint(root).splitlines()
    assert lines[1].startswith("  labels/train/b.txt cannot be read (Is a directory)") and len(lines) == 3
    assert lines[2].startswith("  labels/val/d.txt cannot be read (No such file or directory)")


def test_labels_that_the_system_refuses_are_no_labels_that_are_missing(tmp_path, monkeypatch):
    root = write_yolo(tmp_path / "set")
    refuse(monkeypatch, "stat", "/labels/train/a.txt", errno.EACCES)
    assert "labels/train/a.txt cannot be read (Permission denied); see to its rights" in complaint(root)


def test_images_of_one_name_share_their_labels_which_is_noted(tmp_path):
    root = write_yolo(tmp_path / "set")
    save_image(root / "images" / "train" / "a.jpg")
    said = opened(root)[2]
    assert any("1 label files go with several images of one name each (labels/train/a.txt" in line for line in said)


# ---- label files of YOLO ------------------------------------------------------------------------------------------


def test_white_space_and_marks_of_editors_do_no_harm(tmp_path):
    root = write_yolo(tmp_path / "set")
    lines = [yolo_line(*one) for one in OBJECTS["train/a"]]
    lines[0] = "0.0" + lines[0][1:]
    write(root / TRAIN, b"\xef\xbb\xbf" + "  \r\n".join(lines).replace(" ", "\t").encode() + b"\r\n\r\n \t\n")
    check(root)
    write(root / TRAIN, "\n".join(lines).encode("utf-16"))
    check(root)


def test_images_without_objects_and_labels_without_images(tmp_path):
    root = write_yolo(tmp_path / "set")
    (root / "labels" / "train" / "c.txt").unlink()
    write(root / "labels" / "train" / "gone.txt", yolo_line(0, 0, 0, 8, 8))
    said = check(root)
    assert any(
        "1 of 4 images have no label file and count as images without objects (images/train/c.png" in s for s in said
    )
    assert any(
        "1 label files have no image of their own, so nobody reads them (labels/train/gone.txt" in line for line in said
    )
    shutil.rmtree(root / "labels")
    assert "none of 4 images has a label file; that of images/train/a.png would be labels/train/a.txt" in complaint(
        root
    )


def test_label_files_in_capitals_are_read(tmp_path):
    root = write_yolo(tmp_path / "set")
    for name, suffix in zip("abc", (".TXT", ".Txt", ".tXt"), strict=True):
        path = root / "labels" / "train" / f"{name}.txt"
        path.rename(path.with_suffix(suffix))
    assert not [line for line in check(root) if line.startswith("note")]
    write(root / "labels" / "train" / "gone.TXT", yolo_line(0, 0, 0, 8, 8))
    write(root / TRAIN, (root / TRAIN).with_suffix(".TXT").read_text())
    told = "2 label files have no image of their own, so nobody reads them (labels/train/a.TXT is the first)"
    assert any(told in line for line in check(root))
    beside = write_yolo(tmp_path / "beside", "{split}", None)
    for path in beside.rglob("*.txt"):
        path.rename(path.with_suffix(".TXT"))
    write(beside / "classes.txt", "ant\nbee\ncow\n")
    check(beside)


@pytest.mark.parametrize("by_lists", [True, False])
def test_xml_files_in_capitals_are_read(tmp_path, by_lists):
    root = write_voc(tmp_path / "set", by_lists)
    for path in sorted(root.rglob("*.xml")):
        path.rename(path.with_suffix(".XML"))
    check(root)


@pytest.mark.parametrize("by_lists", [True, False])
def test_an_image_with_two_xml_files_is_told(tmp_path, by_lists):
    root = write_voc(tmp_path / "set", by_lists)
    first = next(root.rglob("b.xml"))
    write(first.with_name("other.xml"), voc_xml("b.png", []))
    if by_lists:
        write(root / "ImageSets" / "Main" / "train.txt", "a\nb\nother\nc\n")
    place = first.parent.name
    assert complaint(root) == f"{root}: {place}/other.xml: b.png has {place}/b.xml already; remove one of them"


def test_a_line_that_stands_there_twice_counts_once(tmp_path):
    root = write_yolo(tmp_path / "set")
    line = (root / VAL).read_text()
    write(root / VAL, line + line)
    assert any("1 lines stand there twice and count once (labels/val/d.txt:2 is the first)" in s for s in check(root))


def test_polygons_become_boxes_and_masks(tmp_path):
    root = write_yolo(tmp_path / "set")
    for path in (root / "labels").rglob("*.txt"):
        path.write_text("1 0.25 0.25 0.75 0.25 0.5 0.75\n")
    train, _, _ = opened(root, masks=True)
    row = train.ground_truth["annotations"][0]
    assert row["bbox"] == [16, 12, 32, 24] and row["area"] == 384
    assert train.masks(0).shape[0] == 1


def test_four_corners_are_noted_as_oriented_boxes_may_be_meant(tmp_path):
    root = write_yolo(tmp_path / "set")
    for path in (root / "labels").rglob("*.txt"):
        path.write_text("1 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5\n")
    train, _, said = opened(root)
    assert train.ground_truth["annotations"][0]["bbox"] == [16, 12, 32, 24]
    assert any("4 objects have four corners, as oriented boxes do" in line for line in said)


POSES = {
    "seen": "{c} .5 .5 .{w} .2 .45 .45 1 .55 .5{w} 1",
    "partly seen": "{c} .5 .5 .{w} .2 .45 .45 1 0 0 0",
    "four points": "{c} .5 .5 .{w} .2 .45 .45 1 .55 .55 0 .5 .5 1 .41 .59 1",
}


def write_lines(root: Path, line: str) -> None:
    """A line in each label file, another width in each."""
    for number, path in enumerate(sorted((root / "labels").rglob("*.txt"))):
        path.write_text(line.format(c=number % 3, w=2 + number) + "\n")


@pytest.mark.parametrize("name", POSES)
def test_poses_are_no_polygons_though_nothing_tells_of_points(tmp_path, name):
    root = write_yolo(tmp_path / "set")
    write_lines(root, POSES[name])
    assert complaint(root) == (
        f"{root / 'data.yaml'}: 4 of 4 lines with more than five numbers fit as a box and points in it, each with a 0, "
        "1 or 2, as poses have (labels/train/a.txt:1 is the first); keep the first five numbers of each line"
    )


def test_what_may_be_poses_is_noted(tmp_path):
    told = "lines with more than five numbers fit as a box and points in it, "
    root = write_yolo(tmp_path / "one")
    write(root / TRAIN, "0 .5 .5 .2 .2 .45 .45 1 .55 .55 1\n0 .5 .5 .2 .3\n")  # by chance a polygon is so, too
    assert [line for line in opened(root)[2] if f"1 of 1 {told}each with a 0, 1 or 2, as poses" in line]
    root = write_yolo(tmp_path / "points")
    write_lines(root, "{c} .5 .5 .{w} .2 .45 .45 .55 .55")
    assert [line for line in opened(root)[2] if f"4 of 4 {told}as poses have (labels/train/a.txt:1 is" in line]


def polygons(kind: str, count: int = 200) -> list[str]:
    """Lines of polygons anywhere in their images: ellipses of many points, or oriented boxes; some cut at borders."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(count):
        corners = 4 if kind == "oriented" else 5 if kind == "cut" else int(rng.integers(5, 40))
        angles = rng.uniform(0, 7) + np.arange(corners) / corners * 2 * np.pi
        centre = rng.uniform(0.4, 0.6, 2) if kind == "central" else rng.uniform(0.1, 0.9, 2)
        sides = rng.uniform(0.05, 0.1 if kind != "cut" else 0.6, 2)
        points = centre + sides * np.stack([np.cos(angles), np.sin(angles)], 1)
        lines.append(" ".join(["0", *(f"{number:.4f}" for number in points.clip(0, 1).ravel())]))
    return lines


@pytest.mark.parametrize("kind", ["dense", "central", "oriented", "cut"])
def test_polygons_are_no_poses(tmp_path, kind):
    root = write_yolo(tmp_path / "set")
    write(root / TRAIN, "\n".join(polygons(kind)))
    assert not [line for line in opened(root)[2] if "as poses have" in line]


WRONG_LINES = {
    "3 0.5 0.5 0.2 0.2": "class 3, but 3 classes have names (0 to 2); add its name or correct the line",
    "-1 0.5 0.5 0.2 0.2": "class -1 must be a whole number from 0; correct it",
    "0.5 0.5 0.5 0.2 0.2": "class 0.5 must be a whole number from 0; correct it",
    "cow 0.5 0.5 0.2 0.2": "'cow' is no number; a line is: class, centre x, centre y, width, height",
    "0 0,5 0.5 0.2 0.2": "'0,5' is no number; a line is: class, centre x, centre y, width, height",
    "0 nan 0.5 0.2 0.2": "'nan' is no number; a line is: class, centre x, centre y, width, height",
    "0 1e999 0.5 0.2 0.2": "a number is too large for any; correct it",
    "0 0.5 0.5 0.2": "4 numbers; a line is: class, centre x, centre y, width, height",
    "0 0.5 0.5 0.2 0.2 0.93": "6 numbers, as predictions have (class, box, confidence); give what people drew, "
    "five numbers",
    "0 0.5 0.5 0.2 0.2 0.4 0.4 2 0.6 0.6 2": "11 numbers, as a pose has (class, box, points with their "
    "visibility); keep the first five",
    "0 0.5 0.5 0.2 0.2 0.4 0.4 2": "8 numbers, as a pose has (class, box, points with their visibility); "
    "keep the first five",
    "0 0.5 0.5 0.2 0.2 0.4 0.4 0.3 0.3 0.1": "10 numbers, which is no box (5 numbers) and no polygon "
    "(class, then x and y of each point); correct it",
    "0 0.5 0.5 0 0.2": "the object has no width or height; correct or remove the line",
    "0 0.5 0.5 0.2 -0.2": "the object has no width or height; correct or remove the line",
    "0 0.5 0.5 1e-6 0.2": "the object is too thin for any pixel, or outside the image; correct or remove the line",
    "0 0.9 0.5 0.4 0.2": "0.9 0.5 0.4 0.2 reaches outside the image of 64x48 pixels; clip or remove it",
    "0 0.1 0.1 1.1 0.1 0.5 0.5": "0.1 0.1 1.1 0.1 0.5 0.5 reaches outside the image of 64x48 pixels; clip or remove it",
}


@pytest.mark.parametrize("line", WRONG_LINES)
def test_a_wrong_line_is_told_with_its_file_and_number(tmp_path, line):
    root = write_yolo(tmp_path / "set")
    write(root / TRAIN, f"\n{yolo_line(*OBJECTS['train/a'][0])}\n{line}\n")
    assert complaint(root) == f"{root / 'data.yaml'}: {TRAIN}:3: {WRONG_LINES[line]}"


def test_all_that_is_wrong_comes_in_one_list(tmp_path):
    root = write_yolo(tmp_path / "set")
    write(root / TRAIN, "\n".join(["7 0.5 0.5 0.2 0.2"] * 1 + [f"{n} 0.5 0.5 0.2 0.2" for n in range(8, 15)]))
    write(root / VAL, b"\x00\x01\x02")
    (root / "images" / "train" / "b.png").write_bytes(b"no image")
    lines = complaint(root).splitlines()
    assert lines[0] == f"{root / 'data.yaml'}: 10 problems"
    assert "  … and 3 more like this" in lines
    assert "  labels/val/d.txt is no text; write the label file again, or remove it" in lines
    assert any(line.startswith("  images/train/b.png cannot be read (not an image)") for line in lines)


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (
            lambda c, x, y, w, h: f"{c} {x + w / 2} {y + h / 2} {w} {h}",
            "which look like pixels: labels/train/a.txt:1 has 14 12 20 12",
        ),
        (
            lambda c, x, y, w, h: f"{c} {x / 64:.3f} {y / 48:.3f} {(x + w) / 64:.3f} {(y + h) / 48:.3f}",
            "but fit as x1, y1, x2, y2",
        ),
    ],
)
def test_numbers_of_another_form_are_told_in_one_line(tmp_path, form, told):
    root = write_yolo(tmp_path / "set")
    boxes = [(number % 3, 20 + number, 10 + number, 40, 30) for number in range(4)]
    rows = {"train/a": OBJECTS["train/a"], "train/b": boxes, "val/d": boxes}
    for key, own in rows.items():
        split, name = key.split("/")
        write(root / "labels" / split / f"{name}.txt", "\n".join(form(*one) for one in own))
    text = complaint(root)
    assert told in text and "\n" not in text


def test_rounding_over_the_border_is_clipped(tmp_path):
    root = write_yolo(tmp_path / "set")
    write(root / VAL, "0 0.9 0.5 0.21 1.01\n")
    _, val, said = opened(root)
    assert val.boxes(0)[0].max() <= WIDTH
    assert any("1 boxes clipped by at most 1 pixel (labels/val/d.txt:1 is the first)" in line for line in said)


def test_an_orientation_is_noted_since_shares_do_not_tell_the_sides(tmp_path):
    root = write_yolo(tmp_path / "set")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / "train" / "b.png", exif=exif)
    assert any(
        "1 images have an EXIF orientation: shares are taken of the sides as stored" in s for s in opened(root)[2]
    )


DESCRIPTIONS = {
    "train: [": "is broken YAML in line 2",
    "train: images/train\ntrain: images/val\n": "'train' stands there twice; correct it",
    "train: images/train\n": "has no val:, which must name the images' folder or list",
    "train: images/train\nval: images/vla\n": "val: 'images/vla' is not there (looked in ",
    "train: images/train\nval: {a: b}\n": "val: {'a': 'b'} must be a folder, a list of images, or several; correct it",
    "train: images/train\nval: images/val\nnc: 4\n": "nc: 4, but 3 names; correct one of them",
    "train: images/train\nval: images/val\nnc: many\n": "nc: 'many' must be the number of classes; correct it",
    "train: images/train\nval: images/val\nkpt_shape: [17, 3]\n": "kpt_shape: is of a pose data set",
    "train: images/train\nval: images/empty\n": "val: images/empty names no images that are there",
    "train: images/train\nval: images/val\n<<: images\n": "is broken YAML in line 3: << must name a mapping",
    "train: images/train\nval: images/val\n<<: [{nc: 3}, x]\n": "is broken YAML in line 3: << must name a mapping",
    "d: &d {<<: *d}\ntrain: images/train\nval: images/val\n": "is broken YAML",
    "a: &a [*a]\ntrain: images/train\nval: *a\n": "is broken YAML",
}


@pytest.mark.parametrize("yaml", DESCRIPTIONS)
def test_a_wrong_description_is_told_in_one_line(tmp_path, yaml):
    root = write_yolo(tmp_path / "set", yaml=yaml)
    (root / "images" / "empty").mkdir()
    text = complaint(root)
    assert text.startswith(f"{root / 'data.yaml'}: ") and DESCRIPTIONS[yaml] in text and "\n" not in text


@pytest.mark.parametrize(
    "names", ["[ant, ant, cow]", "ant", "{0: ant, 2: bee}", "[]", "[ant, [bee]]", "{1: ant, 2: bee}"]
)
def test_wrong_names_are_told(tmp_path, names):
    root = write_yolo(tmp_path / "set")
    write(root / "data.yaml", f"train: images/train\nval: images/val\nnames: {names}\n")
    text = complaint(root)
    assert text.startswith(f"{root / 'data.yaml'}: ") and ("names: " in text or "'ant'" in text)


# ---- VOC ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_lists", [True, False])
def test_voc_folders_are_read(tmp_path, by_lists):
    root = write_voc(tmp_path / "set", by_lists)
    assert check(root)[0].startswith(f"{root}: a VOC folder, 3 train images and 1 val images, 4 objects of 3 classes; ")


def test_other_voc_layouts(tmp_path):
    root = write_voc(tmp_path / "VOCdevkit" / "VOC2007")
    first = of(root)
    assert of(tmp_path) == of(tmp_path / "VOCdevkit") == first
    (root / "ImageSets" / "Main").rename(root / "lists")
    text = complaint(root)
    assert (
        text == f"{root}: is a VOC folder without lists; write ImageSets/Main/train.txt and val.txt, "
        "the name of an image a line"
    )
    write(root / "train.txt", "a.png\nJPEGImages/b.png\nc.xml\n")
    assert "has train.txt, but no val.txt beside it; write it, the name of an image a line" in complaint(root)
    write(root / "val.txt", "d\r\n")
    check(root)
    (root / "train.txt").rename(root / "trainval.txt")
    (root / "val.txt").rename(root / "test.txt")
    assert any(
        "trainval.txt is taken for the train images, test.txt for the val images" in line for line in check(root)
    )
    shutil.copytree(root, root.with_name("VOC2012"))
    assert "several VOC data sets are here (VOC2007, VOC2012); name one: --data" in complaint(tmp_path)


def test_annotations_in_folders_of_their_own(tmp_path):
    root = write_voc(tmp_path / "set", by_lists=False)
    for split in ("train", "val"):
        for folder, suffix in {"annotations": ".xml", "images": ".png"}.items():
            (root / folder / split).mkdir(parents=True)
            for path in sorted((root / split).glob(f"*{suffix}")):
                path.rename(root / folder / split / path.name)
        (root / split).rmdir()
    check(root)


def test_difficult_objects_are_crowd_regions(tmp_path):
    root = write_voc(tmp_path / "set")
    xml = voc_xml("b.png", [voc_object("cow", 0, 0, 64, 48, "<difficult>1</difficult>")])
    write(root / "Annotations" / "b.xml", xml)
    train, _, said = opened(root)
    assert [row["iscrowd"] for row in train.ground_truth["annotations"]] == [0, 0, 1]
    assert any("1 objects are difficult: as crowd regions they are neither learnt nor counted" in line for line in said)


def test_an_xml_file_of_another_name_goes_with_its_filename(tmp_path):
    root = write_voc(tmp_path / "set")
    (root / "JPEGImages" / "b.png").rename(root / "JPEGImages" / "other.png")
    assert "Annotations/b.xml: no image b in JPEGImages/, nor 'b.png', which its filename tells; add" in complaint(root)
    xml = (root / "Annotations" / "b.xml").read_text()
    write(root / "Annotations" / "b.xml", xml.replace("b.png", "C:\\pictures\\other.png"))
    assert set(objects(opened(root)[0])) == {"a", "c", "other"}


def test_boxes_from_0_and_classes_that_differ_in_capitals_are_noted(tmp_path):
    root = write_voc(tmp_path / "set")
    write(
        root / "Annotations" / "b.xml",
        voc_xml("b.png", [voc_object("Cow ", -1, -1, 65, 49), voc_object("cow", 2, 2, 9, 9)]),
    )
    train, _, said = opened(root)
    assert train.category_names == ("Cow", "ant", "bee", "cow")
    assert objects(train)["b"][0] == ("Cow", [0, 0, 64, 48])
    assert any("1 boxes begin at 0, so pixels were not counted from 1 as VOC does" in line for line in said)
    assert any("classes 'Cow' (1 objects) and 'cow' (1 objects) differ in capitals or spaces alone" in s for s in said)


def test_a_size_that_is_missing_is_the_images_and_another_is_told(tmp_path):
    root = write_voc(tmp_path / "set")
    path = root / "Annotations" / "b.xml"
    write(path, re.sub("<size>.*</size>", "", path.read_text()))
    assert any("1 files tell no size, so the image's is taken" in line for line in check(root))
    write(path, voc_xml("b.png", [], (48, 64)))
    assert complaint(root) == (
        f"{root}: Annotations/b.xml: the image has 64x48 pixels, but size says 48x64; "
        "store the image upright if the boxes are of it turned"
    )


def box(**corners: Any) -> str:
    inside = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
    return f"<object><name>cow</name><bndbox>{inside}</bndbox></object>"


LOL = '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;">]>'
WRONG_XML: dict[str, tuple[str | bytes, str]] = {
    "broken": (
        "<annotation><object>",
        ".xml is broken XML (no element found in line 1); correct it or export it again",
    ),
    "empty": (" ", ".xml is broken XML (no element found in line 1); correct it or export it again"),
    "no bytes": (b"", ".xml is broken XML (no element found in line 1); correct it or export it again"),
    "bytes": (b"\xff\xd8\xff\xe0", ".xml is broken XML (not well-formed (invalid token) in line 1); correct it"),
    "encoding": ('<?xml version="1.0" encoding="gb2312"?><annotation/>', ".xml cannot be read as XML ("),
    "no such encoding": (
        '<?xml version="1.0" encoding="nix"?><annotation/>',
        ".xml cannot be read as XML (unknown encoding",
    ),
    "entities": (f"{LOL}<annotation>&c;</annotation>", ".xml declares a document type, which may hold anything"),
    "a file": (
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
        ".xml declares a document type, which may hold anything; remove the DOCTYPE",
    ),
    "deep": ("<a>" * 5000 + "</a>" * 5000, ".xml is nested too deep for a VOC annotation; export it again"),
    "CVAT": ("<annotations/>", ".xml is no VOC annotation: it holds 'annotations' instead of annotation; export it"),
    "no name": (voc_xml("b", [voc_object(" ", 1, 1, 5, 5)]), ".xml:3: the object has no name; add it"),
    "no box": (
        voc_xml("b", ["<object><name>cow</name><polygon/></object>"]),
        "('cow') has no bndbox but a polygon; add",
    ),
    "half a box": (
        voc_xml("b", [box(xmin=1, ymin=2, xmax="")]),
        "xmin 1, ymin 2, xmax missing, ymax missing: must be four",
    ),
    "two boxes": (
        voc_xml("b", [voc_object("cow", 1, 1, 5, 5, "<bndbox><xmin>1</xmin></bndbox>")]),
        ".xml:3: the object has 2 bndbox; keep one",
    ),
    "two names": (
        voc_xml("b", [voc_object("cow", 1, 1, 5, 5, "<name>ant</name>")]),
        ".xml:3: the object has 2 name; keep one",
    ),
    "two corners": (
        voc_xml("b", [box(xmin="1</xmin><xmin>2", ymin=2, xmax=3, ymax=5)]),
        ".xml:3: the bndbox has 2 xmin; keep one",
    ),
    "two sizes": (
        voc_xml("b", [f"<size><width>{HEIGHT}</width></size>"]),
        ".xml:1: the annotation has 2 size; keep one",
    ),
    "words": (
        voc_xml("b", [box(xmin="a", ymin=2, xmax=3, ymax="nan")]),
        "xmin a, ymin 2, xmax 3, ymax nan: must be four",
    ),
    "turned": (
        voc_xml("b", [box(xmin=9, ymin=2, xmax=3, ymax=8)]),
        "must be the upper left and the lower right corner",
    ),
    "outside": (
        voc_xml("b", [box(xmin=9, ymin=2, xmax=90, ymax=8)]),
        "reaches outside the image of 64x48 pixels; clip",
    ),
    "shares": (voc_xml("b", [box(xmin=0.1, ymin=0.2, xmax=0.5, ymax=0.6)]), "shares of the image's sides; give pixels"),
    "difficult": (
        voc_xml("b", [voc_object("cow", 1, 1, 5, 5, "<difficult>maybe</difficult>")]),
        ".xml:3: difficult is 'maybe'; must be 0 or 1",
    ),
}


@pytest.mark.parametrize("name", WRONG_XML)
def test_a_wrong_xml_file_is_told_in_one_line(tmp_path, name):
    content, told = WRONG_XML[name]
    root = write_voc(tmp_path / "set")
    write(root / "Annotations" / "b.xml", content)
    text = complaint(root)
    assert text.startswith(f"{root}: Annotations/b") and told in text and "\n" not in text


def test_a_voc_folder_without_images_is_told(tmp_path):
    root = write_voc(tmp_path / "set")
    shutil.rmtree(root / "JPEGImages")
    assert "Annotations/ has XML files, but no folder of images is beside it; put them into JPEGImages/" in complaint(
        root
    )


def test_what_is_missing_of_a_voc_folder_is_told(tmp_path):
    root = write_voc(tmp_path / "set")
    write(root / "ImageSets" / "Main" / "train.txt", "a\nb\nc\ngone\n")
    text = "ImageSets/Main/train.txt:4: Annotations/gone.xml is not there; add it or remove the line"
    assert complaint(root) == f"{root}: {text}"
    parts = write_voc(tmp_path / "parts", by_lists=False)
    shutil.rmtree(parts / "val")
    assert complaint(parts).endswith("is a VOC folder without val images; put them and their XML files into val/")


def test_a_folder_above_is_sent_to_the_data_set(tmp_path):
    write_yolo(tmp_path / "above" / "set")
    assert complaint(tmp_path / "above").endswith(f"did you mean {tmp_path / 'above' / 'set'}, a YOLO folder?")


# ---- both, and neither --------------------------------------------------------------------------------------------


def test_a_coco_folder_stays_one_whatever_else_lies_there(tmp_path):
    root = write_folder(tmp_path / "set")
    first = of(root)
    write_yolo(root, "more/images/{split}")
    write(root / "labels" / "train" / "10.txt", "0 0.5 0.5 0.1 0.1\n")
    assert of(root) == first and len(opened(root)[0]) == 4
    assert not (cache_dir() / "converted").exists()
    (root / "annotations" / "instances_val.json").unlink()
    assert "annotations/instances_val.json is missing" in complaint(root)


def test_labels_of_both_kinds_are_refused_unless_a_file_says_which(tmp_path):
    root = write_voc(tmp_path / "set", by_lists=False)
    write_yolo(root, "{split}", None)
    assert "holds YOLO labels (.txt) and VOC annotations (.xml); move one of them away" in complaint(root)
    write(root / "data.yaml", "train: train\nval: val\nnames: [ant, bee, cow]\n")
    assert "a YOLO folder" in check(root)[0]


def test_what_is_no_data_set_is_told_as_before(tmp_path):
    write(tmp_path / "set" / "notes.txt", "hello")
    write(tmp_path / "set" / "config.yaml", "a: 1\n")
    assert "4 parts are missing" in complaint(tmp_path / "set")
    assert "is a file, not a folder" in complaint(tmp_path / "set" / "notes.txt")
    assert complaint(tmp_path / "set" / "config.yaml").startswith(f"{tmp_path}/set/config.yaml: ")
    save_image(tmp_path / "other" / "train" / "a.png")
    write(tmp_path / "other" / "train" / "notes.txt", "taken in 2020\n")
    assert "parts are missing" in complaint(tmp_path / "other")


# ---- conversions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write_set", [write_yolo, write_voc])
def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path, monkeypatch, write_set, capsys):
    root = write_set(tmp_path / "set")
    before = sorted(path.relative_to(root) for path in root.rglob("*"))
    first = of(root)
    said = capsys.readouterr().err
    assert "folder, 3 train images and 1 val images" in said and str(cache_dir() / "converted") in said
    assert of(root) == first and not capsys.readouterr().err
    assert sorted(path.relative_to(root) for path in root.rglob("*")) == before, "nothing is written there"
    copy = shutil.copytree(root, tmp_path / "else" / "where")
    assert of(copy) == first
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "other cache"))
    shutil.rmtree(root)
    assert of(copy) == first
    label = next(path for name in ("d.txt", "d.xml") for path in copy.rglob(name))
    text = label.read_text()
    label.write_text(text.replace("1 0.375", "2 0.375").replace("bee", "cow"))
    second = of(copy)
    assert second != first
    label.write_text(text)
    assert of(copy) == first
    save_image(next(copy.rglob("b.png")), (WIDTH, HEIGHT), seed=1)
    os.utime(next(copy.rglob("a.png")))
    assert of(copy) != second


def test_the_layout_of_a_yolo_folder_takes_no_part(tmp_path):
    first = of(write_yolo(tmp_path / "a"))
    assert of(write_yolo(tmp_path / "b", "{split}/images", "train: ../train/images\nval: ../val/images\n")) == first
    assert of(write_yolo(tmp_path / "c", "{split}", "path: .\ntrain: train\nval: val\n")) == first


def test_images_of_several_folders(tmp_path):
    root = write_yolo(tmp_path / "set")
    save_image(tmp_path / "more" / "x" / "images" / "e.png")
    write(tmp_path / "more" / "x" / "labels" / "e.txt", yolo_line(0, 4, 4, 8, 8))
    write(root / "data.yaml", "train: [images/train, ../more/x/images]\nval: images/val\nnames: [ant, bee, cow]\n")
    train, _, _ = opened(root)
    assert list(train.file_names) == ["more/x/images/e.png", *(f"set/images/train/{name}.png" for name in "abc")]
    assert train.load_image(0).shape == (HEIGHT, WIDTH, 3)


def test_a_killed_conversion_leaves_nothing_half(tmp_path, monkeypatch):
    root = write_yolo(tmp_path / "set")
    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            of(root)
    left = [path.name for path in (cache_dir() / "converted").iterdir()]
    assert any(name.endswith(".tmp") for name in left) and not any(name.endswith(".json") for name in left)
    check(root)
    assert not list((cache_dir() / "converted").glob("*.tmp"))
    shutil.rmtree(cache_dir() / "converted")
    check(root)


def test_several_processes_convert_once(tmp_path):
    root = write_yolo(tmp_path / "set")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.map(of, [root] * 8)
    assert len(set(found)) == 1
    assert len([path for path in (cache_dir() / "converted").iterdir() if path.is_dir()]) == 1


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    root = write_yolo(tmp_path / "set")
    write(tmp_path / "file", "")
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="its conversion cannot be written into .*; set CODETR_CACHE to another folder"):
        of(root)


def test_what_is_told_of_a_conversion_names_the_folder_itself(tmp_path):
    root = write_yolo(tmp_path / "set")
    for path in (root / "labels" / "val").iterdir():
        path.write_text("")
    text = complaint(root)
    assert "has no annotations, so there is nothing to learn from" in text
    assert text.splitlines()[-1].startswith(f"This was converted from {root}: correct it there, or delete ")
    with pytest.raises(UserError, match=f"This was converted from {root}: correct it there, or delete"):
        open_dataset(DataConfig(path=str(root)), "train", progress=lambda line: None, with_masks=True)


def test_real_boxes_stay_where_they_were(tmp_path):
    source = real_data("bccd")
    root = coco_as_yolo(source, tmp_path / "bccd")
    train, val, _ = opened(root)
    for data, split in ((train, "train"), (val, "val")):
        original = open_dataset(DataConfig(path=str(source)), split, progress=lambda line: None)
        found, expected = objects(data), objects(original)
        assert found.keys() == expected.keys()
        for name, rows in expected.items():
            assert [row[0] for row in found[name]] == [row[0] for row in rows]
            if rows:
                np.testing.assert_allclose([r[1] for r in found[name]], [r[1] for r in rows], atol=2e-3)


# ---- whatever stands there ----------------------------------------------------------------------------------------

word = st.one_of(
    st.sampled_from(
        ["0", "1", "2", "3", "-1", "0.5", "1.0", "0.25", "nan", "inf", "1e400", "1e-9", "", ",", "\x00", "é", "1_0"]
    ),
    st.floats(0, 1).map(str),
    st.text(max_size=4),
)
line = st.lists(word, max_size=9).map(" ".join)
texts = st.one_of(
    st.lists(line, max_size=4).map("\n".join).map(lambda text: text.encode("utf-8", "replace")),
    st.binary(max_size=40),
)
XML = voc_xml("b.png", [voc_object("cow", 2, 3, 10, 12, "<difficult>0</difficult>")])


@st.composite
def cut(draw: st.DrawFn) -> bytes:
    """An XML file with a piece taken out, doubled or replaced."""
    first, last = sorted(draw(st.tuples(st.integers(0, len(XML)), st.integers(0, len(XML)))))
    piece = draw(st.sampled_from(["", XML[first:last] * 2, "<", "&a;", "-", "1e99", "\ud800", "<object/>", "]]>"]))
    return (XML[:first] + piece + XML[last:]).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def yolo_set(tmp_path_factory):
    return write_yolo(tmp_path_factory.mktemp("fuzz") / "yolo")


@pytest.fixture(scope="module")
def voc_set(tmp_path_factory):
    return write_voc(tmp_path_factory.mktemp("fuzz") / "voc")


def read_or_refused(root: Path) -> None:
    try:
        train, val, _ = opened(root)
    except UserError as error:
        assert str(error) and len(str(error)) < 10_000
        return
    for rows in objects(train, val).values():
        for _, (x, y, w, h) in rows:
            assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= WIDTH + 1e-3 and y + h <= HEIGHT + 1e-3


@always
@given(content=texts)
def test_any_label_file_is_read_or_refused(yolo_set, content):
    (yolo_set / TRAIN).write_bytes(content)
    read_or_refused(yolo_set)


@always
@given(content=st.one_of(cut(), st.binary(max_size=40)))
def test_any_xml_file_is_read_or_refused(voc_set, content):
    (voc_set / "Annotations" / "b.xml").write_bytes(content)
    read_or_refused(voc_set)


@always
@given(content=texts, name=st.sampled_from(["data.yaml", "train.txt", "classes.txt", "obj.data"]))
def test_any_description_is_read_or_refused(tmp_path_factory, content, name):
    root = write_yolo(tmp_path_factory.mktemp("any"), yaml=None)
    if name == "data.yaml":
        content = b"train: images/train\nval: images/val\nnames: [a, b, c]\n" + content
    write(root / name, content)
    read_or_refused(root)


# ---- from end to end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write_set", [write_yolo, write_voc])
def test_a_grid_is_planned_on_such_a_folder_and_trained(tmp_path, monkeypatch, write_set, capsys):
    root = write_set(tmp_path / "set")
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("CODETR_CACHE", SHARED_CACHE)
    spec = tmp_path / "tiny.yaml"
    spec.write_text("title: t\nrows:\n  - {label: one, set: {model.heads: []}}\nbaseline: one\nseeds: [0]\n")
    small = ["--set", "train.epochs=1", "--set", "train.min_steps=0", "--set", "train.batch_size=1"]
    given = [str(spec), "--preset", "digits_fast", "--data", str(root), *small]
    assert main(["plan", *given]) == 0
    planned = capsys.readouterr()
    assert re.search(r"^ *[0-9a-f]{12}|one +", planned.out, re.MULTILINE)
    assert "folder, 3 train images and 1 val images" in planned.err
    if write_set is write_voc:
        return  # from here on it is the same
    assert main(["run", *given, "--executor", "local"]) == 0
    results = list((tmp_path / "store" / "runs").glob("*/result.json"))
    assert len(results) == 1 and json.loads(results[0].read_text())["status"] == "finished"
