"""One image on its way into a batch: read or remembered, as large and as changed as training or evaluation shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset as TorchDataset

from harness.config import DataConfig
from harness.data.augment import View, draw_view
from harness.data.coco import CocoDataset
from harness.data.jitter import on_square
from harness.data.squares import Squares
from harness.data.transforms import RESIZE, resized_hw
from harness.errors import UserError
from model.share import Share

AUGMENT = 2  # what a random stream is for


@dataclass(frozen=True)
class Frame:
    """What the images of a share must be padded to, which only the whole batch tells."""

    share: Share
    hw: tuple[int, int]  # of the largest image, before it is rounded up
    num_boxes: int  # of the image with most; 0: only the samples themselves tell


# Epoch, index into the data set, and how often the epoch has shown that image before
Key = tuple[int, int, int, Frame | None]


@dataclass(frozen=True)
class Sample:
    """One image on its way into a batch."""

    image: np.ndarray  # [h, w, 3] uint8, resized
    boxes_xyxy: np.ndarray  # [G, 4] float32, pixels of the resized image
    labels: np.ndarray  # [G] int64
    masks: np.ndarray | None  # [G, MASK_CELLS, MASK_CELLS] uint8 over the boxes; None: nobody asked for them
    image_id: int
    original_hw: tuple[int, int]
    content_hw: tuple[int, int] | None = None  # what of an evaluated square is the data set's image
    frame: Frame | None = None  # None: the batch is whole


class Samples(TorchDataset):
    """Samples by (epoch, index, showing, frame); picklable, so that worker processes can hold it.

    Args:
        dataset: an opened split.
        config: sizes and augmentation.
        training: augment.
        seed: of the augmentation.
        with_masks: give the masks of the objects.
        cache_bytes: decoded images are kept in memory where all of them need no more.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        config: DataConfig,
        *,
        training: bool,
        seed: int,
        with_masks: bool,
        cache_bytes: int,
    ) -> None:
        self.dataset, self.config, self.training, self.seed = dataset, config, training, seed
        self.with_masks = with_masks
        jitters = training and (config.jitters or config.copy_paste > 0)
        self.squares = Squares(dataset, config, self._image, with_masks) if jitters else None
        self.limits = self._limits()
        self.keep = self._fits(cache_bytes)
        self.kept: dict[int, np.ndarray] = {}

    def _limits(self) -> tuple[int, int] | None:
        """Short and long side of all images, which are kept resized; None: they differ, and are kept as read."""
        config = self.config
        if self.squares is not None:
            return None
        if config.square:
            return config.square, config.square
        if not self.training:
            return config.eval_short_side, config.evaluated_long_side
        short_sides = config.train_short_sides
        return None if len(short_sides) > 1 or config.crop_probability > 0 else (short_sides[0], config.max_long_side)

    def _fits(self, free: int) -> bool:
        """Whether so many bytes hold all images; of a large data set only the first are looked at."""
        for index in range(len(self.dataset)):
            free -= 3 * math.prod(self._kept_hw(index))
            if free < 0:
                return False
        return True

    def _kept_hw(self, index: int) -> tuple[int, int]:
        """Size of an image as the cache would hold it."""
        height, width = self.dataset.image_hw[index]
        return (height, width) if self.limits is None else resized_hw(height, width, *self.limits)

    def _image(self, index: int) -> np.ndarray:
        image = self.kept.get(index)
        if image is None:
            image = RESIZE[self.config.resize](self.dataset.load_image(index), *self._kept_hw(index))
            if self.keep:
                self.kept[index] = image
        return image

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Sample | UserError:
        *drawn, frame = key
        try:
            sample = self._sample(*drawn) if self.squares is None else self._jittered(self.squares, *drawn)
        except UserError as error:  # an exception would come out of a worker process with a traceback in its text
            return error
        return replace(sample, frame=frame)

    def _rng(self, epoch: int, index: int, showing: int) -> np.random.Generator:
        again = [showing] if showing else []
        return np.random.default_rng([AUGMENT, self.seed, epoch, self.dataset.image_ids[index] % 2**63, *again])

    def _view(self, epoch: int, index: int, showing: int) -> View:
        """What a sample shows of its image."""
        hw = self.dataset.image_hw[index]
        if not self.training:
            return View(hw, self._kept_hw(index), False, None, self.config.resize)
        return draw_view(self._rng(epoch, index, showing), hw, self.config)

    def _objects(self, index: int, view: View) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [G, 4] that a view shows, and which of the image's objects they are."""
        boxes, shows = view.boxes(self.dataset.boxes(index)[0])
        if not self.training or self.config.min_box_side == 0:
            return boxes, shows
        large = self.dataset.objects_with_sides(index, self.config.min_box_side)
        return boxes[large[shows]], shows & large

    def frame(self, epoch: int, images: list[tuple[int, int]], share: Share) -> Frame:
        """What a share of the batch of these images, each an index and how often it came before, is padded to."""
        square = self.config.square
        if self.squares is not None:
            return Frame(share, (square, square), 0)
        views = [self._view(epoch, *image) for image in images]
        heights, widths = zip(*((square, square) if square else view.hw for view in views), strict=True)
        boxes = (self._objects(index, view)[0] for (index, _), view in zip(images, views, strict=True))
        return Frame(share, (max(heights), max(widths)), max(map(len, boxes)))

    def _sample(self, epoch: int, index: int, showing: int) -> Sample:
        view, square = self._view(epoch, index, showing), self.config.square
        boxes, shown = self._objects(index, view)
        labels = self.dataset.boxes(index)[1][shown]
        masks = self._masks(index, view, shown) if self.with_masks else None
        image = view.image(self._image(index))
        return Sample(
            on_square(image, square) if square else image,
            boxes,
            labels,
            masks,
            self.dataset.image_ids[index],
            self.dataset.image_hw[index],
            view.hw if square and not self.training else None,
        )

    def _masks(self, index: int, view: View, shown: np.ndarray) -> np.ndarray:
        """[G, MASK_CELLS, MASK_CELLS] of the objects that a view shows."""
        if not view.mirrors_last:
            return self.dataset.masks(index, shown, view)
        masks = self.dataset.masks(index, shown)  # grids over boxes are the same at every size
        return masks[:, :, ::-1] if view.mirrored else masks

    def _jittered(self, squares: Squares, epoch: int, index: int, showing: int) -> Sample:
        image, objects, shown = squares.sample(self._rng(epoch, index, showing), index)
        masks = objects.grids() if self.with_masks else None
        image_id, hw = self.dataset.image_ids[shown], self.dataset.image_hw[shown]
        return Sample(image, objects.boxes_xyxy, objects.labels, masks, image_id, hw)
