"""Images and their objects: where they come from, whether they are sound, how they reach the network.

Read in this order: `scenes` and `digits` (the embedded data set), `layout`, `coco` and `checks` (any COCO-layout
folder), `transforms`, `loader` (batches; the only file here that needs torch: import it as `harness.data.loader`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.data.layout import Split, folder_fingerprint
from harness.data.ticker import Progress

if TYPE_CHECKING:
    from harness.config import DataConfig
    from harness.data.coco import CocoDataset

__all__ = ["fingerprint", "open_dataset"]


def open_dataset(config: DataConfig, split: Split, *, progress: Progress | None = None) -> CocoDataset:
    """Open and check one split; the digit scenes are generated first if they are not in the cache.

    Args:
        config: `path` names a COCO-layout folder, or is None for the digit scenes.
        split: "train" or "val".
        progress: takes a line of text now and then while something takes long; None prints it.

    Raises:
        UserError: every problem of the split in one message.
    """
    from harness.data.coco import CocoDataset
    from harness.data.digits import ensure_digits

    root = Path(config.path).expanduser() if config.path is not None else ensure_digits(config.digits, progress)
    return CocoDataset(root, split, progress=progress)


def fingerprint(config: DataConfig) -> str:
    """16 hex characters that change with the data's content, not with its place. Generates and decodes nothing.

    Raises:
        UserError: the folder or one of its parts is missing.
    """
    if config.path is not None:
        return folder_fingerprint(Path(config.path).expanduser())
    from harness.data.digits import digits_fingerprint

    return digits_fingerprint(config.digits)
