"""A store with records of the quickstart on a data set of two classes, and the detections of its best trial."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.spec.grid import Grid, open_grid
from harness.spec.identity import config_to_dict
from harness.store.results import RunStore
from tests.support.report_grid import make_record

FILE = Path(__file__).parents[2] / "ablations" / "quickstart.yaml"
CLASSES = ("a <b>class</b> & more", "红细胞")


def write_data(root: Path, many: int = 9) -> Path:
    """Two classes; of four validation images the second one has no object, the third a crowd, the fourth `many`."""
    from PIL import Image

    (root / "annotations").mkdir(parents=True)
    categories = [{"id": 7 - 4 * place, "name": name} for place, name in enumerate(CLASSES)]  # ids 7 and 3
    objects = {
        1: [(7, [0, 0, 20, 20], 0)],
        2: [],
        3: [(3, [0, 0, 60, 40], 1), (3, [5, 5, 10, 10], 0)],
        4: [(7, [6 * place, 0, 5, 5], 0) for place in range(many)],
    }
    for split in ("train", "val"):
        (root / split / "sub").mkdir(parents=True)
        images, annotations = [], []
        for image_id, own in objects.items():
            name = f"sub/picture {image_id}.png"
            Image.new("RGB", (60, 40), (40 * image_id, 90, 120)).save(root / split / name)
            images.append({"id": image_id, "file_name": name, "width": 60, "height": 40})
            for category, bbox, crowd in own:
                row = {"image_id": image_id, "category_id": category, "bbox": bbox, "iscrowd": crowd, "area": 100.0}
                annotations.append({"id": len(annotations) + 1, **row})
        tables = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(tables))
    return root


DETECTIONS = [
    {"image_id": 1, "category_id": 3, "bbox": [0, 0, 20, 20], "score": 0.31},  # another class
    *({"image_id": 4, "category_id": 7, "bbox": [6 * place, 0, 5, 5], "score": 0.25} for place in range(7)),
    {"image_id": 3, "category_id": 3, "bbox": [5, 5, 10, 10], "score": 0.2},
    {"image_id": 4, "category_id": 7, "bbox": [0, 30, 5, 5], "score": 0.04},
]


def filled_store(root: Path, data: str | None, detections: bool = True) -> tuple[Grid, RunStore]:
    """Records of the quickstart with AP by class; of the last row, the best one, the detections too."""
    grid = open_grid(str(FILE), "digits_fast", [], data=data, seeds=(0, 1))
    store = RunStore(root)
    names = CLASSES if data else [str(number) for number in range(10)]
    keep_records(store, grid, names)
    if detections:
        leave(store, grid.rows[-1].trial_ids[1])
    return grid, store


def keep_records(store: RunStore, grid: Grid, names: Sequence[str], **changes: Any) -> list[dict[str, Any]]:
    """Finished records of all trials of a grid, each better than the one before, with AP by class."""
    records = []
    for number, trial in enumerate(grid.trials):
        per_class = {name: 10.0 * place + number for place, name in enumerate(names)} | {names[-1]: None}
        record = make_record(trial.trial_id, 30.0 + number, config=config_to_dict(trial.config), per_class=per_class)
        records.append(record | {"fingerprint": trial.fingerprint} | changes)
        store.write_result(trial.trial_id, records[-1])
    return records


def leave(store: RunStore, key: str, rows: Sequence[dict[str, Any]] = DETECTIONS) -> None:
    """Detections of a trial in its folder."""
    (store.dir(key) / "detections.json").write_text(json.dumps(rows))
