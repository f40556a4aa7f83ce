"""Reading COCO-layout folders: what is legal, and one clear line for each thing that is not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from harness.config import DataConfig
from harness.data import checks, fingerprint, open_dataset, open_splits, pixels
from harness.data.coco import CocoDataset
from harness.errors import UserError
from harness.schedule.schedule import check_datasets
from harness.spec.grid import open_grid
from tests.support.folders import real_data, tables, write_folder, write_split


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "set")


def change(folder, edit, split="train"):
    """Apply `edit` to the annotation file's content."""
    path = folder / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def complaint(folder, split="train") -> str:
    with pytest.raises(UserError) as caught:
        CocoDataset(folder, split, progress=lambda line: None)
    return str(caught.value)


# ---- what is legal ------------------------------------------------------------------------------------------------


def test_reads_ids_with_gaps_and_zero_crowds_and_empty_images(folder):
    data = CocoDataset(folder, "train")
    assert data.category_ids == (0, 7, 90) and data.category_names == ("ant", "bee", "cow")
    assert data.image_ids == (10, 20, 30, 40) and len(data) == 4 and data.num_boxes == 5
    assert data.area_bounds == (32.0**2, 96.0**2)
    content = tables(0)
    for index, image_id in enumerate(data.image_ids):
        image, boxes, labels, crowd = data.load(index)
        rows = [row for row in content["annotations"] if row["image_id"] == image_id]
        single = [row for row in rows if not row["iscrowd"]]
        assert image.shape == (*data.image_hw[index], 3) and image.dtype == np.uint8
        assert [data.category_ids[label] for label in labels] == [row["category_id"] for row in single]
        expected = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in single)]
        assert boxes.tolist() == expected and boxes.shape == (len(single), 4)
        assert len(crowd) == len(rows) - len(single)
    assert len(data.load(2)[1]) == 0 and len(data.load(3)[3]) == 1


def test_order_in_the_file_does_not_matter(folder):
    before = CocoDataset(folder, "train")

    def shuffle(content):
        for table in content.values():
            table.reverse()

    change(folder, shuffle)
    after = CocoDataset(folder, "train")
    assert after.category_ids == before.category_ids and after.image_ids == before.image_ids
    assert sorted(after.boxes(0)[0].tolist()) == sorted(before.boxes(0)[0].tolist())


def test_ground_truth_keeps_every_number_of_the_file(folder):
    def edit(content):
        del content["annotations"][1]["area"], content["annotations"][1]["iscrowd"]
        content["annotations"][0]["id"] = 0
        content["annotations"][0]["bbox"] = [-0.5, 0.25, 12.125, 9.7]
        content["annotations"][0]["segmentation"] = [[0, 0, 5, 5, 0, 5]]

    change(folder, edit)
    data = CocoDataset(folder, "train", progress=lambda line: None)
    rows = data.ground_truth["annotations"]
    assert [row["id"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["bbox"] == [-0.5, 0.25, 12.125, 9.7]
    assert rows[1]["area"] == rows[1]["bbox"][2] * rows[1]["bbox"][3] and rows[1]["iscrowd"] == 0
    json.dumps(data.ground_truth)


def test_rounding_over_the_border_is_clipped_and_counted(folder):
    said = []
    change(folder, lambda content: content["annotations"][0].update(bbox=[-0.6, 3, 97.2, 20]))
    data = CocoDataset(folder, "train", progress=said.append)
    assert data.num_clipped == 1 and any("1 boxes clipped" in line for line in said)
    assert data.boxes(0)[0][0].tolist() == [0, 3, 96, 23]


def test_official_folder_names_are_found(folder):
    (folder / "train").rename(folder / "train2017")
    names = folder / "annotations"
    (names / "instances_train.json").rename(names / "instances_train2017.json")
    assert len(CocoDataset(folder, "train")) == 4


def test_grey_and_png_images_become_rgb(folder):
    Image.fromarray(np.full((64, 96), 7, np.uint8)).save(folder / "train" / "10.png")
    change(folder, lambda content: content["images"][0].update(file_name="10.png"))
    image = CocoDataset(folder, "train").load(0)[0]
    assert image.shape == (64, 96, 3) and (image == 7).all()


def test_own_area_bounds(folder):
    change(folder, lambda content: content.update(info={"area_bounds": [100, 400]}))
    assert CocoDataset(folder, "train").area_bounds == (100.0, 400.0)


def test_the_two_known_empty_boxes_of_coco_are_left_out(folder):
    def edit(content):
        content["images"][0]["id"] = content["annotations"][0]["image_id"] = 200365
        content["annotations"][1]["image_id"] = 200365
        content["annotations"][0].update(id=918, bbox=[29.65, 38.33, 1.03, 0.0], area=0.0)

    change(folder, edit)
    data = CocoDataset(folder, "train", progress=lambda line: None)
    assert data.num_left_out == 1 and data.num_boxes == 4 and len(data.ground_truth["annotations"]) == 5


# ---- what is not --------------------------------------------------------------------------------------------------


def drop_annotations(content, image_id):
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] != image_id]


BROKEN = {
    "box without area": (
        lambda content: content["annotations"][0].update(bbox=[3, 3, 0, 5]),
        ["annotation 1 (image 10)", "[3, 3, 0, 5] has no area", "remove it"],
    ),
    "box outside": (
        lambda content: content["annotations"][0].update(bbox=[90, 3, 20, 5]),
        ["annotation 1 (image 10)", "outside the image of 96x64", "clip or remove"],
    ),
    "box not numbers": (
        lambda content: content["annotations"][0].update(bbox=[1, "2", 3, 4]),
        ["annotation 1 (image 10)", "must be four numbers"],
    ),
    "box missing": (lambda content: content["annotations"][0].pop("bbox"), ["bbox None", "four numbers"]),
    "unknown category": (
        lambda content: content["annotations"][1].update(category_id=3),
        ["annotation 2 (image 10)", "category 3", "not listed"],
    ),
    "unknown image": (lambda content: content["annotations"][0].update(image_id=99), ["annotation 1", "image 99"]),
    "image id twice": (lambda content: content["images"].append(content["images"][0]), ["image id 10 is there twice"]),
    "annotation id twice": (lambda content: content["annotations"][1].update(id=1), ["annotation id 1 is there twice"]),
    "category id twice": (
        lambda content: content["categories"].append({"id": 7, "name": "dog"}),
        ["category id 7 is there twice"],
    ),
    "category name twice": (lambda content: content["categories"][1].update(name="ant"), ["'ant'", "own name"]),
    "id a text": (lambda content: content["annotations"][0].update(id="x"), ["annotation id 'x'", "whole number"]),
    "id beyond 64 bits": (
        lambda content: content["annotations"][0].update(id=2**63),
        [f"annotation id {2**63} must be a whole number below 2^63"],
    ),
    "id a list and box bad": (
        lambda content: content["annotations"][0].update(id=[1], bbox=[3, 3, 5, 5], category_id=0, image_id=10),
        ["annotation id [1] must be a whole number"],
    ),
    "box beyond floats": (
        lambda content: content["annotations"][0].update(bbox=[1, 2, 3, 10**400]),
        ["annotation 1 (image 10)", "must be four numbers"],
    ),
    "id a list": (
        lambda content: content["categories"].append({"id": [1], "name": "dog"}),
        ["category id [1] must be a whole number"],
    ),
    "no categories": (lambda content: content.pop("categories"), ["categories is missing"]),
    "no images": (lambda content: content.update(images=[], annotations=[]), ["images is empty"]),
    "image missing": (
        lambda content: content["images"][0].update(file_name="gone.jpg"),
        ["image 10 (gone.jpg)", "is missing in", "add it"],
    ),
    "other size": (
        lambda content: content["images"][2].update(width=81),
        ["image 30 (30.jpg) is 80x80", "says 81x80"],
    ),
    "exif orientation": (
        lambda content: (content["images"][1].update(width=96, height=64), drop_annotations(content, 20)),
        ["image 20 (20.jpg) is 64x96", "says 96x64", "store the image upright"],
    ),
    "size absent": (lambda content: content["images"][2].pop("width"), ["image 30 has width None"]),
    "iscrowd odd": (lambda content: content["annotations"][0].update(iscrowd=2), ["annotation 1 has iscrowd 2"]),
    "area a text": (lambda content: content["annotations"][0].update(area="9"), ["annotation 1 has area '9'"]),
    "area bounds": (lambda content: content.update(info={"area_bounds": [9, 4]}), ["info.area_bounds [9, 4]"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_mistake_is_one_clear_line(folder, name):
    edit, parts = BROKEN[name]
    change(folder, edit)
    text = complaint(folder)
    assert "\n" not in text and text.startswith(str(folder / "annotations" / "instances_train.json"))
    for part in parts:
        assert part in text


def test_truncated_jpeg(folder):
    path = folder / "train" / "20.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    text = complaint(folder)
    assert "image 20 (20.jpg) cannot be read" in text and "truncated" in text and "\n" not in text


def test_not_an_image(folder):
    (folder / "train" / "20.jpg").write_bytes(b"hello")
    assert "image 20 (20.jpg) cannot be read (not an image)" in complaint(folder)


def test_broken_json(folder):
    path = folder / "annotations" / "instances_train.json"
    path.write_text(path.read_text()[:100])
    text = complaint(folder)
    assert str(path) in text and "broken JSON" in text and "line 1 column" in text and "\n" not in text


def test_json_of_another_kind(folder):
    (folder / "annotations" / "instances_train.json").write_text("[1, 2]")
    assert "one JSON object" in complaint(folder)


def test_missing_parts_of_the_layout(folder):
    assert "no such folder" in complaint(folder / "nowhere")
    (folder / "train").rename(folder / "training")
    text = complaint(folder)
    assert "image folder train/ is missing" in text and "the layout is" in text
    assert "here are annotations/instances_train.json, " in text and ", training/" in text
    (folder / "annotations" / "instances_train.json").unlink()
    text = complaint(folder)
    assert "annotations/instances_train.json is missing" in text and "the layout is" in text
    shutil.rmtree(folder)
    folder.mkdir()
    assert "; here is nothing; " in complaint(folder)


def test_more_objects_than_queries_is_told_before_training(folder, tmp_path):
    """A query finds one object at most. Crowds are no objects."""
    text = "rows: [{label: a, set: {model.num_queries: 1}}, {label: b, set: {model.num_queries: 2}}]"
    (tmp_path / "table.yaml").write_text(text)
    trials = open_grid(tmp_path / "table.yaml", "digits_fast", data=str(folder)).trials
    most = max(len(data.boxes(index)[0]) for data in open_splits(trials[0].config.data) for index in range(len(data)))
    assert most == 2
    said: list[str] = []
    check_datasets(trials, said.append)
    [line] = said
    assert line.startswith("note: ") and "2 objects" in line and "model.num_queries=1" in line
    said.clear()
    check_datasets(trials[1:], said.append)
    assert not said


def test_every_problem_stands_in_one_report(folder):
    def edit(content):
        content["annotations"][0]["bbox"] = [3, 3, 0, 5]
        content["annotations"][1]["category_id"] = 3
        content["images"][3]["file_name"] = "gone.jpg"

    change(folder, edit)
    (folder / "train" / "20.jpg").write_bytes(b"hello")
    lines = complaint(folder).splitlines()
    assert lines[0].endswith(": 4 problems") and len(lines) == 5
    for part in ("has no area", "category 3", "gone.jpg", "not an image"):
        assert sum(part in line for line in lines) == 1


def test_a_long_report_shows_the_first_of_each_kind(tmp_path):
    content = tables(sizes=[(40, 40)] * 12)
    write_split(tmp_path, "train", content)
    for row in content["images"]:
        (tmp_path / "train" / row["file_name"]).unlink()
    lines = complaint(tmp_path).splitlines()
    assert lines[0].endswith("12 problems") and len(lines) == 1 + checks.LINES_PER_KIND + 1
    assert lines[-1].strip() == "… and 7 more like this"


def test_both_splits_are_reported_together_and_compared(folder):
    (folder / "train" / "20.jpg").unlink()
    (folder / "val" / "30.jpg").unlink()
    with pytest.raises(UserError) as caught:
        open_splits(DataConfig(path=str(folder)))
    assert "image 20 (20.jpg)" in str(caught.value) and "image 30 (30.jpg)" in str(caught.value)
    write_folder(folder)
    change(folder, lambda content: content["categories"][1].update(name="wasp"), split="val")
    with pytest.raises(UserError, match=r"differ from those of instances_train.json \(ids 7\)"):
        open_splits(DataConfig(path=str(folder)))


def test_an_image_broken_after_the_check_is_named(folder):
    data = CocoDataset(folder, "train")
    (folder / "train" / "20.jpg").write_bytes(b"hello")
    with pytest.raises(UserError, match="20.jpg: image 20 cannot be read"):
        data.load(1)


# ---- what is remembered -------------------------------------------------------------------------------------------


def test_good_images_are_read_once_and_changed_ones_again(folder, monkeypatch):
    CocoDataset(folder, "train")
    opened = []
    original = Image.open
    monkeypatch.setattr(pixels.Image, "open", lambda *args: opened.append(1) or original(*args))
    CocoDataset(folder, "train")
    assert not opened
    path = folder / "train" / "20.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    assert "image 20" in complaint(folder)
    assert "image 20" in complaint(folder), "a bad verdict is never remembered"


def test_fingerprint_follows_content_not_place(folder, tmp_path):
    config = DataConfig(path=str(folder))
    first = fingerprint(config)
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(folder, copy)
    (copy / "val" / ".DS_Store").write_text("x")
    (copy / "README.md").write_text("x")
    assert fingerprint(DataConfig(path=str(copy))) == first
    with open(copy / "val" / "10.jpg", "ab") as stream:
        stream.write(b"\0")
    second = fingerprint(DataConfig(path=str(copy)))
    (copy / "val" / "10.jpg").rename(copy / "val" / "11.jpg")
    third = fingerprint(DataConfig(path=str(copy)))
    change(folder, lambda content: content["annotations"][0].update(area=1))
    assert len({first, second, third, fingerprint(config)}) == 4


def test_fingerprint_hashes_annotations_again_only_when_they_changed(folder, monkeypatch):
    config = DataConfig(path=str(folder))
    path = folder / "annotations" / "instances_val.json"
    first = fingerprint(config)
    status = path.stat()
    hashed: list[str] = []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda stream, how: hashed.append(stream.name) or real(stream, how))
    assert fingerprint(config) == first and not hashed
    path.write_text(path.read_text().replace("cow", "cat"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(config) != first and len(hashed) == 1, "size and modification time tell nothing"


@pytest.mark.parametrize("name", ["bccd", "coco_mini"])
def test_real_data_is_sound(name):
    train, val = open_splits(DataConfig(path=str(real_data(name))))
    assert (len(train), len(val)) == {"bccd": (292, 72), "coco_mini": (160, 158)}[name]
    assert train.num_classes == {"bccd": 3, "coco_mini": 80}[name]
    assert open_dataset(DataConfig(path=str(real_data(name))), "val").image_ids == val.image_ids
