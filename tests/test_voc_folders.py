"""VOC folders as own data: which layouts and XML files are read, as what, and what is told of wrong ones."""

from __future__ import annotations

import re
import shutil
from typing import Any

import pytest

from tests.support.foreign_folders import (
    HEIGHT,
    check,
    complaint,
    objects,
    of,
    opened,
    voc_object,
    voc_xml,
    write,
    write_voc,
)

pytestmark = pytest.mark.usefixtures("own_cache")


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
    [note] = [line for line in said if "look alike" in line]
    assert "classes 'Cow' (1 objects) and 'cow' (1 objects) have names that look alike" in note


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
