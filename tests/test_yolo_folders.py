"""YOLO folders as own data: which layouts and label files are read, as what, and what is told of wrong ones."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.foreign_folders import (
    HEIGHT,
    OBJECTS,
    WIDTH,
    check,
    complaint,
    objects,
    opened,
    save_image,
    write,
    write_voc,
    write_yolo,
    yolo_line,
)
from tests.support.refusals import refuse

TRAIN, VAL = "labels/train/a.txt", "labels/val/d.txt"

pytestmark = pytest.mark.usefixtures("own_cache")


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
