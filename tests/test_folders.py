"""Own data in other layouts than COCO's: what a folder is taken for, its conversion, and whatever stands there."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.__main__ import main
from harness.config import DataConfig
from harness.data import open_dataset
from harness.errors import UserError
from harness.files import cache_dir
from tests.support.folders import real_data, write_folder
from tests.support.foreign_folders import (
    HEIGHT,
    WIDTH,
    check,
    coco_as_yolo,
    complaint,
    objects,
    of,
    opened,
    save_image,
    voc_object,
    voc_xml,
    write,
    write_voc,
    write_yolo,
    yolo_line,
)

always = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SHARED_CACHE = os.environ["CODETR_CACHE"]  # with compiled operators
TRAIN, VAL = "labels/train/a.txt", "labels/val/d.txt"

pytestmark = pytest.mark.usefixtures("own_cache")


# ---- what a folder is taken for ----------------------------------------------------------------------------------


def test_a_folder_above_is_sent_to_the_data_set(tmp_path):
    write_yolo(tmp_path / "above" / "set")
    assert complaint(tmp_path / "above").endswith(f"did you mean {tmp_path / 'above' / 'set'}, a YOLO folder?")


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
