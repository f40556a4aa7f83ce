"""LVIS: which classes an image is annotated for, its federated evaluation, its layout and that of Objects365."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.lvis_size import write_lvis
from harness.analyse.resample import METRICS as RESAMPLED
from harness.analyse.resample import average_precision, match_images
from harness.config import DataConfig, EvaluateConfig
from harness.data import CocoDataset, fingerprint, open_splits
from harness.data import tables as data_tables
from harness.data.federated import Judged
from harness.data.loader import Loader
from harness.data.masks import packed
from harness.errors import UserError
from harness.figures.matching import best_threshold, match
from harness.mistakes.measured import measure
from harness.report.notes import undefined_reason
from harness.report.shown_images import rows_by_image
from harness.report.tables import make_table, metric_of
from harness.schedule.schedule import check_datasets
from harness.spec.detection_metrics import LVIS_METRICS, is_detection_metric, limit_of
from harness.store.results import RunStore
from harness.trial import federated
from harness.trial.detections import DetectionTable
from harness.trial.evaluate import evaluate, evaluate_at_limit, evaluate_detections
from harness.trial.trial import run_trial
from tests.support.folders import SIZES, tables, write_split
from tests.support.oracle import Oracle, open_tables
from tests.support.quickstart import silent, trial_of
from tests.support.report_grid import make_grid, make_record

FASTER = "faster_coco_eval"
AT_1000 = [f"{name}@1000" for name in ("AP", "AP50", "AP75", "APS", "APM", "APL", "APr", "APc", "APf", "AR")]


def federated_tables(seed: int = 0, images: int = 12, **options: Any) -> dict[str, Any]:
    """Every image looked for some classes: 0 is rare, 7 common, 90 frequent."""
    content = tables(seed, sizes=[SIZES[0]] * images, **options)
    rng = np.random.default_rng(seed)
    of_image: dict[int, set[int]] = {row["id"]: set() for row in content["images"]}
    for row in content["annotations"]:
        row["iscrowd"] = 0
        of_image[row["image_id"]].add(row["category_id"])
    for row in content["images"]:
        others = [number for number in (0, 7, 90) if number not in of_image[row["id"]]]
        row["neg_category_ids"] = [number for number in others if rng.random() < 0.5]
        row["not_exhaustive_category_ids"] = [number for number in (0, 7, 90) if rng.random() < 0.2]
    for row, frequency in zip(content["categories"], "rcf", strict=True):
        row["frequency"] = frequency
    return content


@pytest.fixture
def split(tmp_path: Path) -> CocoDataset:
    return open_tables(tmp_path, federated_tables())


def noisy(dataset: CocoDataset, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    found = []
    for row in dataset.ground_truth["annotations"]:
        for _ in range(int(rng.integers(0, 4))):
            box = (np.array(row["bbox"]) + rng.normal(0, 3, 4)).clip(1).tolist()
            category = row["category_id"] if rng.random() < 0.7 else int(rng.choice([0, 7, 90]))
            score = round(float(rng.random()), 1)
            found.append({"image_id": row["image_id"], "category_id": category, "bbox": box, "score": score})
    return found


def true_ones(dataset: CocoDataset) -> list[dict[str, Any]]:
    names = ("image_id", "category_id", "bbox")
    return [{name: row[name] for name in names} | {"score": 0.9} for row in dataset.ground_truth["annotations"]]


# ---- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", [False, True])
def test_what_an_image_is_annotated_for_is_as_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    if mapped:
        monkeypatch.setattr(data_tables, "MAPPED_FROM", 0)
    content = federated_tables()
    first = open_tables(tmp_path, content)
    for data in (first, CocoDataset(tmp_path, "val", progress=lambda line: None)):
        assert data.protocol == "lvis" and data.frequencies == ("r", "c", "f")
        for told, read in zip(content["images"], data.ground_truth["images"], strict=True):
            assert {key: told[key] for key in ("id", "neg_category_ids", "not_exhaustive_category_ids")}.items() <= (
                read.items()
            )
        assert [row["frequency"] for row in data.ground_truth["categories"]] == ["r", "c", "f"]


def test_frequencies_follow_from_counts_of_images(tmp_path: Path) -> None:
    content = federated_tables()
    for row, count in zip(content["categories"], (10, 100, 101), strict=True):
        del row["frequency"]
        row["image_count"] = count
    assert open_tables(tmp_path, content).frequencies == ("r", "c", "f")


def test_a_file_without_frequencies_says_so_and_has_the_other_metrics(tmp_path: Path) -> None:
    content = federated_tables()
    for row in content["categories"]:
        del row["frequency"]
    open_tables(tmp_path, content)
    said: list[str] = []
    data = CocoDataset(tmp_path, "val", progress=said.append)
    assert [line for line in said if "APr, APc and APf are left out" in line]
    metrics = evaluate_detections(data, true_ones(data), FASTER)
    assert metrics["AP"] == pytest.approx(100) and not {"APr", "APc", "APf"} & metrics.keys()


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    content = federated_tables()
    rows = content["images"]
    del rows[0]["neg_category_ids"], rows[1]["neg_category_ids"], rows[2]["not_exhaustive_category_ids"]
    rows[3]["neg_category_ids"] = [7, "ant"]
    rows[4]["neg_category_ids"] = 7
    rows[5]["not_exhaustive_category_ids"] = [8]
    content["categories"][0]["frequency"] = "rare"
    del content["categories"][1]["frequency"]
    with pytest.raises(UserError) as caught:
        open_tables(tmp_path, content)
    text = str(caught.value)
    for part in (
        "7 problems",
        "image 10 has no neg_category_ids, like 2 of 12 images: as in LVIS each image must say",
        "image 30 has no not_exhaustive_category_ids: as in LVIS",
        "image 40 has neg_category_ids [7, 'ant']; must be a list of category ids",
        "image 50 has neg_category_ids 7; must be a list of category ids",
        "image 60 has category 8 in its not_exhaustive_category_ids, which is not listed",
        "category 0 has frequency 'rare'; must be r, c or f",
        "1 of 3 categories have no frequency (r, c or f) and no image_count: category 7; add one",
    ):
        assert part in text


@pytest.mark.parametrize("key", ["neg_category_ids", "not_exhaustive_category_ids"])
def test_a_file_that_says_so_of_some_images_only_is_never_evaluated_as_coco(tmp_path: Path, key: str) -> None:
    content = tables()
    content["images"][-1][key] = []
    with pytest.raises(UserError, match=f"image 10 has no {key}, like 3 of 4 images: as in LVIS each image must say"):
        open_tables(tmp_path, content)


def test_a_class_that_is_there_and_is_told_not_to_be_is_noted(tmp_path: Path) -> None:
    content = federated_tables()
    first, second = content["annotations"][0], content["annotations"][3]
    images = {row["id"]: row for row in content["images"]}
    for row in (first, second):
        images[row["image_id"]]["neg_category_ids"] = [0, 7, 90]
    content["annotations"].append({**first, "id": 10**6, "bbox": [1, 1, 9, 9], "area": 81})  # of the same class
    open_tables(tmp_path, content)
    said: list[str] = []
    CocoDataset(tmp_path, "val", progress=said.append)
    own = {(row["image_id"], row["category_id"]) for row in content["annotations"]}
    count = sum(row["image_id"] in (first["image_id"], second["image_id"]) for row in content["annotations"]) - 1
    assert len({pair for pair in own if pair[0] in (first["image_id"], second["image_id"])}) == count
    told = f"{count} times an image has objects of a class that its neg_category_ids say is not there (image 10"
    assert [line for line in said if told in line and "the objects count" in line]


def both_splits(root: Path, train: dict[str, Any], val: dict[str, Any]) -> list[str]:
    """What is said of two splits together."""
    for row in val["images"]:
        row["file_name"] = f"val_{row['file_name']}"
    write_split(root, "train", train)
    write_split(root, "val", val, seed=1)
    said: list[str] = []
    open_splits(DataConfig(path=str(root)), progress=said.append)
    return said


@pytest.mark.parametrize("split", ["train", "val"])
def test_splits_of_two_protocols_are_refused(tmp_path: Path, split: str) -> None:
    contents = {"train": federated_tables(0), "val": federated_tables(1)}
    for row in contents[split]["images"]:
        del row["neg_category_ids"], row["not_exhaustive_category_ids"]
    other = "val" if split == "train" else "train"
    told = f"images of instances_{other}.json have neg_category_ids, as in LVIS, those of instances_{split}.json do not"
    with pytest.raises(UserError) as caught:
        both_splits(tmp_path, contents["train"], contents["val"])
    assert str(caught.value) == f"{tmp_path}/annotations/instances_val.json: {told}; give both files one format"


def test_frequencies_that_differ_between_splits_are_noted(tmp_path: Path) -> None:
    train, val = federated_tables(0), federated_tables(1)
    val["categories"][2]["frequency"] = "r"
    said = both_splits(tmp_path / "a", train, val)
    told = (
        "1 of its classes have another frequency in instances_train.json ('cow': r here, f there): APr, APc and APf go"
    )
    assert [line for line in said if told in line]
    train, val = federated_tables(0), federated_tables(1)
    for row in train["categories"]:
        del row["frequency"]
    assert not [line for line in both_splits(tmp_path / "b", train, val) if "another frequency" in line]


# ---- the numbers ----------------------------------------------------------------------------------------------------


def test_names_of_lvis() -> None:
    assert all(map(is_detection_metric, (*LVIS_METRICS, *AT_1000, "atss/APr", "segm_APf@1000")))
    assert limit_of("APr@1000") == 1000 and not is_detection_metric("APx")
    assert (metric_of("APr").better, metric_of("atss/AR300").better) == ("higher", "higher")


def test_right_detections_are_worth_100_and_none_are_worth_0(split: CocoDataset) -> None:
    names = [name for name in LVIS_METRICS if name != "APL"]  # no object is so large
    perfect = evaluate_detections(split, true_ones(split), FASTER)
    assert list(perfect) == [*LVIS_METRICS, "per_class"] and perfect["APL"] is None
    assert [perfect[name] for name in names] == pytest.approx([100] * len(names))
    assert perfect["per_class"] == pytest.approx({"ant": 100, "bee": 100, "cow": 100})
    nothing = evaluate_detections(split, [], FASTER)
    assert [nothing[name] for name in names] == [0] * len(names)
    elsewhere = [{"image_id": 4, "category_id": 7, "bbox": [1.0, 1.0, 5.0, 5.0], "score": 0.9}]
    assert evaluate_detections(split, elsewhere, FASTER)["AP"] == 0


def test_what_nobody_looked_for_is_no_mistake(tmp_path: Path) -> None:
    """A false alarm counts where its class was looked for, and where all of its objects are annotated."""
    content = federated_tables()
    box = {"bbox": [1.0, 1.0, 90.0, 60.0], "score": 0.99}
    for row in content["images"]:
        row |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    has = {(row["image_id"], row["category_id"]) for row in content["annotations"]}
    here, absent = next(
        (row["id"], number) for row in content["images"] for number in (0, 7, 90) if (row["id"], number) not in has
    )
    other, present = next(iter(sorted(has)))
    alarms = {
        "unknown": {"image_id": here, "category_id": absent},
        "negative": {"image_id": here, "category_id": absent},
        "annotated": {"image_id": other, "category_id": present},
        "in part": {"image_id": other, "category_id": present},
    }
    found = {}
    for name, alarm in alarms.items():
        for row in content["images"]:
            row["neg_category_ids"] = [absent] if name == "negative" and row["id"] == here else []
            row["not_exhaustive_category_ids"] = [present] if name == "in part" and row["id"] == other else []
        data = open_tables(tmp_path / name.replace(" ", "_"), content)
        found[name] = evaluate_detections(data, [*true_ones(data), {**alarm, **box}], FASTER)["AP"]
    assert found["unknown"] == found["in part"] == pytest.approx(100)
    assert found["negative"] < 99 and found["annotated"] < 99


@pytest.mark.parametrize("at_once", [1, 24])
def test_classes_a_few_at_a_time_give_the_same_numbers(
    split: CocoDataset, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    whole = evaluate_detections(split, noisy(split), FASTER)
    monkeypatch.setattr(federated, "PAIRS_AT_ONCE", at_once)
    assert evaluate_detections(split, noisy(split), FASTER) == whole and 5 < whole["AP"] < 95


def test_a_class_that_no_image_was_looked_for_is_undefined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(federated, "PAIRS_AT_ONCE", 1)
    content = federated_tables()
    content["categories"].append({"id": 95, "name": "dodo", "frequency": "r"})
    data = open_tables(tmp_path, content)
    stray = {"image_id": 10, "category_id": 95, "bbox": [1.0, 1.0, 9.0, 9.0], "score": 0.9}
    metrics = evaluate_detections(data, [*true_ones(data), stray], FASTER)
    assert metrics["per_class"] == pytest.approx({"ant": 100, "bee": 100, "cow": 100, "dodo": None})


def test_300_detections_of_an_image_count(tmp_path: Path) -> None:
    content = federated_tables(images=2)
    for row in content["images"]:
        row |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    data = open_tables(tmp_path, content)
    false = [{"image_id": 10, "category_id": 0, "bbox": [1.0, 1.0, 2.0, 2.0], "score": 0.95}] * 299
    first, *others = [row for row in true_ones(data) if row["image_id"] == 10]
    rest = [row for row in true_ones(data) if row["image_id"] != 10]
    found = [*false, first, *others, *rest]
    assert len(others) == 1
    kept, lost = first["category_id"], others[0]["category_id"]
    names = dict(zip(data.category_ids, data.category_names, strict=True))
    metrics = evaluate_detections(data, found, FASTER)
    every = evaluate_at_limit(data, found, FASTER, 1000)
    assert list(every) == AT_1000
    assert (every["AR@1000"], metrics["AR300"]) == (pytest.approx(100), pytest.approx(100 * 5 / 6))
    assert metrics["per_class"][names[lost]] < 60 and kept != lost


def test_masks(tmp_path: Path) -> None:
    content = federated_tables()
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    data = open_tables(tmp_path, content, with_masks=True)
    found = [
        {**row, "segmentation": packed(told["segmentation"], *SIZES[0])}
        for row, told in zip(true_ones(data), content["annotations"], strict=True)
    ]
    right = evaluate_detections(data, found, FASTER, "segm")
    assert (right["AP"], right["APr"]) == (pytest.approx(100), pytest.approx(100))
    wrong = [{**row, "segmentation": packed([[0, 0, 3, 0, 3, 3]], *SIZES[0])} for row in found]
    assert evaluate_detections(data, wrong, FASTER, "segm")["AP"] == 0


def test_every_image_once_gives_the_evaluators_numbers(split: CocoDataset) -> None:
    found = noisy(split)
    resampled = average_precision(match_images(split, found, 300), np.ones(len(split), int))
    expected = evaluate_detections(split, found, FASTER)
    for name, chosen in RESAMPLED.items():
        assert resampled[chosen].mean() == pytest.approx(expected[name], abs=1e-9), name


def loader_of(data: CocoDataset) -> Loader:
    config = DataConfig(eval_short_side=64, max_long_side=120)
    return Loader(data, config, batch_size=4, training=False, seed=0, size_divisor=8)


def test_the_detector_is_asked_for_300_or_more(split: CocoDataset) -> None:
    asked: list[int] = []

    class Asked(Oracle):
        def detect_and_match(self, batch, branches, max_detections=100):
            asked.append(max_detections)
            return super().detect_and_match(batch, branches, max_detections)

    plain = evaluate(Asked(), loader_of(split), split, EvaluateConfig(), "cpu")
    assert set(asked) == {300} and list(plain.metrics) == list(LVIS_METRICS)
    more = evaluate(Asked(), loader_of(split), split, EvaluateConfig(max_detections=1000), "cpu")
    assert set(asked) == {300, 1000} and list(more.metrics) == [*LVIS_METRICS, *AT_1000]
    assert {name: more.metrics[name] for name in plain.metrics} == plain.metrics


def test_pycocotools_is_refused(split: CocoDataset) -> None:
    match = "pycocotools knows no federated evaluation, which LVIS data needs; set faster_coco_eval"
    with pytest.raises(UserError, match=match):
        evaluate_detections(split, [], "pycocotools")
    with pytest.raises(UserError, match=match):
        evaluate(Oracle(), loader_of(split), split, EvaluateConfig(evaluator="pycocotools"), "cpu")


def test_before_training_pycocotools_is_refused_too(tmp_path: Path) -> None:
    root = lvis_folder(tmp_path)
    trial = trial_of(0, f"data.path={root}", "evaluate.evaluator=pycocotools")
    with pytest.raises(
        UserError, match=r"lvis_v1_val.json: evaluate.evaluator: pycocotools knows no federated"
    ) as caught:
        check_datasets([trial], lambda line: None)
    assert "\n" not in str(caught.value)


def test_why_a_metric_is_missing() -> None:
    lvis = {"metrics": {"AP": 1.0, "APr": None}, "provenance": {"protocol": "lvis"}}
    assert undefined_reason("AR100", [lvis]).endswith("evaluated as LVIS's, which has AR300")
    assert undefined_reason("APr", [lvis]) == "APr is undefined: the validation split has no objects of rare classes"
    assert undefined_reason("APc", [lvis]).endswith("does not tell how frequent its classes are")
    assert undefined_reason("APr", [{"metrics": {"AP": 1.0}}]).startswith("APr is LVIS's: only images with neg_cat")


def test_pictures_call_wrong_what_the_errors_call_wrong(split: CocoDataset) -> None:
    """Neither knows of further objects where only some of a class are annotated."""
    found = noisy(split)
    truth, detections = rows_by_image(split, found)
    expected = measure(split.ground_truth, DetectionTable.of(found)).metrics
    best = best_threshold(truth, detections)
    assert best is not None and best.score == expected["best_f1_threshold"]
    assert 100 * best.precision == pytest.approx(expected["best_f1_precision"])
    judged = Judged(split.ground_truth)
    shown = [
        (image, own[place]["category_id"])
        for image, own in detections.items()
        for place in match(truth[image], own, 0.0).false_positives
    ]
    assert shown and judged.counts(*np.array(shown).T).all() and not judged.is_partly(*np.array(shown).T).any()


# ---- layouts --------------------------------------------------------------------------------------------------------


def save(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(row["id"]).integers(0, 255, (row["height"], row["width"], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_own(root: Path, name: str, content: dict[str, Any]) -> None:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"{name}.json").write_text(json.dumps(content))


def lvis_folder(root: Path) -> Path:
    """LVIS's annotations of COCO's images: no file names, half of the validation images in train2017."""
    for split, name in (("train", "lvis_v1_train"), ("val", "lvis_v1_val")):
        content = federated_tables(seed=len(split))
        for number, row in enumerate(content["images"]):
            folder = "train2017" if split == "train" or number % 2 else "val2017"
            del row["file_name"]
            row["id"] += 5000 * (split == "val")
            row["coco_url"] = f"http://images.cocodataset.org/{folder}/{row['id']:012d}.png"
            save(root / folder / f"{row['id']:012d}.png", row)
        for row in content["annotations"]:
            row["image_id"] += 5000 * (split == "val")
        write_own(root, name, content)
    return root


def test_lvis_finds_its_images_by_their_urls(tmp_path: Path) -> None:
    root = lvis_folder(tmp_path)
    train, val = open_splits(DataConfig(path=str(root)), progress=lambda line: None)
    assert (train.annotation_file.name, val.annotation_file.name) == ("lvis_v1_train.json", "lvis_v1_val.json")
    assert set(train.file_names) == {f"train2017/{number:012d}.png" for number in train.image_ids}
    assert {name.split("/")[0] for name in val.file_names} == {"train2017", "val2017"}
    assert val.load_image(1).shape == (*val.image_hw[1], 3)


def test_the_fingerprint_follows_all_folders_that_hold_images_of_a_split(tmp_path: Path) -> None:
    root = lvis_folder(tmp_path / "set")
    config = DataConfig(path=str(root))
    before = fingerprint(config)
    save(root / "test2017" / "1.png", {"id": 1, "height": 8, "width": 8})
    assert fingerprint(config) == before  # of no split
    image = sorted((root / "train2017").iterdir())[-1]  # of the validation split
    image.write_bytes(image.read_bytes() + b"\0")
    assert fingerprint(config) != before


def test_a_missing_image_of_lvis_is_told_with_its_place(tmp_path: Path) -> None:
    root = lvis_folder(tmp_path)
    name = sorted((root / "val2017").iterdir())[0].name
    (root / "val2017" / name).rename(root / "train2017" / name)
    with pytest.raises(UserError, match=f"val2017/{name}.* is missing .*; here is train2017/{name}"):
        CocoDataset(root, "val", progress=lambda line: None)


def test_lvis_under_cocos_names_finds_its_images_too(tmp_path: Path) -> None:
    root = lvis_folder(tmp_path)
    for split in ("train", "val"):
        (root / f"annotations/lvis_v1_{split}.json").rename(root / f"annotations/instances_{split}2017.json")
    val = open_splits(DataConfig(path=str(root)), progress=lambda line: None)[1]
    assert val.file_names[0] == f"{val.image_ids[0]:012d}.png"
    assert val.file_names[1] == f"../train2017/{val.image_ids[1]:012d}.png"
    assert len(fingerprint(DataConfig(path=str(root)))) == 16


def test_cocos_files_are_taken_before_those_of_lvis_and_it_is_said(tmp_path: Path) -> None:
    write_split(tmp_path, "val", tables())
    write_own(tmp_path, "lvis_v1_val", federated_tables())
    said: list[str] = []
    assert CocoDataset(tmp_path, "val", progress=said.append).protocol == "coco"
    assert [line for line in said if "is taken, not lvis_v1_val.json beside it" in line]


@pytest.mark.parametrize("unpacked", ["{split}", "images/v1", "images/v2"])
def test_objects365(tmp_path: Path, unpacked: str) -> None:
    for split in ("train", "val"):
        content = tables(len(split))
        for number, row in enumerate(content["images"]):
            version = unpacked[-2:] if "/" in unpacked else "v1"
            row["file_name"] = f"images/{version}/patch{number}/objects365_{version}_{split}_{row['id']:08d}.png"
            place = unpacked.format(split=split)
            save(tmp_path / place / f"patch{number}" / Path(row["file_name"]).name, row)
        for row in content["annotations"]:
            row |= {"isfake": 0, "isreflected": 0}
        write_own(tmp_path, f"zhiyuan_objv2_{split}", content)
    config = DataConfig(path=str(tmp_path))
    train, val = open_splits(config, progress=lambda line: None)
    assert train.num_boxes == 5 and val.load_image(0).shape == (*val.image_hw[0], 3)
    before = fingerprint(config)
    image = tmp_path / train.file_names[0]
    image.write_bytes(image.read_bytes() + b"\0")
    assert fingerprint(config) != before


# ---- boxes beyond their images --------------------------------------------------------------------------------------


def with_odd_boxes() -> dict[str, Any]:
    """On images of 96 x 64: one far over the border, one beyond it, one without width, one a sliver inside."""
    content = tables(sizes=[SIZES[0]] * 6)
    for row in content["annotations"]:
        row["bbox"], row["area"], row["iscrowd"] = [4, 4, 20, 20], 400, 0
    boxes = ([80, 10, 40, 20], [100, 10, 20, 20], [10, 10, 0, 5], [-30, 5, 30.0001, 20])
    for row, box in zip(content["annotations"], boxes, strict=False):
        row["bbox"] = box
    return content


def test_boxes_beyond_their_images_are_refused_unless_they_may_be_clipped(tmp_path: Path) -> None:
    write_split(tmp_path, "train", with_odd_boxes())
    write_split(tmp_path, "val", tables(1), seed=1)
    config = DataConfig(path=str(tmp_path))
    with pytest.raises(UserError, match=r"4 problems(.|\n)*or set data.outside_boxes=clipped"):
        open_splits(config, progress=lambda line: None)
    said: list[str] = []
    train = open_splits(replace(config, outside_boxes="clipped"), progress=said.append)[0]
    assert train.num_boxes == 10 - 3
    assert train.boxes(0)[0].tolist() == [[80, 10, 96, 30]]
    assert train.ground_truth["annotations"][0]["bbox"] == [80, 10, 40, 20]  # evaluators compare the file's
    assert [line for line in said if "1 boxes clipped by at most 24 pixels" in line]
    assert [line for line in said if "3 boxes without any area in their images are left out" in line]


def test_corners_for_sizes_are_an_error_also_where_boxes_are_clipped(tmp_path: Path) -> None:
    content = tables(sizes=[(200, 300)] * 8)
    for number, row in enumerate(content["annotations"]):
        row["bbox"] = [100 + number, 80 + number, 260 + number, 170 + number]
    write_split(tmp_path, "val", content)
    with pytest.raises(UserError, match="convert them to x, y, width, height"):
        CocoDataset(tmp_path, "val", progress=lambda line: None, clips_boxes=True)


# ---- trials ---------------------------------------------------------------------------------------------------------


SMALL = ("train.epochs=1", "train.batch_size=4", "data.train_short_sides=[64]", "data.eval_short_side=64")


def test_a_trial_and_its_table(tmp_path: Path) -> None:
    root = lvis_folder(tmp_path / "set")
    own = (f"data.path={root}", "data.repeat_threshold=0.9", "evaluate.max_detections=1000")
    store = RunStore(tmp_path / "store")
    trial = trial_of(0, *SMALL, *own)
    record = run_trial(trial, store, report=silent)
    assert record["metrics"].keys() >= {*LVIS_METRICS, *AT_1000} and "AR100" not in record["metrics"]
    assert record["provenance"]["protocol"] == "lvis"
    assert record["history"][-1]["step"] > 12 // 4  # some images twice


def test_the_words_below_a_table() -> None:
    grid = make_grid({"plain": {}}, metrics=("AP", "APr"))
    records = {trial.trial_id: make_record(trial.trial_id, 30.0) for trial in grid.trials}
    for record in records.values():
        record["provenance"]["protocol"] = "lvis"
        record["metrics"]["APr"] = 20.0
    table = make_table(grid, list(records.values()))
    assert any(
        "evaluated by LVIS's federated evaluation" in note and "the 300 best detections of an image" in note
        for note in table.notes
    )
    assert table.rows[0].cells["APr"].summary.mean == 20


def many_classes(root: Path, images: int) -> Path:
    """1,203 classes in pictures of 64 pixels."""
    for split, seed in (("train", 0), ("val", 1)):
        write_lvis(root, split, images, seed=seed)
        path = root / "annotations" / f"lvis_v1_{split}.json"
        content = json.loads(path.read_text())
        for row in content["images"]:
            row |= {"height": 64, "width": 64}
        for row in content["annotations"]:
            row |= {"bbox": [value / 10 for value in row["bbox"]], "area": row["area"] / 100}
        for row in content["categories"]:
            row |= {"image_count": row["id"] % 150}  # of both splits
        path.write_text(json.dumps(content))
    for path in (root / "train2017").iterdir():
        Image.new("L", (64, 64), 128).save(path)
    return root


DENOISING = ("model.groups=[{name: denoising, number: 8, label_noise: 0.5, box_noise: 1.0}]",)
SOFT = ("model.postprocess={name: soft_nms}",)


@pytest.mark.parametrize(("row", "more"), [(0, DENOISING), (2, SOFT)], ids=["denoising", "all heads, soft NMS"])
def test_1203_classes_are_learnt_and_evaluated(tmp_path: Path, row: int, more: tuple[str, ...]) -> None:
    root = many_classes(tmp_path / "set", 8)
    trial = trial_of(row, *SMALL, f"data.path={root}", *more)
    record = run_trial(trial, RunStore(tmp_path / "store"), report=silent)
    assert record["metrics"]["AP"] is not None and np.isfinite(record["history"][-1]["loss"])
    names = json.loads((tmp_path / "store" / "runs" / record["trial_id"] / "per_class.json").read_text())
    assert len(names) == 1203
