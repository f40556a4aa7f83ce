"""Images and their objects: where they come from, whether they are sound, how they reach the network.

Read in this order: `scenes` and `digits` (the embedded data set), `layout`, `names`, `coco`, `tables` and `checks`
(any COCO-layout folder), `categories` and `classes` (what its labels stand for), `federated` (LVIS's protocol),
`columns` and `mapped` (its annotations as arrays that all processes share), `disk`, `files` and `pixels` (its
images), `content` (its fingerprint), `plausibility`, `readings`, `duplicates` and `segmentations` (more checks of its
annotations), `masks`, `transforms`, `augment` and `jitter` (views of an image), `squares` and `paste` (of several),
`samples`, `order`, `loader` (batches). Only these from `masks` on need torch: import `harness.data.loader`. YOLO and
VOC folders become COCO-layout folders: `foreign`, `yolo`, `described`, `yolo_images`, `yolo_labels`, `poses`, `voc`
and `voc_labels`, `conversion`, `converted`. `photographs` are images without annotations. `ticker` tells how far long
work has come.
"""

from __future__ import annotations

import os
from pathlib import Path

from harness.config import DataConfig
from harness.data.coco import CocoDataset, notes_across, same_categories, without_objects
from harness.data.content import folder_fingerprint
from harness.data.converted import Own, own_folder
from harness.data.digits import digits_fingerprint, ensure_digits
from harness.data.disk import shown
from harness.data.layout import SPLITS, Split, find_splits
from harness.data.ticker import Progress, print_aside, print_line
from harness.errors import UserError

__all__ = ["CocoDataset", "fingerprint", "has_changed", "open_dataset", "open_splits"]


def open_dataset(
    config: DataConfig, split: Split, *, progress: Progress | None = None, with_masks: bool = False
) -> CocoDataset:
    """Open and check one split; the digit scenes are generated first if they are not in the cache.

    Args:
        config: `path` names a folder in COCO, YOLO or VOC layout, or is None for the digit scenes.
        split: "train" or "val".
        progress: takes a line of text now and then while something takes long; None prints it.
        with_masks: read the masks of the objects too, as happens anyway where training images need them.

    Raises:
        UserError: every problem of the split in one message.
    """
    progress = progress or print_line
    own = None if config.path is None else _own(config.path, progress)
    try:
        return _open(own, config, split, progress, with_masks)
    except UserError as error:
        raise UserError("\n".join([str(error), *_origin(own)])) from error


def _own(path: str, progress: Progress) -> Own:
    """The folder of own data; every line about its conversion is told."""
    own = own_folder(Path(os.path.expanduser(path)), progress)
    for line in own.lines:
        progress(line)
    return own


def _open(own: Own | None, config: DataConfig, split: Split, progress: Progress, with_masks: bool) -> CocoDataset:
    """A split of own data, or of the digit scenes where there are none."""
    with_masks = with_masks or (split == "train" and config.learns_from_masks)
    if own is None:
        return _open_digits(config, split, progress, with_masks)
    clips = config.outside_boxes == "clipped"
    return CocoDataset(own.folder, split, progress=progress, name=own.name, with_masks=with_masks, clips_boxes=clips)


def _origin(own: Own | None) -> list[str]:
    """What must be said below errors of a conversion, which name files in the cache."""
    if own is None or own.source is None:
        return []
    return [f"This was converted from {shown(own.source)}: correct it there, or delete {own.folder}"]


def _open_digits(config: DataConfig, split: Split, progress: Progress, with_masks: bool) -> CocoDataset:
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
    progress, own = progress or print_line, None
    if config.path is not None:
        own = _own(config.path, progress)
        find_splits(own.folder)  # what is missing of either split comes in one list
    opened: list[CocoDataset] = []
    problems: list[str] = []
    for split in SPLITS:
        try:
            opened.append(_open(own, config, split, progress, with_masks))
            problems += filter(None, [without_objects(opened[-1])])
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys([*problems, *_origin(own)])))
    train, val = opened
    same_categories(train, val)
    for note in notes_across(train, val):
        progress(note)
    return train, val


def fingerprint(config: DataConfig) -> str:
    """16 hex characters that change with the data's content, not with its place. Generates and decodes nothing.

    A YOLO or VOC folder is converted first, if that was not done yet.

    Raises:
        UserError: the folder or parts of it are missing, all in one message; or the system lets us not see them.
    """
    if config.path is not None:
        own = own_folder(Path(os.path.expanduser(config.path)), print_aside)
        for line in own.lines if own.is_new else ():
            print_aside(line)
        return folder_fingerprint(own.folder)
    return digits_fingerprint(config.digits)


def has_changed(config: DataConfig, recorded: str | None) -> bool:
    """Whether other data lie there now than those of a record's `fingerprint`; never where it tells of none.

    Raises:
        UserError: as `fingerprint`.
    """
    return bool(recorded) and fingerprint(config) != recorded
