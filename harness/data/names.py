"""Under which name, from its split's folder, an annotation file means an image: by `file_name`, or by LVIS's URL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from harness.data.disk import is_folder
from harness.data.layout import SPLITS

LVIS, OBJECTS365 = "lvis_", "zhiyuan_objv2_"  # what the names of their annotation files begin with


class Naming(NamedTuple):
    """How a split's images are named."""

    folder: str  # name of the split's folder; empty where names begin at the data set's
    by_url: bool = False  # `coco_url` comes first; else it stands in for a missing `file_name`
    prefix: str = ""  # the folder of Objects365's patches, which their names lead to in another way

    def of(self, row: Mapping[str, Any]) -> Any:
        """The name of an image, as text; whatever stands there where it has none."""
        name, url = row.get("file_name"), row.get("coco_url")
        if isinstance(url, str) and (self.by_url or not isinstance(name, str)):
            *_, folder, bare = ("", "", *PurePosixPath(url).parts)
            if not self.folder:
                return f"{folder}/{bare}"
            return bare if folder in ("", self.folder) else f"../{folder}/{bare}"
        if isinstance(name, str) and self.prefix:
            return "/".join((self.prefix, *PurePosixPath(name).parts[-2:]))
        return name


BY_FILE_NAME = Naming("")


def naming_of(annotation_file: Path, folder: Path) -> Naming:
    """How a split's annotation file names its images.

    LVIS's images are those of COCO, and its validation split has some of COCO's training images: their URLs end in
    `train2017/000000391895.jpg`. Objects365 names `images/v1/patch8/objects365_v1_00420917.jpg`, and the archives that
    hold them are commonly unpacked into `train/patch8/` and `val/patch8/`.

    Args:
        annotation_file: of the split.
        folder: of its images, or the data set's (see `find_split`).
    """
    of_root = is_root(annotation_file, folder)
    prefix = ""
    if of_root and annotation_file.stem.startswith(OBJECTS365) and not is_folder(folder / "images"):
        prefix = next((split for split in SPLITS if annotation_file.stem.endswith(split)), "")
    return Naming("" if of_root else folder.name, of_root and annotation_file.stem.startswith(LVIS), prefix)


def is_root(annotation_file: Path, folder: Path) -> bool:
    """Whether the folder from which images are named is the data set's own."""
    return annotation_file.parent.parent == folder
