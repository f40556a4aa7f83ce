"""Batches for training and evaluation that depend on nothing but (seed, epoch, image).

A loader keeps no state: the order of an epoch is a permutation drawn from (seed, epoch), the augmentation of an
image from (seed, epoch, image id), and where an epoch shows it again from how often it did so before. So a resumed
trial continues at any batch of any epoch with the very same numbers, and worker processes change nothing but the speed.
Of several ranks each has its share of every training batch, padded as the whole batch would be, and its part of an
evaluation's batches. Only with jitter or copy-paste, where no rank knows how many objects the images of another show,
the objects are padded alike later (`harness.trial.train`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakMethod

import numpy as np
import torch
from torch.utils.data import DataLoader

from harness.config import DataConfig
from harness.data.coco import CocoDataset
from harness.data.order import aspect_groups, epoch_order, repeat_factors, repeated, samples_of_epoch, showings
from harness.data.samples import Key, Sample, Samples
from harness.errors import UserError
from model.share import Share
from model.types import Batch, Targets

CACHE_BYTES = 1_000_000_000  # decoded images are kept in memory when all of them fit, over all workers
_ORDER, _REPEAT = 1, 3  # what a random stream is for; see `harness.data.samples.AUGMENT`


@dataclass(frozen=True)
class Collate:
    """Samples -> the tensors of a `Batch`, as a plain dict because that is what crosses processes and gets pinned."""

    size_divisor: int

    def __call__(self, found: list[Sample | UserError]) -> dict[str, Any]:
        """Padded to the largest sample and a multiple of `size_divisor`; or the first error under `error`."""
        samples = [sample for sample in found if isinstance(sample, Sample)]
        if len(samples) < len(found):
            return {"error": next(str(sample) for sample in found if isinstance(sample, UserError))}
        frame = samples[0].frame
        valid_hw = torch.tensor([sample.image.shape[:2] for sample in samples])
        largest = valid_hw.amax(0).tolist() if frame is None else frame.hw
        height, width = (-(-side // self.size_divisor) * self.size_divisor for side in largest)
        images = torch.zeros(len(samples), 3, height, width, dtype=torch.uint8)  # `Batch.to` normalises them
        for image, sample, (h, w) in zip(images.numpy(), samples, valid_hw.tolist(), strict=True):
            image[:, :h, :w] = sample.image.transpose(2, 0, 1)
        masks = [sample.masks for sample in samples]
        targets = Targets.stack(
            [torch.from_numpy(np.ascontiguousarray(sample.boxes_xyxy)) for sample in samples],
            [torch.from_numpy(np.ascontiguousarray(sample.labels)) for sample in samples],
            None if any(mask is None for mask in masks) else [torch.from_numpy(np.ascontiguousarray(m)) for m in masks],
            0 if frame is None else frame.num_boxes,
        )
        return {
            "images": images,
            "valid_hw": valid_hw,
            "boxes_xyxy": targets.boxes_xyxy,
            "labels": targets.labels,
            "masks": targets.masks,
            "image_ids": tuple(sample.image_id for sample in samples),
            "original_hw": torch.tensor([sample.original_hw for sample in samples]),
            "content_hw": _content_hw(samples),
            "share": None if frame is None else (frame.share.first, frame.share.whole, frame.share.borrowed),
        }


def batch_of(tensors: dict[str, Any]) -> Batch:
    """What `Collate` gave as a batch, whose images are bytes.

    Raises:
        UserError: an image could not be read.
    """
    if "error" in tensors:
        raise UserError(tensors["error"])
    return Batch(
        images=tensors["images"],
        valid_hw=tensors["valid_hw"],
        targets=Targets(tensors["boxes_xyxy"], tensors["labels"], tensors["masks"]),
        image_ids=tuple(tensors["image_ids"]),
        original_hw=tensors["original_hw"],
        content_hw=tensors["content_hw"],
        share=None if tensors["share"] is None else Share(*tensors["share"]),
    )


def _content_hw(samples: list[Sample]) -> torch.Tensor | None:
    sizes = [sample.content_hw for sample in samples]
    return None if any(size is None for size in sizes) else torch.tensor(sizes)


def evaluated_at_once(batch_size: int, config: DataConfig, *, sees_padding: bool) -> int:
    """How many images an evaluation batches: one where padding would change them, unless all have one size."""
    return 1 if sees_padding and not config.square else batch_size


class _BatchPlan:
    """The batches of the epoch at hand; read by the DataLoader in this process, never sent to a worker."""

    def __init__(self, keys: WeakMethod[Callable[[int, list[tuple[int, int]]], list[Key]]]) -> None:
        self.keys = keys  # gives what tells those of the samples of a batch, while its loader is there
        self.epoch, self.batch_size = 0, 1
        self.order = np.zeros((0, 2), np.int64)  # indices into the data set, and how often each came before
        self.numbers = range(0)  # of the batches

    def __iter__(self) -> Iterator[list[Key]]:
        for number in self.numbers:
            keys, start = self.keys(), number * self.batch_size
            if keys is not None:
                images = self.order[start : start + self.batch_size].tolist()
                yield keys(self.epoch, [(index, showing) for index, showing in images])

    def __len__(self) -> int:
        return len(self.numbers)


class Loader:
    """Batches of a data set.

    Args:
        dataset: an opened split.
        config: sizes and augmentation.
        batch_size: images per batch.
        training: shuffle and augment; otherwise ascending image ids at `config.eval_short_side`.
        seed: of order and augmentation.
        size_divisor: a batch's height and width are multiples of it (zeros to the right and below).
        num_workers: processes that prepare batches; 0 prepares them in this one.
        limit: evaluate only so many images, the first in order of id; None: all.
        step_size: images of an optimiser step, where that takes several batches; None: of a batch.
        slice_size: so many images in a row stay with one rank (`DetectorConfig.positive_query_images`).
        rank: of `num_ranks` that share the work. In training each has a share of every batch; with fewer images than
            ranks some borrow one (see `model.share`). In evaluation the first has the first batches, and so on.
        num_ranks: 1 has all.
        with_masks: batches hold the masks of objects, as grids; None: where the data set was opened with them.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        config: DataConfig,
        *,
        batch_size: int,
        training: bool,
        seed: int,
        size_divisor: int,
        num_workers: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        limit: int | None = None,
        step_size: int | None = None,
        slice_size: int = 1,
        with_masks: bool | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.training = training
        self._seed = seed
        self._rank, self._num_ranks, self._slice_size = rank, num_ranks, max(slice_size, 1)
        self._config, self._step_size = config, step_size or batch_size
        if training:
            self._groups = aspect_groups(dataset.image_hw, config)
            self._factors = repeat_factors(*dataset.classes_of_images(), dataset.image_hw, config)
            self.num_images = samples_of_epoch(dataset.image_hw, config, self._step_size, self._factors)
            if not self.num_images:
                wanted = f"data.min_image_side={config.min_image_side}"
                raise UserError(f"{dataset.annotation_file}: no image has sides as long as {wanted} asks; lower it")
            if config.min_box_side and not dataset.has_objects_with_sides(config.min_box_side):
                wanted = f"data.min_box_side={config.min_box_side:g}"
                raise UserError(f"{dataset.annotation_file}: no object has sides as long as {wanted} asks; lower it")
        else:
            self.num_images = len(dataset) if limit is None else min(limit, len(dataset))
        # Weakly: a circle of references would end by the garbage collector, which takes the workers' queues first, so
        # that each is waited for in vain, 5 seconds long.
        self._plan = _BatchPlan(WeakMethod(self._keys))
        self._samples = Samples(
            dataset,
            config,
            training=training,
            seed=seed,
            with_masks=dataset.has_masks if with_masks is None else with_masks,
            cache_bytes=CACHE_BYTES // (max(1, num_workers) * num_ranks),
        )
        self._batches = DataLoader(
            self._samples,
            batch_sampler=self._plan,
            collate_fn=Collate(size_divisor),
            num_workers=num_workers,
            generator=torch.Generator(),  # its own, so that starting an epoch draws nothing from the global one
            persistent_workers=num_workers > 0,  # they keep their decoded images
            pin_memory=torch.cuda.is_available(),
        )

    def __len__(self) -> int:
        """Batches of an epoch that this rank has something of."""
        return len(self._numbers())

    def _numbers(self) -> range:
        """Numbers of these batches."""
        count = -(-self.num_images // self.batch_size)
        if self.training:
            return range(count)
        return range(count * self._rank // self._num_ranks, count * (self._rank + 1) // self._num_ranks)

    def order(self, epoch: int) -> list[int]:
        """Indices into the data set in the order of `epoch`."""
        if not self.training:
            return list(range(self.num_images))
        draws, groups = np.random.default_rng([_ORDER, self._seed, epoch]), self._groups
        if self._factors is not None:
            own = np.random.default_rng([_REPEAT, self._seed, epoch])
            groups = repeated(groups, self._factors, self._config, own)
        return epoch_order(groups, self._config, self._step_size, draws.permutation)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from number `start_batch` on; the same ones however often and whenever asked.

        Their images are bytes: `Batch.to` takes them to the network's device and normalises them there.

        Raises:
            UserError: an image cannot be read any more.
        """
        self._plan.epoch, self._plan.batch_size = epoch, self.batch_size
        order = np.array(self.order(epoch), np.int64)
        self._plan.order = np.stack([order, showings(order)], 1)
        self._plan.numbers = self._numbers()[start_batch:]
        if not self._plan.numbers:
            return
        for tensors in self._batches:
            yield batch_of(tensors)

    def _keys(self, epoch: int, images: list[tuple[int, int]]) -> list[Key]:
        """What this rank has of the batch of these images."""
        if not self.training or self._num_ranks == 1:
            return [(epoch, *image, None) for image in images]
        slices = -(-len(images) // self._slice_size)
        cuts = (slices * number // self._num_ranks for number in (self._rank, self._rank + 1))
        first, last = (min(cut * self._slice_size, len(images)) for cut in cuts)
        borrowed = first == last
        share = Share(0, len(images), True) if borrowed else Share(first, len(images))
        frame = self._samples.frame(epoch, images, share)
        return [(epoch, *image, frame) for image in (images[:1] if borrowed else images[first:last])]
