"""LVIS's protocol: an image is annotated for some classes only, and says for which.

A class with an object in an image is annotated there, and so is each of its `neg_category_ids`, which were looked for
and are not there. Of `not_exhaustive_category_ids` only some objects are annotated. What is detected of any other class
is neither right nor wrong. Categories tell how frequent they are in the training images: rare, common or frequent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from harness.data.checks import Problems, brief, is_whole
from harness.data.columns import Lists

KEYS = NEGATIVE, NOT_EXHAUSTIVE = ("neg_category_ids", "not_exhaustive_category_ids")  # of an image
FREQUENCIES = ("r", "c", "f")  # rare, common, frequent
MOST_RARE, MOST_COMMON = 10, 100  # training images with a class

_Rows = Sequence[Mapping[str, Any]]


def check_protocol(images: _Rows, categories: _Rows, problems: Problems) -> str:
    """By which protocol a file is evaluated, "lvis" where its images have LVIS's keys, else "coco".

    Args:
        images: as the annotation file lists them.
        categories: the same.
        problems: takes what is wrong with these keys and with the categories' frequencies.
    """
    if not any(key in row for row in images for key in KEYS):
        return "coco"
    known = {row["id"] for row in categories if is_whole(row.get("id"))}
    for key in KEYS:
        if without := [row for row in images if key not in row]:
            told = (
                f"has no {key}, like {len(without):,} of {len(images):,} images"
                if len(without) > 1
                else f"has no {key}"
            )
            why = "as in LVIS each image must say which classes were looked for; add it, [] where there are none"
            problems.add("protocol", f"image {brief(without[0].get('id'))} {told}: {why}")
        for row in images:
            if key in row and (trouble := _list_trouble(row[key], key, known)):
                problems.add("protocol", f"image {brief(row.get('id'))} {trouble}")
    _check_frequencies(categories, problems)
    return "lvis"


def _list_trouble(ids: Any, key: str, known: set[int]) -> str:
    """What is wrong with an image's list of categories; empty when nothing is."""
    if not isinstance(ids, list) or not all(map(is_whole, ids)):
        return f"has {key} {brief(ids)}; must be a list of category ids"
    if unknown := [number for number in ids if number not in known]:
        return f"has category {unknown[0]} in its {key}, which is not listed; add it to categories or remove it"
    return ""


def _check_frequencies(categories: _Rows, problems: Problems) -> None:
    without = []
    for row in categories:
        told, count = row.get("frequency"), row.get("image_count")
        if told is not None and told not in FREQUENCIES:
            problems.add("frequency", f"category {brief(row.get('id'))} has frequency {brief(told)}; must be r, c or f")
        elif told is None and count is not None and not (is_whole(count) and count >= 0):
            wrong = f"image_count {brief(count)}; must be a number of training images"
            problems.add("frequency", f"category {brief(row.get('id'))} has {wrong}")
        elif told is None and count is None:
            without.append(row)
    if len(without) == len(categories):
        problems.note("no category has a frequency (r, c or f) or an image_count, so APr, APc and APf are left out")
    elif without:
        told = f"{len(without):,} of {len(categories):,} categories have no frequency (r, c or f) and no image_count"
        problems.add("frequency", f"{told}: category {brief(without[0].get('id'))}; add one")


def note_contradictions(images: _Rows, annotations: _Rows, problems: Problems) -> None:
    """Note classes that are in an image whose list says they are not.

    Args:
        images: checked, with both lists.
        annotations: checked.
        problems: takes the note.
    """
    negative = {row["id"]: frozenset(row[NEGATIVE]) for row in images if row[NEGATIVE]}
    pairs = ((row["image_id"], row["category_id"]) for row in annotations)
    found = dict.fromkeys(pair for pair in pairs if pair[1] in negative.get(pair[0], ()))
    if found:
        image, category = next(iter(found))
        told = f"{len(found):,} times an image has objects of a class that its {NEGATIVE} say is not there"
        problems.note(f"{told} (image {image}, category {category} is the first): the objects count")


def frequencies_of(categories: _Rows) -> list[str]:
    """r, c or f of each category, checked before; empty texts where the file tells nothing."""
    return [_frequency(row) for row in categories]


def _frequency(row: Mapping[str, Any]) -> str:
    if (told := row.get("frequency")) is not None:
        return str(told)
    if (count := row.get("image_count")) is None:
        return ""
    return "r" if count <= MOST_RARE else "c" if count <= MOST_COMMON else "f"


def other_frequencies(here: Sequence[str], there: Sequence[str]) -> list[int]:
    """Labels of the classes of which two files tell different frequencies; a file that tells none is no other."""
    pairs = enumerate(zip(here, there, strict=True))
    return [label for label, (own, other) in pairs if own and other and own != other]


def lists_of(images: _Rows, label: Mapping[int, int]) -> dict[str, np.ndarray]:
    """Columns of both of the images' lists, with labels for category ids (see `Lists`)."""
    columns: dict[str, np.ndarray] = {}
    for name, key in zip(("negative", "not_exhaustive"), KEYS, strict=True):
        lists = Lists.of([label[number] for number in row[key]] for row in images)
        columns |= {f"{name}s": lists.values, f"{name}_ends": lists.ends}
    return columns


def is_federated(truth: Mapping[str, Any]) -> bool:
    """Whether COCO's JSON has LVIS's keys, which all images of a checked file have or none."""
    return bool(truth["images"]) and NEGATIVE in truth["images"][0]


# ---- what counts --------------------------------------------------------------------------------------------------


class Judged:
    """Of which classes detections count in which image.

    Args:
        truth: COCO's JSON with LVIS's keys.
    """

    def __init__(self, truth: Mapping[str, Any]) -> None:
        self._images, self._categories = (_sorted_ids(truth[name]) for name in ("images", "categories"))
        found = [(row["image_id"], row["category_id"]) for row in truth["annotations"]]
        found += [(row["id"], number) for row in truth["images"] for number in row[NEGATIVE]]
        self._judged = np.unique(self._codes(*_columns(found)))
        partly = [(row["id"], number) for row in truth["images"] for number in row[NOT_EXHAUSTIVE]]
        self._partly = np.unique(self._codes(*_columns(partly)))

    def counts(self, image_ids: np.ndarray, category_ids: np.ndarray) -> np.ndarray:
        """[N] bool, whether a detection of this class in this image is right or wrong; ids [N] each."""
        return np.isin(self._codes(image_ids, category_ids), self._judged)

    def is_partly(self, image_ids: np.ndarray, category_ids: np.ndarray) -> np.ndarray:
        """[N] bool, whether only some objects of this class are annotated in this image."""
        return np.isin(self._codes(image_ids, category_ids), self._partly)

    def images_of(self, category_ids: np.ndarray) -> np.ndarray:
        """[I'] sorted ids of the images in which one of these classes counts."""
        places = np.searchsorted(self._categories, category_ids)
        images, classes = np.divmod(self._judged, len(self._categories))
        return self._images[np.unique(images[np.isin(classes, places)])]

    def _codes(self, image_ids: np.ndarray, category_ids: np.ndarray) -> np.ndarray:
        """[N] a number for each pair, -1 where one of both is unknown."""
        image, category = _places(self._images, image_ids), _places(self._categories, category_ids)
        return np.where((image < 0) | (category < 0), -1, image * len(self._categories) + category)


def _sorted_ids(rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
    return np.sort(np.array([row["id"] for row in rows], np.int64))


def _columns(pairs: list[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, np.int64).reshape(-1, 2).T


def _places(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """[N] where each id stands among the known, sorted ones; -1 where it does not."""
    at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[at] == ids, at, -1)
