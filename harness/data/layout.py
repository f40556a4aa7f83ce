"""Where a COCO-layout data set keeps its files; all that is missing of it is told at once, with what may be meant."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from harness.data.disk import is_file, is_folder, is_image, shown
from harness.errors import UserError

Split = Literal["train", "val"]
LAYOUT = "the layout is train/, val/, annotations/instances_train.json, annotations/instances_val.json"
SPLITS: tuple[Split, ...] = ("train", "val")
YEARS = ("", "2017", "2014")
OWN_NAMES: dict[Split, tuple[str, ...]] = {  # of annotation files that name their images from the data set's folder
    "train": ("lvis_v1_train", "zhiyuan_objv2_train"),
    "val": ("lvis_v1_val", "lvis_v1_minival", "lvis_v1_minival_inserted_image_name", "zhiyuan_objv2_val"),
}
ALIASES: dict[Split, tuple[str, ...]] = {  # what others call a split, the likeliest first
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "eval", "test", "testing"),
}
MANY_ENTRIES = 2000  # of a folder that is looked into for something near


def find_split(root: Path, split: Split) -> tuple[Path, Path]:
    """(annotation file, image folder) of a split; the folder is `root` itself for files of `OWN_NAMES`.

    Raises:
        UserError: the folder, the annotation file or the image folder is missing: all of it in one message.
    """
    return find_splits(root, (split,))[split]


def find_splits(root: Path, splits: Sequence[Split] = SPLITS) -> dict[Split, tuple[Path, Path]]:
    """(annotation file, image folder) of each split.

    Raises:
        UserError: everything that is missing of these splits, each part with the nearest name that is there.
    """
    if not is_folder(root):
        raise UserError(f"data set {shown(root)}{_no_folder(root)}")
    parts: dict[Split, tuple[Path, Path]] = {}
    missing: list[str] = []
    for split in splits:
        year = _year(root, split)
        annotation_file, folder = root / "annotations" / f"instances_{split}{year}.json", root / f"{split}{year}"
        parts[split] = annotation_file, folder
        if not is_file(annotation_file) and (own := own_named(root, split)):
            parts[split] = own, root
            continue
        if not is_file(annotation_file):
            name = f"annotations/{annotation_file.name}"
            missing.append(f"{name} is missing{_hint(root, split, annotation_file.stem, _annotation_files(root))}")
        if not is_folder(folder):
            hint = _hint(root, split, folder.name, _image_folders(root)) or _shared_folder(root, folder.name)
            missing.append(f"image folder {folder.name}/ is missing{hint}")
    if missing:
        if other := _other_root(root):
            raise UserError(f"data set {shown(root)}: no annotations/ here; did you mean {shown(other)}?")
        rest = f"{_present(root)}; {LAYOUT}"
        if len(missing) == 1:
            raise UserError(f"data set {shown(root)}: {missing[0]}; {rest}")
        lines = "".join(f"\n  {line}" for line in missing)
        raise UserError(f"data set {shown(root)}: {len(missing)} parts are missing; {rest}{lines}")
    return parts


def own_named(root: Path, split: Split) -> Path | None:
    """The annotation file of LVIS or Objects365 of a split, where one is there under its own name."""
    paths = (root / "annotations" / f"{name}.json" for name in OWN_NAMES[split])
    return next(filter(is_file, paths), None)


def _year(root: Path, split: Split) -> str:
    """The ending of COCO's names that is used here: of the annotation file, else of the image folder."""
    for year in YEARS:
        if is_file(root / "annotations" / f"instances_{split}{year}.json"):
            return year
    return next((year for year in YEARS if is_folder(root / f"{split}{year}")), "")


def is_coco(root: Path) -> bool:
    """Whether a folder is meant to be in COCO layout, whole or not: it holds JSON files that look like annotations."""
    for path in _annotation_files(root):
        name = path.name.lower()
        if path.parent == root / "annotations" or "coco" in name or name.startswith("instances"):
            return True
        if path.parent == root and any(_rank(root, path, split) is not None for split in SPLITS):
            return True
    return False


# ---- what may be meant --------------------------------------------------------------------------------------------


def _no_folder(root: Path) -> str:
    """What is wrong with a data set's path."""
    what = ": no such folder"
    if is_file(root):
        what = " is a file, not a folder"
    elif os.path.islink(root):
        what = f" is a link to {shown(os.readlink(root))} that leads nowhere"
    near = difflib.get_close_matches(root.name, [path.name for path in _entries(root.parent, os.path.isdir)], 1, 0.6)
    hint = f", did you mean {shown(root.parent / near[0])}?" if near else ""
    return f"{what}{hint}; --data (or data.path) must name a folder in COCO, YOLO or VOC layout"


def _other_root(root: Path) -> Path | None:
    """The folder above or below `root` that is a data set, where `root` itself has no `annotations/`."""
    if is_folder(root / "annotations"):
        return None
    for folder in (root.parent, *_entries(root, os.path.isdir)):
        names = [path.stem for path in _entries(folder / "annotations", os.path.isfile)]
        if any(name.startswith("instances_") or name in sum(OWN_NAMES.values(), ()) for name in names):
            return folder
    return None


def _present(root: Path) -> str:
    """What is there instead: annotation files, then everything else beside `annotations/`."""
    names = [f"annotations/{path.name}" for path in _entries(root / "annotations", os.path.isfile) if _is_json(path)]
    for path in _entries(root):
        if path.name != "annotations":
            names.append(f"{path.name}/" if os.path.isdir(path) else path.name)
    listed = ", ".join(map(shown, names[:6])) or "nothing"
    return f"here {'are' if len(names) > 1 else 'is'} {listed}{', …' if len(names) > 6 else ''}"


def _entries(folder: Path, kind: Callable[[Path], bool] = bool) -> list[Path]:
    """What lies in a folder and is of a kind, sorted, without hidden ones; nothing where we may not look."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, MANY_ENTRIES)]
        return sorted(path for path in map(folder.joinpath, names) if path.name[0] != "." and kind(path))
    except OSError:
        return []


def _has_image(files: list[Path]) -> bool:
    return any(is_image(file.name) for file in files)


def _is_json(path: Path) -> bool:
    return path.name.lower().endswith(".json")


def _annotation_files(root: Path) -> list[Path]:
    """JSON files in the data set's folder and one below, those in `annotations/` first."""
    folders = dict.fromkeys((root / "annotations", root, *_entries(root, os.path.isdir)))
    return [path for folder in folders for path in _entries(folder, os.path.isfile) if _is_json(path)]


def _image_folders(root: Path) -> list[Path]:
    """Folders in the data set's folder, then those one below, that hold images or no file at all."""
    found = []
    for folder in (root, *_entries(root, os.path.isdir)):
        for path in _entries(folder, os.path.isdir):
            files = _entries(path, os.path.isfile)
            if path.name != "annotations" and (not files or _has_image(files)):
                found.append(path)
    return found


def _hint(root: Path, split: Split, wanted: str, paths: list[Path]) -> str:
    """The likeliest of `paths` for the missing `wanted` of a split: `; rename valid/?`. Empty where none comes near."""
    ranked = [(rank, number) for number, path in enumerate(paths) if (rank := _rank(root, path, split)) is not None]
    if ranked:
        path = paths[min(ranked)[1]]
    else:  # one that stands for no split may be misspelt
        free = [path for path in paths if all(_rank(root, path, other) is None for other in SPLITS)]
        near = difflib.get_close_matches(wanted, [path.stem for path in free], 1, 0.7)
        if not near:
            return ""
        path = next(path for path in free if path.stem == near[0])
    return f"; rename {shown(path.relative_to(root))}{'' if _is_json(path) else '/'}?"


def _shared_folder(root: Path, wanted: str) -> str:
    """A folder of images that stands for no split, as for both: `; link images/ as train/?`. Empty where none is."""
    for path in _image_folders(root):
        own = [path] if path.parent == root else [path.parent, path]
        free = all(_rank(root, one, split) is None for one in own for split in SPLITS)
        if free and _has_image(_entries(path, os.path.isfile)):
            return f"; link {shown(path.relative_to(root))}/ as {wanted}/?"
    return ""


def _rank(root: Path, path: Path, split: Split) -> int | None:
    """How well a name stands for a split, 0 the best; None where it does not."""
    words = set(re.findall("[a-z]+", path.stem.lower()))
    if _is_json(path) and path.parent not in (root, root / "annotations"):
        words |= set(re.findall("[a-z]+", path.parent.name.lower()))  # valid/_annotations.coco.json
    return next((rank for rank, alias in enumerate(ALIASES[split]) if alias in words), None)
