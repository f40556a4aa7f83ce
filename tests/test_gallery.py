"""The gallery of a page: which images it shows, what stands on them, and that classes are chosen without a script."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import harness.report
from harness.data.coco import CocoDataset
from harness.report.gallery import Entry, Model, changed, to_gallery, with_all, worst
from tests.support.folders import tables, write_split
from tests.support.page import Page


def box(category: int, x: float, score: float | None = None) -> dict[str, Any]:
    row = {"category_id": category, "bbox": [x, 10.0, 20.0, 20.0], "iscrowd": 0}
    return row if score is None else {**row, "score": score}


TRUTH = {
    1: [box(1, 0), box(1, 40)],
    2: [box(1, 0)],
    3: [box(2, 0)],
    4: [],
}
POOR = Model("K = 0", "a" * 12, {1: [box(1, 0, 0.9)], 2: [box(1, 0, 0.9)], 3: [box(1, 0, 0.9)]}, 0.5)
GOOD = Model(
    "K = 1",
    "b" * 12,
    {
        1: [box(1, 0, 0.9), box(1, 40, 0.8)],
        2: [box(1, 0, 0.9), box(1, 41, 0.3)],
        3: [box(2, 0, 0.7)],
        4: [box(2, 0, 0.6)],
    },
    0.5,
)


def test_the_worst_come_first_and_what_is_right_does_not_come() -> None:
    assert [own.image_id for own in worst(TRUTH, POOR)] == [3, 1]  # F1 of 0 and of 2 / 3
    assert [own.image_id for own in worst(TRUTH, GOOD)] == [4]
    assert [own.image_id for own in worst(TRUTH, POOR, 1)] == [3]


def test_what_changed_most_in_either_direction() -> None:
    found = changed(TRUTH, (POOR, GOOD))
    assert [own.image_id for own in found] == [3, 4, 1]  # by 1 (better), by 1 (worse), by a third; 2 is equal
    assert [len(own.matches) for own in found] == [2, 2, 2]
    assert changed(TRUTH, (GOOD, GOOD)) == []


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    content = tables(1)
    write_split(tmp_path, "val", content)
    return CocoDataset(tmp_path, "val")


def gallery_of(dataset: CocoDataset, models: tuple[Model, ...] | None = None) -> dict[str, Any]:
    truth: dict[int, list[Any]] = {image: [] for image in dataset.image_ids}
    for row in dataset.ground_truth["annotations"]:
        truth[row["image_id"]].append(row)
    found = {
        image: [{**row, "score": 0.9} for row in rows if not row["iscrowd"]][: 1 + number]
        for number, (image, rows) in enumerate(truth.items())
    }
    models = models or (Model("none <b>", "a", {}, 0.5), Model("some", "b", found, 0.5))
    groups = (("Most changed", changed(truth, models)), ("Worst", with_all(worst(truth, models[-1]), truth, models)))
    made = to_gallery(dataset, truth, models, groups, "own")
    assert made is not None
    return made


def render(found: dict[str, Any]) -> str:
    folder = Path(harness.report.__file__).parent
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=FileSystemLoader(folder))
    return environment.from_string('{% from "gallery.html" import gallery %}{{ gallery(found) }}').render(found=found)


def test_every_image_is_there_once_and_every_panel_shows_it(dataset: CocoDataset) -> None:
    found = gallery_of(dataset)
    text = render(found)
    assert text.count("data:image/jpeg;base64,") == len(found["images"])
    items = [item for group in found["groups"] for item in group["items"]]
    assert text.count("<use ") == 3 * len(items)  # what is there, and both models
    page = Page(text)
    assert not page.open and not {name for name, _ in page.elements} & {"script", "iframe", "link"}
    assert not re.search(r"(?:href|src)=\"(?!#|data:)", text) and "url(" not in text
    assert "none &lt;b&gt;" in text and "<b>" not in text.replace("<br>", "")


def test_a_class_is_chosen_by_style_alone(dataset: CocoDataset) -> None:
    found = gallery_of(dataset)
    text = render(found)
    picks = [own["id"] for own in Page(text).all("input") if "id" in own]
    assert len(picks) == len(found["classes"]) > 1
    for own in found["classes"]:
        assert f"#gallery-own:has(#pick-own-{own['number']}:checked)" in text
        assert own["count"] == sum(own["number"] in image["classes"] for image in found["images"]) > 0
    for group in found["groups"]:
        for item in group["items"]:
            boxes = [box for panel in item["panels"] for box in panel["boxes"]]
            assert item["classes"] == sorted({box["class"] for box in boxes})


def test_what_is_wrong_is_marked(dataset: CocoDataset) -> None:
    found = gallery_of(dataset)
    (item, *_) = found["groups"][0]["items"]
    truth, none, some = item["panels"]
    objects = [box for box in truth["boxes"] if box["kind"] != "crowd"]
    assert none["words"] == f"0 found, {len(objects)} missed, 0 false" and none["boxes"] == []
    missed = [box for box in objects if box["kind"] == "wrong"]
    assert len(missed) == len(objects) - int(some["words"].split()[0])
    assert all(box["kind"] == "" and box["words"].endswith("0.90") for box in some["boxes"])


def test_nothing_to_show(dataset: CocoDataset) -> None:
    model = Model("one", "a", {}, 0.5)
    truth: dict[int, list[Any]] = {image: [] for image in dataset.image_ids}
    assert to_gallery(dataset, truth, (model,), (("Worst", worst(truth, model)),), "own") is None
    assert isinstance(Entry(1, ()), Entry)
