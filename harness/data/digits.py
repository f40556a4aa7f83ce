"""The embedded data set: digit scenes in COCO layout, generated once into the cache; no download.

Image k of a split depends only on (seed, split, k), the image size and the difficulty. The folder is named by the
fingerprint of these parameters and `GENERATOR_VERSION`, written beside its place under a lock and renamed.
Objects carry exact masks (uncompressed RLE) and, as in COCO, `area` counts the mask's pixels. The scenes are small,
so the data set declares its own bounds of small, medium and large: 16² and 32² pixels.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.config import DigitsConfig
from harness.data.layout import SPLITS, Split
from harness.data.scenes import Parts, draw_scene, load_parts
from harness.data.ticker import Progress, Ticker, locked, print_line
from harness.errors import UserError
from harness.files import cache_dir, write_atomic

GENERATOR_VERSION = 1  # part of the fingerprint: raise it with every change of what is drawn
AREA_BOUNDS = (16**2, 32**2)
JPEG_QUALITY = 90
CATEGORIES = [{"id": digit, "name": str(digit), "supercategory": "digit"} for digit in range(10)]
ATTRIBUTION = (
    "Backgrounds are recoloured crops of two photographs under CC BY 2.0 (https://creativecommons.org/licenses/by/2.0/):"
    " china.jpg by danielbuechele (https://www.flickr.com/photos/danielbuechele/6061409035/) and flower.jpg by"
    " vultilion (https://www.flickr.com/photos/vultilion/6056698931/). Digits: Optical Recognition of Handwritten"
    " Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, CC BY 4.0. Both come with scikit-learn."
)


def digits_fingerprint(config: DigitsConfig) -> str:
    """16 hex characters that stand for the parameters and the generator's version. Generates nothing."""
    parameters = {**asdict(config), "difficulty": float(config.difficulty)}
    identity = {"digits": parameters, "version": GENERATOR_VERSION}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def digits_folder(config: DigitsConfig) -> Path:
    """Where the data set is, or will be once it is generated."""
    return cache_dir() / "digits" / digits_fingerprint(config)


def ensure_digits(config: DigitsConfig, progress: Progress | None = None) -> Path:
    """The folder of the data set, generated if it is not in the cache yet.

    Any number of processes may ask at once: one generates, the others wait for it and say so.

    Raises:
        UserError: the cache cannot be written.
    """
    folder = digits_folder(config)
    if folder.is_dir():  # it appears by a rename, whole
        return folder
    try:
        return _generate_once(config, folder, progress or print_line)
    except OSError as error:
        raise UserError(
            f"digit scenes cannot be written into {folder.parent}: {error.strerror}; set CODETR_CACHE to another folder"
        ) from error


def _generate_once(config: DigitsConfig, folder: Path, progress: Progress) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)

    def waiting(seconds: float) -> None:
        progress(f"digit scenes: another process is writing them, waited {seconds:.0f} s")

    with locked(folder.with_name(f"{folder.name}.lock"), waiting):
        if folder.is_dir():  # another process has just written it
            return folder
        for leftover in folder.parent.glob(f"{folder.name}.*.tmp"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
        _generate(config, temporary, progress)
        os.rename(temporary, folder)
    return folder


def _generate(config: DigitsConfig, folder: Path, progress: Progress) -> None:
    """Write both splits under `folder`."""
    counts = {"train": config.num_train, "val": config.num_val}
    total = sum(counts.values())
    progress(f"digit scenes: writing {total:,} images of {config.image_size} px, once, into {folder.parent}")
    ticker = Ticker(progress, "digit scenes", total)
    done = 0
    for split in SPLITS:
        parts = load_parts(split)
        (folder / split).mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(counts[split]):
            image, objects = _scene(config, parts, split, index)
            (folder / split / f"{index:06d}.jpg").write_bytes(image)
            images.append(
                {
                    "id": index + 1,
                    "file_name": f"{index:06d}.jpg",
                    "width": config.image_size,
                    "height": config.image_size,
                }
            )
            for annotation in objects:
                annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **annotation})
            done += 1
            ticker.at(done)
        write_atomic(
            folder / "annotations" / f"instances_{split}.json",
            json.dumps(
                {
                    "info": _info(config),
                    "licenses": [],
                    "images": images,
                    "annotations": annotations,
                    "categories": CATEGORIES,
                }
            ),
        )


def _info(config: DigitsConfig) -> dict[str, Any]:
    return {
        "description": f"digit scenes, generator version {GENERATOR_VERSION}",
        "parameters": asdict(config),
        "area_bounds": list(AREA_BOUNDS),
        "attribution": ATTRIBUTION,
    }


def _scene(config: DigitsConfig, parts: Parts, split: Split, index: int) -> tuple[bytes, list[dict[str, Any]]]:
    """Image `index` of a split as JPEG bytes, and its annotations without ids."""
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
    scene = draw_scene(rng, parts, config.image_size, config.difficulty)
    stream = io.BytesIO()
    Image.fromarray(scene.image).save(stream, "JPEG", quality=JPEG_QUALITY)
    annotations = []
    for item in scene.objects:
        rows, columns = np.flatnonzero(item.mask.any(1)), np.flatnonzero(item.mask.any(0))
        if len(rows) == 0:
            continue
        x, y = int(columns[0]), int(rows[0])
        annotations.append(
            {
                "category_id": item.label,
                "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                "area": int(item.mask.sum()),
                "iscrowd": int(item.crowd),
                "segmentation": {"size": list(item.mask.shape), "counts": run_lengths(item.mask)},
            }
        )
    return stream.getvalue(), annotations


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed RLE of a mask [H, W] bool: column by column, the lengths of runs of 0, 1, 0, 1…"""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths
