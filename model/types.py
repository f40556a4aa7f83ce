"""The values that travel through the detector, and the legend of shapes.

Letters used in every docstring of this package:
    B images of a batch · Q queries · G ground truths (padded to the largest count of the batch) ·
    P positives · A anchors (all levels) · L levels · D channels · K auxiliary heads · C classes ·
    S tokens (all positions of all encoder levels) · N decoder layers ·
    M candidates of a head, or detections of an image · R regions of all images together ·
    h, w a level's size · H, W the batch's size in pixels.

Operators and layers that know no detector (`ops.py`, `losses.py`, `linear.py`) call their rows N.

Boxes are floats; the format is in the name: `boxes_xyxy` are pixels of the network's input image,
`boxes_cxcywh` are normalised by each image's own valid (un-padded) size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from model.pixels import normalise
from model.share import Share

BACKGROUND = -1  # a candidate without an object; also the label of a padding row in `Targets`
IGNORED = -2  # a candidate that takes no part: neither positive nor negative
MASK_CELLS = 56  # a mask of a ground truth is a grid of this many cells per axis, spread over its box


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch, padded to its largest count. Crowd regions are left out of it."""

    boxes_xyxy: Tensor  # [B, G, 4] pixels of the input image; zeros in padding rows
    labels: Tensor  # [B, G] int64, contiguous class index; BACKGROUND in padding rows
    # [B, G, MASK_CELLS, MASK_CELLS] uint8, the covered share of each cell of the box's own grid in 255ths. Independent
    # of the image's size, so that resizing leaves it alone and a batch stays small. None: nobody asked for masks.
    masks: Tensor | None = None
    counts: tuple[int, ...] | None = None  # ground truths of each image; None: the host does not know them yet

    @property
    def valid(self) -> Tensor:
        """[B, G] bool, False in padding rows."""
        return self.labels >= 0

    @property
    def num_boxes(self) -> Tensor:
        """[B] int64, ground truths of each image."""
        return self.valid.sum(1)

    def host_counts(self) -> tuple[int, ...]:
        """Ground truths of each image, on the host; it waits for the device where they did not come with the batch."""
        return tuple(self.num_boxes.tolist()) if self.counts is None else self.counts

    def boxes_cxcywh(self, valid_hw: Tensor) -> Tensor:
        """[B, G, 4] normalised by each image's valid size `valid_hw` [B, 2]."""
        height, width = valid_hw.to(self.boxes_xyxy).unbind(1)
        x0, y0, x1, y1 = self.boxes_xyxy.unbind(-1)
        boxes = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], -1)
        return boxes / torch.stack([width, height, width, height], -1)[:, None]

    def to(self, device: torch.device | str) -> Targets:
        """The same on another device."""
        masks = None if self.masks is None else self.masks.to(device, non_blocking=True)
        boxes, labels = (values.to(device, non_blocking=True) for values in (self.boxes_xyxy, self.labels))
        return Targets(boxes, labels, masks, self.host_counts())

    def padded_to(self, number: int) -> Targets:
        """The same with `number` rows of each image, at least as many as there are."""
        more = number - self.labels.shape[1]
        if more <= 0:
            return self
        masks = None if self.masks is None else F.pad(self.masks, (0, 0, 0, 0, 0, more))
        boxes, labels = F.pad(self.boxes_xyxy, (0, 0, 0, more)), F.pad(self.labels, (0, more), value=BACKGROUND)
        return replace(self, boxes_xyxy=boxes, labels=labels, masks=masks)

    def of_images(self, index: slice | list[int]) -> Targets:
        """The same for some of the images."""
        masks, counts = None if self.masks is None else self.masks[index], self.counts
        if counts is not None:
            counts = counts[index] if isinstance(index, slice) else tuple(counts[image] for image in index)
        return Targets(self.boxes_xyxy[index], self.labels[index], masks, counts)

    @classmethod
    def stack(
        cls,
        boxes_xyxy: list[Tensor],
        labels: list[Tensor],
        image_masks: list[Tensor] | None = None,
        at_least: int = 1,
    ) -> Targets:
        """Pad one `[G_i, 4]`, one `[G_i]` and perhaps one `[G_i, MASK_CELLS, MASK_CELLS]` per image to a batch.

        G is `at_least` as much; never 0, so that gathers work.
        """
        count = max([1, at_least, *(len(boxes) for boxes in boxes_xyxy)])
        boxes = torch.zeros(len(boxes_xyxy), count, 4)
        classes = torch.full((len(boxes_xyxy), count), BACKGROUND)
        for i, (image_boxes, image_labels) in enumerate(zip(boxes_xyxy, labels, strict=True)):
            boxes[i, : len(image_boxes)] = image_boxes
            classes[i, : len(image_labels)] = image_labels
        if image_masks is None:
            return cls(boxes, classes)
        masks = torch.zeros(len(boxes_xyxy), count, MASK_CELLS, MASK_CELLS, dtype=torch.uint8)
        for i, own in enumerate(image_masks):
            masks[i, : len(own)] = own
        return cls(boxes, classes, masks)


@dataclass(frozen=True)
class Batch:
    """Images of mixed sizes in the top-left corners of one tensor."""

    # [B, 3, H, W] float32, normalised, zeros outside an image's valid area; from a loader uint8 RGB, until `to`
    images: Tensor
    valid_hw: Tensor  # [B, 2] int64, (height, width) of each image inside the batch
    targets: Targets
    image_ids: tuple[int, ...] = ()  # COCO image ids
    original_hw: Tensor | None = None  # [B, 2] int64, sizes in the data set, for rescaling detections
    share: Share | None = None  # of a larger batch whose other images other ranks have; None: this is all of it
    padded: bool | None = None  # is an image smaller than the batch? None: the host does not know yet
    # [B, 2] int64, what of `valid_hw` the data set's images take, from the upper left; None: all of it
    content_hw: Tensor | None = None

    @property
    def padding_mask(self) -> Tensor:
        """[B, H, W] bool, True = padding."""
        return padding_mask(self.valid_hw, self.images.shape[-2], self.images.shape[-1])

    def is_padded(self) -> bool:
        """Is an image smaller than the batch? The host waits for the device where the batch does not say it."""
        if self.padded is not None:
            return self.padded
        height, width = self.images.shape[-2:]
        return self.valid_hw.tolist() != [[height, width]] * len(self.valid_hw)

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device, where bytes are normalised; sizes for detections stay on the CPU."""
        images, valid_hw = (values.to(device, non_blocking=True) for values in (self.images, self.valid_hw))
        if images.dtype == torch.uint8:
            images = normalise(images, padding_mask(valid_hw, *images.shape[-2:]))
        return replace(self, images=images, valid_hw=valid_hw, targets=self.targets.to(device), padded=self.is_padded())


@dataclass(frozen=True)
class Pyramid:
    """Feature maps as the auxiliary heads see them: what the adapter makes of the encoder's levels."""

    levels: tuple[Tensor, ...]  # [B, D, h, w] each, fine to coarse
    strides: tuple[int, ...]  # pixels of the input image per position
    valid_hw: Tensor  # [B, 2] int64 pixels
    masks: tuple[Tensor | None, ...]  # [B, h, w] bool, True = padding; None: nothing is masked

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(h, w) of each level."""
        return tuple((level.shape[-2], level.shape[-1]) for level in self.levels)

    def tokens(self) -> Tensor:
        """[B, S', D] all positions, level by level, row-major."""
        return torch.cat([level.flatten(2).transpose(1, 2) for level in self.levels], 1)


@dataclass(frozen=True)
class Memory:
    """The encoder's output, as the decoder and the queries see it."""

    tokens: Tensor  # [B, S, D]
    sizes: tuple[tuple[int, int], ...]  # (h, w) of the L levels
    padding: Tensor | None  # [B, S] bool, True = padding; None: no padding in the batch
    ratios: Tensor  # [B, L, 2] (w, h) share of each map that holds the image
    position: Tensor | None = None  # [B, S, D] encoding of each token's place, for decoders that attend to all of them

    def maps(self) -> list[Tensor]:
        """The tokens as L maps [B, D, h, w]."""
        tokens = self.tokens.split([h * w for h, w in self.sizes], 1)
        return [level.transpose(1, 2).unflatten(2, size) for level, size in zip(tokens, self.sizes, strict=True)]


@dataclass(frozen=True)
class QueryGroup:
    """Queries that the decoder reads side by side with other groups, and what they may see of one another."""

    content: Tensor  # [B, Q, D]
    position: (
        Tensor | None
    )  # [B, Q, D]; None: the decoder makes it from the reference (`DetectorConfig.makes_position`)
    reference_cxcywh: Tensor  # [B, Q, 4] normalised; w = h = 0.5 (logit 0) where the reference is a point
    has_size: bool  # False: references are points
    # [B, Q] int32, what stays the same from one epoch to the next: a slot, or a place on the encoder's maps
    source: Tensor | None = None
    blocks: tuple[int, ...] = ()  # lengths, Q in all; queries of different blocks never see each other; (): one block
    sees: Literal["own", "main"] = "own"  # main: each block sees the queries of the first group too, which see no block
    hidden: Tensor | None = None  # [B, Q] bool, True for queries that nobody attends to; None: all are seen
    # [B, Q] int64: within a block, queries of different parts never see each other either; None: a block is one part
    part: Tensor | None = None
    gt_index: Tensor | None = None  # [B, Q] int64, the ground truth that each must predict; None: it is assigned later
    weight: Tensor | None = None  # [B, Q] of each query in the losses; None: 1

    def __post_init__(self) -> None:
        if self.blocks and (sum(self.blocks) != self.content.shape[1] or min(self.blocks) < 0):
            raise ValueError(
                f"blocks {self.blocks} of a query group do not add up to its {self.content.shape[1]} queries"
            )

    @property
    def block_lengths(self) -> tuple[int, ...]:
        """Lengths of the blocks, Q in all."""
        return self.blocks or (self.content.shape[1],)

    def between(self, start: int, stop: int) -> QueryGroup:
        """The queries from `start` to before `stop` as a group of one block."""
        if (start, stop) == (0, self.content.shape[1]):
            return self

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[:, start:stop]

        return QueryGroup(
            self.content[:, start:stop],
            cut(self.position),
            self.reference_cxcywh[:, start:stop],
            self.has_size,
            source=cut(self.source),
        )


@dataclass(frozen=True)
class DecoderOutput:
    """Predictions of every layer, all query groups one after the other."""

    logits: Tensor  # [N, B, Q, C], N decoder layers
    boxes_cxcywh: Tensor  # [N, B, Q, 4], normalised
    # Where each query of the last layer looked, if that was asked for: [B, Q, attention heads, L, places, 2] (x, y)
    # normalised to each whole map, and [B, Q, attention heads, L, places] how much each place counted.
    looked_at: tuple[Tensor, Tensor] | None = None

    def split(self, lengths: list[int]) -> list[DecoderOutput]:
        """One output per query group."""
        pairs = zip(self.logits.split(lengths, 2), self.boxes_cxcywh.split(lengths, 2), strict=True)
        return [DecoderOutput(logits, boxes) for logits, boxes in pairs]


@dataclass(frozen=True)
class Positives:
    """Candidates of a head with their ground truth, for the customised positive queries (paper Eq. 1).

    A candidate is an anchor, a point's box or a proposal. Its feature is either its own row of
    `features` (R-CNN) or the pyramid token `token_index` (dense heads).
    """

    boxes_xyxy: Tensor  # [B, M, 4] pixels, of every candidate
    gt_index: Tensor  # [B, M] int64, 0-based ground truth, BACKGROUND or IGNORED
    token_index: Tensor | None = None  # [M] int64 into `Pyramid.tokens()`
    features: Tensor | None = None  # [B, M, D]
    # Of each image, where the host knows it: its positives, and its candidates that are not IGNORED. With features,
    # positives must come first then, and IGNORED ones last.
    counts: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class PositiveSelection:
    """The candidates that become customised queries, and what each must predict."""

    boxes_cxcywh: Tensor  # [B, P, 4] normalised by the valid size, not clipped
    gt_index: Tensor  # [B, P] int64, 0-based ground truth or BACKGROUND
    weight: Tensor  # [B, P] 1, or 0 where an image has too few candidates, or its slice fewer queries
    features: Tensor  # [B, P, D]
    hidden: Tensor | None = None  # [B, P] bool, True for queries beyond those of an image's slice; None: there are none


@dataclass
class Proposals:
    """The starts of the decoder's queries, best first, and what the encoder predicts at every token."""

    queries: QueryGroup  # all ranks
    # Of all tokens, or of the chosen ones where the encoder learns from no other: then Q stands for S.
    logits: Tensor | None = None  # [B, S, C] of the encoder's own head; None: it has none
    boxes_cxcywh: Tensor | None = None  # [B, S, 4] normalised
    excluded: Tensor | None = None  # [B, S] bool, True for tokens that cannot carry a proposal; None: all can
    chosen: Tensor | None = None  # [B, Q] int64, the token behind each of `queries`; None: there is none
    taken: int = 0  # ranks that are handed out

    def take(self, count: int) -> QueryGroup:
        """The next `count` ranks: the main group comes first, then the others in the configuration's order.

        Raises:
            ValueError: there are not so many left.
        """
        start, self.taken = self.taken, self.taken + max(count, 0)
        if self.taken > (number := self.queries.content.shape[1]):
            raise ValueError(
                f"query groups take {self.taken} ranks of the proposals, and there are {number}; a group takes as many "
                "as its num_proposals says"
            )
        return self.queries.between(start, self.taken)


@dataclass
class Step:
    """One batch on its way through the detector: what query groups and their losses may read."""

    batch: Batch
    memory: Memory
    proposals: Proposals
    mask_at: Callable[[int], Tensor | None]  # padding mask of a stride, see `model.layers.Padding`
    pyramid: Pyramid | None = None  # what the auxiliary heads read; None: there are none
    positives: dict[str, PositiveSelection] = field(default_factory=dict)  # by the instance name of a head


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best first."""

    boxes_xyxy: Tensor  # [M, 4] pixels of the input image
    scores: Tensor  # [M]
    labels: Tensor  # [M] int64
    masks: Tensor | None = None  # [M, m, m] probability of the object in each cell of the box's own grid


def padding_mask(valid_hw: Tensor, height: int, width: int) -> Tensor:
    """[B, height, width] bool, True outside each image's `valid_hw` [B, 2]."""
    rows = torch.arange(height, device=valid_hw.device)[None, :] >= valid_hw[:, :1]
    columns = torch.arange(width, device=valid_hw.device)[None, :] >= valid_hw[:, 1:]
    return rows[:, :, None] | columns[:, None, :]
