"""Columns of an annotation file in the cache: read once, mapped by all, never believed when anything has changed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data import tables as room
from harness.data.coco import CocoDataset
from harness.data.columns import Column, Segmentations, Texts
from harness.data.mapped import map_arrays, write_arrays
from harness.errors import UserError
from tests.support.folders import write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "set")


@pytest.fixture
def readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each annotation file is kept, however small; the list of those that were read."""
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(room, "MAPPED_FROM", 0)
    found: list[str] = []
    real = room._read_json

    def read(path: Path, *rest: Any) -> Any:
        found.append(path.name)
        return real(path, *rest)

    monkeypatch.setattr(room, "_read_json", read)
    return found


def opened(folder: Path, said: list[str] | None = None, **options: Any) -> CocoDataset:
    return CocoDataset(folder, "train", progress=[].append if said is None else said.append, **options)


def kept(folder: Path) -> Path:
    (path,) = (folder.parent / "cache" / "annotations").glob("*.arrays")
    return path


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def everything(data: CocoDataset) -> list[Any]:
    found = [tuple(values.tolist() for values in data.load(index)) for index in range(len(data))]
    tables = (data.category_ids, data.category_names, data.area_bounds, tuple(data.image_ids), tuple(data.image_hw))
    return [found, data.ground_truth, *tables, tuple(data.file_names), data.num_clipped, data.files()[2].tolist()]


# ---- once ---------------------------------------------------------------------------------------------------------


def test_the_second_time_nothing_is_read_and_all_is_the_same(folder, readings):
    change(folder, lambda content: content["annotations"][0].update(bbox=[-0.6, 3, 97.2, 20], area=0))
    said: list[list[str]] = [[], []]
    first, second = (everything(opened(folder, own)) for own in said)
    assert readings == ["instances_train.json"] and first == second
    assert said[0] == said[1] and any("clipped" in line for line in said[0]) and any("area" in line for line in said[0])


def test_small_files_are_read_each_time(folder, readings, monkeypatch):
    monkeypatch.setattr(room, "MAPPED_FROM", 1_000_000)
    assert everything(opened(folder)) == everything(opened(folder))
    assert len(readings) == 2 and not (folder.parent / "cache" / "annotations").exists()


def test_masks_are_a_file_of_their_own_and_every_kind_comes_back(folder, readings):
    def edit(content):
        rows = content["annotations"]
        for row in rows:
            x, y, w, h = row["bbox"]
            row["segmentation"] = [[x, y, x + w, y, x + w, y + h], [x, y, x, y + h, x + w / 2, y + h]]
        rows[1]["segmentation"] = {"size": [64, 96], "counts": [100, 44, 6000]}
        rows[2]["segmentation"] = {"size": [96, 64], "counts": "PPo4P1"}  # 6144 pixels in two runs

    change(folder, edit)
    assert not opened(folder).has_masks
    with pytest.raises(UserError, match="compressed counts"):
        opened(folder, with_masks=True)
    change(folder, lambda content: content["annotations"][2].update(segmentation=[[1, 1, 9, 1, 9, 9]]))
    first, second = (opened(folder, with_masks=True) for _ in range(2))
    assert len(readings) == 3 and len(list((folder.parent / "cache" / "annotations").glob("*.arrays"))) == 2
    assert everything(first) == everything(second)
    assert np.array_equal(first.masks(0), second.masks(0)) and first.masks(0).any()
    assert second.ground_truth["annotations"][1]["segmentation"]["size"] == [64, 96]


def test_another_process_maps_the_same_file(folder, readings):
    opened(folder)
    data = opened(folder)
    sent = pickle.dumps(data)
    assert everything(pickle.loads(sent)) == everything(data) and len(readings) == 1
    assert len(sent) < 4000
    kept(folder).write_bytes(b"")
    with pytest.raises(UserError, match="has changed"):
        pickle.loads(sent)


def test_a_cache_that_cannot_be_written_costs_only_time(folder, readings, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "file"))
    assert everything(opened(folder)) == everything(opened(folder)) and len(readings) == 2
    assert everything(pickle.loads(pickle.dumps(opened(folder)))) == everything(opened(folder))


# ---- never believed -----------------------------------------------------------------------------------------------


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def flipped(path: Path, at: int = -100) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def flipped_in_the_header(path: Path) -> None:
    flipped(path, 60)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.write_bytes(b"PK\3\4" * 500)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [torn, longer, flipped, flipped_in_the_header, empty, foreign, a_folder])
def test_a_damaged_file_is_made_again(folder, readings, damage):
    expected = everything(opened(folder))
    damage(kept(folder))
    assert everything(opened(folder)) == expected and len(readings) == 2
    if damage is not a_folder:
        assert everything(opened(folder)) == expected and len(readings) == 2


def test_a_changed_annotation_file_is_read_again(folder, readings):
    """Also one of the same size and time, as a copy may be."""
    path = folder / "annotations" / "instances_train.json"
    before = path.stat()
    opened(folder)
    text = path.read_text().replace('"name": "ant"', '"name": "bug"')
    path.unlink()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert opened(folder).category_names[0] == "bug" and len(readings) == 2
    path.write_text(text[:-10])
    with pytest.raises(UserError, match="broken JSON"):
        opened(folder)


def test_what_other_code_has_checked_is_checked_again(folder, readings, monkeypatch):
    opened(folder)
    monkeypatch.setattr(room, "_code", lambda: "other")
    opened(folder)
    assert len(readings) == 2


def remove(folder: Path) -> None:
    (folder / "train" / "10.jpg").unlink()


def cut(folder: Path) -> None:
    path = folder / "train" / "10.jpg"
    path.write_bytes(path.read_bytes()[:200])


def make_a_folder(folder: Path) -> None:
    remove(folder)
    (folder / "train" / "10.jpg").mkdir()


def link_to_another(folder: Path) -> None:
    """Of the same size and time, but the file of another image."""
    first, second = (folder / "train" / name for name in ("10.jpg", "20.jpg"))
    second.unlink()
    os.link(first, second)


@pytest.mark.parametrize(
    ("harm", "told"),
    [(remove, "missing"), (cut, "cannot be read"), (make_a_folder, "a folder"), (link_to_another, "pixels")],
)
def test_a_changed_image_is_told_as_ever(folder, readings, harm, told):
    opened(folder)
    harm(folder)
    with pytest.raises(UserError, match=told):
        opened(folder)
    assert len(readings) == 2


def test_two_names_of_one_file_are_seen_though_size_and_time_are_the_same(folder, readings):
    first, second = (folder / "train" / name for name in ("10.jpg", "20.jpg"))
    shutil.copy2(first, second)  # the same size and time
    change(folder, lambda content: content["images"][1].update(height=64, width=96))
    change(folder, lambda content: [row.update(bbox=[5, 5, 20, 20]) for row in content["annotations"]])
    opened(folder)
    second.unlink()
    os.link(first, second)
    with pytest.raises(UserError, match="are one file"):
        opened(folder)
    assert len(readings) == 2


def test_nothing_with_problems_is_kept(folder, readings):
    remove(folder)
    for _ in range(2):
        with pytest.raises(UserError, match="missing"):
            opened(folder)
    assert len(readings) == 2 and not list((folder.parent / "cache" / "annotations").glob("*.arrays"))


def test_an_image_that_changes_while_it_is_checked_is_not_believed_later(folder, readings, monkeypatch):
    real = room.check_files

    def check(*arguments: Any) -> list[str]:
        found = real(*arguments)
        os.utime(folder / "train" / "10.jpg")
        return found

    monkeypatch.setattr(room, "check_files", check)
    opened(folder)
    assert not list((folder.parent / "cache" / "annotations").glob("*.arrays"))


# ---- parts --------------------------------------------------------------------------------------------------------


def test_columns_are_sequences_of_plain_values():
    ids, sizes = Column(np.array([3, 5, 2**40])), Column(np.array([[1, 2], [3, 4]]))
    plain = (3, 5, 2**40)
    assert ids == plain and plain == ids and ids.index(5) == 1 and 5 in ids and ids[-1] == 2**40
    assert type(ids[0]) is int and sizes[1] == (3, 4) and list(sizes) == [(1, 2), (3, 4)] and ids[1:] == (5, 2**40)
    assert np.array(sizes, np.float64).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    with pytest.raises(IndexError):
        ids[3]
    names = ("a.jpg", "", "ü/\udcff.png", "猫")
    assert Texts.of(names) == names and Texts.of(()) == ()


def test_no_segmentation_at_all_makes_columns_too():
    assert len(Segmentations.of([])) == 0


@pytest.mark.parametrize(
    "values", [np.zeros((0, 4)), np.arange(3), np.array([True, False]), np.eye(3, dtype=np.float32)]
)
def test_arrays_come_back(tmp_path, values):
    write_arrays(tmp_path / "a", {"about": "this"}, {"first": values, "second": np.arange(5)})
    found = map_arrays(tmp_path / "a", {"about": "this"})
    assert found is not None and found.header["about"] == "this"
    assert np.array_equal(found.arrays["first"], values) and found.arrays["first"].dtype == values.dtype
    assert found.arrays["second"].tolist() == list(range(5)) and not found.arrays["second"].flags.writeable
    assert map_arrays(tmp_path / "a", {"about": "that"}) is None and map_arrays(tmp_path / "none", {}) is None
