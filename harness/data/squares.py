"""Training samples of large-scale jitter and copy-paste: which images and objects a square shows.

All of it is drawn by one generator, that of the sample (see `harness.data.loader`): also another image, where nothing
of the objects of this one is left, and the second image whose objects are pasted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harness.config import DataConfig
from harness.data.coco import CocoDataset
from harness.data.jitter import Jitter, draw_jitter, on_square
from harness.data.order import aspect_groups
from harness.data.paste import Objects, boxes_of, draw_pasted, paste
from harness.errors import UserError

TRIES = 1000  # images after which none is looked for any more that keeps an object


@dataclass(frozen=True)
class Scene:
    """What a square shows of an image."""

    index: int  # of the image in the data set
    view: Jitter
    objects: Objects


class Squares:
    """The samples of a data set.

    Args:
        dataset: with masks where `config.learns_from_masks`.
        config: sizes and augmentation.
        load: gives the image [H, W, 3] at an index.
        with_masks: heads learn from the masks of the objects too.
    """

    def __init__(
        self, dataset: CocoDataset, config: DataConfig, load: Callable[[int], np.ndarray], with_masks: bool
    ) -> None:
        assert dataset.has_masks or not config.learns_from_masks, "open the data set with masks"
        self.dataset, self.config, self.load = dataset, config, load
        self.reads_masks = with_masks or config.learns_from_masks
        self.groups = aspect_groups(dataset.image_hw, config)
        self.learnt = np.concatenate(self.groups)

    def sample(self, rng: np.random.Generator, index: int) -> tuple[np.ndarray, Objects, int]:
        """[S, S, 3] uint8 for the image at an index, its objects, and the index of the image that it shows."""
        scene = self.scene(rng, index)
        image, objects = self._picture(scene), scene.objects
        if self.config.copy_paste:
            other = self.scene(rng, int(self.learnt[rng.integers(len(self.learnt))]))
            pasted = other.objects.at(draw_pasted(rng, len(other.objects), self.config.copy_paste))
            if len(pasted):
                image, objects = paste(image, objects, self._picture(other), pasted)
                objects = objects.with_area()
        return image, objects, scene.index

    def scene(self, rng: np.random.Generator, index: int) -> Scene:
        """A view of the image, or of another of its shape where the view leaves nothing of any object that it shows.

        Raises:
            UserError: so many images in a row are left without an object.
        """
        group = None
        for _ in range(TRIES):
            view = draw_jitter(rng, self.dataset.image_hw[index], self.config)
            shown = self.objects(index, view)
            objects = shown.with_area()
            if len(objects) or not len(shown):
                return Scene(index, view, objects)
            if group is None:
                group = next(own for own in self.groups if index in own)
            index = int(group[rng.integers(len(group))])
        raise UserError(
            f"{self.dataset.annotation_file}: {TRIES} images in a row keep no pixel of an object; raise "
            f"data.jitter_scales={list(self.config.jitter_scales)} or data.square={self.config.square}"
        )

    def objects(self, index: int, view: Jitter) -> Objects:
        """Objects of the image at an index whose boxes show, which need not mean that a pixel of them does."""
        boxes, labels, _ = self.dataset.boxes(index)
        boxes, shows = view.boxes(boxes)
        if self.config.min_box_side:
            large = self.dataset.objects_with_sides(index, self.config.min_box_side)
            boxes, shows = boxes[large[shows]], shows & large
        cutouts = self.dataset.cutouts(index, shows, view.sources()) if self.reads_masks else None
        if cutouts is not None and self.config.learns_from_masks:
            boxes = boxes_of(cutouts)
        return Objects(boxes, labels[shows], cutouts)

    def _picture(self, scene: Scene) -> np.ndarray:
        return on_square(scene.view.image(self.load(scene.index)), self.config.square)
