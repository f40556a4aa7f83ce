"""Images without annotations: files and folders that a command line names, as evaluation would show them a detector."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from PIL import UnidentifiedImageError

from harness.data.disk import is_file, is_folder, is_image, list_images, shown
from harness.data.loader import Collate, batch_of
from harness.data.pixels import UNREADABLE, open_image, read_rgb, traits
from harness.data.samples import Samples
from harness.errors import UserError
from model.types import Batch

if TYPE_CHECKING:
    from harness.config import DataConfig
    from harness.data.coco import CocoDataset


class Named(NamedTuple):
    """An image file."""

    path: Path
    name: str  # for people and in results: as it was given, or its path below the folder that was given; one of a kind
    stem: str  # of what is made of it: a path without suffix


def image_files(names: Sequence[str]) -> list[Named]:
    """The files, and the image files below the folders, each once; in the order given, those of a folder by name.

    Raises:
        UserError: a name is empty or leads nowhere, or a folder holds no image.
    """
    found: dict[str, Named] = {}
    for name in names:
        if not name.strip():
            raise UserError("the name of an image is empty; name a file or a folder (. is this one)")
        path = Path(os.path.expanduser(name))
        if is_folder(path):
            below = sorted(own for own, _ in list_images(path))
            if not below:
                raise UserError(f"{shown(path)} holds no image (.jpg, .png and the like); name a folder that does")
            own = [Named(path / one, one, os.path.splitext(one)[0]) for one in below]
        elif is_file(path) or is_image(name):  # a file that is not there is told as the others that cannot be read
            own = [Named(path, name, path.stem)]
        else:
            raise UserError(f"{shown(path)} is neither an image nor a folder of images")
        for image in own:
            found.setdefault(os.path.realpath(image.path), image)
    count = Counter(image.name for image in found.values())
    return [image if count[image.name] == 1 else image._replace(name=str(image.path)) for image in found.values()]


class Photograph(NamedTuple):
    """An image, and the batch of it alone that a detector sees."""

    pixels: np.ndarray  # [H, W, 3] uint8 RGB
    batch: Batch
    is_turned: bool  # its file says that viewers turn it; boxes are of the pixels as stored


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no image, or one of a kind that Pillow does not read"
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or " ".join(str(error).split()) or type(error).__name__


class Photographs:
    """Image files, one after the other, as `harness.data.samples` prepares those of a validation split.

    Args:
        files: of `image_files`.
        config: sizes, padding and resampling.
        size_divisor: of the detector.
    """

    has_masks = False

    def __init__(self, files: Sequence[Named], config: DataConfig, size_divisor: int):
        self.files, self.config, self.collate = files, config, Collate(size_divisor)
        self.image_ids, self.image_hw, self.pixels = [0], [(1, 1)], np.zeros((1, 1, 3), np.uint8)

    def __len__(self) -> int:
        return len(self.image_ids)

    def load_image(self, index: int) -> np.ndarray:
        """[H, W, 3] of the image at hand."""
        return self.pixels

    def boxes(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """None: boxes, labels and crowd regions."""
        return np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros((0, 4), np.float32)

    def each(self) -> Iterator[tuple[Named, Photograph | str]]:
        """Every file with its image, or with what is wrong with it. Image ids count the files from 1."""
        for number, file in enumerate(self.files, 1):
            try:
                with open_image(file.path) as (image, stream):
                    is_turned = any(trait.startswith("orientation") for trait in traits(image, stream))
                self.pixels = read_rgb(file.path)
            except UNREADABLE as error:
                yield file, f"cannot be read: {_reason(error)}"
                continue
            self.image_ids, self.image_hw = [number], [(self.pixels.shape[0], self.pixels.shape[1])]
            yield file, Photograph(self.pixels, self._batch(), is_turned)

    def _batch(self) -> Batch:
        """The image at hand, alone."""
        dataset = cast("CocoDataset", self)  # of which evaluation reads no more than what stands above
        samples = Samples(dataset, self.config, training=False, seed=0, with_masks=False, cache_bytes=0)
        return batch_of(self.collate([samples[0, 0, 0, None]]))
