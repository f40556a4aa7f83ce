"""Where a VOC data set keeps its files: VOC's own folders with lists, or folders train/ and val/ with XML files.

An XML file goes with the image of its name, else with the one that its `filename` tells.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from harness.data.checks import Problems, brief
from harness.data.described import two_places
from harness.data.disk import IMAGE_SUFFIXES, is_file, is_folder, is_image, shown
from harness.data.foreign import Foreign, Picture, by_stem, distinct, has, images_by_stem, lines_of, names_in, read_text
from harness.data.layout import ALIASES, SPLITS, Split
from harness.data.voc_labels import filename_of
from harness.errors import UserError

XML_FOLDERS = ("Annotations", "annotations", "xml", "xmls", "labels")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "jpegimages")
LIST_FOLDERS = ("ImageSets/Main", "ImageSets", "")
LISTS: tuple[dict[Split, str], ...] = ({"train": "train", "val": "val"}, {"train": "trainval", "val": "test"})

_Place = tuple[Path, Path]  # folder of XML files, folder of images


def find_voc(path: Path) -> Foreign | None:
    """The pictures of the VOC data set in a folder, or in the only VOC20xx/ below it; None where there is none.

    Raises:
        UserError: there are several.
    """
    if not is_folder(path):
        return None
    path = _year(path)
    found = Foreign("VOC", path, Problems(path))
    whole = next(_places(path, ""), None)
    if whole is not None and not has(whole[1], *IMAGE_SUFFIXES):
        told = (
            f"{found.place(whole[0])}/ has XML files, but no folder of images is beside it; put them into JPEGImages/"
        )
        found.problems.add("images", told)
        return found
    if whole is not None and _by_lists(found, whole):
        return found
    parts = {split: _parts(path, split) for split in SPLITS}
    if any(parts.values()):
        _by_folders(found, parts)
        return found
    if whole is None:
        return None
    told = "is a VOC folder without lists; write ImageSets/Main/train.txt and val.txt, the name of an image a line"
    found.problems.add("split", told)
    return found


def _year(path: Path) -> Path:
    """The folder VOC20xx/ in a folder or its VOCdevkit/; the folder itself where there is none."""
    years = [
        place / name
        for place in (path, path / "VOCdevkit")
        for name in names_in(place, 1000)
        if name.startswith("VOC2") and is_folder(place / name / "Annotations")
    ]
    if len(years) > 1:
        listed = ", ".join(shown(year.name) for year in years)
        raise UserError(
            f"data set {shown(path)}: several VOC data sets are here ({listed}); name one: --data {shown(years[0])}"
        )
    return years[0] if years else path


def _places(root: Path, alias: str) -> Iterator[_Place]:
    """Where XML files and images of a split may lie, as far as XML files are there; "" stands for both splits."""
    pairs = [(root / alias, root / alias)]
    for folder in XML_FOLDERS:
        for xml, above, below in ((root / alias / folder, root / alias, ""), (root / folder / alias, root, alias)):
            if is_folder(xml):
                pairs += [(xml, above / images / below) for images in IMAGE_FOLDERS]
                pairs.append((xml, root / alias))
    return (pair for pair in pairs if is_folder(pair[1]) and has(pair[0], ".xml"))


def _parts(root: Path, split: Split) -> list[tuple[str, _Place]]:
    """The names of a split's folders and their places, the likeliest first."""
    names = (name for alias in ALIASES[split] for name in dict.fromkeys((alias, alias.capitalize())))
    return [(name, place) for name in names for place in islice(_places(root, name), 1)]


# ---- by lists -----------------------------------------------------------------------------------------------------


def _by_lists(found: Foreign, whole: _Place) -> bool:
    """Take the images that lists name; whether there are lists."""
    for folder in LIST_FOLDERS:
        for names in LISTS:
            lists = {split: found.root / folder / f"{name}.txt" for split, name in names.items()}
            there = {split: path for split, path in lists.items() if is_file(path)}
            if len(there) == len(SPLITS):
                if names is not LISTS[0]:
                    found.problems.note("trainval.txt is taken for the train images, test.txt for the val images")
                for split, path in lists.items():
                    found.pictures[split] = distinct(_listed(found, path, *whole))
                return True
    for folder in LIST_FOLDERS:
        for split in SPLITS:
            if is_file(found.root / folder / f"{split}.txt"):
                other = "val" if split == "train" else "train"
                told = f"has {found.place(found.root / folder / split)}.txt, but no {other}.txt beside it; write it"
                found.problems.add("split", f"{told}, the name of an image a line")
                return True
    return False


def _listed(found: Foreign, path: Path, xml_folder: Path, image_folder: Path) -> list[Picture]:
    """The pictures that the lines of a list name."""
    pictures: list[Picture] = []
    images, files = images_by_stem(image_folder), by_stem(names_in(xml_folder), ".xml")
    for line, text in lines_of(read_text(path)):
        where = f"{found.place(path)}:{line}"
        name = text.replace("\\", "/")
        stem = os.path.splitext(name)[0] if is_image(name) or name.lower().endswith(".xml") else name
        stem = stem if is_file(xml_folder / f"{stem}.xml") else stem.rpartition("/")[2]
        xml = xml_folder / files.get(stem, f"{stem}.xml")
        if not is_file(xml):
            told = f"{found.place(xml_folder)}/{shown(stem)}.xml is not there; add it or remove the line"
            found.problems.add("listed", f"{where}: {told}")
        elif image := _image(found, xml, image_folder, images):
            pictures.append(Picture(image, str(xml)))
    if not pictures and not found.problems.count:
        found.problems.add("listed", f"{found.place(path)} names no image; write the name of an image a line")
    _tell_shared(found, pictures)
    if twice := len(pictures) - len(set(pictures)):
        found.problems.note(f"{found.place(path)}: {twice:,} lines stand there twice and count once")
    return pictures


def _tell_shared(found: Foreign, pictures: list[Picture]) -> None:
    """Images with several XML files, of which one alone could be read."""
    first: dict[str, str] = {}
    for image, xml in dict.fromkeys(pictures):
        if xml and (other := first.setdefault(image, xml)) != xml:
            told = f"{shown(os.path.basename(image))} has {found.place(other)} already; remove one of them"
            found.problems.add("shared", f"{found.place(xml)}: {told}")


def _image(found: Foreign, xml: Path, folder: Path, images: dict[str, list[str]]) -> str | None:
    """The image of an XML file; None where there is none, or there are several, which is told."""
    own = images.get(xml.stem, [])
    if len(own) == 1:
        return os.path.join(folder, own[0])
    told = filename_of(xml)
    name = told.replace("\\", "/").rpartition("/")[2]
    if name in own or (name and not own and is_file(folder / name)):
        return os.path.join(folder, name)
    if own:
        found.problems.add("image", f"{found.place(xml)}: {own[0]} and {own[1]} have its name; remove one of them")
    else:
        also = f", nor {brief(told)}, which its filename tells" if told else ""
        what = f"no image {shown(xml.stem)} in {found.place(folder)}/{also}; add the image or remove the file"
        found.problems.add("image", f"{found.place(xml)}: {what}")
    return None


# ---- by folders ---------------------------------------------------------------------------------------------------


def _by_folders(found: Foreign, parts: dict[Split, list[tuple[str, _Place]]]) -> None:
    """Take all images of the folders of both splits."""
    for split, there in parts.items():
        if not there:
            told = f"is a VOC folder without {split} images; put them and their XML files into {split}/"
            found.problems.add("split", told)
            continue
        name, (xml_folder, image_folder) = there[0]
        if name != split:
            found.problems.note(f"{found.place(image_folder)} is taken for the {split} images")
        for other, (_, folder) in there[1:]:
            if not other.lower().startswith("test") and not os.path.samefile(folder, image_folder):
                found.problems.note(two_places(found.place(image_folder), split, found.place(folder)))
        images = images_by_stem(image_folder)
        used: set[str] = set()
        for xml in sorted(xml_folder / name for name in names_in(xml_folder) if name.lower().endswith(".xml")):
            if image := _image(found, xml, image_folder, images):
                used.add(image)
                found.pictures[split].append(Picture(image, str(xml)))
        _tell_shared(found, found.pictures[split])
        rest = {os.path.join(image_folder, name) for names in images.values() for name in names} - used
        found.pictures[split] = distinct([*found.pictures[split], *(Picture(image, None) for image in sorted(rest))])
