"""Images of a folder that give the encoder fewer tokens than its queries start from, told before anything is trained.

What even the largest possible image lacks is known without the data (`harness.spec.image_tokens`). Here are the images
themselves. Several of different shapes are padded to a common size, which may be enough for all of them: so it is a
mistake only where every image is too small, and a note where so many are that a batch may hold nothing else. Windows
that are cut out at random are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from harness.config import TrialConfig
from harness.errors import UserError
from harness.spec.image_tokens import divisor_of, tokens_of

Sizes = Sequence[tuple[int, int]]


def notes_on_small_images(config: TrialConfig, train_hw: Sizes, val_hw: Sizes) -> Iterator[str]:
    """Notes on the images (height, width in pixels) of both splits.

    Raises:
        UserError: all images of a split are too small.
    """
    model, data = config.model, config.data
    if data.square or not model.strides or not model.num_tokens_for(model.num_proposals):
        return
    at_once = config.train.batch_size // config.train.accumulate_steps
    for split, image_hw, number, (short, long), batch in (
        ("training", train_hw, model.num_proposals, (min(data.train_short_sides), data.max_long_side), at_once),
        ("validation", val_hw, model.num_queries, (data.eval_short_side, data.evaluated_long_side), 1),
    ):
        needed = model.num_tokens_for(number)
        few, example = _short_of(needed, image_hw, short, long, model.strides, divisor_of(model))
        told = f"{few:,} of {len(image_hw):,} {split} images have fewer of the encoder's tokens than queries start from"
        told += f" ({needed:,}): {example}"
        mend = "ask for fewer queries (model.num_queries, model.groups) or larger images (data.train_short_sides, "
        mend += "data.eval_short_side, data.max_long_side)"
        if few == len(image_hw) > 0:
            raise UserError(f"{told}; {mend}")
        if few >= batch:
            yield f"{told}; a batch of such images alone cannot be used; {mend}"


def _short_of(
    needed: int, image_hw: Sizes, short: int, long: int, strides: tuple[int, ...], divisor: int
) -> tuple[int, str]:
    """How many images have fewer tokens, and the one with the fewest in words."""
    from harness.data.transforms import resized_hw

    different, counts = np.unique(np.asarray(image_hw).reshape(-1, 2), axis=0, return_counts=True)
    resized = [resized_hw(height, width, short, long) for height, width in different.tolist()]
    tokens = np.array([tokens_of(strides, *hw, divisor) for hw in resized], np.int64)
    few = int(counts[tokens < needed].sum())
    if not few:
        return 0, ""
    least = int(tokens.argmin())
    (height, width), (to_height, to_width) = different[least].tolist(), resized[least]
    return few, f"one of {width} x {height} pixels, which becomes {to_width} x {to_height}, has {tokens[least]:,}"
