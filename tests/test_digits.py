"""The embedded data set: what an image depends on, what its boxes enclose, how it comes into the cache."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from harness.config import DataConfig, DigitsConfig
from harness.data import digits, fingerprint, open_splits, ticker
from harness.data.digits import ensure_digits, run_lengths
from harness.data.scenes import draw_scene, load_parts
from harness.errors import UserError

TINY = DigitsConfig(num_train=12, num_val=4, image_size=96)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def parts():
    return {split: load_parts(split) for split in ("train", "val")}


def scenes(parts, count: int, difficulty: float, size: int = 160):
    return [draw_scene(np.random.default_rng([5, k]), parts["train"], size, difficulty) for k in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def test_a_fresh_cache_gives_the_same_files_to_the_byte(tmp_path, monkeypatch):
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "first"))
    first = contents(ensure_digits(TINY, progress=lambda line: None))
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "second"))
    assert contents(ensure_digits(TINY, progress=lambda line: None)) == first
    assert len(first) == 12 + 4 + 2


def test_an_image_does_not_depend_on_how_many_there_are(own_cache):
    few = ensure_digits(TINY, progress=lambda line: None)
    more = ensure_digits(dataclasses.replace(TINY, num_train=14, num_val=7), progress=lambda line: None)
    assert few != more
    for name in [f"train/{k:06d}.jpg" for k in range(12)] + [f"val/{k:06d}.jpg" for k in range(4)]:
        assert (few / name).read_bytes() == (more / name).read_bytes()
    assert (few / "train/000000.jpg").read_bytes() != (few / "val/000000.jpg").read_bytes()


def test_fingerprint_follows_every_parameter_and_the_generator_and_generates_nothing(own_cache, monkeypatch):
    changes = [
        {"num_train": 13},
        {"num_val": 5},
        {"image_size": 128},
        {"difficulty": 0.6},
        {"seed": 1},
    ]
    assert {name for change in changes for name in change} == {field.name for field in dataclasses.fields(TINY)}
    prints = [fingerprint(DataConfig(digits=TINY))]
    prints += [fingerprint(DataConfig(digits=dataclasses.replace(TINY, **change))) for change in changes]
    monkeypatch.setattr(digits, "GENERATOR_VERSION", digits.GENERATOR_VERSION + 1)
    prints.append(fingerprint(DataConfig(digits=TINY)))
    assert len(set(prints)) == len(changes) + 2
    assert not list(own_cache.iterdir())


def test_splits_share_no_digit_and_no_photo(parts):
    rows = {split: {digit.tobytes() for digit in found.digits} for split, found in parts.items()}
    assert len(parts["train"].digits) == 1260 and len(parts["val"].digits) == 1797 - 1260
    assert not rows["train"] & rows["val"]
    for left, right in zip(parts["train"].photos, parts["val"].photos, strict=True):
        assert left.size == right.size == (320, 427)
        assert np.abs(np.asarray(left, float) - np.asarray(right, float)).mean() > 5


def test_opens_as_a_sound_data_set_with_its_own_area_bounds(own_cache):
    train, val = open_splits(DataConfig(digits=TINY), progress=lambda line: None)
    assert (len(train), len(val), train.num_classes) == (12, 4, 10)
    assert train.category_names == tuple("0123456789")
    assert train.area_bounds == val.area_bounds == (256.0, 1024.0)
    assert train.num_clipped == 0
    info = json.loads(train.annotation_file.read_text())["info"]
    assert "CC BY 2.0" in info["attribution"] and "danielbuechele" in info["attribution"]
    assert train.load(0)[0].shape == (96, 96, 3)


def test_boxes_enclose_the_masks_exactly(own_cache):
    folder = ensure_digits(TINY, progress=lambda line: None)
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    assert len(content["annotations"]) > 20
    for row in content["annotations"]:
        height, width = row["segmentation"]["size"]
        counts = row["segmentation"]["counts"]
        mask = np.repeat(np.arange(len(counts)) % 2, counts).reshape(width, height).T.astype(bool)
        ys, xs = np.nonzero(mask)
        x, y, w, h = row["bbox"]
        assert (x, y, x + w, y + h) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert row["area"] == mask.sum() > 0


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_run_lengths_are_those_of_the_coco_tools():
    mask_tools = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for mask in [rng.random((7, 5)) < 0.5, np.zeros((3, 4), bool), np.ones((4, 3), bool)]:
        lengths = run_lengths(mask)
        encoded = mask_tools.frPyObjects({"size": list(mask.shape), "counts": lengths}, *mask.shape)
        assert (mask_tools.decode(encoded).astype(bool) == mask).all()


def test_scenes_have_what_is_promised(parts):
    drawn = scenes(parts, 400, 0.5)
    counts = np.array([len([item for item in scene.objects if not item.crowd]) for scene in drawn])
    assert counts.max() == 8 and 4 < counts.mean() < 5.5
    assert 0.002 < (counts == 0).mean() < 0.05
    crowds = [item for scene in drawn for item in scene.objects if item.crowd]
    assert 4 <= len(crowds) <= 25
    areas = np.array([item.mask.sum() for scene in drawn for item in scene.objects])
    for share in ((areas < 256).mean(), ((areas >= 256) & (areas < 1024)).mean(), (areas >= 1024).mean()):
        assert share > 0.08
    assert len({item.label for scene in drawn for item in scene.objects}) == 10


def test_no_two_objects_own_a_pixel(parts):
    for scene in scenes(parts, 50, 1.0):
        if scene.objects:
            assert np.sum([item.mask for item in scene.objects], axis=0).max() == 1


def test_difficulty_lowers_contrast_and_the_visible_part(parts):
    def contrast(difficulty: float) -> float:
        differences = []
        for scene in scenes(parts, 60, difficulty):
            luminance = scene.image @ np.array([0.299, 0.587, 0.114])
            for item in scene.objects:
                ys, xs = np.nonzero(item.mask)
                box = (slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1))
                outside = ~item.mask[box]
                if outside.any() and not item.crowd:
                    differences.append(abs(luminance[item.mask].mean() - luminance[box][outside].mean()))
        return float(np.mean(differences))

    easy, middle, hard = (contrast(value) for value in (0.0, 0.5, 1.0))
    assert easy > middle + 10 > hard + 20


def _generate(answers) -> None:
    said: list[str] = []
    answers.put((str(ensure_digits(TINY, progress=said.append)), said))


def test_two_processes_generate_once(own_cache):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=_generate, args=(answers,)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found[0][0] == found[1][0]
    assert [any("writing" in line for line in said) for _, said in found].count(True) == 1  # said again while it lasts
    assert not list((own_cache / "digits").glob("*.tmp"))


def test_waiting_for_the_lock_is_not_silent(own_cache, monkeypatch):
    monkeypatch.setattr(ticker, "INTERVAL_SECONDS", 0.05)
    folder = own_cache / "digits" / digits.digits_fingerprint(TINY)
    folder.parent.mkdir()
    said: list[str] = []
    with FileLock(f"{folder}.lock"):
        waiter = threading.Thread(target=ensure_digits, args=(TINY, said.append))
        waiter.start()
        waiter.join(timeout=0.4)
        assert waiter.is_alive() and any("another process" in line for line in said)
    waiter.join(timeout=30)
    assert folder.is_dir()


def test_a_killed_generation_leaves_no_half_data_set(own_cache):
    folder = own_cache / "digits" / digits.digits_fingerprint(TINY)
    leftover = folder.with_name(f"{folder.name}.deadbeef.tmp")
    (leftover / "train").mkdir(parents=True)
    assert ensure_digits(TINY, progress=lambda line: None) == folder
    assert not leftover.exists() and len(list((folder / "train").iterdir())) == 12


def test_a_cache_that_cannot_be_written_is_said(own_cache, monkeypatch):
    (own_cache / "file").write_text("")
    monkeypatch.setenv("CODETR_CACHE", str(own_cache / "file"))
    with pytest.raises(UserError, match="set CODETR_CACHE to another folder"):
        ensure_digits(TINY, progress=lambda line: None)


def test_a_damaged_cache_says_how_to_renew_it(own_cache):
    folder = ensure_digits(TINY, progress=lambda line: None)
    (folder / "val" / "000001.jpg").unlink()
    with pytest.raises(UserError, match=f"delete {folder} to have them written again"):
        open_splits(DataConfig(digits=TINY), progress=lambda line: None)


def test_images_are_jpeg_of_the_asked_size(own_cache):
    folder = ensure_digits(TINY, progress=lambda line: None)
    with Image.open(folder / "val" / "000003.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (96, 96))
