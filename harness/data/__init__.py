"""Images and their objects: where they come from, whether they are sound, how they reach the network.

Read in this order: `scenes` and `digits` (the embedded data set), `layout`, `names`, `coco`, `tables` and `checks` (any
COCO-layout folder), `federated` (LVIS's protocol), `columns` and `mapped` (its annotations as arrays that all processes
share), `disk`, `files` and `pixels` (its images), `content` (its fingerprint), `plausibility`, `readings`, `duplicates`
and `segmentations` (more checks of its annotations), `masks`, `transforms`, `augment` and `jitter` (views of an image),
`paste`, `samples`, `order`, `loader` (batches). Only these from `masks` on need torch: import `harness.data.loader`.
"""

from __future__ import annotations

import os
from pathlib import Path

from harness.config import DataConfig
from harness.data.coco import CocoDataset, notes_across, same_categories, without_objects
from harness.data.content import folder_fingerprint
from harness.data.digits import digits_fingerprint, ensure_digits
from harness.data.layout import SPLITS, Split, find_splits
from harness.data.ticker import Progress, print_line
from harness.errors import UserError

__all__ = ["CocoDataset", "fingerprint", "open_dataset", "open_splits"]


def open_dataset(
    config: DataConfig, split: Split, *, progress: Progress | None = None, with_masks: bool = False
) -> CocoDataset:
    """Open and check one split; the digit scenes are generated first if they are not in the cache.

    Args:
        config: `path` names a COCO-layout folder, or is None for the digit scenes.
        split: "train" or "val".
        progress: takes a line of text now and then while something takes long; None prints it.
        with_masks: read the masks of the objects too, as happens anyway where training images need them.

    Raises:
        UserError: every problem of the split in one message.
    """
    with_masks = with_masks or (split == "train" and config.learns_from_masks)
    if config.path is not None:
        root, clips = Path(os.path.expanduser(config.path)), config.outside_boxes == "clipped"
        return CocoDataset(root, split, progress=progress, with_masks=with_masks, clips_boxes=clips)
    folder = ensure_digits(config.digits, progress)
    try:
        return CocoDataset(folder, split, progress=progress, name="digits", with_masks=with_masks)
    except UserError as error:
        raise UserError(
            f"{error}\nThese are generated digit scenes: delete {folder} to have them written again"
        ) from error


def open_splits(
    config: DataConfig, *, progress: Progress | None = None, with_masks: bool = False
) -> tuple[CocoDataset, CocoDataset]:
    """(train, val), opened and checked, also against each other.

    Raises:
        UserError: every problem of both splits in one message.
    """
    if config.path is not None:
        find_splits(Path(config.path).expanduser())  # what is missing of either split comes in one list
    opened: list[CocoDataset] = []
    problems: list[str] = []
    for split in SPLITS:
        try:
            opened.append(open_dataset(config, split, progress=progress, with_masks=with_masks))
            problems += filter(None, [without_objects(opened[-1])])
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    train, val = opened
    same_categories(train, val)
    for note in notes_across(train, val):
        (progress or print_line)(note)
    return train, val


def fingerprint(config: DataConfig) -> str:
    """16 hex characters that change with the data's content, not with its place. Generates and decodes nothing.

    Raises:
        UserError: the folder or parts of it are missing, all in one message; or the system lets us not see them.
    """
    if config.path is not None:
        return folder_fingerprint(Path(os.path.expanduser(config.path)))
    return digits_fingerprint(config.digits)
