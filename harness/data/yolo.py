"""Where a YOLO data set keeps its files: as data.yaml says (Ultralytics, Roboflow) or obj.data (Darknet), or by name.

An image's label file has its name in a folder `labels` instead of the last folder `images`, or lies beside it. Without
a label file an image has no objects.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from harness.data.checks import Problems, brief
from harness.data.described import Description, describe, two_places
from harness.data.disk import IMAGE_SUFFIXES, is_file, is_folder, shown
from harness.data.foreign import FEW_ENTRIES, Foreign, has, lines_of, names_in, read_text
from harness.data.layout import ALIASES, SPLITS, Split
from harness.data.yolo_images import FOLDERS, NO_LABELS, images_of, label_places, with_labels
from harness.data.yolo_labels import NUMBER
from harness.errors import UserError

DESCRIPTIONS = (".yaml", ".yml", ".data")
NAME_LISTS = ("classes.txt", "obj.names", "labels/classes.txt", "classes.names", "labels.txt", "names.txt")
LABELS = tuple(FOLDERS.values())
LOOKED_AT = 20  # texts beside images, to see whether they are labels


def find_yolo(path: Path) -> Foreign | None:
    """The pictures of the YOLO data set that `path` is, a folder or a file such as data.yaml; None where it is none.

    Raises:
        UserError: it is one, and its description cannot be understood.
    """
    if not is_folder(path):
        return _described(path) if path.suffix.lower() in DESCRIPTIONS and is_file(path) else None
    if description := _description_in(path):
        return _described(description)
    places = _places(path)
    if not any(places.values()):
        return None
    return _by_name(Foreign("YOLO", path, Problems(path), names=_listed_names(path)), places)


# ---- a description ------------------------------------------------------------------------------------------------


def _description_in(folder: Path) -> Path | None:
    """The file in a folder that describes a YOLO data set; None where there is none.

    Raises:
        UserError: several do, and none has the usual name.
    """
    names = [name for name in names_in(folder, FEW_ENTRIES) if name.lower().endswith(DESCRIPTIONS)]
    usual = [
        name for name in names if name.lower() in ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml", "obj.data")
    ]
    for name in usual:
        if describe(folder / name).is_one or any(_places(folder).values()):
            return folder / name
    others = [name for name in names if name not in usual and is_file(folder / name) and describe(folder / name).is_one]
    if len(others) > 1:
        listed = ", ".join(map(shown, others[:4]))
        raise UserError(
            f"data set {shown(folder)}: several files describe it ({listed}); name one: --data {folder / others[0]}"
        )
    return folder / others[0] if others else None


def _described(path: Path) -> Foreign:
    """The data set that a file describes."""
    description = describe(path)
    root = path.parent
    found = Foreign("YOLO", root, Problems(path), is_described=True)
    for trouble in description.problems:
        found.problems.add("description", trouble)
    found.problems.raise_if_any()
    for note in description.notes:
        found.problems.note(note)
    found.names = description.names or _names_of_file(found, description) or _listed_names(root)
    _check_names(found, description)
    if not any(description.entries.values()) and any(places := _places(root).values()):
        return _by_name(found, dict(zip(SPLITS, places, strict=True)))
    for split in SPLITS:
        images: list[str] = []
        entries = description.entries[split]
        if not entries:
            there = "; test: is there, which is not read" if split == "val" and "test" in description.keys else ""
            found.problems.add("split", f"has no {split}:, which must name the images' folder or list{there}")
        for entry in entries:
            place = _resolved(found, description, entry, split)
            images += images_of(found, place) if place else []
            if place and not images:
                found.problems.add("images", f"{split}: {found.place(place)} names no images that are there")
        found.pictures[split] = with_labels(images)
    return found


def _check_names(found: Foreign, description: Description) -> None:
    names, count = found.names, description.count
    if names is not None:
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if twice:
            found.problems.add("names", f"several classes are called {brief(twice[0])}; give each its own name")
        if count is not None and count != len(names):
            told = f"nc: {count}, but {len(names)} names; correct one of them"
            found.problems.add("names", told)
    elif count is not None:
        found.names = [str(number) for number in range(count)]
        found.problems.note(f"names: is missing: classes go by their numbers, 0 to {count - 1}")
    if description.is_pose:
        told = "kpt_shape: is of a pose data set, whose points are not learnt"
        found.problems.add("pose", f"{told}; keep the first five numbers of each line, and remove kpt_shape")


def _resolved(found: Foreign, description: Description, entry: str, split: Split) -> Path | None:
    """The folder or list that an entry names; None where there is none, which is told."""
    written = Path(os.path.expanduser(entry if "/" in entry else entry.replace("\\", "/")))
    root, bases = found.root, description.bases
    inner = Path(*[part for part in written.parts if part != ".."]) if not written.is_absolute() else written
    candidates = [base / written for base in bases]
    if inner != written and not written.is_absolute():
        candidates = [root / inner, *candidates, *(base / inner for base in bases)]
    if written.is_absolute():
        candidates += [root.joinpath(*written.parts[index:]) for index in range(1, len(written.parts))]
    there = [Path(os.path.normpath(path)) for path in candidates if is_file(path) or is_folder(path)]
    if not there:
        told = f"{split}: {brief(entry)} is not there"
        near = _places(root)[split]
        hint = f"; did you mean {found.place(near[0])}?" if near else "; correct it"
        found.problems.add(
            "split", f"{told} (looked in {', '.join(dict.fromkeys(shown(base) for base in bases))}){hint}"
        )
        return None
    meant = Path(os.path.normpath(bases[0] / written))
    if there[0] != meant:
        found.problems.note(f"{split}: {brief(entry)} is taken for {found.place(there[0])}")
    return there[0]


def _names_of_file(found: Foreign, description: Description) -> list[str] | None:
    """Names of the file that `names` of a Darknet description leads to."""
    if (name := description.names_file) is None:
        return None
    for path in (found.root / name, found.root.parent / name, found.root / Path(name).name):
        if is_file(path):
            return [line for _, line in lines_of(read_text(path))]
    found.problems.add("names", f"names: {brief(name)} is neither a list nor a file that is there; correct it")
    return None


def _listed_names(root: Path) -> list[str] | None:
    """Names of the classes, a line each, of a file beside the data; None where there is none."""
    for name in NAME_LISTS:
        if is_file(root / name) and (names := [line for _, line in lines_of(read_text(root / name))]):
            return names
    return None


# ---- without a description ----------------------------------------------------------------------------------------


def _places(root: Path) -> dict[Split, list[Path]]:
    """Of each split the folder or list of its images, the likeliest first; nothing where no label file is near."""
    found: dict[Split, list[Path]] = {}
    for split in SPLITS:
        names = [f"{alias}{year}" for alias in ALIASES[split] for year in ("", "2017", "2014")]
        folders = [place for name in names for place in (root / "images" / name, root / name / "images", root / name)]
        lists = [root / f"{name}.txt" for name in names]
        found[split] = [folder for folder in folders if is_folder(folder) and _is_labelled(folder)]
        below = (root, root / "labels", *(root / "labels" / name for name in names_in(root / "labels", 50)))
        if not found[split] and any(map(_has_labels, below)):
            found[split] = [path for path in lists if is_file(path)]
    if not any(found.values()) and has(root / "images", *IMAGE_SUFFIXES) and has(root / "labels", ".txt"):
        found["train"] = [root / "images"]
    return found


def _is_labelled(folder: Path) -> bool:
    """Whether images lie in a folder or below, and label files where theirs are looked for."""
    for place in (folder, *(folder / name for name in names_in(folder, 50))):
        if has(place, *IMAGE_SUFFIXES):
            labels = {os.path.dirname(path) for path in label_places(str(place / "x.jpg"))}
            if any(_has_labels(Path(one)) for one in labels):
                return True
    return False


def _has_labels(folder: Path) -> bool:
    """Whether label files lie in a folder, by its name or by what they hold."""
    texts = [name for name in names_in(folder, FEW_ENTRIES) if name.lower().endswith(".txt")]
    texts = [name for name in texts if name.lower() not in NO_LABELS and not name.lower().startswith("readme")]
    return bool(texts) and (any(part in LABELS for part in folder.parts[-2:]) or _begins_as_label(folder, texts))


def _begins_as_label(folder: Path, texts: Sequence[str]) -> bool:
    """Whether one of the first files begins with a line of five numbers or more."""
    for name in texts[:LOOKED_AT]:
        if is_file(folder / name):
            words = next((line for _, line in lines_of(read_text(folder / name))), "").split()
            if len(words) >= 5 and all(map(NUMBER.fullmatch, words)):
                return True
    return False


def _by_name(found: Foreign, places: dict[Split, list[Path]]) -> Foreign:
    """The data set whose splits are known by the names of folders or lists."""
    for split in SPLITS:
        for place in places[split][:1]:
            found.pictures[split] = with_labels(images_of(found, place))
    _tell_missing(found, places)
    return found


def _tell_missing(found: Foreign, places: dict[Split, list[Path]]) -> None:
    """Problems of a data set without description that lacks a split, and notes of what is taken for one."""
    if places["train"] == [found.root / "images"]:
        told = "is a YOLO folder whose images are not divided; write train.txt and val.txt, an image's path a line"
        found.problems.add("split", told)
        return
    for split in SPLITS:
        if not places[split]:
            places_of_it = f"into images/{split}/ and labels/{split}/, or name them as {split}: in a data.yaml"
            found.problems.add("split", f"is a YOLO folder without {split} images; put them {places_of_it}")
        elif not found.pictures[split]:
            found.problems.add("images", f"{found.place(places[split][0])} holds no images; put them there")
        elif split not in found.place(places[split][0]):
            found.problems.note(f"{found.place(places[split][0])} is taken for the {split} images")
        for other in _others(places[split]):
            if not any(part.startswith("test") for part in other.relative_to(found.root).parts):
                found.problems.note(two_places(found.place(places[split][0]), split, found.place(other)))


def _others(places: Sequence[Path]) -> list[Path]:
    """What lies beside the place of a split that is taken, neither in it nor around it."""
    taken = places[:1]
    return [place for place in places[1:] if not {*taken} & {*place.parents} and place not in taken[0].parents]
