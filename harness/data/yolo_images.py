"""The images of a YOLO data set and the label files that go with them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.data.checks import brief
from harness.data.disk import is_file, is_folder, is_image, list_images, shown, status
from harness.data.foreign import Foreign, Picture, by_stem, lines_of, names_in, read_text
from harness.data.layout import SPLITS

NO_LABELS = ("classes.txt", "labels.txt", "names.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "readme.txt")
FOLDERS = {"images": "labels", "Images": "Labels", "IMAGES": "LABELS"}
SUFFIX = ".txt"  # of label files
THREADS, FILES_AT_ONCE = 8, 1024


def images_of(found: Foreign, place: Path) -> list[str]:
    """Paths of the images in a folder and below, or of those that a list names."""
    if is_folder(place):
        images = [os.path.join(place, name) for name, _ in list_images(place)]
        _tell_broken_links(found, {str(place), *map(os.path.dirname, images)})
        return images
    images = []
    for line, text in lines_of(read_text(place)):
        path = _of_list(found, place, text)
        if path is None:
            told = f"{found.place(place)}:{line}: {brief(text)} is not there; add the image or remove the line"
            found.problems.add("listed", told)
        else:
            images.append(path)
    if len(set(images)) < len(images):
        found.problems.note(
            f"{found.place(place)}: {len(images) - len(set(images)):,} lines stand there twice and count once"
        )
    return images


def _tell_broken_links(found: Foreign, folders: set[str]) -> None:
    """Images that are links to nothing would be left out without a word."""
    for folder in sorted(folders):
        for name in filter(is_image, names_in(folder)):
            path = os.path.join(folder, name)
            if os.path.islink(path) and status(path) is None:
                told = (
                    f"is a link to {shown(os.readlink(path))} that leads nowhere; restore the file or remove the link"
                )
                found.problems.add("link", f"{found.place(path)} {told}")


def shared_labels(found: Foreign) -> list[str]:
    """Label files that several images go with, as a.jpg and a.png do."""
    counts = Counter((split, picture.labels) for split in SPLITS for picture in found.pictures[split] if picture.labels)
    return [labels for (_, labels), count in counts.items() if labels and count > 1]


def _of_list(found: Foreign, place: Path, text: str) -> str | None:
    """The image that a line of a list names: from the list's folder, the root, here, or where the root lay once."""
    written = Path(os.path.expanduser(text.replace("\\", "/") if "/" not in text else text))
    bases = (place.parent, found.root, place.parent.parent, Path.cwd())
    candidates = [base / written for base in bases] if not written.is_absolute() else [written]
    parts = [part for part in written.parts if part not in ("..", written.anchor)]
    candidates += [found.root.joinpath(*parts[index:]) for index in range(len(parts))]
    return next((os.path.normpath(path) for path in candidates if is_file(path)), None)


def label_places(image: str) -> list[str]:
    """Where an image's label file is looked for."""
    stem = os.path.splitext(image)[0]
    parts = stem.split(os.sep)
    beside = [f"{stem}.txt"]
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] in FOLDERS:
            return [f"{os.sep.join([*parts[:index], FOLDERS[parts[index]], *parts[index + 1 :]])}.txt", *beside]
    return beside


def with_labels(images: Sequence[str]) -> list[Picture]:
    """The images, each once and in order of their paths, with their label files where these are.

    What lies in a label file's place and is none (a folder, a link that leads nowhere) is told by whoever reads it.

    Raises:
        UserError: the system does not let us see.
    """
    own = sorted(set(images))
    parts = [own[start : start + FILES_AT_ONCE] for start in range(0, len(own), FILES_AT_ONCE)]
    with ThreadPoolExecutor(THREADS) as pool:  # storage answers several questions at once
        found = [picture for part in pool.map(_pictures, parts) for picture in part]
    texts: dict[str, dict[str, str]] = {}  # by folder, as far as images lack labels
    return [picture if picture.labels else Picture(picture.image, _spelt(picture.image, texts)) for picture in found]


def _pictures(images: Sequence[str]) -> list[Picture]:
    def labels(image: str) -> str | None:
        return next((path for path in label_places(image) if status(path) is not None or os.path.islink(path)), None)

    return [Picture(image, labels(image)) for image in images]


def _spelt(image: str, texts: dict[str, dict[str, str]]) -> str | None:
    """An image's label file whose suffix has capitals; `texts` takes what is found in folders."""
    for folder, name in map(os.path.split, label_places(image)):
        if folder not in texts:
            texts[folder] = by_stem(names_in(folder), SUFFIX)
        if found := texts[folder].get(name[: -len(SUFFIX)]):
            return os.path.join(folder, found)
    return None


def orphans(found: Foreign) -> list[str]:
    """Label files that no image of the data set goes with, or goes with instead of another one, as paths."""
    pairs = {
        (os.path.dirname(picture.image), os.path.dirname(label_places(picture.image)[0])) for picture in _all(found)
    }
    pairs |= {
        (os.path.dirname(picture.image), os.path.dirname(picture.labels)) for picture in _all(found) if picture.labels
    }
    known = {picture.labels for picture in _all(found)}
    read = {os.path.splitext(labels)[0] for labels in known if labels}
    left = []
    for images, labels in sorted(pairs):
        texts = [name for name in names_in(labels) if name.lower().endswith(SUFFIX) and name.lower() not in NO_LABELS]
        texts = [name for name in texts if os.path.join(labels, name) not in known]
        stems = {os.path.splitext(name)[0] for name in names_in(images) if is_image(name)} if texts else set()
        left += [
            os.path.join(labels, name)
            for name in texts
            if name[: -len(SUFFIX)] not in stems or os.path.join(labels, name[: -len(SUFFIX)]) in read
        ]
    return left


def _all(found: Foreign) -> Iterator[Picture]:
    return (picture for split in SPLITS for picture in found.pictures[split])
