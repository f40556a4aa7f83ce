"""What may lie in a data folder, what may be missing of it, and the lines that tell."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
from pathlib import Path

import pytest
from PIL import Image

from harness.__main__ import main
from harness.config import DataConfig
from harness.data import files, open_splits
from harness.data.coco import CocoDataset
from harness.data.layout import find_splits
from harness.errors import UserError
from harness.files import cache_dir
from tests.support.folders import write_folder
from tests.support.refusals import refuse


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("whole") / "set")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "set")


def complaint(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_splits(DataConfig(path=str(root)), progress=lambda line: None)
    return str(caught.value)


# ---- parts that are missing ---------------------------------------------------------------------------------------


def make(root: Path, *names: str) -> Path:
    """Files, and folders where a name ends with a stroke."""
    for name in names:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text("{}")
    return root


TRAIN, VAL = "annotations/instances_train.json", "annotations/instances_val.json"
SETS = {  # what is there, and what is said of each missing part
    "other names of annotations": (
        ["annotations/custom_train.json", "annotations/custom_val.json", "train/a.jpg", "val/a.jpg"],
        [
            f"{TRAIN} is missing; rename annotations/custom_train.json?",
            f"{VAL} is missing; rename annotations/custom_val.json?",
        ],
    ),
    "valid for val": (
        [TRAIN, "annotations/instances_valid.json", "train/a.jpg", "valid/a.jpg", "test/a.jpg"],
        [
            f"{VAL} is missing; rename annotations/instances_valid.json?",
            "image folder val/ is missing; rename valid/?",
        ],
    ),
    "Roboflow": (
        [f"{split}/{name}" for split in ("train", "valid", "test") for name in ("_annotations.coco.json", "a.jpg")],
        [
            f"{TRAIN} is missing; rename train/_annotations.coco.json?",
            f"{VAL} is missing; rename valid/_annotations.coco.json?",
            "image folder val/ is missing; rename valid/?",
        ],
    ),
    "images in a folder, labels beside": (
        ["images/train/a.jpg", "images/val/a.jpg", "labels/train/a.txt", "labels/val/a.txt", "train.json", "val.json"],
        [
            f"{TRAIN} is missing; rename train.json?",
            "image folder train/ is missing; rename images/train/?",
            f"{VAL} is missing; rename val.json?",
            "image folder val/ is missing; rename images/val/?",
        ],
    ),
    "one folder of images": (
        [TRAIN, VAL, "JPEGImages/a.jpg"],
        [
            "image folder train/ is missing; link JPEGImages/ as train/?",
            "image folder val/ is missing; link JPEGImages/ as val/?",
        ],
    ),
    "misspelt": (
        ["annotations/instances_trian.json", VAL, "tarin/a.jpg", "val/a.jpg"],
        [
            f"{TRAIN} is missing; rename annotations/instances_trian.json?",
            "image folder train/ is missing; rename tarin/?",
        ],
    ),
    "large letters": (
        ["Annotations/Train.JSON", "Annotations/Val.JSON", "Train/a.jpg", "Val/a.jpg"],
        [
            f"{TRAIN} is missing; rename Annotations/Train.JSON?",
            "image folder train/ is missing; rename Train/?",
            f"{VAL} is missing; rename Annotations/Val.JSON?",
            "image folder val/ is missing; rename Val/?",
        ],
    ),
    "another year": (
        ["annotations/instances_train2019.json", VAL, "train2019/a.jpg", "val/a.jpg"],
        [
            f"{TRAIN} is missing; rename annotations/instances_train2019.json?",
            "image folder train/ is missing; rename train2019/?",
        ],
    ),
    "only test": (
        [TRAIN, "annotations/instances_test.json", "train/a.jpg", "test/a.jpg"],
        [
            f"{VAL} is missing; rename annotations/instances_test.json?",
            "image folder val/ is missing; rename test/?",
        ],
    ),
    "nothing near": (
        ["notes.txt", "annotations/result.json"],
        [
            f"{TRAIN} is missing",
            "image folder train/ is missing",
            f"{VAL} is missing",
            "image folder val/ is missing",
        ],
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_all_that_is_missing_is_told_at_once_with_the_nearest_names(tmp_path, name):
    there, lines = SETS[name]
    text = complaint(make(tmp_path / "set", *there))
    assert text.splitlines()[1:] == [f"  {line}" for line in lines]
    head = f"data set {tmp_path / 'set'}: {len(lines)} parts are missing; here are "
    assert text.startswith(head) and "; the layout is train/, val/, annotations/" in text


def test_one_missing_part_is_one_line(tmp_path):
    root = make(tmp_path / "set", TRAIN, VAL, "train2017/a.jpg", "val/a.jpg")
    text = complaint(root)
    assert "\n" not in text and text.startswith(f"data set {root}: image folder train/ is missing; rename train2017/?")
    (root / "train2017").rename(root / "train")
    assert find_splits(root)["train"] == (root / TRAIN, root / "train")


@pytest.mark.parametrize("below", ["train", "annotations", ".."])
def test_a_folder_beside_the_data_set_is_sent_to_it(tmp_path, below):
    root = make(tmp_path / "set", TRAIN, VAL, "train/a.jpg", "val/a.jpg")
    assert complaint((root / below).resolve()).endswith(f"no annotations/ here; did you mean {root}?")


def test_a_path_that_is_no_folder(tmp_path):
    root = make(tmp_path / "cards", TRAIN)
    assert f"data set {tmp_path / 'card'}: no such folder, did you mean {root}?; " in complaint(tmp_path / "card")
    assert f"data set {root / TRAIN} is a file, not a folder; " in complaint(root / TRAIN)
    (tmp_path / "link").symlink_to("/nowhere/set")
    assert f"data set {tmp_path / 'link'} is a link to /nowhere/set that leads nowhere; " in complaint(
        tmp_path / "link"
    )


@pytest.mark.parametrize("part", [TRAIN, "train"])
def test_a_part_that_is_a_dangling_link_or_a_pipe_is_missing(folder, part):
    shutil.move(folder / part, folder / "elsewhere")
    (folder / part).symlink_to("/nowhere")
    assert "is missing" in complaint(folder)
    (folder / part).unlink()
    os.mkfifo(folder / part)
    assert "is missing" in complaint(folder)


@pytest.mark.parametrize("name", ["set", "annotations/instances_train.json", "/val"])
def test_a_part_that_the_system_refuses_is_told(folder, monkeypatch, name):
    refuse(monkeypatch, "stat", name, errno.EACCES)
    text = complaint(folder)
    assert "\n" not in text and f"{name} cannot be read (Permission denied); see to its rights" in text


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODETR_STORE", str(tmp_path / "store"))
    (tmp_path / "t.yaml").write_text("rows: [{label: a, set: {model.heads: []}}]")
    return ["t.yaml", "--preset", "digits_fast"]


def test_commands_tell_what_is_missing(table, tmp_path, capsys):
    root = make(tmp_path / "set", TRAIN, "train/a.jpg", "valid/a.jpg")
    assert main(["run", *table, "--data", str(root), "--executor", "local"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in said] == [
        f"error: data set {root}: 2 parts are missing",
        f"error:   {VAL} is missing",
        "error:   image folder val/ is missing",
    ]
    assert main(["plan", *table, "--data", str(root)]) == 0
    assert all(line.startswith("note: ") for line in capsys.readouterr().err.splitlines())


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_path_that_no_record_can_hold_is_one_line(table, tmp_path, capsys, command):
    root = make(tmp_path / "caf\udce9", TRAIN)
    assert main([command, *table, "--data", str(root)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --data: {tmp_path}/caf\\udce9 is no UTF-8 name, so no record can hold it; rename")


# ---- files that are missing, or none ------------------------------------------------------------------------------


def rename(folder: Path, name: str) -> Path:
    """Let the annotations name image 30 so; returns the file's path, where nothing lies."""
    annotations = folder / TRAIN
    content = json.loads(annotations.read_text())
    content["images"][2]["file_name"] = name
    annotations.write_text(json.dumps(content))
    return folder / "train" / name


def strays(root: Path) -> None:
    """Everything that may lie around in a folder of images."""
    for name, target in {"gone.jpg": "/nowhere", "self": ".", "a.jpg": "b.jpg", "b.jpg": "a.jpg", "up": ".."}.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(root)  # a socket's path must be short
        server.bind("socket.jpg")
        os.chdir(here)
    (root / "zero.jpg").symlink_to("/dev/zero")
    (root / "half.jpg").write_bytes(b"\xff\xd8\xff")
    with open(os.fsencode(root) + b"/caf\xe9.jpg", "wb"):
        pass


def test_what_nobody_names_does_no_harm(folder, table, capsys, tracking_store):
    strays(folder / "train")
    said: list[str] = []
    train, _ = open_splits(DataConfig(path=str(folder)), progress=said.append)
    assert len(train) == 4 and said == []
    assert main(["plan", *table, "--data", str(folder)]) == 0
    assert main(["report", *table, "--data", str(folder)]) == 0
    assert main(["status"]) == 0
    assert "Traceback" not in "".join(capsys.readouterr())


NAMED = {
    "gone.jpg": "is missing in {train} (a link to /nowhere that leads nowhere); add it or remove",
    "a.jpg": "is missing in {train} (a link to b.jpg that leads nowhere); add it or remove",
    "nothing.jpg": "is missing in {train}; add it or remove",
    "pipe.jpg": "is a pipe, not a file; put the image there",
    "socket.jpg": "is a socket, not a file; put the image there",
    "zero.jpg": "is a device, not a file; put the image there",
    "self": "is a folder, not a file; put the image there",
    "": "is a folder, not a file; put the image there",
    "half.jpg": "cannot be read (a damaged JPEG, or one of a kind (12-bit, lossless) that Pillow does not read)",
    "caf\udce9.jpg": "cannot be read (not an image); restore the file",
    "a\0b.jpg": "cannot be the name of a file; correct it",
    "\ud800.jpg": "cannot be the name of a file; correct it",
    "two\nlines.jpg": "is missing in {train}; add it or remove",
}


@pytest.mark.parametrize("name", NAMED)
def test_what_is_named_and_is_no_file_is_one_line(folder, table, name):
    strays(folder / "train")
    rename(folder, name)
    text = complaint(folder)
    assert "\n" not in text and text.startswith(f"{folder / TRAIN}: image 30 ({ascii(name)[1:-1]}) ")
    assert NAMED[name].format(train=folder / "train") in text
    assert main(["plan", *table, "--data", str(folder)]) == 0


NEAR = {
    "30.JPG": "30.jpg",
    "30.png": "30.jpg",
    "train/30.jpg": "30.jpg",
    "C:\\photos\\30.jpg": "30.jpg",
    "beside.jpg": "../images/beside.jpg",
    "deep.jpg": "one/two/deep.jpg",
    "only_val.jpg": "",
    "a%20b%C3%A9.jpg": "a bé.jpg",  # as tools that serve files write names
    "images%2Fbeside.jpg": "../images/beside.jpg",
    "c d.jpg": "c%20d.jpg",
    "100%.jpg": "",
}


@pytest.mark.parametrize("name", NEAR)
def test_the_nearest_file_is_named(folder, name):
    """But none of another split: an image must not move from one to the other."""
    beside = ("images/beside.jpg", "train/one/two/deep.jpg", "val/only_val.jpg", "train/a bé.jpg", "train/c%20d.jpg")
    for path in beside:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "train" / "30.jpg", folder / path)
    rename(folder, name)
    text = complaint(folder)
    assert text.endswith(f"; here is {NEAR[name]}" if NEAR[name] else "annotation file") and "\n" not in text


@pytest.mark.parametrize(("here", "there"), [("e\u0301.jpg", "\xe9.jpg"), ("\xe9.jpg", "e\u0301.jpg")])
def test_a_name_whose_letters_are_composed_otherwise_is_found(folder, here, there):
    """As archives of a Mac bring names; both look the same on any screen."""
    (folder / "train" / "30.jpg").rename(folder / "train" / here)
    rename(folder, there)
    text = complaint(folder)
    assert text.endswith(f"; here is {here}, whose letters are coded otherwise: {ascii(here)[1:-1]}")


def test_an_image_that_becomes_a_pipe_blocks_no_training(folder):
    data = CocoDataset(folder, "train")
    (folder / "train" / "30.jpg").unlink()
    os.mkfifo(folder / "train" / "30.jpg")
    with pytest.raises(UserError, match="image 30 cannot be read: .* it is a pipe, not a file"):
        data.load_image(2)


# ---- what is remembered -------------------------------------------------------------------------------------------


def remembered(folder: Path) -> Path:
    """Where the verdicts on the train split lie."""
    key = hashlib.sha256(os.fsencode(folder / "train")).hexdigest()[:16]
    [record] = (cache_dir() / "checked").glob(f"{key}-*.json")
    return record


def test_a_verdict_of_older_code_is_not_trusted(folder):
    """It knew the size of a file and nothing else."""
    path = folder / "train" / "30.jpg"
    with Image.open(path) as image:
        image.convert("CMYK").save(path)
    status = path.stat()
    old = {"30.jpg": [status.st_size, status.st_mtime_ns, 80, 80]}
    record = cache_dir() / "checked" / f"{hashlib.sha256(str(folder / 'train').encode()).hexdigest()[:16]}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(old))
    said: list[str] = []
    CocoDataset(folder, "train", progress=said.append)
    assert len(said) == 1 and "CMYK" in said[0]
    assert record.read_text() == json.dumps(old), "which older code may still read"
    remembered(folder).write_text(json.dumps(old))
    CocoDataset(folder, "train", progress=said.append)
    assert said[0] == said[1]


def test_what_pillow_sees_is_remembered_for_its_version(folder, monkeypatch):
    CocoDataset(folder, "train")
    assert re.search(r"-3-\d+\.\d+", remembered(folder).name)
    monkeypatch.setattr(files, "VERDICTS", "3-99.0")
    path = remembered(folder)
    CocoDataset(folder, "train")
    assert path.with_name(path.name.split("-")[0] + "-3-99.0.json").exists()


def test_a_verdict_on_a_file_is_not_one_on_another_of_its_size_and_time(folder):
    path, other = folder / "train" / "30.jpg", folder / "train" / "aside.jpg"
    CocoDataset(folder, "train")
    times = path.stat()
    with Image.open(path) as image:
        image.convert("CMYK").save(other, quality=1)
    other.write_bytes(other.read_bytes().ljust(times.st_size - 2, b"\0") + b"\xff\xd9")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert other.stat().st_size == times.st_size
    os.replace(other, path)
    said: list[str] = []
    CocoDataset(folder, "train", progress=said.append)
    assert len(said) == 1 and "CMYK" in said[0]


@pytest.mark.parametrize("content", ["[]", "3", "{", '{"30.jpg": 7}', '{"30.jpg": [1, 2]}', "\0"])
def test_a_damaged_memory_costs_time_alone(folder, content):
    CocoDataset(folder, "train")
    remembered(folder).write_text(content)
    assert len(CocoDataset(folder, "train")) == 4
