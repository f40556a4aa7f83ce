"""The data set's fingerprint: what it follows, what it leaves alone, and what it costs."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.config import DataConfig
from harness.data import content as contents
from harness.data import disk, fingerprint
from harness.errors import UserError
from tests.support.folders import real_data
from tests.support.refusals import refuse

RECORDED = "ae411d422f2e5523"  # of `plain_folder`, by the code that made the first records


def write_names(root: Path, names: dict[str, list[str]]) -> Path:
    """Annotation files that name these images; of a split's folder and its files nothing is written."""
    for split, own in names.items():
        images = [{"id": n, "file_name": name, "width": 8, "height": 8} for n, name in enumerate(own, 1)]
        content: dict[str, Any] = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "ant"}]}
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        (root / split).mkdir(exist_ok=True)
    return root


def fill(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def plain_folder(root: Path) -> Path:
    """Every way to name an image below the split's folder, and files that nobody names."""
    write_names(
        root,
        {
            "train": ["a.jpg", "sub/b.PNG", "../train/sub/./b.PNG", "é.webp", "sub//e.jpeg", "linked.gif"],
            "val": ["a.jpg", "gone.jpg"],
        },
    )
    for number, name in enumerate(("a.jpg", "sub/b.PNG", "c.tiff", "d.bmp", "é.webp", "sub/e.jpeg", "stray.jpg")):
        fill(root / "train" / name, bytes(1000 + number))
    fill(root / "train" / ".hidden.jpg", bytes(5))
    fill(root / "train" / "notes.txt", b"x")
    fill(root / "val" / "a.jpg", bytes(77))
    fill(root / "elsewhere.gif", bytes(50))
    (root / "train" / "linked.gif").symlink_to(os.path.join("..", "elsewhere.gif"))
    return root


def of(root: Path) -> str:
    return fingerprint(DataConfig(path=str(root)))


# ---- by listing ---------------------------------------------------------------------------------------------------


def test_images_below_the_splits_folder_keep_the_recorded_fingerprint(tmp_path):
    assert of(plain_folder(tmp_path / "set")) == RECORDED


@pytest.mark.parametrize(
    ("name", "recorded"),
    [("bccd", "d9abe5fb73809b24"), ("cards", "7759c1612c81fe19"), ("coco_mini", "41392e9755f40d04")],
)
def test_real_data_keep_the_recorded_fingerprint(name, recorded):
    assert of(real_data(name)) == recorded


def test_an_absolute_name_below_the_splits_folder_is_listed_too(tmp_path):
    root = tmp_path / "set"
    write_names(root, {"train": ["a.jpg"], "val": ["a.jpg"]})
    write_names(root, {"train": [str(root / "train" / "a.jpg")]})
    fill(root / "train" / "a.jpg", bytes(9))
    first = of(root)
    fill(root / "train" / "stray.jpg", bytes(9))
    assert of(root) != first, "by listing, strays count"


@pytest.mark.parametrize("name", ["x.bmp", "sub/x.TIF", "./x.tiff", "../train/x.bmp", "link.tif", "ABSOLUTE/x.bmp"])
def test_new_pixels_of_uncompressed_images_are_another_data_set(tmp_path, name):
    """Their size follows from their sides: repainted ones have it too, and a time that says nothing."""
    root = tmp_path / "set"
    name = name.replace("ABSOLUTE", str(root / "train"))
    write_names(root, {"train": ["a.jpg", name], "val": ["a.jpg"]})
    for split in ("train", "val"):
        fill(root / split / "a.jpg", bytes(9))
    (root / "train" / "link.tif").symlink_to("../painted")
    path = root / "painted" if name == "link.tif" else Path(os.path.normpath(root / "train" / name))
    fill(path, b"BM" + bytes(300_000))
    first = of(root)
    fill(path, b"BM" + bytes(150_000) + b"x" + bytes(149_999))
    assert of(root) != first
    fill(path, b"BM" + bytes(300_000))
    os.utime(path, (1, 1))
    fill(root / "val" / "a.jpg", b"123456789")
    assert of(root) == first, "of the others size and name alone count, as ever"
    if not os.path.isabs(name):
        assert of(shutil.copytree(root, tmp_path / "copy", symlinks=True)) == first


def test_uncompressed_images_that_nobody_names_are_not_read(tmp_path, monkeypatch):
    root = plain_folder(tmp_path / "set")
    fill(root / "train" / "stray.bmp", b"one")
    first = of(root)
    refuse(monkeypatch, "open", "stray.bmp", errno.EACCES)
    fill(root / "train" / "stray.tif", b"one")
    assert of(root) != first, "by listing, strays count"


def test_a_named_uncompressed_image_that_the_system_refuses_is_told(tmp_path, monkeypatch):
    root = tmp_path / "set"
    write_names(root, {"train": ["x.bmp"], "val": ["x.bmp"]})
    for split in ("train", "val"):
        fill(root / split / "x.bmp", b"BM")
    refuse(monkeypatch, "open", "train/x.bmp", errno.EIO)
    with pytest.raises(UserError, match=r"train/x.bmp cannot be read \("):
        of(root)


def test_what_nobody_names_does_no_harm(tmp_path):
    """Links that lead nowhere or back, pipes, sockets, devices, folders without rights, names that are not UTF-8."""
    root = plain_folder(tmp_path / "set")
    train = root / "train"
    links = {"gone.jpg": "/nowhere/x.jpg", "self": ".", "up": "..", "a": "b", "b": "a", "c.jpg": "c.jpg"}
    for name, target in links.items():
        (train / name).symlink_to(target)
    (root / "val" / "both").symlink_to("../train", target_is_directory=True)
    (train / "sub" / "top").symlink_to(tmp_path.anchor, target_is_directory=True)
    os.mkfifo(train / "pipe")
    with_others = of(root)
    (root / "val" / "both").unlink()
    assert of(root) == RECORDED != with_others, "a folder linked once belongs to the data set"
    os.mkfifo(train / "pipe.jpg")
    with open(os.fsencode(train) + b"/caf\xe9.jpg", "wb"):
        pass
    assert len(of(root)) == 16


def test_a_folder_without_rights_is_left_out_and_a_storage_that_does_not_answer_is_told(tmp_path, monkeypatch):
    root = plain_folder(tmp_path / "set")
    fill(root / "train" / "closed" / "x.jpg", b"x")
    with monkeypatch.context() as patch:
        refuse(patch, "scandir", "/closed", errno.EACCES)
        assert of(root) == RECORDED
    for error in (errno.EIO, errno.ESTALE):
        with monkeypatch.context() as patch:
            refuse(patch, "scandir", "/closed", error)
            with pytest.raises(UserError, match=r"/closed cannot be read \(.*\); see to its rights and its storage"):
                of(root)
    with monkeypatch.context() as patch:
        refuse(patch, "scandir", "/train", errno.EACCES)
        with pytest.raises(UserError, match=r"/train cannot be read \(Permission denied\)"):
            of(root)


# ---- by naming ----------------------------------------------------------------------------------------------------


OUTSIDE = {
    "above": "../images/x.png",
    "another suffix": "x.jfif",
    "no suffix": "x",
    "hidden": ".x.jpg",
    "hidden folder": ".cache/x.jpg",
    "through a link": "link/../images/x.png",
    "another split": "../val/x.png",
    "absolute": "ABSOLUTE/x.png",
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_new_pixels_outside_are_another_data_set(tmp_path, case):
    root = tmp_path / "set"
    name = OUTSIDE[case].replace("ABSOLUTE", str(tmp_path / "elsewhere"))
    write_names(root, {"train": ["a.jpg", name], "val": ["a.jpg"]})
    (root / "train" / "link").symlink_to("../val")
    fill(root / "train" / "a.jpg", bytes(9))
    path = Path(os.path.realpath((root / "train" / "link").resolve().parent / "images" / "x.png"))
    path = path if case == "through a link" else Path(os.path.normpath(root / "train" / name))
    missing = of(root)
    fill(path, b"one")
    first = of(root)
    fill(path, b"two")
    assert len({missing, first, of(root)}) == 3
    fill(path, b"one")
    assert of(root) == first


@pytest.fixture
def outside(tmp_path):
    """A data set with images beside its splits, one named by both."""
    root = tmp_path / "set"
    write_names(root, {"train": ["../images/a.jpg", "../images/b.bmp"], "val": ["../images/a.jpg", "c.jpg"]})
    for name in ("images/a.jpg", "images/b.bmp", "val/c.jpg"):
        fill(root / name, name.encode())
    return root


def test_it_follows_content_not_place_nor_what_nobody_names(outside, tmp_path):
    first = of(outside)
    for name in ("train/stray.jpg", "val/stray.jpg", "images/stray.jpg", "notes.txt"):
        fill(outside / name, b"x")
    (outside / "val" / "gone.jpg").symlink_to("nowhere")
    assert of(outside) == first
    copy = shutil.copytree(outside, tmp_path / "elsewhere" / "copy", symlinks=True)
    os.utime(copy / "images" / "a.jpg", (1, 1))
    assert of(copy) == first
    fill(copy / "val" / "c.jpg", b"other")
    assert of(copy) != first, "also what lies in the split's folder"


PICTURES = {  # what a file begins with, and whether its pixels are always compressed
    "bmp": (b"BM", False),
    "tif": (b"II*\0", False),
    "ppm": (b"P6\n400 400\n255\n", False),
    "jpg": (b"\xff\xd8\xff\xe0", True),
    "png": (b"\x89PNG\r\n\x1a\n", True),
    "webp": (b"RIFF\0\0\0\0WEBP", True),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_of_uncompressed_files_every_byte_counts_and_of_others_both_ends(outside, kind):
    """By what a file begins with, since its name may say anything."""
    beginning, compressed = PICTURES[kind]
    path = outside / "images" / "a.jpg"
    content = bytearray(beginning.ljust(500_000, b"\0"))
    found = []
    for place in (None, 250_000, 499_990, 1_000):
        if place is not None:
            content[place] = 1
        fill(path, bytes(content))
        os.utime(path, ns=(0, len(found)))
        found.append(of(outside))
    assert len(set(found)) == (3 if compressed else 4) and (found[0] == found[1]) == compressed


def test_contents_are_read_once(outside, monkeypatch):
    first = of(outside)
    opened: list[str] = []
    monkeypatch.setattr(contents, "open_file", lambda path: opened.append(str(path)) or disk.open_file(path))
    assert of(outside) == first and not opened
    fill(outside / "images" / "a.jpg", b"other")
    assert of(outside) != first and len(opened) == 2, "read for each split that names it"


@pytest.mark.parametrize("name", ["annotations/instances_train.json", "images/a.jpg"])
def test_a_file_that_takes_the_place_of_one_of_its_size_and_time_is_read(outside, name):
    """As files out of two archives do, or whatever was written aside and moved here."""
    first, path = of(outside), outside / name
    content, times = path.read_bytes(), path.stat()
    other = path.with_name("aside")
    other.write_bytes(content.replace(b"ant", b"bee") if b"ant" in content else content[::-1])
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(other, path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert of(outside) != first


def test_both_splits_of_one_folder_are_remembered(tmp_path, monkeypatch):
    """As of LVIS and Objects365, whose images are named from the data set's folder."""
    root = tmp_path / "set"
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        content = {"images": [{"id": 1, "file_name": f"images/{split}.bmp"}], "annotations": [], "categories": []}
        (root / "annotations" / f"zhiyuan_objv2_{split}.json").write_text(json.dumps(content))
        fill(root / "images" / f"{split}.bmp", b"BM")
        (root / split).mkdir()
    first = of(root)
    opened: list[str] = []
    monkeypatch.setattr(contents, "open_file", lambda path: opened.append(str(path)) or disk.open_file(path))
    assert of(root) == first and not opened


def test_a_pipe_that_is_named_blocks_nothing(outside):
    (outside / "images" / "b.bmp").unlink()
    os.mkfifo(outside / "images" / "b.bmp")
    assert len(of(outside)) == 16


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_named_file_that_the_system_refuses_is_told(outside, monkeypatch, error):
    refuse(monkeypatch, "stat", "b.bmp", error)
    with pytest.raises(UserError, match=r"b.bmp cannot be read \(") as caught:
        of(outside)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["caf\udce9.bmp", "a\0b.bmp", "\ud800.bmp", "x" * 300, "", ".", "..", "/", "new\nline"]
)
def test_any_name_may_stand_there(outside, name):
    write_names(outside, {"train": ["../images/a.jpg", name]})
    assert len(of(outside)) == 16


def test_a_name_that_is_not_utf8_is_read(outside):
    """JSON can escape what stands for such bytes."""
    write_names(outside, {"train": ["caf\udce9.bmp"]})
    missing = of(outside)
    with open(os.fsencode(outside / "train") + b"/caf\xe9.bmp", "wb"):
        pass
    assert of(outside) != missing


@pytest.mark.parametrize("content", ["", "[]", "{", '{"images": 3}', '{"images": [3, {"file_name": 4}]}', "\ufeff{}"])
def test_a_file_that_is_no_annotation_has_a_fingerprint_too(outside, content):
    (outside / "annotations" / "instances_train.json").write_text(content)
    assert len(of(outside)) == 16


FORMS = {
    "objects first": lambda t: json.dumps({"annotations": [{"id": 1}], "images": t["images"]}),
    "objects last": lambda t: json.dumps({"images": t["images"], "annotations": [{"id": 1}]}),
    "indented": lambda t: json.dumps(t, indent=2),
    "two tables of this name": lambda t: json.dumps({"info": {"images": [{"file_name": "x"}]}, **t}),
    "a category of this name": lambda t: json.dumps({"categories": [{"name": "images"}], "images": t["images"]}),
    "a file of the other name": lambda t: json.dumps({"images": [{"file_name": "annotations"}, *t["images"]]}),
    "escaped": lambda t: json.dumps(t).replace('"images"', '"\\u0069mages"'),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_names_are_found_however_the_file_is_written(outside, form, encoding):
    path = outside / "annotations" / "instances_train.json"
    path.write_text(FORMS[form](json.loads(path.read_text())), encoding)
    assert {"../images/a.jpg", "../images/b.bmp"} <= set(contents._read_names(path))
